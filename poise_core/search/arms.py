"""Selectors of the control arms, with which the acquisition is compared at the same budget.

The arms have the same roles, gate, trainings and seeds; each differs from the evolution in one thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from poise_core.search.nodes import Array, NodeRecord, NodeTable
from poise_core.search.selection import NodeScore, Selection, best_row


@dataclass(frozen=True)
class GreedySelector:
    """Every child from the node with the best raw Overall: hill climbing on unshrunken, noisy scores."""

    def select(self, nodes: Sequence[NodeRecord], count: int, seed: int) -> list[Selection]:
        """See ``poise_core.search.selection.ParentSelector``."""
        table = NodeTable.of(nodes)
        if not table.scored.any():
            return []
        row = best_row(table.ids, np.where(table.scored, table.raw, -np.inf), seed)
        return _all_from(table, row, table.raw, "overall", count, "has the best Overall so far")


@dataclass(frozen=True)
class RootSelector:
    """Every child from the root: best of N independent children of the baseline."""

    def select(self, nodes: Sequence[NodeRecord], count: int, seed: int) -> list[Selection]:
        """See ``poise_core.search.selection.ParentSelector``."""
        table = NodeTable.of(nodes)
        roots = table.scored & (table.depth == 0)
        if not roots.any():
            return []
        row = int(np.flatnonzero(roots)[0])
        return _all_from(table, row, np.where(roots, 1.0, np.nan), "root", count, "is the baseline")


def _all_from(table: NodeTable, row: int, totals: Array, term: str, count: int, why: str) -> list[Selection]:
    scores = tuple(
        NodeScore(identity, total if total == total else None, {term: total} if total == total else {})
        for identity, total in zip(table.ids, totals.tolist(), strict=True)
    )
    reason = f"{table.names[row]} {why}; this arm takes every child from it."
    return [Selection(table.ids[row], slot, slot, reason, scores) for slot in range(count)]
