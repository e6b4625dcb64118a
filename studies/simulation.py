"""Simulated evolutions: children whose true difference to the baseline is known, judged by the code that judges real ones.

What is simulated is the outcome of training and evaluation, as measured on a testbed (``Measured``): its benchmarks, the
baseline's score on each of them, and its seed standard deviation of Overall, which includes the drawing of answers
and is realised as stated, whatever its size. Problems have difficulties of their own, shared by all policies, and algorithms have
problems that suit them. Racing, noise, intervals, correction and declaration are real.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from poise_core.algorithms import list_algorithms
from poise_core.config import LadderSpec, load_preset
from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import BenchmarkResult, SeedEvaluation
from poise_core.evidence.intervals import Interval, variance_parts
from poise_core.evidence.promotion import Declaration, declare
from poise_core.evidence.stopping import Measurement, Referee
from poise_core.search.arms import RootSelector
from poise_core.search.nodes import NodeRecord
from poise_core.search.selection import ParentSelector
from poise_core.testbed.panel import TUNED_BASELINE

Array = npt.NDArray[np.float64]

FIRST_TESTBED = str(Path(__file__).parent / "data" / "first_testbed.yaml")
"""The preset of the testbed of the published run ``docs/results/laptop-64``."""

CALIBRATION = Path(__file__).parents[1] / "docs" / "results" / "calibration.parquet"
"""What ``poise calibrate`` has measured on the present testbed."""


@dataclass(frozen=True)
class Measured:
    """What was measured on a testbed, and is simulated."""

    preset: str
    scores: Mapping[str, float]  # of the baseline on every benchmark, percent
    seed_std: float  # of the baseline's Overall between seeds, percent points
    answer_share: (
        float  # of the variance between seeds, what a seed does to single problems; the rest moves all together
    )
    panel_stds: tuple[float, ...]  # as ``seed_std``, of each algorithm of the panel
    proxy_std: float  # of the proxy's reward between seeds, percent points
    proxy_slope: float  # what a point of Overall is worth in the proxy's reward
    proxy_share: float  # of a whole training's tokens, in the proxy

    @cached_property
    def protocol(self) -> Protocol:
        """Of the preset, which is read once for all simulated runs."""
        return load_preset(self.preset).protocol


FIRST = Measured(
    preset=FIRST_TESTBED,
    # GRPO in ``docs/results/first_testbed.md``, five seeds on ``arithmetic-a``
    scores={
        "products": 75.8, "long-chains": 24.7, "remainders": 86.7, "sums": 96.3, "differences": 94.6, "chains": 83.3,
    },
    # GRPO's six seeds in ``docs/results/laptop-64``; the table of ``docs/results/first_testbed.md`` has 1.87, of an older trainer
    seed_std=0.9,
    # 61 % of V with six seeds in laptop-64, mean of the 17 candidates that have them
    answer_share=0.6,
    # the column "seed std" of ``docs/results/first_testbed.md``: 15 algorithms, with the older trainer
    panel_stds=(0.66, 1.78, 1.57, 1.87, 1.95, 1.29, 1.05, 2.17, 0.75, 2.83, 1.47, 2.42, 5.32, 2.66, 3.00),
    proxy_std=2.5,  # assumed
    # not shown to be worth anything (``docs/results/laptop-64.md``): a proxy costs its tokens and loses children at random
    proxy_slope=0.0,
    proxy_share=0.43,  # the first 30 of 60 steps: completions are short at first
)  # fmt: skip


def calibration_rows(record: Path, protocol: str) -> list[tuple[dict[str, Any], SeedEvaluation]]:
    """The rows of a record of ``poise calibrate`` that were scored on the search split under the protocol of this digest.

    Raises:
        OSError: the record cannot be read.
    """
    rows = pq.read_table(record, filters=[("protocol", "==", protocol), ("split", "==", "search")]).to_pylist()
    return [(row, SeedEvaluation.from_json(row["evaluation"])) for row in rows]


@cache
def present() -> Measured:
    """Return what was measured of preset ``laptop-64``: the tuned GRPO, and 20 algorithms at the preset's learning rate.

    Raises:
        OSError: the record of the calibration is missing.
    """
    protocol = load_preset("laptop").protocol
    found: dict[str, dict[int, SeedEvaluation]] = {}
    for row, evaluation in calibration_rows(CALIBRATION, protocol.digest):
        found.setdefault(row["algorithm"], {})[evaluation.seed] = evaluation
    panel = {name: list(own.values()) for name, own in found.items() if name in list_algorithms()}
    baseline = list(found[TUNED_BASELINE].values())
    parts = [one for own in panel.values() if (one := variance_parts(own, baseline, protocol)) is not None]
    return Measured(
        preset="laptop-64",
        scores={
            spec.name: statistics.fmean(
                result.score for one in baseline for result in one.benchmarks if result.name == spec.name
            )
            for spec in protocol.benchmarks
        },
        seed_std=statistics.stdev(one.overall for one in baseline),
        answer_share=statistics.median(one.rest / (one.rest + one.seed) for one in parts),
        panel_stds=tuple(statistics.stdev(one.overall for one in own) for own in panel.values()),
        # 21 algorithms with three seeds each: ``python -m studies.short_trainings`` on the trainings of the calibration
        proxy_std=2.5,
        proxy_slope=0.25,
        proxy_share=0.24,
    )


DIFFICULTY_STD = 2.0
"""Of problems in logits: most are nearly always or nearly never solved, as pass@32 and greedy answers show."""

COLLAPSE = (0.1, -30.0)
"""Chance of a collapse of one training of an unstable child, and what it does to Overall; its other trainings gain what makes
the mean 0."""

BASELINE = "GRPO"

MECHANISMS = (8, 4)
"""Slots, and choices per slot, of the catalogue that children change one choice of; none of them does anything."""


def described_proxy(measured: Measured) -> str:
    """One sentence on what a proxy costs and tells, for the pages of the studies."""
    tells = (
        f"a point of Overall is worth {measured.proxy_slope:g} points of its reward"
        if measured.proxy_slope
        else "its reward says nothing of Overall"
    )
    cost, apart = (
        f"{measured.proxy_share:g} of a whole training's tokens",
        f"between seeds it differs by {measured.proxy_std:g}",
    )
    return f"A proxy costs {cost}; {tells}, {apart}."


@dataclass(frozen=True)
class World:
    """One simulated testbed; children differ from the baseline by a shift in logits, equal on all benchmarks."""

    measured: Measured
    protocol: Protocol
    ease: dict[str, Array]  # benchmark -> logit of every problem for the baseline
    _spreads: dict[tuple[float, float], Spread] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, measured: Measured, rng: np.random.Generator) -> World:
        """Draw the problems' difficulties so that the baseline's expected scores are those measured."""
        ease, protocol = {}, measured.protocol
        for spec in protocol.benchmarks:
            raw = rng.normal(0.0, DIFFICULTY_STD, spec.problems)
            target = measured.scores[spec.name] / 100.0
            centre = brentq(lambda shift, raw=raw, target=target: float(_rate(raw + shift).mean()) - target, -20, 20)
            ease[spec.name] = raw + centre
        return cls(measured, protocol, ease)

    def algorithm(self, points: float, std: float, rng: np.random.Generator) -> Algorithm:
        """One algorithm: its expected Overall is the baseline's and ``points``, its standard deviation between seeds ``std``."""
        luck = {name: rng.normal(size=len(logits)) for name, logits in self.ease.items()}
        return Algorithm(self, self.spread(points, std), luck)

    def spread(self, points: float, std: float) -> Spread:
        """How the trained policies of an algorithm lie, in logits, so that mean and deviation are those asked for.

        Single answers make up the measured share of the variance between seeds. Where independent answers would make up more, as
        for a deviation below 1.5 points, the answers of two seeds to one problem are alike enough that they make up no more.
        """
        if (points, std) not in self._spreads:
            self._spreads[points, std] = self._solved(points, std)
        return self._spreads[points, std]

    def _solved(self, points: float, std: float) -> Spread:
        level = self._moments(0.0, 0.0)[0] + points

        def centred(width: float) -> float:
            return float(brentq(lambda centre: self._moments(centre, width)[0] - level, -30, 30))

        flat = centred(0.0)
        answers, alike, share = None, 0.0, self.measured.answer_share
        if share * std**2 < self._moments(flat, 0.0)[2]:
            alike = float(brentq(lambda one: self._answers(flat, one) - share * std**2, 0.0, 0.9999))
            answers = self._answers(flat, alike)

        def excess(width: float) -> float:
            _, between, independent = self._moments(centred(width), width)
            return between + (independent if answers is None else answers) - std**2

        width = float(brentq(excess, 0.0, 8.0))
        return Spread(centred(width), width, alike)

    @cached_property
    def _curves(self) -> tuple[Array, Array]:
        """Of Overall over ``_SHIFTS`` logits from the baseline: what is expected, and the variance that independent answers add."""
        expected, answers = np.zeros(len(_SHIFTS)), np.zeros(len(_SHIFTS))
        for spec in self.protocol.benchmarks:
            rate = _rate(self.ease[spec.name] + _SHIFTS[:, None])  # (shifts, problems)
            expected += 100.0 * spec.weight * rate.mean(axis=1)
            answers += (100.0 * spec.weight) ** 2 * (rate * (1.0 - rate)).mean(axis=1) / rate.shape[1]
        return expected, answers

    def _moments(self, centre: float, width: float) -> tuple[float, float, float]:
        """Of Overall over policies ``centre`` +- ``width`` logits: mean, variance of what is expected of each, and the variance
        that independent answers add."""
        shifts = centre + width * _NODES
        expected, answers = (np.interp(shifts, _SHIFTS, curve) for curve in self._curves)
        mean = float(_WEIGHTS @ expected)
        return mean, float(_WEIGHTS @ (expected - mean) ** 2), float(_WEIGHTS @ answers)

    def _answers(self, centre: float, alike: float) -> float:
        """Variance of Overall between seeds by answers alone: E[p (1 - p)], p the chance given what seeds share, per problem."""
        total = 0.0
        for spec in self.protocol.benchmarks:
            typical = np.quantile(self.ease[spec.name], _QUANTILES)
            limits = ndtri(_rate(typical + centre))
            given = ndtr((limits - math.sqrt(alike) * _NODES[:, None]) / math.sqrt(1.0 - alike))
            total += (100.0 * spec.weight) ** 2 * float(_WEIGHTS @ (given * (1 - given)).mean(axis=1)) / spec.problems
        return total


