"""Prefect tasks: the stages of ``poise_core.evolution`` with retries, names and artifacts. Nothing else is here."""
