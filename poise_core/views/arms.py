"""Arms of search against each other: the best so far over the training tokens spent.

*Best* is the shrunken estimate of the candidate that a run would name at that moment. It is no running maximum and may fall:
with more candidates known, a high score may turn out to be noise.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from poise_core.archive import EVOLUTION_ARM
from poise_core.evidence.intervals import Interval
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.history import History
from poise_core.search.nodes import best_scores

Array = npt.NDArray[np.float64]

POINTS = 25
"""Budgets at which arms are compared, from the baseline's to the smallest total of any run."""


@dataclass(frozen=True)
class Step:
    """The state of one run after a generation."""

    generation: int
    tokens: int  # completion tokens sampled in training so far, failed candidates' included
    best: float  # shrunken Overall of the candidate that the run would name best, percent


@dataclass(frozen=True)
class ArmCurve:
    """One arm over all its search seeds, on the common grid of budgets."""

    arm: str
    tokens: tuple[float, ...]
    best: tuple[Interval, ...]  # mean over search seeds; open limits with one seed

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"arm": self.arm, "tokens": list(self.tokens), "best": [one.to_dict() for one in self.best]}


def best_so_far(evidence: RunEvidence) -> list[Step]:
    """A run's steps, generation 0 (the baseline) first; empty before the baseline has a score."""
    spent = evidence.training_tokens
    nodes = sorted(History(evidence.archive, evidence.protocol).nodes(10**9), key=lambda node: node.generation)
    generations = range(max((node.generation for node in nodes), default=-1) + 1)
    made = [bisect_right(nodes, generation, key=lambda node: node.generation) for generation in generations]
    own = [0] * len(generations)
    for row in evidence.candidates.values():  # files that were repaired are no nodes, and were trained all the same
        if row["arm"] == EVOLUTION_ARM and row["generation"] < len(own):
            own[row["generation"]] += spent.get(row["candidate_id"], 0)
    return [
        Step(generation, tokens, best)
        for generation, tokens, best in zip(generations, accumulate(own), best_scores(nodes, made), strict=True)
        if best is not None
    ]


def compare_arms(runs: Mapping[str, Sequence[Sequence[Step]]], level: float = 0.95) -> list[ArmCurve]:
    """Arms on one grid of budgets: the mean over search seeds, with a t-interval over them.

    A run's best at a budget is that of its last generation within it. The grid ends where the first run does, so that
    no arm is carried on beyond what it has spent.

    Args:
        runs: arm -> one list of steps per search seed.
        level: confidence level.
    """
    all_steps = [steps for seeds in runs.values() for steps in seeds if steps]
    if not all_steps:
        return []
    start = max(steps[0].tokens for steps in all_steps)
    end = max(start, min(steps[-1].tokens for steps in all_steps))
    grid = np.linspace(start, end, POINTS)
    curves = []
    for arm, seeds in runs.items():
        values = np.array([[_at(steps, budget) for budget in grid] for steps in seeds if steps])
        if len(values):
            curves.append(ArmCurve(arm, tuple(grid.tolist()), tuple(_interval(column, level) for column in values.T)))
    return curves


def _at(steps: Sequence[Step], budget: float) -> float:
    return next(step.best for step in reversed(steps) if step.tokens <= budget + 0.5)


def _interval(values: Any, level: float) -> Interval:
    count, mean = len(values), float(values.mean())
    if count < 2:
        return Interval(mean, -math.inf, math.inf, count)
    half = float(stdtrit(count - 1, 0.5 + level / 2)) * float(values.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


# ---- arms replayed on a table

REFERENCE = "random"
"""The arm that the others are compared with."""

RESAMPLES = 400


@dataclass(frozen=True)
class ReplayedArm:
    """One arm over all replays: how far from the known optimum it stands, and how soon."""

    arm: str
    tokens: tuple[float, ...]
    regret: tuple[Interval, ...]  # mean over replays at each budget, percent points
    final: Interval  # at the whole budget
    gap: Interval | None  # final regret minus that of the reference, paired by replay
    ratio: Interval | None  # tokens of the reference over this arm's, to the lowest mean regret that both reach

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "arm": self.arm,
            "tokens": list(self.tokens),
            "regret": [one.to_dict() for one in self.regret],
            "final": self.final.to_dict(),
            "gap": self.gap.to_dict() if self.gap else None,
            "ratio": self.ratio.to_dict() if self.ratio else None,
        }


def compare_replays(
    regrets: Mapping[str, Array], tokens: Array, level: float = 0.95, seed: int = 0
) -> list[ReplayedArm]:
    """Every arm with intervals over replays; worst final regret last.

    The ratio is that of the budgets at which the two mean curves first fall to the higher of their two final regrets: 2 means
    that the arm needs half the tokens of the reference. Its limits are quantiles over resampled replays, the same ones for
    both arms, since replays of one number share their luck.

    Args:
        regrets: arm -> (replays, G).
        tokens: (G,) budgets.
        level: confidence level.
        seed: of the resampling.
    """
    base = regrets.get(REFERENCE)
    rng = np.random.default_rng(seed)
    rows = []
    for arm, own in regrets.items():
        curve = tuple(_interval(column, level) for column in own.T)
        gap = ratio = None
        if base is not None and arm != REFERENCE and len(own) == len(base):
            gap = _interval(own[:, -1] - base[:, -1], level)
            counts = rng.multinomial(len(own), np.full(len(own), 1.0 / len(own)), size=RESAMPLES) / len(own)
            drawn = [_tokens_ratio(a, b, tokens) for a, b in zip(counts @ own, counts @ base, strict=True)]
            low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
            ratio = Interval(
                _tokens_ratio(own.mean(axis=0), base.mean(axis=0), tokens), float(low), float(high), len(own)
            )
        rows.append(ReplayedArm(arm, tuple(tokens.tolist()), curve, curve[-1], gap, ratio))
    return sorted(rows, key=lambda row: row.final.estimate)


def _tokens_ratio(arm: Array, reference: Array, tokens: Array) -> float:
    target = max(float(arm.min()), float(reference.min()))
    return _reached(reference, tokens, target) / _reached(arm, tokens, target)


def _reached(curve: Array, tokens: Array, target: float) -> float:
    """The budget at which a curve first falls to the target, on the straight line between two budgets."""
    at = int(np.argmax(curve <= target + 1e-12))
    if at == 0:
        return float(tokens[0])
    above, below = float(curve[at - 1]), float(curve[at])
    part = (above - target) / (above - below) if above > below else 1.0
    return float(tokens[at - 1] + part * (tokens[at] - tokens[at - 1]))
