"""U_pareto: what a node contributes to the frontier of the benchmark vector."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from poise_core.evidence.noise import OUTLYING
from poise_core.search.nodes import Array

RAYS = 64
"""Directions along which the dominated volume is measured."""

CELLS = 1_000_000
"""Numbers that are worked on at once, so that many nodes need no more memory than few."""

MARGIN = 0.1
"""How far below the worst node the reference point lies, as a share of each benchmark's range."""


def pareto_strength(benchmarks: Array) -> Array:
    """Each node's Shapley share of the dominated hypervolume, scaled so that the largest share is 1.

    The hypervolume over a reference point r is an average over directions w of the positive orthant of max_d rho_w(d)^m,
    with rho_w(d) = min_j (z_dj - r_j) / w_j (Zhang and Golovin, arXiv 2006.04655, lemma 5). Along one direction it is the
    largest of the nodes' volumes, the cost of an airport game, whose Shapley value is known in closed form (Littlechild
    and Owen 1973): with volumes v_1 >= v_2 >= ... the node of rank i gets sum over j >= i of (v_j - v_{j+1}) / j.

    Why not the dominance rank: with six noisy benchmarks most nodes are dominated by no other, and which ones are is
    decided by noise. The share is continuous in the scores, never lets a node fall below one that it dominates, splits
    between equal nodes what one of them would have alone, and is not zero for a dominated node.

    Args:
        benchmarks: (n, m) percent, higher is better, finite; shrunken, so that noise moves little.

    Returns:
        (n,) in [0, 1]; 1 for all where every node is equal or there is no benchmark.
    """
    size, width = benchmarks.shape
    if size == 0 or width == 0:
        return np.ones(size)
    share = hypervolume_shares(unit_positions(benchmarks))
    return share / share.max()


def hypervolume_shares(position: Array) -> Array:
    """(n,) what each node gets of the volume that all dominate over the origin; they add up to its estimate.

    Args:
        position: (n, m) non-negative, over the reference point.
    """
    size, width = position.shape
    share = np.zeros(size)
    directions = _directions(width)
    for start in range(0, RAYS, max(1, CELLS // max(size * width, 1))):
        some = directions[start : start + max(1, CELLS // max(size * width, 1))]
        volume = (position[None] / some[:, None]).min(axis=2) ** width  # (rays, n)
        order = np.argsort(-volume, axis=1, kind="stable")
        ranked = np.take_along_axis(volume, order, axis=1)
        after = np.concatenate([ranked[:, 1:], np.zeros((len(some), 1))], axis=1)
        steps = (ranked - after) / np.arange(1, size + 1)
        own = np.empty_like(volume)
        np.put_along_axis(own, order, np.cumsum(steps[:, ::-1], axis=1)[:, ::-1], axis=1)
        share += own.sum(axis=0)
    ball = math.pi ** (width / 2) / (
        2**width * math.gamma(width / 2 + 1)
    )  # of the unit ball, the positive orthant's part
    return ball * share / RAYS


def unit_positions(benchmarks: Array) -> Array:
    """(n, m) each benchmark from the reference point (0) to the best node (1); 1 where all nodes agree.

    Collapses are raised to ``OUTLYING`` robust deviations below the median first: one run that scores 0 would otherwise
    make all others equal.
    """
    middle = np.median(benchmarks, axis=0)
    scale = 1.4826 * np.median(np.abs(benchmarks - middle), axis=0)
    raised = np.maximum(benchmarks, np.where(scale > 0, middle - OUTLYING * scale, -np.inf))
    low, high = raised.min(axis=0), raised.max(axis=0)
    reference = low - MARGIN * (high - low)
    spread = high - reference
    return np.where(spread > 1e-12, (raised - reference) / np.where(spread > 1e-12, spread, 1.0), 1.0)


@lru_cache(maxsize=16)
def _directions(width: int) -> Array:
    """(RAYS, m) unit vectors of the positive orthant, uniform on it and the same in every run."""
    draws = np.abs(np.random.default_rng(20260325).standard_normal((RAYS, width))) + 1e-3
    directions: Array = draws / np.linalg.norm(draws, axis=1, keepdims=True)
    return directions
