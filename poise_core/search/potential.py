"""alpha_GP: how much a node's descendants are likely to gain over it, with a bonus for uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve

from poise_core.config.search import AcquisitionSpec
from poise_core.search.nodes import Array, Indices, NodeTable

CHUNK = 20_000
JITTER = 1e-6

VARIANCES = np.geomspace(1e-3, 1.0, 5)
"""Of the kernel, among which the marginal likelihood chooses."""

LENGTHS = np.geomspace(0.3, 10.0, 6)
"""Of the kernel, in units of typical distances between features."""


@dataclass(frozen=True)
class Potential:
    """(n,) each; NaN for nodes without a score."""

    mean: Array  # expected discounted gain of the best descendants, in [-1, 1]
    std: Array  # posterior standard deviation of that gain
    mechanical: Array  # the part of the mean that follows from the node's own score alone
    upper: Array  # mean - mechanical + confidence * std
    target: Array  # the observed gain; NaN where there is no descendant to observe it with
    left_out: Array  # the target as predicted from all other nodes; NaN where there is none, or nothing was fitted
    fitted: bool  # False: there are too few targets, and the prior is used


def top_descendants(table: NodeTable, count: int) -> tuple[Array, Indices]:
    """The best descendants of every node by ``NodeTable.presumed``, bottom-up, one level of the tree at a time.

    Returns:
        (n, count) scores, best first, NaN where there are fewer; (n, count) their depths in the tree.
    """
    best = np.full((table.size, count), -np.inf)
    depth = np.zeros((table.size, count), np.int64)
    own = np.where(np.isfinite(table.presumed), table.presumed, -np.inf)
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

    U is the shrunken Overall; of a descendant that was stopped before it had a score it is what was forecast of it
    (``NodeTable.presumed``), since leaving the stopped ones out would make every parent look as good as its survivors. With
    fewer than K such descendants the mean is over those there are; a leaf, a node whose descendants all failed and a node
    without a score have no target, which is not a gain of zero.

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

    The gain falls with the node's own score even where descendants are all alike, because the score is subtracted in it
    (regression to the mean). So the gain is first regressed on the score (``falling_slope``), the process learns what is left,
    and the bound leaves the regression's part out: it says how much a node's descendants gain beyond what its score alone
    lets one expect. How good the node itself is, U_perf says.

    A target that rests on k descendants has noise variance ``target_noise``^2 / k, so that one child counts less than many
    and nodes with equal features may have different targets. Amplitude and length of the kernel maximise the marginal
    likelihood over a grid; with more than ``max_targets`` targets it is fitted on the better half of that many and a random
    other half (subset of data), so that the cost does not grow with the cube of the tree.

    With fewer than ``min_targets`` targets the process is not fitted. The mean is then sum(y) / (1 + count) over what
    targets there are, the same for all, and the deviation ``prior_std`` / sqrt(1 + children): every child makes a node's
    potential less uncertain.
    """
    target, support = descendant_gain(table, spec)
    rows = np.flatnonzero(table.scored)
    trainable = np.flatnonzero(np.isfinite(target))
    mean, std, left_out = (np.full(table.size, np.nan) for _ in range(3))
    mechanical = np.where(table.scored, 0.0, np.nan)
    fitted = len(trainable) >= spec.min_targets
    if fitted:
        chosen = _subset(table, trainable, spec.max_targets)
        features = NodeFeatures.of(table)
        process = Process.fit(
            features.rows(chosen), table.shrunken[chosen], target[chosen], support[chosen].astype(np.float64), spec
        )
        left_out[chosen] = process.left_out()
        mechanical = process.slope * (table.shrunken - process.centre)
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            mean[part], std[part] = process.predict(features.rows(part), table.shrunken[part])
    else:
        mean[rows] = np.nansum(target) / (1 + len(trainable))
        std[rows] = spec.prior_std / np.sqrt(1.0 + table.children[rows])
    return Potential(mean, std, mechanical, mean - mechanical + spec.confidence * std, target, left_out, fitted)


def _subset(table: NodeTable, rows: Indices, most: int) -> Indices:
    if len(rows) <= most:
        return rows
    ranked = rows[np.argsort(-table.shrunken[rows], kind="stable")]
    half = most // 2
    others = np.random.default_rng(len(rows)).choice(ranked[half:], most - half, replace=False)
    return np.sort(np.concatenate([ranked[:half], others]))


