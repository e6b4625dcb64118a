"""The tree as the search sees it: one record per candidate, and the same as arrays.

Selection is arithmetic over arrays of all nodes (``NodeTable``), so that it stays fast with a million of them. A node
without a score is never a parent and never counts as zero; it still counts as a child of its parent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from poise_core.evidence.intervals import Interval
from poise_core.search.shrinkage import PooledVariance, pooled_variance, seed_variance, shrink

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NodeRecord:
    """One candidate of the tree."""

    candidate_id: str
    name: str
    parent_ids: tuple[str, ...] = ()
    generation: int = 0
    overall: Interval | None = None  # None: failed, rejected or not yet measured
    benchmarks: Mapping[str, float] = field(default_factory=dict)  # percent, mean over seeds; may lack entries
    mechanisms: Mapping[str, str] = field(default_factory=dict)  # slot -> choice
    seed_overalls: tuple[float, ...] = ()  # Overall of every seed, for the noise that is not shared between candidates
    seed_benchmarks: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # percent, one number per seed
    sketch: tuple[float, ...] = ()  # of the behaviour, from the gate's fingerprint; empty where there is none
    stopped: bool = False  # before it had a score, by the ladder
    forecast: float | None = None  # Overall of a stopped one as its proxy's dynamics forecast it, percent

    @property
    def scored(self) -> bool:
        """Whether there is a finite Overall to compare."""
        return self.overall is not None and math.isfinite(self.overall.estimate)


@dataclass(frozen=True)
class NodeTable:
    """All nodes as arrays; n nodes, m benchmarks, g slots of mechanisms, f numbers of a behaviour's sketch."""

    ids: Sequence[str]
    names: Sequence[str]
    parent: Indices  # (n,) row of the primary parent; -1 for a root, an unknown parent and a loop of parents
    raw: Array  # (n,) Overall in percent; NaN where there is none
    seeds: Array  # (n,) seeds behind it
    variance: float | None  # of Overall between seeds; None where no node has two seeds
    benchmarks: Array  # (n, m) percent, shrunken; what was not measured is the mean of those that were
    mechanisms: Indices  # (n, g) code of the choice; -1 where the node does not name the slot
    sketch: Array  # (n, f) NaN rows where there is none
    stopped: npt.NDArray[np.bool_] | None = None  # (n,) which were stopped before they had a score; None: none was
    forecast: Array | None = None  # (n,) Overall that was forecast of them, percent; NaN where there is none

    @classmethod
    def of(cls, nodes: Sequence[NodeRecord]) -> NodeTable:
        """From records, in the order given."""
        rows = {node.candidate_id: row for row, node in enumerate(nodes)}
        parent = np.array([rows.get(node.parent_ids[0], -1) if node.parent_ids else -1 for node in nodes], np.int64)
        raw, seeds, variance = overalls(nodes)
        return cls(
            ids=[node.candidate_id for node in nodes],
            names=[node.name for node in nodes],
            parent=without_loops(parent),
            raw=raw,
            seeds=seeds,
            variance=variance,
            benchmarks=_benchmark_matrix(nodes, np.isfinite(raw).tolist()),
            mechanisms=_mechanism_codes(nodes),
            sketch=_sketches(nodes),
            stopped=np.array([node.stopped and not node.scored for node in nodes], np.bool_),
            forecast=np.array([math.nan if node.forecast is None else node.forecast for node in nodes], np.float64),
        )

    @property
    def size(self) -> int:
        """How many nodes."""
        return len(self.parent)

    @cached_property
    def scored(self) -> npt.NDArray[np.bool_]:
        """(n,) which nodes have a score, and so may be parents."""
        return np.isfinite(self.raw)

    @cached_property
    def shrunken(self) -> Array:
        """(n,) empirical-Bayes estimate of Overall; NaN without a score. See ``poise_core.search.shrinkage.shrink``."""
        return shrink(self.raw, self.seeds, self.variance)

    @cached_property
    def presumed(self) -> Array:
        """(n,) the shrunken score; of a stopped node what stands for it; NaN where there is neither.

        For a stopped node that is its forecast. Without one it is the lower quartile of the scored nodes, and its parent's
        score where that is lower: it was stopped as unlikely to be better than its parent, and by how much it is worse is
        not known.
        """
        if self.stopped is None or not self.stopped.any() or not self.scored.any():
            return self.shrunken
        quartile = float(np.quantile(self.shrunken[self.scored], 0.25))
        above = np.where(self.parent >= 0, self.shrunken[np.maximum(self.parent, 0)], np.nan)
        unknown = np.fmin(quartile, above)
        forecast = unknown if self.forecast is None else np.where(np.isfinite(self.forecast), self.forecast, unknown)
        return np.where(self.stopped & ~self.scored, forecast, self.shrunken)

    @cached_property
    def depth(self) -> Indices:
        """(n,) steps to the root."""
        return _depths(self.parent)[0]

    @cached_property
    def levels(self) -> list[Indices]:
        """Rows by depth, the roots first."""
        order = np.argsort(self.depth, kind="stable")
        bounds = np.cumsum(np.bincount(self.depth)) if self.size else np.array([], np.int64)
        return list(np.split(order, bounds[:-1])) if self.size else []

    @cached_property
    def children(self) -> Indices:
        """(n,) how many children each node has had, failed ones included."""
        return np.bincount(self.parent[self.parent >= 0], minlength=self.size)

    def ancestry(self, row: int) -> npt.NDArray[np.bool_]:
        """(n,) whether each node is ``row`` or an ancestor of it."""
        path = np.zeros(self.size, np.bool_)
        while row >= 0:
            path[row] = True
            row = int(self.parent[row])
        return path

    def kinship(self, row: int) -> Array:
        """(n,) Jaccard similarity of each node's set of ancestors with that of ``row``; every node is its own ancestor.

        It is 1 for the node itself, 0 for a node of another tree, (d + 1) / (d + 2) between a node at depth d and its child.
        """
        path = self.ancestry(row)
        common = np.zeros(self.size, np.int64)
        for level in self.levels:
            above = self.parent[level]
            common[level] = path[level] + np.where(above >= 0, common[np.maximum(above, 0)], 0)
        either = (self.depth + 1) + (self.depth[row] + 1) - common
        return common / either


