"""Recorded tables of made-up scores."""

from __future__ import annotations

import random

import numpy as np

from poise_core.archive.cells import CellRow, TableHead
from poise_core.experiments.surrogate import Cells
from poise_core.mechanisms.operators import random_composition


def compositions_that_pay(count: int) -> Cells:
    """A sum over sequences costs 20 points; a higher clip pays 5, but only without a KL term."""
    rng, rows = np.random.default_rng(0), []
    for cell in range(count):
        one = random_composition(random.Random(f"pick {cell}"))
        of = one.choices
        overall = (
            70.0 - 20.0 * (of["aggregation"] == "sequence-sum") + 5.0 * (of["clip"] == "higher" and of["kl"] == "none")
        )
        overall += float(rng.normal())
        rows.append(
            CellRow(cell, "random", f"C-{cell:03d}", of, one.parameters, 0, overall, {"greedy": overall}, 10, 4)
        )
    return Cells.of(TableHead("made-up", "f00d", {"greedy": 1.0}, 0, 3, 1, 1), rows)
