"""Shared by all views for a terminal: colours of verdicts and states, plain tables, curves in block characters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rich.table import Table

STYLES = {
    "better": "green",
    "worse": "red",
    "not distinguishable": "dim",
    "baseline": "cyan",
    "champion candidate": "bold green",
    "replicated": "bold green",
    "replicated, undeclared": "yellow",
    "refuted": "yellow",
    "holds": "green",
    "does not hold": "red",
    "not measured": "yellow",
}
_BARS = "▁▂▃▄▅▆▇█"


def plain_table(title: str) -> Table:
    """Narrow gaps and no lines: a row with every cell filled must fit 100 columns and leave the name room."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


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