@dataclass(frozen=True)
class Spread:
    """Where the trained policies of an algorithm lie, in logits from the baseline."""

    centre: float
    width: float  # standard deviation between seeds
    alike: float  # correlation of what decides the answers of two seeds to one problem, beside the problem's difficulty


@dataclass(frozen=True)
class Algorithm:
    """What can be trained in a world."""

    world: World
    spread: Spread
    luck: dict[str, Array]  # benchmark -> what all its seeds share on each problem, standard normal

    def at(self, points: float, std: float) -> Algorithm:
        """The same algorithm at another level."""
        return replace(self, spread=self.world.spread(points, std))

    def evaluate(self, seed: int, rng: np.random.Generator) -> SeedEvaluation:
        """Train and score one seed."""
        results, total = [], 0.0
        shift = self.spread.centre + self.spread.width * rng.normal()
        shared, own = math.sqrt(self.spread.alike), math.sqrt(1.0 - self.spread.alike)
        for spec in self.world.protocol.benchmarks:
            decides = ndtr(shared * self.luck[spec.name] + own * rng.normal(size=spec.problems))  # uniform
            solved = decides < _rate(self.world.ease[spec.name] + shift)
            score = 100.0 * float(solved.mean())
            # a problem is solved with all its samples or with none, so that pass@k is 1 or 0 at every k
            counts = tuple((spec.samples * solved.astype(int)).tolist())
            results.append(BenchmarkResult(spec.name, spec.metric_name, score, counts, spec.samples, 1.0, 20.0))
            total += spec.weight * score
        return SeedEvaluation(seed, "search", total, tuple(results), 0.0)


