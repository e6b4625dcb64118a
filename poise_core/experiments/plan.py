"""The price of a run before it starts: memory of a GPU by part, tokens, GPU-hours, wall hours and money.

Everything is computed from the preset and from what its policy needs on a machine (``poise_core.experiments.rates``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from poise_core.config import Preset
from poise_core.evidence.examination import conditions_of, work_of
from poise_core.experiments.rates import GPUS, Rates, Shape, completions_of, memory_parts, shape_of, stated_rates
from poise_core.policies.locate import PolicyNotFoundError

HOURLY = {"h100": 2.5, "h200": 3.5, "a100": 1.5, "l40s": 1.0, "rtx4090": 0.5, "l4": 0.7, "cpu": 0.0}
"""Dollars for an hour of one; prices differ by a factor of three, so give your own."""
STOPPED = (18 / 117, 31 / 99)
"""Share of the children that the ladder stops at the proxy, and of the others after the first seed, in the three searches of the
evolution of docs/results/headline.md."""


@dataclass(frozen=True)
class Price:
    """What something costs."""

    tokens: float  # completion tokens sampled, in training and evaluation
    gpu_hours: float
    hours: float  # by the clock
    dollars: float


@dataclass(frozen=True)
class Examined:
    """What the examination of one champion candidate carries out beside the baseline, at most."""

    conditions: tuple[str, ...]
    trainings: int  # of both sides
    evaluations: int
    as_own: tuple[str, ...]  # policies that are not here, priced as that of the protocol


@dataclass(frozen=True)
class Plan:
    """A run's memory and price."""

    shape: Shape
    memory: dict[str, float]  # bytes on one GPU by part, while weights are updated
    memory_sampling: float  # bytes on one GPU while completions are sampled
    available: float | None  # bytes of a GPU
    gpus: int  # that work at the same time
    rates: Rates
    evaluated: int  # completions of an evaluation
    prices: dict[str, Price]  # candidate (all seeds), child (expected, on the ladder), generation, run, examination
    examined: Examined

    @property
    def total(self) -> float:
        """Bytes on one GPU at most."""
        return max(sum(self.memory.values()), self.memory_sampling)

    @property
    def saved(self) -> float:
        """Share of a child's GPU-hours that the ladder is expected to save."""
        whole = self.prices["candidate"].gpu_hours
        return 1 - self.prices["child"].gpu_hours / whole if whole else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        prices = {name: vars(price) for name, price in self.prices.items()}
        own = {**vars(self), "shape": vars(self.shape), "rates": vars(self.rates), "prices": prices}
        own["examined"] = vars(self.examined)
        return {**own, "parameters": self.shape.parameters, "total": self.total, "saved": self.saved}


def plan_run(preset: Preset, gpu: str, hourly: float, rates: Rates | None = None) -> Plan:
    """Return memory and price of a run.

    Args:
        preset: of the run.
        gpu: a key of ``GPUS``.
        hourly: dollars for an hour of one GPU.
        rates: measured; by default stated ones.

    Raises:
        ValueError: see ``shape_of`` and ``problems_of``.
    """
    shape = shape_of(preset.protocol.policy)
    evaluated = completions_of(preset.protocol)
    stated = stated_rates(preset, shape, gpu, evaluated)
    rates = rates or stated
    parts, sampling = memory_parts(preset, shape, GPUS[gpu].memory)
    tariff = _Tariff(preset, rates, evaluated, hourly)
    examination, examined = _examination(tariff, gpu, shape, stated)
    return Plan(
        shape,
        parts,
        sampling,
        GPUS[gpu].memory,
        preset.resources.parallel_candidates * preset.resources.gpus_held,
        rates,
        sum(evaluated.values()),
        {**_prices(tariff), "examination": examination},
        examined,
    )


@dataclass(frozen=True)
class _Tariff:
    """What trainings and evaluations cost under one protocol."""

    preset: Preset
    rates: Rates
    evaluated: Mapping[str, int]
    hourly: float

    def price(self, trainings: float, evaluations: float, gates: float, side_by_side: float = 1) -> Price:
        """Of so many trainings, of which some are parts, and evaluations."""
        protocol, rates = self.preset.protocol, self.rates
        training = protocol.training
        trained = training.steps * training.batch_size * rates.length
        asked = sum(
            self.evaluated[one.name] * rates.length * protocol.length_limit(one) / training.max_completion_length
            for one in protocol.benchmarks
        )
        a_training = rates.start + training.steps * rates.step
        seconds = trainings * a_training + evaluations * rates.evaluation + gates * rates.gate
        gpu = self.preset.resources.gpus_held * seconds / 3600
        tokens = trainings * trained + evaluations * asked
        return Price(tokens, gpu, seconds / 3600 / side_by_side, gpu * self.hourly)


