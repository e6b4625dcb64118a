"""Numbers as the views print them, and views as text."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence

from rich.console import Console, RenderableType

from poise_core.evidence.intervals import Interval, counted_seeds

STYLES = {
    "better": "green",
    "worse": "red",
    "not distinguishable": "dim",
    "baseline": "cyan",
    "champion candidate": "bold green",
    "replicated": "bold green",
    "replicated, undeclared": "yellow",
    "refuted": "yellow",
}
_BARS = "▁▂▃▄▅▆▇█"


def format_interval(interval: Interval | None, *, signed: bool = False) -> str:
    """``52.4 [50.1, 54.7]``; one seed has no limits, and says so."""
    if interval is None:
        return "-"
    form = "+.1f" if signed else ".1f"
    if not math.isfinite(interval.low):
        return f"{interval.estimate:{form}} (one seed)"
    return f"{interval.estimate:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def format_overall(overall: Interval) -> str:
    """``52.4 [50.1, 54.7], 3 seeds``, for where no column says how many; one seed without limits says that too."""
    if not math.isfinite(overall.low):
        return f"{overall.estimate:.1f}, 1 seed, no interval"
    return f"{format_interval(overall)}, {counted_seeds(overall.seeds)}"


def fenced(view: RenderableType, width: int) -> str:
    """A view as a Markdown code block: what a terminal of ``width`` columns shows, without colours."""
    page = Console(file=io.StringIO(), width=width, record=True)
    page.print(view)
    lines = page.export_text().rstrip().splitlines()
    return "\n".join(["```", *(line.rstrip() for line in lines), "```"])


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The curve in block characters, lowest to highest of its own finite values; ``!`` where a value is not finite.

    Longer curves are cut into ``width`` pieces, each shown by its mean.
    """
    if not values:
        return ""
    pieces = min(width, len(values))
    edges = [round(piece * len(values) / pieces) for piece in range(pieces + 1)]
    means = [_mean(values[start:stop]) for start, stop in itertools.pairwise(edges)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] if math.isfinite(mean) else "!" for mean in means)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
