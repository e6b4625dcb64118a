"""The world that replayed searches measure: a surrogate of a recorded table with the seed noise of its trainings."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from poise_core.experiments.surrogate import (
    Cells,
    FallRisk,
    Fit,
    Optimum,
    SeedNoiseModel,
    Surrogate,
    find_optimum,
    from_line,
    held_out,
    held_out_risks,
    judge_fit,
    slope_of_line,
    to_line,
)
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.features import Codes, encode_all
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
    """The made-up testbed: which compositions fall, a surrogate of what the others score, and the seed noise."""

    cells: Cells  # of the table
    surrogate: Surrogate  # of the n cells that did not fall
    noise: SeedNoiseModel  # of these
    predicted: Array  # (n, J) held-out predictions of every such cell
    ranks: Array  # (n,) held-out predictions of the cells' Overall, ascending
    order: Codes  # (n,) the cells in that order
    rough: Array  # (J, J) factor of what the surrogate does not explain of a composition, on its scale, noise of seeds left out
    failure_share: float
    risk: FallRisk
    low: tuple[Cells, SeedNoiseModel] | None  # the cells that fell; None where none did

    @classmethod
    def build(cls, cells: Cells, rough: float = 0.0) -> World:
        """Fit everything.

        Args:
            cells: of the table.
            rough: share of the unexplained spread between compositions that Overall has in the replays, in standard deviations; 0
                makes the surrogate the whole truth of what does not fall. Dynamics of the proxy always have all of theirs.
        """
        upright = cells.upright()
        surrogate, noise = Surrogate.fit(upright), SeedNoiseModel.learn(upright)
        # held out, as predictions of new compositions are, and not drawn to what the cell itself scored
        predicted = held_out(upright)
        ranked = predicted @ cells.weights
        order = np.argsort(ranked, kind="stable")
        rest = upright.line - to_line(predicted, cells.weights)
        variance = 0.0 if math.isnan(noise.pooled_variance) else noise.pooled_variance
        slopes = slope_of_line(upright.values, cells.weights) / np.sqrt(upright.seeds)[:, None]
        of_seeds = variance * (slopes.T @ slopes / len(slopes)) * (noise.direction @ noise.direction.T)
        between = rest.T @ rest / len(rest) - of_seeds
        values, vectors = np.linalg.eigh((between + between.T) / 2.0)
        factor = vectors * np.sqrt(np.maximum(values, 0.0))
        factor[cells.weights > 0] *= rough
        share = cells.failed / (cells.failed + len(cells.codes))
        down = np.flatnonzero(cells.fallen)
        low = cells.subset(down) if len(down) else None
        return cls(
            cells, surrogate, noise, predicted, ranked[order], order, factor, share,
            FallRisk.fit(cells), (low, SeedNoiseModel.learn(low)) if low else None,
        )  # fmt: skip

    @cached_property
    def optimum(self) -> Optimum:
        """The best composition, where it does not fall."""
        return find_optimum(self.surrogate)

    @cached_property
    def fit(self) -> Fit:
        """How far it may be trusted."""
        return judge_fit(self.cells, self.surrogate, self.noise, self.predicted, held_out_risks(self.cells))

    @cached_property
    def _recorded(self) -> dict[str, bool]:
        """Key of a composition -> whether it fell."""
        return {one.key: bool(fell) for one, fell in zip(self.cells.compositions, self.cells.fallen, strict=True)}

    def draw(self, composition: Composition, text: str, address: Sequence[int], seeds: int) -> Drawn:
        """What a composition measures.

        Whether it falls is drawn with its risk, but for one that was recorded, which falls as it did there. One that falls measures
        what one of the fallen cells did.

        Args:
            composition: to measure.
            text: its name in the address of its random numbers.
            address: of the replay.
            seeds: trainings.
        """
        rng = np.random.default_rng([*address, zlib.crc32(text.encode())])
        weights = self.cells.weights
        codes, numbers = encode_all([composition])
        luck, failed = rng.random(), bool(rng.random() < self.failure_share)
        if self.low is not None and self._recorded.get(composition.key, luck < self.risk.of(codes, numbers)[0]):
            fallen, noise = self.low
            donor = int(rng.integers(len(fallen.codes)))
            expected = fallen.values[donor]
        else:
            noise = self.noise
            line = self.surrogate.at(codes, numbers)[0]
            near = int(np.searchsorted(self.ranks, from_line(line, weights) @ weights))
            low = max(0, min(near - DONOR_CELLS // 2, len(self.order) - DONOR_CELLS))
            donor = int(self.order[low : low + DONOR_CELLS][int(rng.integers(min(DONOR_CELLS, len(self.order))))])
            expected = from_line(line + self.rough @ rng.standard_normal(len(weights)), weights)
            expected[weights > 0] -= noise.collapse_shares[donor] * noise.collapse_depths[donor] / weights.sum()
        values = expected + self._luck(noise, donor, seeds, rng)
        tokens = self._output(expected, "log_tokens")
        whole = 1.0 if tokens is None else math.exp(tokens)
        part = self._output(expected, "proxy_share")
        proxy = whole * float(np.clip(0.43 if part is None else part, 0.05, 1.0))
        return Drawn(float(expected @ weights), failed, values, whole, proxy)

    def _luck(self, noise: SeedNoiseModel, donor: int, seeds: int, rng: np.random.Generator) -> Array:
        """(seeds, J) what the seeds add to what is expected, as unequal as those of a donor's cell; zero on average."""
        weights = self.cells.weights
        freedom = max(float(noise.freedoms[donor]), FEWEST_FREEDOM)
        scatter = 1.0 if freedom > KNOWN else freedom / rng.chisquare(freedom)
        std = math.sqrt(noise.variances[donor] * scatter)
        found = std * (rng.standard_normal((seeds, len(weights))) @ noise.direction.T)
        share, depth = noise.collapse_shares[donor], noise.collapse_depths[donor]
        fallen = rng.random(seeds) < share
        if share > 0:  # what is expected holds the collapses already
            found[:, weights > 0] -= (depth * (fallen - share) / weights.sum())[:, None]
        return found

    def _output(self, values: Array, name: str) -> float | None:
        return float(values[self.cells.outputs.index(name)]) if name in self.cells.outputs else None
