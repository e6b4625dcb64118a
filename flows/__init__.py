"""Prefect flows: what runs, in which order, and what runs side by side."""
