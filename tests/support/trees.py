"""Small made-up trees for the tests of the search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from poise_core.config import Preset, load_preset
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.forecast import Dynamics
from poise_core.evidence.intervals import Interval
from poise_core.search.nodes import NodeRecord
from studies.simulation import FIRST, FIRST_TESTBED, World


def node(
    name: str,
    overall: float | None = None,
    parents: tuple[str, ...] = (),
    half: float = 0.0,
    seeds: int = 3,
    **extra: Any,
) -> NodeRecord:
    interval = None if overall is None else Interval(overall, overall - half, overall + half, seeds)
    generation = extra.pop("generation", 1 if parents else 0)
    return NodeRecord(name, name.upper(), parents, generation, interval, **extra)


def lucky(name: str, overall: float, parents: tuple[str, ...] = (), **extra: Any) -> NodeRecord:
    """One seed of three: nothing says how much of it is luck."""
    return NodeRecord(name, name.upper(), parents, 1, Interval(overall, -math.inf, math.inf, 1), **extra)


def make_world(rng: np.random.Generator) -> World:
    return World.build(FIRST, rng)


def first_testbed() -> Preset:
    return load_preset(FIRST_TESTBED)


def candidate(
    world: World, rng: np.random.Generator, seeds: Sequence[int], effect: float = 0.0, std: float = 1.87
) -> list[SeedEvaluation]:
    """Truly ``effect`` points from the baseline, ``std`` points between seeds."""
    algorithm = world.algorithm(effect, std, rng)
    return [algorithm.evaluate(seed, rng) for seed in seeds]


def world(
    candidates: int, slope: float, rng: np.random.Generator, noise: float = 1.0
) -> tuple[dict[str, Dynamics], dict[str, float]]:
    """Candidates whose level falls with the second and rises with the third feature."""
    dynamics, overalls = {}, {}
    for index in range(candidates):
        features = rng.normal(size=4)
        level = 70.0 + slope * (features[2] - features[1])
        dynamics[f"c{index:02d}"] = tuple(features)
        overalls[f"c{index:02d}"] = level + noise * float(rng.normal())
    return dynamics, overalls