def _examination(tariff: _Tariff, gpu: str, shape: Shape, stated: Rates) -> tuple[Price, Examined]:
    """Return the price of an examination: all work of all its conditions, for the candidate and the baseline.

    The sealed problems of a benchmark count as many as those of the search. Another policy, and other problems, take the time of
    the tariff's rates times what the stated rates of both say; the two sides work side by side where the preset has room for two.

    Args:
        tariff: of the preset as it is, with stated or measured rates.
        gpu: a key of ``GPUS``.
        shape: of the preset's policy.
        stated: rates of the preset as it is, by the data sheet.
    """
    preset = tariff.preset
    settings = preset.examination
    conditions = conditions_of(settings, preset.protocol)
    together = min(2, preset.resources.parallel_candidates)
    missing: list[str] = []

    @cache
    def tariff_of(policy: str, procedural: bool) -> _Tariff:
        changes: dict[str, Any] = {"policy": policy} if policy else {}
        if procedural:
            changes["benchmarks"] = settings.procedural
        asked = preset.model_copy(update={"protocol": preset.protocol.model_copy(update=changes)})
        evaluated = completions_of(asked.protocol) if procedural else tariff.evaluated
        try:
            own_shape = shape_of(policy) if policy else shape
        except PolicyNotFoundError:
            missing.append(policy)
            own_shape = shape
        own, rates = stated_rates(asked, own_shape, gpu, evaluated), tariff.rates
        scaled = replace(
            rates,
            step=rates.step * own.step / stated.step,
            evaluation=rates.evaluation * own.evaluation / stated.evaluation,
        )
        return replace(tariff, preset=asked, rates=scaled, evaluated=evaluated)

    total, trainings, evaluations = Price(0.0, 0.0, 0.0, 0.0), 0, 0
    for work in [work for condition in conditions for work in work_of(condition, settings)]:
        both = 2 * work.seeds(settings)
        trained = 0 if work.procedural else both
        total = _sum(total, tariff_of(work.policy, work.procedural).price(trained, both, 0, together))
        trainings, evaluations = trainings + trained, evaluations + both
    return total, Examined(tuple(one.name for one in conditions), trainings, evaluations, tuple(missing))


def _prices(tariff: _Tariff) -> dict[str, Price]:
    preset, price = tariff.preset, tariff.price
    protocol, search, ladder, resources = preset.protocol, preset.search, preset.ladder, preset.resources
    training, seeds = protocol.training, search.seeds_per_candidate
    trainings, evaluations = float(seeds), float(seeds)
    if ladder.enabled:
        proxy = ladder.proxy_steps / training.steps
        at_proxy = STOPPED[0] if ladder.proxy_steps else 0.0
        at_first = STOPPED[1] if seeds > 1 else 0.0
        first = at_proxy * proxy + (1 - at_proxy)
        rest = (1 - at_proxy) * (1 - at_first) * (seeds - 1)
        trainings = first + rest
        evaluations = (1.0 if ladder.evaluate_stopped else 1 - at_proxy) + rest
    rounds = math.ceil(search.parents / resources.parallel_candidates)
    side = search.parents / rounds
    child = price(trainings, evaluations, 1)
    generation = _times(child, search.parents, side)
    baseline = price(seeds, seeds + 1, 1)  # the untrained policy is scored, too, and once whatever the seeds
    return {
        "candidate": price(seeds, seeds, 1),
        "child": child,
        "generation": generation,
        "run": _sum(baseline, _times(generation, search.generations, 1)),
    }


def _times(price: Price, count: int, side_by_side: float) -> Price:
    return replace(
        price,
        tokens=price.tokens * count,
        gpu_hours=price.gpu_hours * count,
        hours=price.hours * count / side_by_side,
        dollars=price.dollars * count,
    )


def _sum(one: Price, other: Price) -> Price:
    return Price(*(a + b for a, b in zip(vars(one).values(), vars(other).values(), strict=True)))
