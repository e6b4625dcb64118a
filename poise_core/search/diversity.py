"""U_div: how much a node differs from the others in its mechanisms and in its behaviour."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from poise_core.search.nodes import Array, Indices, NodeTable

SAMPLE = 256
"""How many nodes distances are taken to at most; of more nodes, a random sample that depends on their number alone."""

CHUNK = 20_000


def novelty(table: NodeTable, neighbours: int) -> Array:
    """Mean distance to the nearest scored nodes, divided by the largest such mean (Lehman and Stanley 2011, eq. 1).

    The distance of two nodes is the mean of two parts, each in [0, 1]: the share of mechanism slots on which they differ
    (a slot that only one of them names differs), and the relative distance |a - b| / max(|a|, |b|) of the behaviour
    sketches that the admission gate took (at most 1). Where one of the two nodes lacks a part, the other part stands alone.

    With more than ``SAMPLE`` scored nodes, neighbours are looked for in a random sample of that many.

    Args:
        table: of n nodes.
        neighbours: how many nearest nodes count.

    Returns:
        (n,) in [0, 1]; NaN for nodes without a score; 0 for all where nodes cannot be told apart.
    """
    result = np.full(table.size, np.nan)
    rows = np.flatnonzero(table.scored)
    if len(rows) < 2:
        result[rows] = 0.0
        return result
    sample = rows
    if len(rows) > SAMPLE:
        sample = np.sort(np.random.default_rng(len(rows)).choice(rows, SAMPLE, replace=False))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        distance = distances(table, part, sample)
        distance[part[:, None] == sample[None, :]] = np.inf
        nearest = min(neighbours, len(sample) - 1)
        result[part] = np.partition(distance, nearest - 1, axis=1)[:, :nearest].mean(axis=1)
    largest = float(np.nanmax(result))
    return result / largest if largest > 1e-12 else np.where(np.isnan(result), np.nan, 0.0)


def distances(table: NodeTable, rows: Indices, others: Indices) -> Array:
    """(len(rows), len(others)) see ``novelty``; 0 where two nodes have no part in common."""
    structure = _share_of_different_slots(table.mechanisms[rows], table.mechanisms[others])
    behaviour = _relative_distance(table.sketch[rows], table.sketch[others])
    known = np.isfinite(structure).astype(np.float64) + np.isfinite(behaviour)
    total = np.nan_to_num(structure) + np.nan_to_num(behaviour)
    return total / np.maximum(known, 1.0)


def _share_of_different_slots(first: Indices, second: Indices) -> Array:
    """NaN where a node names no slot at all: its file is outside the catalogue, which is no distance."""
    if first.shape[1] == 0:
        return np.full((len(first), len(second)), np.nan)
    kinds = np.maximum(first.max(axis=0, initial=0), second.max(axis=0, initial=0)) + 1
    equal = _one_hot(first, kinds) @ _one_hot(second, kinds).T
    named, others = (first >= 0).astype(np.float32), (second >= 0).astype(np.float32)
    either = named.sum(axis=1)[:, None] + others.sum(axis=1)[None, :] - named @ others.T
    blank = (named.sum(axis=1) == 0)[:, None] | (others.sum(axis=1) == 0)[None, :]
    return np.where(blank, np.nan, 1.0 - equal / np.maximum(either, 1.0)).astype(np.float64)


def _one_hot(codes: Indices, kinds: Indices) -> npt.NDArray[np.float32]:
    """(len(codes), sum of kinds); all zeros within a slot that the node does not name."""
    hot = np.zeros((len(codes), int(kinds.sum())), np.float32)
    rows, slots = np.nonzero(codes >= 0)
    hot[rows, (np.cumsum(kinds) - kinds)[slots] + codes[rows, slots]] = 1.0
    return hot


def _relative_distance(first: Array, second: Array) -> Array:
    if first.shape[1] == 0:
        return np.full((len(first), len(second)), np.nan)
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2.0 * first @ second.T
    scale = np.maximum(np.linalg.norm(first, axis=1)[:, None], np.linalg.norm(second, axis=1)[None, :])
    with np.errstate(invalid="ignore"):
        relative = np.sqrt(np.maximum(squares, 0.0)) / np.where(scale > 0, scale, 1.0)
    return np.minimum(relative, 1.0)
