"""The interface of parent selection, and the sequential pick that spreads parents over lineages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from poise_core.search.nodes import Array, NodeRecord, NodeTable


@dataclass(frozen=True)
class NodeScore:
    """How one node was judged in one generation; ``total`` is None where the node could not be a parent."""

    candidate_id: str
    total: float | None
    terms: Mapping[str, float]


@dataclass(frozen=True)
class Selection:
    """One chosen parent."""

    candidate_id: str
    slot: int  # number of the child slot in its generation, from 0
    repeat: int  # how many earlier slots of this generation hold the same parent; feeds the proposer's seed
    reason: str
    scores: tuple[NodeScore, ...]  # of every node, the same tuple in every selection of a generation


class ParentSelector(Protocol):
    """Chooses the parents of one generation."""

    def select(self, nodes: Sequence[NodeRecord], count: int, seed: int) -> list[Selection]:
        """``count`` selections, or none where no node has a score; equal input and seed give equal output."""
        ...


@dataclass(frozen=True)
class Pick:
    """The node that the sequential pick has put into one child slot."""

    row: int
    repeat: int
    rank: int  # of the node's total among all, from 1
    penalty: float  # taken off for the ancestry that it shares with earlier picks


def pick_spread(table: NodeTable, totals: Array, count: int, penalty: float, seed: int) -> list[Pick]:
    """The best node; then again and again the best of total - penalty * (largest kinship to an earlier pick).

    Nodes are distinct while there are enough; with fewer than ``count`` the list starts again from its beginning.
    Ties are broken by a hash of seed and id, so that they depend on neither order nor name.

    Args:
        table: of n nodes.
        totals: (n,) NaN where a node cannot be a parent.
        count: slots to fill.
        penalty: see ``NodeTable.kinship``.
        seed: for ties.
    """
    eligible = np.isfinite(totals)
    shared = np.zeros(table.size)
    picked: list[Pick] = []
    taken = np.zeros(table.size, np.bool_)
    for _ in range(min(count, int(eligible.sum()))):
        adjusted = np.where(eligible & ~taken, totals - penalty * shared, -np.inf)
        row = best_row(table.ids, adjusted, seed)
        rank = 1 + int((totals[eligible] > totals[row]).sum())
        picked.append(Pick(row, 0, rank, penalty * float(shared[row])))
        taken[row] = True
        if penalty:
            shared = np.maximum(shared, table.kinship(row))
    again = [picked[slot % len(picked)] for slot in range(len(picked), count)] if picked else []
    return [Pick(p.row, slot // len(picked), p.rank, p.penalty) for slot, p in enumerate([*picked, *again])]


def best_row(ids: Sequence[str], values: Array, seed: int) -> int:
    """Row of the largest value; of values that agree to nine digits, the one whose hash with the seed is least."""
    best = np.flatnonzero(values >= values.max() - 1e-9)
    return min(map(int, best), key=lambda row: tie_break(seed, ids[row]))


def tie_break(seed: int, candidate_id: str) -> str:
    """A hash of seed and id, by which equal values are ordered."""
    return hashlib.sha256(f"{seed}:{candidate_id}".encode()).hexdigest()
