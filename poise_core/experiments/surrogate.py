"""A surrogate of a recorded table: what any composition of the catalogue would score, and how much two seeds of it differ.

A model in two parts (a hurdle model; Cragg 1971), since much of what is drawn at random does not learn at all: whether a
composition *falls*, which is to score far below the bulk of the table, and what it scores where it does not. One regression for
both would be about falling, whose differences are ten times as large, and would say nothing of the top. The first is ridge
regression on main effects of all choices and numbers and on all pairs of choices, fitted as its kernel twin
(``poise_core.mechanisms.features.kinship``), so that the two thousand pairs cost nothing. The second is the mean of the same and of
extremely randomized trees (Geurts, Ernst and Wehenkel 2006), which know thresholds of numbers and what pays only together, and do
not extrapolate. The mean predicts better than either, and a search that leans on one kind of model is not judged by it alone.

Scores are fitted on a logit scale, eta = log((s + 1) / (101 - s)) of a percentage s, so that nothing is predicted beyond 100. The
share and the penalty minimise the leave-one-out error, of Overall in percent and of falling as 0 or 1 (the Brier score); a cell
with fewer seeds counts less. The benchmarks are fitted together, so Overall is their weighted sum here as it is in a run.
The surrogate is the truth of a replay, so how far it may be trusted is measured: by cross-validation on cells, against the ceiling
that the noise of the seeds sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError
from scipy import stats
from scipy.special import expit

from poise_core.archive.cells import CellRow, TableHead, read_cells, together
from poise_core.evidence.forest import Forest
from poise_core.evidence.noise import Array, lowest_of_the_bulk, noise_of
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.mechanisms.composition import Composition
from poise_core.mechanisms.conflicts import conflicts
from poise_core.mechanisms.features import Codes, encode_all, kinship, one_hot
from poise_core.mechanisms.model import Parameter

PAIR_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)
PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

FEWEST_CELLS = 6
"""With a score; from fewer no surrogate is fitted."""

BoolArray = npt.NDArray[np.bool_]

COLLAPSE = 8.0
"""Points below the best seed of its cell at which a training counts as a collapse, or five robust standard deviations of the
difference of two trainings where that is more."""

FOLDS = 10


class TableError(Exception):
    """A table cannot be used as asked; the message is one line."""


@dataclass(frozen=True)
class Cells:
    """The scored cells of a table as arrays: n cells, J outputs (benchmarks, then log tokens and dynamics)."""

    head: TableHead
    compositions: tuple[Composition, ...]
    codes: Codes  # (n, S)
    numbers: Array  # (n, P)
    outputs: tuple[str, ...]
    values: Array  # (n, J) mean over seeds
    seeds: Array  # (n,) how many
    per_seed: tuple[Array, ...]  # n of (seeds, J)
    weights: Array  # (J,) of Overall: zero for what is no benchmark
    failed: int  # cells that were refused or failed
    baseline: int  # row of the baseline; -1 where it has no score

    @classmethod
    def read(cls, tables: Sequence[Path]) -> Cells:
        """From files of tables, as one.

        Raises:
            poise_core.archive.ArchiveError: a file cannot be read, or they are of different protocols, benchmarks or proxies.
            TableError: see ``of``.
        """
        head, rows = together({str(table): read_cells(table) for table in tables})
        try:
            return cls.of(head, rows)
        except TableError as error:
            raise TableError(f"{', '.join(map(str, tables))}: {error}") from error

    @classmethod
    def of(cls, head: TableHead, rows: Sequence[CellRow]) -> Cells:
        """From a table; an output that some training lacks is left out.

        Raises:
            TableError: fewer than ``FEWEST_CELLS`` cells have a score, a benchmark is missing, or a composition is not known.
        """
        scored: dict[int, list[CellRow]] = {}
        for row in rows:
            if row.overall is not None and math.isfinite(row.overall):
                scored.setdefault(row.cell, []).append(row)
        if len(scored) < FEWEST_CELLS:
            raise TableError(f"{len(scored)} cells have a score; a surrogate needs {FEWEST_CELLS}: record more of them")
        every = [row for own in scored.values() for row in own]
        columns = [_outputs(row) for row in every]
        extra = sorted(set.intersection(*(set(one) for one in columns)) - set(head.weights))
        outputs = (*sorted(head.weights), *extra)
        lacking = next((name for name in head.weights if any(name not in one for one in columns)), None)
        if lacking is not None:
            raise TableError(f"the benchmark {lacking} is missing in some rows of the table")
        per_seed = tuple(
            np.array([[_outputs(row)[name] for name in outputs] for row in own]) for own in scored.values()
        )
        compositions = tuple(_composition(cell, own[0]) for cell, own in scored.items())
        places = {cell: place for place, cell in enumerate(scored)}
        return cls(
            head,
            compositions,
            *encode_all(compositions),
            outputs,
            np.array([own.mean(axis=0) for own in per_seed]),
            np.array([len(own) for own in per_seed], np.float64),
            per_seed,
            np.array([head.weights.get(name, 0.0) for name in outputs]),
            len({row.cell for row in rows if row.failure is not None}),
            places.get(head.baseline, -1),
        )

    @cached_property
    def overall(self) -> Array:
        """(n,) mean Overall of every cell, percent."""
        return self.values @ self.weights

    @cached_property
    def line(self) -> Array:
        """(n, J) values on the scale on which they are fitted."""
        return to_line(self.values, self.weights)

    @cached_property
    def floor(self) -> float:
        """Overall below which a cell has fallen, percent: the lowest of the bulk (``poise_core.evidence.noise``)."""
        return lowest_of_the_bulk(self.overall)

    @cached_property
    def fallen(self) -> Array:
        """(n,) 1 where no seed of a cell reached ``floor``, else 0."""
        best = np.array([float((own @ self.weights).max()) for own in self.per_seed])
        found: Array = (best < self.floor).astype(np.float64)
        return found

    @cached_property
    def collapsed(self) -> tuple[BoolArray, ...]:
        """n of (seeds,) whether a training lies far below the best one of its cell, as no seed noise explains."""
        overalls = [own @ self.weights for own in self.per_seed]
        apart = [np.abs(own - own.mean()) * math.sqrt(len(own) / (len(own) - 1)) for own in overalls if len(own) > 1]
        typical = 1.4826 * float(np.median(np.concatenate(apart))) if apart else 0.0  # collapses hardly move a median
        threshold = max(COLLAPSE, 5.0 * math.sqrt(2.0) * typical)
        return tuple(own < own.max() - threshold for own in overalls)

    def standing(self) -> Cells:
        """The cells with the means of those of their trainings that did not collapse; every training stays in ``per_seed``."""
        kept = [own[~bad] for own, bad in zip(self.per_seed, self.collapsed, strict=True)]
        values, seeds = np.array([own.mean(axis=0) for own in kept]), np.array([float(len(own)) for own in kept])
        return replace(self, values=values, seeds=seeds)

    def upright(self) -> Cells:
        """Those of the cells that did not fall, as ``standing`` has them: what a surrogate is fitted to."""
        return self.subset(np.flatnonzero(self.fallen == 0)).standing()

    def subset(self, rows: Codes) -> Cells:
        """Some of the cells."""
        return Cells(
            self.head, tuple(self.compositions[row] for row in rows), self.codes[rows], self.numbers[rows], self.outputs,
            self.values[rows], self.seeds[rows], tuple(self.per_seed[row] for row in rows), self.weights, self.failed, -1,
        )  # fmt: skip


def _composition(cell: int, row: CellRow) -> Composition:
    try:
        return Composition.model_validate(row.composition)
    except ValidationError as error:
        raise TableError(
            f"cell {cell} is no composition of this version's catalogue: {error.errors()[0]['msg']}; record the table anew"
        ) from error


def _outputs(row: CellRow) -> dict[str, float]:
    found = dict(row.benchmarks)
    if row.tokens:
        found["log_tokens"] = math.log(row.tokens)
        if row.proxy_tokens:
            found["proxy_share"] = row.proxy_tokens / row.tokens
    for name, value in row.dynamics.items():
        if name.startswith("proxy_"):
            found[name] = value if name == "proxy_reward_mean" else math.log(max(value, 1e-4))
    return {name: value for name, value in found.items() if math.isfinite(value)}


def to_line(values: Array, weights: Array) -> Array:
    """(..., J) values on the scale on which they are fitted: benchmarks, which have a weight, as logits; others as they are."""
    bounded = np.clip(values, 0.0, 100.0)
    found: Array = np.where(weights > 0, np.log((bounded + 1.0) / (101.0 - bounded)), values)
    return found


def from_line(line: Array, weights: Array) -> Array:
    """Undo ``to_line``: percent within -1 and 101."""
    found: Array = np.where(weights > 0, 102.0 * expit(line) - 1.0, line)
    return found


def slope_of_line(values: Array, weights: Array) -> Array:
    """(..., J) how much ``to_line`` changes with a value."""
    bounded = np.clip(values, 0.0, 100.0)
    found: Array = np.where(weights > 0, 102.0 / ((bounded + 1.0) * (101.0 - bounded)), 1.0)
    return found


@dataclass(frozen=True)
class Effects:
    """A fitted ridge regression in its explicit form, for quick predictions; L levels, P numbers, J targets."""

    centre: Array  # (J,)
    main: Array  # (L, J)
    pairs: Array  # (L, L, J) symmetric; summed over unordered pairs of slots
    slopes: Array  # (P, J)

    @classmethod
    def fit(cls, cells: Cells, targets: Array, pair_share: float, penalty: float) -> Effects:
        """Of (n, J) targets on the compositions of cells, with a given share of pairs and a given penalty."""
        slots = len(SLOTS)
        centre = np.average(targets, axis=0, weights=cells.seeds)
        alpha = np.linalg.solve(_kernel(cells, cells, pair_share) + _penalties(cells, penalty), targets - centre)
        hot = one_hot(cells.codes)
        main = (1.0 - pair_share) / slots * hot.T @ alpha
        pairs = 2.0 * pair_share / (slots * (slots - 1)) * np.einsum("nl,nk,nj->lkj", hot, hot, alpha, optimize=True)
        return cls(centre, main, pairs, (1.0 - pair_share) / slots * cells.numbers.T @ alpha)

    def at(self, codes: Codes, numbers: Array) -> Array:
        """(n, J) what is predicted for n compositions."""
        hot = one_hot(codes)
        both = np.stack([((hot @ self.pairs[:, :, j]) * hot).sum(axis=1) for j in range(self.pairs.shape[2])], axis=1)
        twice = np.einsum("nl,llj->nj", hot, self.pairs)  # a level with itself is no pair
        found: Array = self.centre + hot @ self.main + 0.5 * (both - twice) + numbers @ self.slopes
        return found


def _kernel(one: Cells, other: Cells, pair_share: float) -> Array:
    return kinship(one.codes, one.numbers, other.codes, other.numbers, pair_share)


def _penalties(cells: Cells, penalty: float) -> Array:
    found: Array = np.diag(penalty * cells.seeds.mean() / cells.seeds)
    return found


def _left_out(cells: Cells, targets: Array, pair_share: float, penalty: float) -> Array:
    """(n, J) targets, each predicted from the other cells, the centre as it is: y_i - [K^-1 y]_i / [K^-1]_ii."""
    inverse = np.linalg.inv(_kernel(cells, cells, pair_share) + _penalties(cells, penalty))
    rest = targets - np.average(targets, axis=0, weights=cells.seeds)
    found: Array = targets - (inverse @ rest) / np.diagonal(inverse)[:, None]
    return found


def _best_settings(error: Callable[[float, float], Array]) -> tuple[float, float]:
    """The share of pairs and the penalty with the smallest mean squared error."""
    every = ((share, penalty) for share in PAIR_SHARES for penalty in PENALTIES)
    return min(every, key=lambda one: float(np.mean(error(*one) ** 2)))


TREES = 100
"""Of the surrogate's forest; every leaf holds one cell, half of the columns are looked at for each split."""


