"""A candidate file: its identity, and loading it."""