def shrunken_scores(nodes: Sequence[NodeRecord]) -> dict[str, float]:
    """``poise_core.search.shrinkage.shrink`` of every scored node's Overall, by candidate id."""
    raw, seeds, variance = overalls(nodes)
    values = shrink(raw, seeds, variance).tolist()
    return {node.candidate_id: value for node, value in zip(nodes, values, strict=True) if value == value}


def leaders(nodes: Sequence[NodeRecord], counts: Sequence[int]) -> list[tuple[NodeRecord, float] | None]:
    """The node with the highest of the ``shrunken_scores`` of the first nodes, and that score, for every number of them that is
    asked for; None without any.

    Records are read once, so that a run may be looked at after each of its generations.
    """
    found = _Overalls.of(nodes)
    best: list[tuple[NodeRecord, float] | None] = []
    for count in counts:
        values = shrink(found.raw[:count], found.seeds[:count], found.variance(count))
        first = int(np.argmax(np.where(np.isfinite(values), values, -np.inf))) if count else 0
        best.append((nodes[first], float(values[first])) if np.isfinite(values[first : first + 1]).any() else None)
    return best


def overalls(nodes: Sequence[NodeRecord]) -> tuple[Array, Array, float | None]:
    """(n,) Overall, NaN where there is none; (n,) seeds behind it, at least 1; the variance between seeds."""
    found = _Overalls.of(nodes)
    return found.raw, found.seeds, found.variance(len(nodes))


