"""Trainings that collapse, and how often they can do so where few or none were seen to.

A mean over few seeds hides a training that goes wrong once in ten: in most sets of three seeds it is not there. What can be said
from n trainings of which k collapsed is an upper limit of the chance (Clopper and Pearson 1934, Biometrika 26, one-sided):

    p with P(at most k of n collapse | p) = 1 - level,  which for k = 0 is  1 - (1 - level)^(1/n)

Ten trainings without a collapse leave up to 26 % at 95 %, sixteen 17 %.
"""

from __future__ import annotations

from collections.abc import Mapping

from scipy.special import betaincinv


def collapse_bound(collapsed: int, trainings: int, level: float = 0.95) -> float:
    """Upper confidence limit of the chance that a training collapses, 0 to 1; 1 where nothing was trained.

    Args:
        collapsed: trainings that did, 0 to ``trainings``.
        trainings: independent trainings, each with a seed of its own.
        level: one-sided confidence in (0, 1).

    Raises:
        ValueError: more collapsed than were trained, or the level is none.
    """
    if not 0 <= collapsed <= trainings:
        raise ValueError(f"{collapsed} of {trainings} trainings cannot have collapsed")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    if collapsed == trainings:
        return 1.0
    return float(betaincinv(collapsed + 1, trainings - collapsed, level))


def collapsed_seeds(overalls: Mapping[int, float], reference: float, points: float) -> list[int]:
    """Seeds whose Overall lies more than ``points`` percent points below ``reference``, the baseline's mean; in order."""
    return sorted(seed for seed, overall in overalls.items() if overall < reference - points)


def describe_collapses(collapsed: int, trainings: int, level: float = 0.95) -> str:
    """``0 of 10 trainings collapsed, so the chance is at most 26 %``."""
    return (
        f"{collapsed} of {trainings} trainings collapsed, so the chance is at most "
        f"{100 * collapse_bound(collapsed, trainings, level):.0f} %"
    )
