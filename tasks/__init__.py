"""Prefect tasks: the stages of :mod:`poise_core.evolution` with retries, names and artifacts. Nothing else is here."""
