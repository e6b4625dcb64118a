"""Confinement of processes that run candidate code."""
