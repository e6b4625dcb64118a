"""The models that are trained: finding, loading and saving them, and the shipped weights."""
