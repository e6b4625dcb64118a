"""The world that replayed searches measure: a surrogate of a recorded table with the seed noise of its trainings."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from poise_core.experiments.surrogate import (
    Cells,
    Optimum,
    SeedNoiseModel,
    Surrogate,
    find_optimum,
    from_line,
    held_out,
    slope_of_line,
    to_line,
)
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.features import Codes, encode
from poise_core.search.nodes import Array

DONOR_CELLS = 20
"""Cells nearest in predicted Overall, of which one passes its seed noise on to a composition that was not recorded."""

FEWEST_FREEDOM, KNOWN = 4.0, 1e5
"""Degrees of freedom of a seed variance: the fewest, since with two its mean is infinite, and those from which it is known."""


@dataclass(frozen=True)
class Drawn:
    """What one composition would measure in one replay; J outputs."""

    truth: float  # expected Overall, percent
    failed: bool  # refused by the gate, or ended with a failure
    values: Array  # (seeds, J) of every seed
    tokens: float  # of a whole training
    proxy_tokens: float


@dataclass(frozen=True)
class World:
    """The made-up testbed: a surrogate, its seed noise, and the known optimum."""

    surrogate: Surrogate
    noise: SeedNoiseModel
    optimum: Optimum
    predicted: Array  # (n, J) held-out predictions of every cell
    ranks: Array  # (n,) held-out predictions of the cells' Overall, ascending
    order: Codes  # (n,) the cells in that order
    rough: Array  # (J, J) factor of what the surrogate does not explain of a composition, on its scale, noise of seeds left out
    failure_share: float

    @classmethod
    def build(cls, cells: Cells, rough: float = 0.0) -> World:
        """Fit everything.

        Args:
            cells: of the table.
            rough: share of the unexplained spread between compositions that Overall has in the replays, in standard deviations; 0
                makes the surrogate the whole truth. Dynamics of the proxy always have all of theirs.
        """
        surrogate, noise = Surrogate.fit(cells), SeedNoiseModel.learn(cells)
        predicted = held_out(
            cells
        )  # as predictions of new compositions are, and not drawn to what the cell itself scored
        ranked = predicted @ cells.weights
        order = np.argsort(ranked, kind="stable")
        rest = cells.line - to_line(predicted, cells.weights)
        variance = 0.0 if math.isnan(noise.pooled_variance) else noise.pooled_variance
        slopes = slope_of_line(cells.values, cells.weights) / np.sqrt(cells.seeds)[:, None]
        of_seeds = variance * (slopes.T @ slopes / len(slopes)) * (noise.direction @ noise.direction.T)
        between = rest.T @ rest / len(rest) - of_seeds
        values, vectors = np.linalg.eigh((between + between.T) / 2.0)
        factor = vectors * np.sqrt(np.maximum(values, 0.0))
        factor[cells.weights > 0] *= rough
        share = cells.failed / (cells.failed + len(cells.codes))
        return cls(surrogate, noise, find_optimum(surrogate), predicted, ranked[order], order, factor, share)

    @property
    def cells(self) -> Cells:
        """Of the table."""
        return self.surrogate.cells

    def draw(self, composition: Composition, text: str, address: Sequence[int], seeds: int) -> Drawn:
        """What a composition measures.

        Args:
            composition: to measure.
            text: its name in the address of its random numbers.
            address: of the replay.
            seeds: trainings.
        """
        rng = np.random.default_rng([*address, zlib.crc32(text.encode())])
        weights, noise = self.cells.weights, self.noise
        line = self.surrogate.predict_line(*encode(composition))
        expected = from_line(line, weights)
        near = int(np.searchsorted(self.ranks, expected @ weights))
        low = max(0, min(near - DONOR_CELLS // 2, len(self.order) - DONOR_CELLS))
        donor = int(self.order[low : low + DONOR_CELLS][int(rng.integers(min(DONOR_CELLS, len(self.order))))])
        expected = from_line(line + self.rough @ rng.standard_normal(len(weights)), weights)
        freedom = max(float(noise.freedoms[donor]), FEWEST_FREEDOM)
        scatter = 1.0 if freedom > KNOWN else freedom / rng.chisquare(freedom)
        std = math.sqrt(noise.variances[donor] * scatter)
        values = expected + std * (rng.standard_normal((seeds, len(weights))) @ noise.direction.T)
        share, depth = noise.collapse_shares[donor], noise.collapse_depths[donor]
        fallen = rng.random(seeds) < share
        if share > 0:  # zero on average: the surrogate's mean holds the collapses already
            values[:, weights > 0] -= (depth * (fallen - share) / weights.sum())[:, None]
        tokens = self._output(expected, "log_tokens")
        whole = 1.0 if tokens is None else math.exp(tokens)
        part = self._output(expected, "proxy_share")
        proxy = whole * float(np.clip(0.43 if part is None else part, 0.05, 1.0))
        failed = bool(rng.random() < self.failure_share)
        return Drawn(float(expected @ weights), failed, values, whole, proxy)

    def _output(self, values: Array, name: str) -> float | None:
        return float(values[self.cells.outputs.index(name)]) if name in self.cells.outputs else None


# ---- arms