@dataclass(frozen=True)
class Surrogate:
    """What compositions score where they do not fall; J outputs."""

    cells: Cells
    pair_share: float
    penalty: float
    effects: Effects  # on the fitted scale, as the next
    forest: Forest

    @classmethod
    def fit(cls, cells: Cells) -> Surrogate:
        """With the share of pairs and the penalty of the smallest leave-one-out error of Overall."""
        weights = cells.weights

        def error(share: float, penalty: float) -> Array:
            found: Array = cells.overall - from_line(_left_out(cells, cells.line, share, penalty), weights) @ weights
            return found

        return cls.with_settings(cells, *_best_settings(error))

    @classmethod
    def with_settings(cls, cells: Cells, pair_share: float, penalty: float) -> Surrogate:
        """With a given share of pairs and a given penalty."""
        forest = Forest.grow(cells.codes, cells.numbers, cells.line, cells.seeds, TREES)
        return cls(cells, pair_share, penalty, Effects.fit(cells, cells.line, pair_share, penalty), forest)

    def at(self, codes: Codes, numbers: Array) -> Array:
        """(n, J) every output of n compositions, on the fitted scale."""
        return 0.5 * (self.effects.at(codes, numbers) + self.forest.predict(codes, numbers))

    def predict(self, codes: Codes, numbers: Array) -> Array:
        """(n, J) every output of n compositions; benchmarks in percent."""
        return from_line(self.at(codes, numbers), self.cells.weights)


