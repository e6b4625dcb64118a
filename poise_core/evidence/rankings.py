"""How well one number ranks candidates by another: Spearman's correlation with an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scipy import stats

from poise_core.evidence.format import format_limits

FEWEST = 4
"""Pairs below which an interval means nothing (its standard error is 1 / sqrt(n - 3))."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho over ``pairs`` candidates; NaN where there are too few, or where all values tie."""

    rho: float
    low: float
    high: float
    pairs: int

    @property
    def predicts(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low > 0.0

    def sentence(self) -> str:
        """For people: the correlation, and whether it is shown to predict."""
        if not math.isfinite(self.rho):
            return f"not measurable with {self.pairs} candidates"
        verdict = "" if self.predicts else "; not shown to predict"
        shown = format_limits(self.rho, self.low, self.high, ".2f")
        return f"{shown} over {self.pairs} candidates{verdict}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        numbers = {name: getattr(self, name) for name in ("rho", "low", "high")}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {**finite, "pairs": self.pairs, "predicts": self.predicts}


def rank_correlation(one: Mapping[str, float], other: Mapping[str, float], level: float = 0.95) -> Correlation:
    """Spearman's rho over the candidates that have both numbers, finite.

    The interval is Fisher's z with variance (1 + rho^2 / 2) / (n - 3) (Bonett and Wright 2000, Psychometrika 65, eq. 4).
    """
    shared = sorted(name for name in one if name in other and math.isfinite(one[name]) and math.isfinite(other[name]))
    count = len(shared)
    mine, theirs = [one[name] for name in shared], [other[name] for name in shared]
    if count < FEWEST or len(set(mine)) < 2 or len(set(theirs)) < 2:
        return Correlation(math.nan, math.nan, math.nan, count)
    rho = float(stats.spearmanr(mine, theirs).statistic)
    clipped = max(min(rho, 1.0 - 1e-9), -1.0 + 1e-9)
    half = float(stats.norm.ppf(0.5 + level / 2)) * math.sqrt((1.0 + rho**2 / 2.0) / (count - 3))
    centre = math.atanh(clipped)
    return Correlation(rho, math.tanh(centre - half), math.tanh(centre + half), count)
