"""Many streams of one bundle: each in its own order, in turn, and several in one pass."""