def falling_slope(scores: Array, targets: Array, weights: Array) -> float:
    """The weighted least-squares slope of the gain on the score, gain per point; 0 where it would be positive.

    A fall is what subtracting the score makes by itself. A rise would be a finding, and stays in what the process learns.
    """
    centred = scores - np.average(scores, weights=weights)
    squares = float(weights @ centred**2)
    return min(float((weights * centred) @ targets) / squares, 0.0) if squares > 1e-9 else 0.0


@dataclass(frozen=True)
class Process:
    """A Gaussian process around the line offset + slope * (score - centre), to which it returns far from all observations."""

    features: Array  # (n, f) of the observations
    scores: Array  # (n,)
    targets: Array  # (n,)
    weights: Array  # (n,) of the observations in the line
    centre: float
    offset: float
    slope: float
    kernel: str
    variance: float
    length: float
    inverse: Array  # (n, n) of the covariance of the observations

    @classmethod
    def fit(cls, features: Array, scores: Array, targets: Array, support: Array, spec: AcquisitionSpec) -> Process:
        """Line by weighted least squares, kernel by maximum marginal likelihood over ``VARIANCES`` and ``LENGTHS``."""
        slope = falling_slope(scores, targets, support) if spec.regress else 0.0
        centre = float(np.average(scores, weights=support))
        offset = float(np.average(targets, weights=support))
        rest = targets - offset - slope * (scores - centre)
        noise = np.diag(spec.target_noise**2 / support + JITTER)
        shapes = correlation(_distances(features, features)[None] / LENGTHS[:, None, None], spec.kernel)
        covariances = (VARIANCES[:, None, None, None] * shapes[None] + noise).reshape(-1, len(targets), len(targets))
        lower = np.linalg.cholesky(covariances)
        determinants = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
        fits = np.linalg.solve(covariances, np.broadcast_to(rest[None, :, None], (len(lower), len(rest), 1)))[..., 0]
        best = int(np.argmax(-0.5 * fits @ rest - determinants))
        inverse = cho_solve((lower[best], True), np.eye(len(rest)))
        variance, length = (
            float(grid[at]) for grid, at in zip((VARIANCES, LENGTHS), divmod(best, len(LENGTHS)), strict=True)
        )
        return cls(features, scores, targets, support, centre, offset, slope, spec.kernel, variance, length, inverse)

    def predict(self, features: Array, scores: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the gain at (m, f) features and (m,) scores, (m,) each."""
        rest = self.targets - self.offset - self.slope * (self.scores - self.centre)
        between = self.variance * correlation(_distances(features, self.features) / self.length, self.kernel)
        explained = np.einsum("mn,mn->m", between @ self.inverse, between)
        line = self.offset + self.slope * (scores - self.centre)
        return line + between @ (self.inverse @ rest), np.sqrt(np.maximum(self.variance - explained, 0.0))

    def left_out(self) -> Array:
        """(n,) every target, predicted by line and process from the other n - 1, with the kernel as it is.

        mu_i = y_i - [K^-1 (y - X beta_i)]_i / [K^-1]_ii (Rasmussen and Williams 2006, eq. 5.12), beta_i the line without
        observation i: beta - (X'WX)^-1 x_i w_i e_i / (1 - h_i).
        """
        design = np.ones((len(self.targets), 1))
        if self.slope:
            design = np.column_stack([design, self.scores - self.centre])
        gram = np.linalg.inv(design.T @ (self.weights[:, None] * design))
        beta = np.array([self.offset, self.slope])[: design.shape[1]]
        error = self.targets - design @ beta
        leverage = self.weights * np.einsum("ni,ij,nj->n", design, gram, design)
        changes = (design @ gram) * (self.weights * error / np.maximum(1.0 - leverage, 1e-9))[:, None]  # (n, 1 or 2)
        rests = self.targets[None] - (beta[None] - changes) @ design.T  # row i: residuals from the line without i
        return self.targets - (self.inverse * rests).sum(axis=1) / np.diagonal(self.inverse)


def correlation(distance: Array, kernel: str) -> Array:
    """Matern with nu = 5/2, (1 + a + a^2 / 3) exp(-a) with a = sqrt(5) d, or the squared exponential exp(-d^2 / 2)."""
    if kernel == "rbf":
        return np.exp(-0.5 * distance**2)
    scaled = np.sqrt(5.0) * distance
    return (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)


def _distances(first: Array, second: Array) -> Array:
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2.0 * first @ second.T
    return np.sqrt(np.maximum(squares, 0.0))


def _z(values: Array) -> Array:
    known = np.isfinite(values)
    if not known.any():
        return np.zeros(len(values))
    spread = float(values[known].std())
    return np.where(known, (values - values[known].mean()) / (spread or 1.0), 0.0)
