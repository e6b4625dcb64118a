"""Prompts with verifiable answers, and the splits of their problems."""

from poise_core.environments.base import Environment, Outcome, Problem, Split, split_of
from poise_core.environments.registry import get_environment

__all__ = ["Environment", "Outcome", "Problem", "Split", "get_environment", "split_of"]
