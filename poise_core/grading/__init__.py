"""Judging completions against gold answers: graders, and the pool of processes in which they run."""

from poise_core.grading.graders import OUTCOMES, Row, Verdict
from poise_core.grading.pool import GradingPool, grade, outcome_counts

__all__ = ["OUTCOMES", "GradingPool", "Row", "Verdict", "grade", "outcome_counts"]
