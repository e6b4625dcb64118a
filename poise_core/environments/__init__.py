"""Prompts with verifiable answers, and the splits of their problems."""

from poise_core.environments.base import Environment, Outcome, Problem, Split, split_of, verify_all
from poise_core.environments.registry import benchmark_environment, get_environment

__all__ = [
    "Environment",
    "Outcome",
    "Problem",
    "Split",
    "benchmark_environment",
    "get_environment",
    "split_of",
    "verify_all",
]
