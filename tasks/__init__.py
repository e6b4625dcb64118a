"""Prefect tasks: the stages of :mod:`poise_core.evolution` with retries, names, tags and artifacts. Nothing else is here."""
