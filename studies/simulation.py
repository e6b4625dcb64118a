"""Simulated evolutions: children whose true difference to the baseline is known, judged by the code that judges real ones.

What is simulated is the outcome of training and evaluation, calibrated to the testbed (``docs/testbed.md``): the benchmarks of
preset ``laptop``, GRPO's score on each of them, and its seed standard deviation of Overall, which includes the sampling of answers.
Problems have difficulties of their own, shared by all policies. Racing, noise, intervals, correction and declaration are real.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from poise_core.config import LadderSpec, Preset
from poise_core.config.protocol import Protocol
from poise_core.evaluation.results import BenchmarkResult, SeedEvaluation
from poise_core.evidence.intervals import Interval
from poise_core.evidence.promotion import Declaration, declare
from poise_core.evidence.stopping import Measurement, Referee
from poise_core.search.arms import RootSelector
from poise_core.search.nodes import NodeRecord
from poise_core.search.selection import ParentSelector

Array = npt.NDArray[np.float64]

GRPO_SCORES = {
    "products": 75.8, "long-chains": 24.7, "remainders": 86.7, "sums": 96.3, "differences": 94.6, "chains": 83.3,
}  # fmt: skip
"""Percent; the row of grpo in ``docs/testbed.md``, five seeds on ``arithmetic-a``."""

GRPO_SEED_STD = 1.87
"""Percent points of Overall between seeds; the same row."""

PANEL_SEED_STDS = (0.66, 1.78, 1.57, 1.87, 1.95, 1.29, 1.05, 2.17, 0.75, 2.83, 1.47, 2.42, 5.32, 2.66, 3.00)
"""The column "seed std" of the same table: 15 algorithms."""

DIFFICULTY_STD = 2.0
"""Of problems in logits: most are nearly always or nearly never solved, as pass@32 and greedy answers show."""

PROXY_STD = 2.5
"""Seed standard deviation of the proxy's reward, percent points; assumed."""

PROXY_SLOPE = 0.0
"""What a point of Overall is worth in the proxy's reward: on the testbed it is not shown to be worth anything
(``docs/results/laptop-64.md``), so a proxy costs its tokens, loses children at random, and finds nothing."""

PROXY_SHARE = 0.43
"""Of a whole training's tokens, in the first 30 of 60 steps: completions are short at first. GRPO, one seed on the testbed."""

BASELINE = "GRPO"

MECHANISMS = (8, 4)
"""Slots, and choices per slot, of the catalogue that children change one choice of; none of them does anything."""


@dataclass(frozen=True)
class World:
    """One simulated testbed; children differ from the baseline by a shift in logits, equal on all benchmarks."""

    protocol: Protocol
    ease: dict[str, Array]  # benchmark -> logit of every problem for the baseline
    slope: float  # points of expected Overall per logit, at the baseline
    sampling: float  # standard deviation of Overall from answers alone, percent points

    @classmethod
    def build(cls, preset: Preset, rng: np.random.Generator) -> World:
        """Draw the problems' difficulties so that the baseline's expected scores are GRPO's."""
        ease = {}
        for spec in preset.protocol.benchmarks:
            raw = rng.normal(0.0, DIFFICULTY_STD, spec.problems)
            target = GRPO_SCORES[spec.name] / 100.0
            centre = brentq(lambda shift, raw=raw, target=target: float(_rate(raw + shift).mean()) - target, -20, 20)
            ease[spec.name] = raw + centre
        slope = variance = 0.0
        for spec in preset.protocol.benchmarks:
            rate = _rate(ease[spec.name])
            unit = float((rate * (1 - rate)).mean())
            slope += 100.0 * spec.weight * unit
            variance += (100.0 * spec.weight) ** 2 * unit / spec.problems
        return cls(preset.protocol, ease, slope, math.sqrt(variance))

    def seed_shift(self, std: float = GRPO_SEED_STD) -> float:
        """Standard deviation, in logits, of a trained policy around its algorithm, for ``std`` points in all."""
        return math.sqrt(max(std**2 - self.sampling**2, 0.0)) / self.slope

    def shift_for(self, points: float) -> float:
        """Logits that add ``points`` to the expected Overall."""

        def gain(shift: float) -> float:
            return sum(
                100.0 * spec.weight * float((_rate(self.ease[spec.name] + shift) - _rate(self.ease[spec.name])).mean())
                for spec in self.protocol.benchmarks
            )

        return float(brentq(lambda shift: gain(shift) - points, -20, 20)) if points else 0.0

    def evaluate(self, shift: float, seed: int, rng: np.random.Generator) -> SeedEvaluation:
        """Scores of a policy that is ``shift`` logits from the baseline."""
        results, total = [], 0.0
        for spec in self.protocol.benchmarks:
            solved = rng.random(spec.problems) < _rate(self.ease[spec.name] + shift)
            score = 100.0 * float(solved.mean())
            # pass@k with k = samples asks for one correct answer: that one is counted
            counts = tuple(solved.astype(int).tolist())
            results.append(BenchmarkResult(spec.name, spec.metric_name, score, counts, spec.samples, 1.0, 20.0))
            total += spec.weight * score
        return SeedEvaluation(seed, "search", total, tuple(results), 0.0)


