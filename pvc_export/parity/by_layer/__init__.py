"""Check of a bundle whose model does not fit in memory: graph by graph, and the LLM layer by layer."""