@dataclass(frozen=True)
class FallRisk:
    """How likely compositions are to fall."""

    effects: Effects | None  # None where all cells are alike

    @classmethod
    def fit(cls, cells: Cells) -> FallRisk:
        """With the settings of the smallest leave-one-out Brier score."""
        if not np.ptp(cells.fallen):
            return cls(None)
        target = cells.fallen[:, None]
        settings = _best_settings(lambda *one: (target - np.clip(_left_out(cells, target, *one), 0.0, 1.0))[:, 0])
        return cls(Effects.fit(cells, target, *settings))

    def of(self, codes: Codes, numbers: Array) -> Array:
        """(n,) the probabilities that n compositions fall."""
        if self.effects is None:
            return np.zeros(len(codes))
        found: Array = np.clip(self.effects.at(codes, numbers)[:, 0], 0.0, 1.0)
        return found


# ---- how far it may be trusted


@dataclass(frozen=True)
class Fit:
    """The held-out errors and what bounds them; cells with one seed count as much as others."""

    cells: int
    failed: int  # cells that were refused or failed
    fallen: int
    floor: float  # Overall below which a cell has fallen, percent
    fall_auc: float  # held out: probability that of a fallen cell and another the fallen one had the higher risk; NaN without both
    spread: float  # standard deviation of the mean Overall of the cells that did not fall, percent points, as all below
    pair_share: float
    penalty: float
    r2: float  # held out, against the mean of the other cells
    rank_correlation: float  # held out, Spearman
    error: float  # root mean square, held out, percent points
    ceiling: float  # the R^2 of a perfect prediction of the true means, given the seed noise; NaN where it is unknown
    seed_std: float  # of one training around its cell, pooled; NaN where no cell has two seeds
    seed_std_range: tuple[float, float]  # 5 % and 95 % quantile of the cells' moderated seed deviations
    collapses: int  # trainings that collapsed
    trainings: int