def _rate(logits: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-logits))


_SHIFTS = np.linspace(-24.0, 24.0, 481)  # logits
_QUANTILES = (np.arange(30) + 0.5) / 30
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(25)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


@dataclass
class Evolution:
    """What one simulated evolution came to."""

    declared: list[str] = field(default_factory=list)  # champion candidates, best first
    uncorrected: list[str] = field(default_factory=list)  # whose plain 95 % interval lies above zero
    best: str = ""  # best mean Overall, any number of seeds, the baseline included
    trainings: float = 0.0  # whole trainings, a proxy as its share; the baseline's left out
    effects: dict[str, float] = field(default_factory=dict)  # child -> true difference to the baseline, percent points


@dataclass
class _Child:
    """One algorithm, and what was measured of it."""

    name: str
    parents: tuple[str, ...]
    generation: int
    effect: float  # true, percent points
    choices: tuple[int, ...]  # of MECHANISMS, per slot
    rewards: dict[int, float] = field(default_factory=dict)  # seed -> the proxy's
    evaluations: list[SeedEvaluation] = field(default_factory=list)

    @property
    def overalls(self) -> dict[int, float]:
        return {one.seed: one.overall for one in self.evaluations}

    @property
    def measured(self) -> Measurement:
        """As the referee sees it."""
        return Measurement(self.overalls, self.rewards)

    def node(self) -> NodeRecord:
        """As the search sees it."""
        overalls = [one.overall for one in self.evaluations]
        scores: dict[str, list[float]] = {}
        for evaluation in self.evaluations:
            for result in evaluation.benchmarks:
                scores.setdefault(result.name, []).append(result.score)
        mean = float(np.mean(overalls)) if overalls else math.nan
        return NodeRecord(
            self.name,
            self.name,
            self.parents,
            self.generation,
            Interval(mean, mean, mean, len(overalls)) if overalls else None,
            {name: float(np.mean(values)) for name, values in scores.items()},
            {f"slot-{slot}": f"choice-{choice}" for slot, choice in enumerate(self.choices)},
            tuple(overalls),
            {name: tuple(values) for name, values in scores.items()},
        )


