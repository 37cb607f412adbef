"""Many streams of one bundle: each in order, in turn with the others, and several in one pass."""