def folds_of(count: int) -> list[tuple[Codes, Codes]]:
    """Rows 0 to count - 1 in random parts for cross-validation: the rows to learn from, and those to predict."""
    rows = np.random.default_rng(0).permutation(count)
    return [(np.setdiff1d(rows, part), part) for part in np.array_split(rows, min(FOLDS, count))]


def held_out(cells: Cells) -> Array:
    """(n, J) every output of every cell, predicted from the other folds with settings that were chosen there."""
    predicted = np.empty_like(cells.values)
    for rest, part in folds_of(len(cells.codes)):
        predicted[part] = Surrogate.fit(cells.subset(rest)).predict(cells.codes[part], cells.numbers[part])
    return predicted


def held_out_risks(cells: Cells) -> Array:
    """(n,) the same of the probability to fall."""
    predicted = np.empty(len(cells.codes))
    for rest, part in folds_of(len(cells.codes)):
        predicted[part] = FallRisk.fit(cells.subset(rest)).of(cells.codes[part], cells.numbers[part])
    return predicted


def judge_fit(cells: Cells, surrogate: Surrogate, noise: SeedNoiseModel, predicted: Array, risks: Array) -> Fit:
    """How far the surrogate may be trusted.

    Args:
        cells: of the table.
        surrogate: fitted to those of them that did not fall.
        noise: of the seeds of these.
        predicted: of these; see ``held_out``.
        risks: of all; see ``held_out_risks``.
    """
    upright = surrogate.cells
    truth, guess = upright.overall, predicted @ cells.weights
    total = float(((truth - truth.mean()) ** 2).sum())
    pooled = noise.pooled_variance
    spread = float(truth.std(ddof=1))
    several = upright.seeds >= 2  # the others have the pooled variance
    deviations = np.sqrt(noise.variances[several] if several.any() else noise.variances)
    down, up = risks[cells.fallen > 0], risks[cells.fallen == 0]
    both = len(down) * len(up)
    return Fit(
        cells=len(cells.codes),
        failed=cells.failed,
        fallen=len(down),
        floor=cells.floor,
        fall_auc=float(stats.mannwhitneyu(down, up).statistic) / both if both else math.nan,
        spread=spread,
        pair_share=surrogate.pair_share,
        penalty=surrogate.penalty,
        r2=1.0 - float(((truth - guess) ** 2).sum()) / total,
        rank_correlation=float(stats.spearmanr(truth, guess).statistic) if np.ptp(guess) > 0 else 0.0,
        error=math.sqrt(float(((truth - guess) ** 2).mean())),
        ceiling=max(1.0 - pooled * float((1.0 / upright.seeds).mean()) / spread**2, 0.0) if spread > 0 else math.nan,
        seed_std=math.sqrt(pooled),
        seed_std_range=(float(np.quantile(deviations, 0.05)), float(np.quantile(deviations, 0.95))),
        collapses=noise.collapses,
        trainings=int(cells.seeds.sum()),
    )