def simulate(
    world: World,
    rng: np.random.Generator,
    effects: Sequence[float],
    seeds: int,
    ladder: LadderSpec | None = None,
    stds: Sequence[float] = (),
    per_generation: int = 3,
    uncorrected: bool = True,
    unstable: float = 0.0,
    selector: ParentSelector | None = None,
    proxy_slope: float | None = None,
) -> Evolution:
    """One evolution; a child's true difference to the baseline is its parent's and its own effect.

    Args:
        world: the testbed.
        rng: of everything that is drawn.
        effects: what every child's change is worth, percent points of Overall.
        seeds: of the last rung.
        ladder: None: every child trains with all seeds.
        stds: seed standard deviations of Overall; each child has one of them, drawn at random; by default the baseline's.
        per_generation: children that are decided on the same earlier measurements.
        uncorrected: whether to look at plain 95 % intervals too.
        unstable: share of the children whose trainings collapse now and then (``COLLAPSE``), with the same mean.
        selector: of parents; None: all are children of the baseline.
        proxy_slope: points of the proxy's reward per point of a child's true difference; by default as measured.
    """
    measured = world.measured
    stds, slope = stds or (measured.seed_std,), measured.proxy_slope if proxy_slope is None else proxy_slope
    selector = selector or RootSelector()
    baseline = _Child(BASELINE, (), 0, 0.0, (0,) * MECHANISMS[0])
    trained = world.algorithm(0.0, measured.seed_std, rng)
    baseline.evaluations = [trained.evaluate(seed, rng) for seed in range(seeds)]
    baseline.rewards = {seed: measured.proxy_std * rng.normal() for seed in range(seeds)}
    everyone = {BASELINE: baseline}
    run = Evolution()
    for first in range(0, len(effects), per_generation):
        known = dict(everyone)
        generation = 1 + first // per_generation
        own = effects[first : first + per_generation]
        nodes = [one.node() for one in known.values()]
        so_far = {name: one.measured for name, one in known.items()}
        referee = Referee.learn(ladder, range(seeds), [BASELINE], so_far) if ladder else None
        chosen = selector.select(nodes, len(own), int(rng.integers(2**31)))
        for slot, (effect, pick) in enumerate(zip(own, sorted(chosen, key=lambda one: one.slot), strict=True)):
            parent = known[pick.candidate_id]
            total = parent.effect + effect
            child = _Child(
                f"child-{first + slot:02d}", (parent.name,), generation, total, _mutated(parent.choices, rng)
            )
            policies = _trained(world, rng, total, float(rng.choice(stds)), seeds, rng.random() < unstable)
            child.rewards = {seed: slope * total + measured.proxy_std * float(rng.normal()) for seed in range(seeds)}
            run.trainings += _measure(referee, child, policies, measured.proxy_share)
            run.effects[child.name] = total
            everyone[child.name] = child
    scored = {name: one.evaluations for name, one in everyone.items() if one.evaluations}
    declared = declare(scored, BASELINE, list(run.effects), world.protocol)
    run.declared = _names(declared)
    if uncorrected:
        plain = declare(scored, BASELINE, list(run.effects), world.protocol, alpha=0.05 * len(run.effects))
        run.uncorrected = _names(plain)
    run.best = max(scored, key=lambda name: sum(one.overall for one in scored[name]) / len(scored[name]))
    return run


