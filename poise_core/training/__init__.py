"""Policies, sampling and training."""