@dataclass(frozen=True)
class SeedNoiseModel:
    """How trainings of one composition differ, cell by cell as measured; J outputs.

    A cell's seed variance of Overall is drawn from its posterior, a scaled inverse chi-square around the moderated variance
    (``poise_core.evidence.noise``), so replays have stable and unstable compositions in the measured proportion, and
    do not take two seeds' luck for knowledge. The direction over outputs is that of the pooled covariance. A cell of
    which some seeds collapsed passes its share and depth of collapses on.
    """

    variances: Array  # (n,) moderated, of Overall
    freedoms: Array  # (n,) degrees of freedom behind them
    collapse_shares: Array  # (n,) of a cell's trainings
    collapse_depths: Array  # (n,) points of Overall
    direction: Array  # (J, J) Cholesky factor of the covariance over outputs, for one unit of Overall's variance
    pooled_variance: float  # NaN where no cell has two seeds
    collapses: int  # trainings that collapsed

    @classmethod
    def learn(cls, cells: Cells) -> SeedNoiseModel:
        """From cells with two seeds or more; without any, trainings do not differ, and ``pooled_variance`` says so."""
        count, width = cells.values.shape
        overalls = [own @ cells.weights for own in cells.per_seed]
        fallen = cells.collapsed
        shares = np.array([float(one.mean()) for one in fallen])
        depths = np.array(
            [
                own[~bad].mean() - own[bad].mean() if bad.any() else 0.0
                for own, bad in zip(overalls, fallen, strict=True)
            ]
        )
        rest, squares, freedom = [], np.zeros(count), np.zeros(count)
        for i, (own, bad) in enumerate(zip(cells.per_seed, fallen, strict=True)):
            kept = own[~bad]
            if len(kept) > 1:
                centred = kept - kept.mean(axis=0)
                rest.append(centred)
                squares[i], freedom[i] = float(((centred @ cells.weights) ** 2).sum()), len(kept) - 1.0
        if not rest:
            return cls(
                np.zeros(count),
                np.ones(count),
                shares,
                depths,
                np.zeros((width, width)),
                math.nan,
                int(sum(map(sum, fallen))),
            )
        pooled = float(squares.sum() / freedom.sum())
        kept_noise = noise_of(
            {
                str(i): {
                    place: own for place, (own, bad) in enumerate(zip(o.tolist(), b.tolist(), strict=True)) if not bad
                }
                for i, (o, b) in enumerate(zip(overalls, fallen, strict=True))
            }
        )
        prior, weight = (kept_noise.typical.variance, kept_noise.typical.freedom) if kept_noise else (pooled, 1e6)
        weight = min(weight, 1e6)
        covariance = np.einsum("nj,nk->jk", *(2 * [np.vstack(rest)])) / freedom.sum()
        scale = covariance / max(pooled, 1e-12) + 1e-9 * np.eye(width) * np.maximum(np.diagonal(covariance).max(), 1e-9)
        return cls(
            (weight * prior + squares) / (weight + freedom), weight + freedom, shares, depths,
            np.linalg.cholesky(scale), pooled, int(sum(map(sum, fallen))),
        )  # fmt: skip


