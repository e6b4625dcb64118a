"""Numbers as text: how an estimate is printed with its limits and its seeds, and how lengths of time are.

All code that prints an Overall, a difference or a share with limits uses this module, so that a number reads the same in a
terminal, on a page, in a message of the run and in MLflow.
"""

from __future__ import annotations

import math

from poise_core.evidence.intervals import Interval


def counted_seeds(count: int) -> str:
    """``1 seed``, ``3 seeds``."""
    return "1 seed" if count == 1 else f"{count} seeds"


def format_limits(estimate: float, low: float, high: float, form: str = ".1f") -> str:
    """``52.4 [50.1, 54.7]``; of any number with finite limits, each printed by the format specification ``form``."""
    return f"{estimate:{form}} [{low:{form}}, {high:{form}}]"


def format_interval(interval: Interval | None, *, signed: bool = False) -> str:
    """``52.4 [50.1, 54.7]``; one seed has no limits, and says so.

    Args:
        interval: percent, or percent points; ``-`` stands for None.
        signed: with a plus, as differences are printed.
    """
    if interval is None:
        return "-"
    form = "+.1f" if signed else ".1f"
    if not math.isfinite(interval.low):
        return f"{interval.estimate:{form}} (one seed)"
    return format_limits(interval.estimate, interval.low, interval.high, form)


def format_overall(overall: Interval) -> str:
    """``52.4 [50.1, 54.7], 3 seeds``, for where no column says how many; one seed without limits says that too."""
    if not math.isfinite(overall.low):
        return f"{overall.estimate:.1f}, 1 seed, no interval"
    return f"{format_interval(overall)}, {counted_seeds(overall.seeds)}"


def spell_interval(interval: Interval, form: str = "+.2f") -> str:
    """``+1.20 (95 % interval -0.40 to +2.80, 3 seeds)``, for running text such as a reflection.

    Args:
        interval: at the level of 95 %.
        form: format specification of its three numbers; metrics of a training need more digits than a percentage.
    """
    seeds = counted_seeds(interval.seeds)
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{interval.estimate:{form}} (no interval: {seeds})"
    return f"{interval.estimate:{form}} (95 % interval {interval.low:{form}} to {interval.high:{form}}, {seeds})"


def short_interval(interval: Interval, *, signed: bool = True) -> str:
    """``+1.2 [-0.4,+2.8]``, for tables where every character counts; an open limit is a question mark."""
    form = "+.1f" if signed else ".1f"
    if not math.isfinite(interval.low):
        return f"{interval.estimate:{form}} [?]"
    return f"{interval.estimate:{form}} [{interval.low:{form}},{interval.high:{form}}]"


def format_level(level: float) -> str:
    """``95%``, ``99.17%``, ``99.9969%``: a confidence level, so that two digits of what it may miss are seen."""
    missed = 100.0 * (1.0 - level)
    digits = max(1 - math.floor(math.log10(missed)), 0) if missed > 0 else 0
    return f"{100.0 * level:.{digits}f}".rstrip("0").rstrip(".") + "%" if digits else f"{100.0 * level:.0f}%"


def format_duration(seconds: float) -> str:
    """``2 h 05 min``, ``17 min``, or ``12 s`` below half a minute."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def format_tokens(tokens: float) -> str:
    """``830``, ``12 k``, ``340 k``, ``1.25 M``."""
    if tokens >= 999_500:
        return f"{tokens / 1e6:.2f} M"
    return f"{tokens / 1000:.0f} k" if tokens >= 10_000 else f"{tokens:,.0f}"
