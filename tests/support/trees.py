"""Small made-up trees for the tests of the search."""

from __future__ import annotations

import math
from typing import Any

from poise_core.evidence.intervals import Interval
from poise_core.search.nodes import NodeRecord


def node(
    name: str,
    overall: float | None = None,
    parents: tuple[str, ...] = (),
    half: float = 0.0,
    seeds: int = 3,
    **extra: Any,
) -> NodeRecord:
    interval = None if overall is None else Interval(overall, overall - half, overall + half, seeds)
    generation = extra.pop("generation", 1 if parents else 0)
    return NodeRecord(name, name.upper(), parents, generation, interval, **extra)


def lucky(name: str, overall: float, parents: tuple[str, ...] = (), **extra: Any) -> NodeRecord:
    """One seed of three: nothing says how much of it is luck."""
    return NodeRecord(name, name.upper(), parents, 1, Interval(overall, -math.inf, math.inf, 1), **extra)