def _rate(logits: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-logits))


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
    stds: Sequence[float] = (GRPO_SEED_STD,),
    per_generation: int = 3,
    uncorrected: bool = True,
    selector: ParentSelector | None = None,
    proxy_slope: float = PROXY_SLOPE,
) -> Evolution:
    """One evolution; a child's true difference to the baseline is its parent's and its own effect.

    Args:
        world: the testbed.
        rng: of everything that is drawn.
        effects: what every child's change is worth, percent points of Overall.
        seeds: of the last rung.
        ladder: None: every child trains with all seeds.
        stds: seed standard deviations of Overall; each child has one of them, drawn at random, the baseline GRPO's.
        per_generation: children that are decided on the same earlier measurements.
        uncorrected: whether to look at plain 95 % intervals too.
        selector: of parents; None: all are children of the baseline.
        proxy_slope: points of the proxy's reward per point of a child's true difference.
    """
    selector = selector or RootSelector()
    baseline = _Child(BASELINE, (), 0, 0.0, (0,) * MECHANISMS[0])
    baseline.evaluations = [world.evaluate(rng.normal(0, world.seed_shift()), seed, rng) for seed in range(seeds)]
    baseline.rewards = {seed: PROXY_STD * rng.normal() for seed in range(seeds)}
    everyone = {BASELINE: baseline}
    run = Evolution()
    for first in range(0, len(effects), per_generation):
        known = dict(everyone)
        generation = 1 + first // per_generation
        own = effects[first : first + per_generation]
        nodes = [one.node() for one in known.values()]
        measured = {name: one.measured for name, one in known.items()}
        referee = Referee.learn(ladder, range(seeds), [BASELINE], measured) if ladder else None
        chosen = selector.select(nodes, len(own), int(rng.integers(2**31)))
        for slot, (effect, pick) in enumerate(zip(own, sorted(chosen, key=lambda one: one.slot), strict=True)):
            parent = known[pick.candidate_id]
            total = parent.effect + effect
            child = _Child(
                f"child-{first + slot:02d}", (parent.name,), generation, total, _mutated(parent.choices, rng)
            )
            shift, std = world.shift_for(total), float(rng.choice(stds))
            draws = shift + world.seed_shift(std) * rng.normal(size=seeds)
            child.rewards = {seed: proxy_slope * total + PROXY_STD * float(rng.normal()) for seed in range(seeds)}
            run.trainings += _measure(world, rng, referee, child, draws)
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


def _measure(world: World, rng: np.random.Generator, referee: Referee | None, child: _Child, draws: Array) -> float:
    """Measure one child as far as the ladder lets it; the whole trainings that it cost. Rewards not seen are forgotten.

    Args:
        world: the testbed.
        rng: of answers.
        referee: who knows all that was measured in earlier generations; None: all seeds at once.
        child: its evaluations are added.
        draws: (seeds,) its trained policies in logits from the baseline.
    """
    seeds = len(draws)
    if referee is None:
        child.evaluations = [world.evaluate(draws[seed], seed, rng) for seed in range(seeds)]
        return float(seeds)
    references = tuple(dict.fromkeys((*child.parents, BASELINE)))
    rewards = child.rewards
    child.rewards = {0: rewards[0]}
    if referee.decide(child.measured, "proxy", references).stop:
        return PROXY_SHARE
    child.evaluations = [world.evaluate(draws[0], 0, rng)]
    if referee.decide(child.measured, "first", references).stop:
        return 1.0
    child.rewards = rewards
    child.evaluations += [world.evaluate(draws[seed], seed, rng) for seed in range(1, seeds)]
    return float(seeds)


def _names(declarations: Sequence[Declaration]) -> list[str]:
    return [one.candidate_id for one in declarations if one.champion]


def share(hits: int, trials: int) -> tuple[float, float, float]:
    """A proportion with its 95 % Clopper-Pearson limits."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, trials - hits)) if hits < trials else 1.0
    return hits / trials, low, high
