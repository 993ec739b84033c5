"""The hot path: Cython, no GIL, no Python object per packet. Knows nothing of the rooms above it."""
