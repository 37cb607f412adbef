"""On a Ray cluster of two nodes, in an environment of its own: make ray."""