# ---- the known optimum


@dataclass(frozen=True)
class Optimum:
    """The best composition of the surrogate that was found, with its Overall where it does not fall."""

    composition: Composition
    overall: float
    agreement: float  # share of the climbs that ended there


STARTS = 12
"""Random compositions from which is climbed, and as many of the best cells."""


def find_optimum(surrogate: Surrogate, starts: int = STARTS, seed: int = 0) -> Optimum:
    """The composition with the highest Overall that was found among all of the catalogue that are free of conflicts.

    Climbs from random compositions and from the best cells by the best change of one slot, and of two where none helps, until no
    change does. A slot is changed in its choice and its numbers together, which stand at the ends or in the middle of their spans.
    """
    import random

    from poise_core.mechanisms.operators import random_composition

    cells, climber = surrogate.cells, _Climber(surrogate)
    best_cells = np.argsort(-cells.overall, kind="stable")[:starts]
    begins = [random_composition(random.Random(f"optimum:{seed}:{start}")) for start in range(starts)]
    tops = [climber.climb(one) for one in (*begins, *(cells.compositions[row] for row in best_cells))]
    best = max(tops, key=lambda one: one[0])
    return Optimum(best[1], best[0], sum(top > best[0] - 1e-6 for top, _ in tops) / len(tops))


class _Option(NamedTuple):
    """One way to answer a slot."""

    slot: str
    choice: str
    numbers: dict[str, float]


def _options() -> list[_Option]:
    """Every choice of every slot with every number at the ends and in the middle of its span."""
    found = []
    for slot, entry in SLOTS.items():
        for choice in entry.choices:
            settings = [
                [(one.name, math.copysign(size, one.default)) for size in _sizes(one)]
                if one.movable
                else [(one.name, one.default)]
                for one in choice.parameters
            ]
            found += [_Option(slot, choice.name, dict(numbers)) for numbers in product(*settings)]
    return found


def _sizes(parameter: Parameter) -> tuple[float, float, float]:
    low, high = parameter.span
    return low, float(f"{math.sqrt(low * high):.2g}"), high


PAIRED = 60
"""Options, the best where one slot is changed, of which any two are tried together."""


class _Climber:
    """Ways upward on a surrogate."""

    def __init__(self, surrogate: Surrogate) -> None:
        self.surrogate, self.options = surrogate, _options()

    def climb(self, here: Composition) -> tuple[float, Composition]:
        """The highest Overall on the way from here, and the composition there."""
        now = float(self._overall([here])[0])
        while True:
            single = [[option] for option in self.options]
            order, upward = self._best(here, now, single)
            if upward is None:
                few = [self.options[row] for row in order[:PAIRED]]
                double = [[a, b] for a, b in combinations(few, 2) if a.slot != b.slot]
                upward = self._best(here, now, double)[1]
            if upward is None:
                return now, here
            now, here = upward

    def _best(
        self, here: Composition, now: float, changes: list[list[_Option]]
    ) -> tuple[Codes, tuple[float, Composition] | None]:
        """All changes by what comes of them, the best first, and the best that is free of conflicts and an improvement."""
        made = [_changed(here, change) for change in changes]
        overall = self._overall(made)
        order = np.argsort(-overall, kind="stable")
        for row in order:
            if overall[row] <= now + 1e-9:
                break
            if not conflicts(made[row]):
                return order, (float(overall[row]), made[row])
        return order, None

    def _overall(self, compositions: Sequence[Composition]) -> Array:
        found: Array = self.surrogate.predict(*encode_all(compositions)) @ self.surrogate.cells.weights
        return found


def _changed(here: Composition, change: Sequence[_Option]) -> Composition:
    numbers = {name: value for option in change for name, value in option.numbers.items()}
    return here.with_choices({option.slot: option.choice for option in change}, numbers)