def _mutated(choices: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
    slots, count = MECHANISMS
    slot, step = int(rng.integers(slots)), int(rng.integers(1, count))
    return tuple((choice + step) % count if at == slot else choice for at, choice in enumerate(choices))


def _trained(
    world: World, rng: np.random.Generator, points: float, std: float, seeds: int, unstable: bool
) -> list[SeedEvaluation]:
    """What every seed of an algorithm would score; a collapse takes the place of one that is unstable."""
    sound = world.algorithm(points, std, rng)
    if not unstable:
        return [sound.evaluate(seed, rng) for seed in range(seeds)]
    chance, loss = COLLAPSE
    sound, fallen = sound.at(points - loss * chance / (1.0 - chance), std), sound.at(points + loss, std)
    return [(fallen if rng.random() < chance else sound).evaluate(seed, rng) for seed in range(seeds)]


def _measure(referee: Referee | None, child: _Child, policies: Sequence[SeedEvaluation], proxy: float) -> float:
    """Measure one child as far as the ladder lets it; the whole trainings that it cost. Rewards not seen are forgotten.

    Args:
        referee: who knows all that was measured in earlier generations; None: all seeds at once.
        child: its evaluations are added.
        policies: what each of its seeds would score.
        proxy: what a proxy costs, in whole trainings.
    """
    seeds = len(policies)
    if referee is None:
        child.evaluations = list(policies)
        return float(seeds)
    references = tuple(dict.fromkeys((*child.parents, BASELINE)))
    rewards = child.rewards
    child.rewards = {0: rewards[0]}
    if referee.decide(child.measured, "proxy", references).stop:
        return proxy
    child.evaluations = [policies[0]]
    if referee.decide(child.measured, "first", references).stop:
        return 1.0
    child.rewards = rewards
    child.evaluations += policies[1:]
    return float(seeds)


def _names(declarations: Sequence[Declaration]) -> list[str]:
    return [one.candidate_id for one in declarations if one.champion]


def share(hits: int, trials: int) -> tuple[float, float, float]:
    """A proportion with its 95 % Clopper-Pearson limits."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, trials - hits)) if hits < trials else 1.0
    return hits / trials, low, high