@dataclass(frozen=True)
class _Overalls:
    """What the shrinkage of the first nodes of a list rests on, however many these are."""

    raw: Array  # (n,) Overall, NaN where there is none
    seeds: Array  # (n,) seeds behind it, at least 1
    pooled: PooledVariance
    intervals: Sequence[tuple[int, Interval]]  # row and Overall of the nodes with two seeds or more

    @classmethod
    def of(cls, nodes: Sequence[NodeRecord]) -> _Overalls:
        several = [(row, o) for row, node in enumerate(nodes) if node.scored and (o := node.overall) and o.seeds > 1]
        return cls(
            np.array([_estimate(node) for node in nodes], np.float64),
            np.array([max(node.overall.seeds, 1) if node.overall else 1 for node in nodes], np.float64),
            PooledVariance.of([node.seed_overalls if node.scored else () for node in nodes]),
            several,
        )

    def variance(self, count: int) -> float | None:
        """Between seeds, of the first ``count`` nodes; from their intervals where they do not name their seeds."""
        own = self.pooled.of_first(count)
        if own is not None:
            return own
        return seed_variance([overall for row, overall in self.intervals if row < count])


def without_loops(parent: Indices) -> Indices:
    """The same parents, but every node that reaches no root becomes one itself."""
    lost = _depths(parent)[1]
    return np.where(lost, -1, parent)


def _depths(parent: Indices) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Steps to the root by pointer doubling, O(n log depth); and which nodes never arrive at one."""
    size = len(parent)
    above = np.where(parent >= 0, parent, np.arange(size))
    depth = (parent >= 0).astype(np.int64)
    for _ in range(max(size, 1).bit_length() + 1):
        if not depth[above].any():
            break
        depth += depth[above]
        above = above[above]
    return depth, parent[above] >= 0 if size else np.zeros(0, np.bool_)


def _estimate(node: NodeRecord) -> float:
    return node.overall.estimate if node.overall is not None and node.scored else math.nan


def _benchmark_matrix(nodes: Sequence[NodeRecord], scored: Sequence[bool]) -> Array:
    """Each benchmark shrunken by its own noise; a missing value becomes the mean of those that were measured."""
    names = sorted({name for node in nodes for name in node.benchmarks})
    matrix = np.full((len(nodes), len(names)), np.nan)
    for column, name in enumerate(names):
        values = np.array(
            [node.benchmarks.get(name, math.nan) if ok else math.nan for node, ok in zip(nodes, scored, strict=True)]
        )
        values[~np.isfinite(values)] = np.nan
        per_seed = [node.seed_benchmarks.get(name, ()) for node in nodes]
        seeds = np.array([max(len(one), 1) for one in per_seed], np.float64)
        shrunken = shrink(values, seeds, pooled_variance(per_seed))
        known = np.isfinite(shrunken)
        matrix[:, column] = np.where(known, shrunken, shrunken[known].mean() if known.any() else np.nan)
    return matrix[:, np.isfinite(matrix).all(axis=0)] if len(nodes) else matrix


def _mechanism_codes(nodes: Sequence[NodeRecord]) -> Indices:
    slots = sorted({slot for node in nodes for slot in node.mechanisms})
    codes = np.full((len(nodes), len(slots)), -1, np.int64)
    for column, slot in enumerate(slots):
        known: dict[str, int] = {}
        for row, node in enumerate(nodes):
            if slot in node.mechanisms:
                codes[row, column] = known.setdefault(node.mechanisms[slot], len(known))
    return codes


def _sketches(nodes: Sequence[NodeRecord]) -> Array:
    width = max((len(node.sketch) for node in nodes), default=0)
    matrix = np.full((len(nodes), width), np.nan)
    for row, node in enumerate(nodes):
        if len(node.sketch) == width and width and all(map(math.isfinite, node.sketch)):
            matrix[row] = node.sketch
    return matrix
