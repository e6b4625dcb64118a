"""The models that are trained: where they lie, and loading them."""
