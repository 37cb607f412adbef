"""The check of a bundle whose model does not fit in memory: graph by graph, and of the LLM layer by layer."""
