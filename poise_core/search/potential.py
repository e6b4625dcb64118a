"""alpha_GP: how much a node's descendants are likely to gain over it, with a bonus for uncertainty."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Kernel, Matern

from poise_core.config.search import AcquisitionSpec
from poise_core.search.nodes import Array, Indices, NodeTable

CHUNK = 20_000
JITTER = 1e-6


@dataclass(frozen=True)
class Potential:
    """(n,) each; NaN for nodes without a score."""

    mean: Array  # expected discounted gain of the best descendants, in [-1, 1]
    std: Array  # posterior standard deviation of that gain
    upper: Array  # mean + confidence * std
    target: Array  # the observed gain; NaN where no descendant has a score
    fitted: bool  # False: there are too few targets, and the prior is used


def top_descendants(table: NodeTable, count: int) -> tuple[Array, Indices]:
    """The best descendants of every node by shrunken score, bottom-up, one level of the tree at a time.

    Returns:
        (n, count) shrunken scores, best first, NaN where there are fewer; (n, count) their depths in the tree.
    """
    best = np.full((table.size, count), -np.inf)
    depth = np.zeros((table.size, count), np.int64)
    own = np.where(table.scored, table.shrunken, -np.inf)
    for level in reversed(table.levels[1:]):
        values = np.column_stack([own[level], best[level]]).ravel()
        depths = np.column_stack([table.depth[level], depth[level]]).ravel()
        parents = np.repeat(table.parent[level], count + 1)
        keep = np.isfinite(values)
        values, depths, parents = values[keep], depths[keep], parents[keep]
        order = np.lexsort((depths, -values, parents))
        values, depths, parents = values[order], depths[order], parents[order]
        rank = np.arange(len(parents)) - np.searchsorted(parents, parents, side="left")
        first = rank < count
        best[parents[first], rank[first]] = values[first]
        depth[parents[first], rank[first]] = depths[first]
    return np.where(np.isfinite(best), best, np.nan), depth


def descendant_gain(table: NodeTable, spec: AcquisitionSpec) -> tuple[Array, Indices]:
    """y_d = mean over the top-K descendants c of gamma^depth(c, d) * tanh((U(c) - U(d)) / beta), the paper's target.

    U is the shrunken Overall. With fewer than K scored descendants the mean is over those there are; a leaf, a node whose
    descendants all failed and a node without a score have no target, which is not a gain of zero.

    Returns:
        (n,) in [-1, 1], NaN where there is no target; (n,) how many descendants it rests on, at most K.
    """
    values, depths = top_descendants(table, spec.top_descendants)
    steps = depths - table.depth[:, None]
    gains = spec.discount**steps * np.tanh((values - table.shrunken[:, None]) / spec.gain_scale)
    known = np.isfinite(gains)
    count = known.sum(axis=1)
    total = np.where(known, gains, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), count


@dataclass(frozen=True)
class NodeFeatures:
    """What is known of a node itself; nothing of its descendants, which leaves do not have.

    Blocks, each with squared distances of order 1: standing (z-scores of Overall and of the gain over the parent,
    log(1 + depth)), benchmark profile (z-scores), mechanisms (one-hot, so that half the squared distance is the share of
    slots that differ) and behaviour (the sketch over its typical length). What a node lacks is the tree's mean.
    """

    table: NodeTable
    numbers: Array  # (n, 3 + m) standing and profile
    sketch_mean: Array
    sketch_length: float

    @classmethod
    def of(cls, table: NodeTable) -> NodeFeatures:
        """What all rows share is computed once."""
        above = np.maximum(table.parent, 0)
        gain = np.where((table.parent >= 0) & table.scored[above], table.shrunken - table.shrunken[above], 0.0)
        spread = float(np.nanstd(table.shrunken)) or 1.0
        standing = np.column_stack([_z(table.shrunken), np.nan_to_num(gain) / spread, np.log1p(table.depth)])
        profile = [_z(column) / np.sqrt(table.benchmarks.shape[1]) for column in table.benchmarks.T]
        known = table.sketch[np.asarray(np.isfinite(table.sketch).all(axis=1))]
        length = float(np.median(np.linalg.norm(known, axis=1))) if known.size else 1.0
        return cls(
            table=table,
            numbers=np.column_stack([standing / np.sqrt(standing.shape[1]), *profile]),
            sketch_mean=known.mean(axis=0) if known.size else np.zeros(table.sketch.shape[1]),
            sketch_length=length or 1.0,
        )

    def rows(self, rows: Indices) -> Array:
        """(len(rows), features)."""
        codes = self.table.mechanisms
        kinds = codes.max(axis=0, initial=-1) + 1
        one_hot = np.zeros((len(rows), int(kinds.sum())))
        places, slots = np.nonzero(codes[rows] >= 0)
        one_hot[places, (np.cumsum(kinds) - kinds)[slots] + codes[rows][places, slots]] = 1.0
        sketch = self.table.sketch[rows]
        sketch = np.where(np.isfinite(sketch), sketch, self.sketch_mean)
        behaviour = (sketch - self.sketch_mean) / self.sketch_length
        return np.concatenate([self.numbers[rows], one_hot / np.sqrt(max(codes.shape[1], 1)), behaviour], axis=1)


def descendant_potential(table: NodeTable, spec: AcquisitionSpec) -> Potential:
    """The upper confidence bound mean + kappa * std of a Gaussian process over ``NodeFeatures`` (GP-UCB, Srinivas
    et al., arXiv 0912.3995), trained on ``descendant_gain``.

    A target that rests on k descendants has noise variance ``target_noise``^2 / k, so that one child counts less than many
    and nodes with equal features may have different targets. Amplitude and length of the kernel maximise the marginal
    likelihood; with more than ``max_targets`` targets it is fitted on the better half of that many and a random other half
    (subset of data), so that the cost does not grow with the cube of the tree.

    With fewer than ``min_targets`` targets the process is not fitted. The mean is then sum(y) / (1 + count) over what
    targets there are, the same for all, and the deviation ``prior_std`` / sqrt(1 + children): every child makes a node's
    potential less uncertain.
    """
    target, support = descendant_gain(table, spec)
    rows = np.flatnonzero(table.scored)
    trainable = np.flatnonzero(np.isfinite(target))
    mean, std = np.full(table.size, np.nan), np.full(table.size, np.nan)
    fitted = False
    if len(trainable) >= spec.min_targets:
        chosen = _subset(table, trainable, spec.max_targets)
        features = NodeFeatures.of(table)
        process = _fit(features.rows(chosen), target[chosen], support[chosen], spec)
        if process is not None:
            fitted = True
            for start in range(0, len(rows), CHUNK):
                part = rows[start : start + CHUNK]
                mean[part], std[part] = process.predict(features.rows(part))
    if not fitted:
        mean[rows] = np.nansum(target) / (1 + len(trainable))
        std[rows] = spec.prior_std / np.sqrt(1.0 + table.children[rows])
    return Potential(mean, std, mean + spec.confidence * std, target, fitted)


def _subset(table: NodeTable, rows: Indices, most: int) -> Indices:
    if len(rows) <= most:
        return rows
    ranked = rows[np.argsort(-table.shrunken[rows], kind="stable")]
    half = most // 2
    others = np.random.default_rng(len(rows)).choice(ranked[half:], most - half, replace=False)
    return np.sort(np.concatenate([ranked[:half], others]))


def _fit(features: Array, targets: Array, support: Indices, spec: AcquisitionSpec) -> _Process | None:
    """The process with the two parameters of its kernel at maximum likelihood; None where the arithmetic fails."""
    shape: Kernel = Matern(1.0, (0.3, 10.0), nu=2.5) if spec.kernel == "matern" else RBF(1.0, (0.3, 10.0))
    noise = spec.target_noise**2 / support + JITTER
    offset = float(np.average(targets, weights=support))
    regressor = GaussianProcessRegressor(ConstantKernel(0.1, (1e-3, 1.0)) * shape, alpha=noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            regressor.fit(features, targets - offset)
        except (LinAlgError, ValueError):
            return None
    return _Process(regressor, offset)


@dataclass(frozen=True)
class _Process:
    """A Gaussian process with a constant mean, to which it returns far from all observations."""

    regressor: GaussianProcessRegressor
    offset: float

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, (n,) each."""
        mean, std = self.regressor.predict(features, return_std=True)
        return mean + self.offset, std


def _z(values: Array) -> Array:
    known = np.isfinite(values)
    if not known.any():
        return np.zeros(len(values))
    spread = float(values[known].std())
    return np.where(known, (values - values[known].mean()) / (spread or 1.0), 0.0)
