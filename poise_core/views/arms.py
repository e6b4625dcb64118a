"""Arms of search against each other: the best so far over the training tokens spent.

*Best* is the shrunken estimate of the candidate that a run would name at that moment. It is no running maximum and may fall:
with more candidates known, a high score may turn out to be noise.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import ttest_ind

from poise_core.evidence.intervals import Interval, mean_interval
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.history import History, tokens_of_generations
from poise_core.search.nodes import leaders

Array = npt.NDArray[np.float64]

REFERENCE = "random"
"""The arm that the others are compared with."""

WHOLE = "evolution"
"""The arm of which replayed ablations are parts."""

POINTS = 25
"""Budgets at which arms are compared, from the baseline's to the smallest total of any run."""


@dataclass(frozen=True)
class Step:
    """The state of one run after a generation."""

    generation: int
    tokens: int  # completion tokens sampled in training so far, failed candidates' included
    best: float  # shrunken Overall of the candidate that the run would name best, percent
    pick: str = ""  # that candidate


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
    nodes = sorted(History(evidence.archive, evidence.protocol).nodes(), key=lambda node: node.generation)
    generations = range(max((node.generation for node in nodes), default=-1) + 1)
    made = [bisect_right(nodes, generation, key=lambda node: node.generation) for generation in generations]
    own = tokens_of_generations(evidence.candidates.values(), evidence.training_tokens, len(generations))
    return [
        Step(generation, tokens, found[1], found[0].candidate_id)
        for generation, tokens, found in zip(generations, accumulate(own), leaders(nodes, made), strict=True)
        if found is not None
    ]


BASELINE, NOT_MEASURED = "the baseline", "not measured again"
"""Outcomes of a pick that has no replication."""


@dataclass(frozen=True)
class Pick:
    """What one search named best within a budget, and what that candidate scored again (``poise_core.experiments.picks``)."""

    arm: str
    search_seed: int
    candidate_id: str
    name: str
    own: float  # shrunken Overall by which it was named, percent
    outcome: str  # of its replication; BASELINE, or NOT_MEASURED
    delta: (
        Interval | None
    )  # to the baseline with fresh seeds on sealed problems, percent points; 0 for the baseline itself

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "delta": self.delta.to_dict() if self.delta else None}


@dataclass(frozen=True)
class ArmPicks:
    """The picks of one arm, and how they compare with those of the reference arm."""

    arm: str
    picks: tuple[Pick, ...]
    delta: Interval | None  # mean over the searches; None where a pick was not measured, or failed
    gap: (
        Interval | None
    )  # that minus the mean of the reference, with Welch's limits; open ones with one search of either

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        limits = {name: one.to_dict() if one else None for name, one in (("delta", self.delta), ("gap", self.gap))}
        return {"arm": self.arm, "picks": [one.to_dict() for one in self.picks], **limits}


def common_budget(runs: Sequence[Sequence[Step]]) -> float:
    """The tokens of the run that spent least, or of the dearest baseline where that is more; 0 without any run."""
    known = [steps for steps in runs if steps]
    if not known:
        return 0.0
    return max(max(steps[0].tokens for steps in known), min(steps[-1].tokens for steps in known))


def pick_at(steps: Sequence[Step], budget: float) -> Step:
    """The state of a run at a budget of tokens: that of its last generation within it.

    Raises:
        ValueError: its baseline took more than that.
    """
    for step in reversed(steps):
        if step.tokens <= budget + 0.5:
            return step
    raise ValueError(f"no generation of the run lies within {budget:.0f} tokens")


def pick_of(arm: str, search_seed: int, step: Step, evidence: RunEvidence) -> Pick:
    """A run's pick, with what its replication has found where there is one."""
    outcome, delta = NOT_MEASURED, None
    if step.pick == evidence.baseline:
        outcome, delta = BASELINE, Interval(0.0, 0.0, 0.0, 0)
    elif row := evidence.replications.get(step.pick):
        outcome = row["outcome"]
        if row.get("delta") is not None:
            limits = {"estimate": row["delta"], "low": row["low"], "high": row["high"], "seeds": len(row["seeds"])}
            delta = Interval.from_dict(limits)
    return Pick(arm, search_seed, step.pick, evidence.candidates[step.pick]["name"], step.best, outcome, delta)


def compare_picks(picks: Sequence[Pick], level: float = 0.95) -> list[ArmPicks]:
    """Arms by what their picks scored again: means over searches with t-limits, and differences to the reference with Welch's.

    Limits are over searches. The baseline's fresh seeds are the same for all picks, so that its noise is in every ``delta``, and in
    no ``gap``.
    """
    known = {
        arm: np.array([one.delta.estimate for one in picks if one.arm == arm and one.delta is not None])
        for arm in dict.fromkeys(one.arm for one in picks)
    }
    whole = {arm: values for arm, values in known.items() if len(values) == sum(one.arm == arm for one in picks)}
    rows = []
    for arm in known:
        delta = gap = None
        if arm in whole:
            delta = mean_interval(whole[arm], level)
            gap = _welch(whole[arm], whole[REFERENCE], level) if arm != REFERENCE and REFERENCE in whole else None
        rows.append(ArmPicks(arm, tuple(one for one in picks if one.arm == arm), delta, gap))
    return rows


def picks_at_budget(
    searches: Iterable[tuple[str, int, Sequence[Step], RunEvidence]], level: float = 0.95
) -> tuple[float, list[ArmPicks]]:
    """The largest budget that all searches have spent, and what each named best there.

    Args:
        searches: arm, search seed, steps and evidence of each.
        level: confidence level.
    """
    known = list(searches)
    budget = common_budget([steps for _, _, steps, _ in known])
    picks = [pick_of(arm, seed, pick_at(steps, budget), evidence) for arm, seed, steps, evidence in known]
    return budget, compare_picks(picks, level)


def _welch(mine: Array, theirs: Array, level: float) -> Interval:
    estimate, count = float(mine.mean() - theirs.mean()), min(len(mine), len(theirs))
    if count < 2:
        return Interval(estimate, -math.inf, math.inf, count)
    if not (mine.std() or theirs.std()):  # as where every search names the baseline
        return Interval(estimate, estimate, estimate, count)
    limits = ttest_ind(mine, theirs, equal_var=False).confidence_interval(level)
    return Interval(estimate, float(limits.low), float(limits.high), count)


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
    grid = np.linspace(max(steps[0].tokens for steps in all_steps), common_budget(all_steps), POINTS)
    curves = []
    for arm, seeds in runs.items():
        values = np.array([[pick_at(steps, budget).best for budget in grid] for steps in seeds if steps])
        if len(values):
            curves.append(
                ArmCurve(arm, tuple(grid.tolist()), tuple(mean_interval(column, level) for column in values.T))
            )
    return curves


# ---- arms replayed on a table

RESAMPLES = 400


@dataclass(frozen=True)
class ReplayedArm:
    """One arm over all replays: how far from the known optimum it stands, and how soon."""

    arm: str
    tokens: tuple[float, ...]
    regret: tuple[Interval, ...]  # mean over replays at each budget, percent points
    final: Interval  # at the whole budget
    gap: Interval | None  # final regret minus that of the reference, paired by replay
    loss: Interval | None  # final regret minus that of the whole search, paired by replay
    ratio: Interval | None  # tokens of the reference over this arm's, to the lowest mean regret that both reach

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "arm": self.arm,
            "tokens": list(self.tokens),
            "regret": [one.to_dict() for one in self.regret],
            "final": self.final.to_dict(),
            "gap": self.gap.to_dict() if self.gap else None,
            "loss": self.loss.to_dict() if self.loss else None,
            "ratio": self.ratio.to_dict() if self.ratio else None,
        }


def compare_replays(
    regrets: Mapping[str, Array], tokens: Array, level: float = 0.95, seed: int = 0
) -> list[ReplayedArm]:
    """Every arm with intervals over replays; worst final regret last.

    The ratio is that of the budgets at which the two mean curves first fall to the lowest regret that both reach: 2 means
    that the arm needs half the tokens of the reference. Its limits are quantiles over resampled replays, the same ones for
    both arms, since replays of one number share their luck.

    Args:
        regrets: arm -> (replays, G).
        tokens: (G,) budgets.
        level: confidence level.
        seed: of the resampling.
    """

    def paired(arm: str, other: str) -> Interval | None:
        own, theirs = regrets[arm], regrets.get(other)
        if theirs is None or arm == other or len(own) != len(theirs):
            return None
        return mean_interval(own[:, -1] - theirs[:, -1], level)

    rows = []
    for arm, own in regrets.items():
        curve = tuple(mean_interval(column, level) for column in own.T)
        gap, ratio = paired(arm, REFERENCE), None
        if gap is not None:
            base = regrets[REFERENCE]
            rng = np.random.default_rng(seed)  # anew: an arm's limits do not depend on which other arms are compared
            counts = rng.multinomial(len(own), np.full(len(own), 1.0 / len(own)), size=RESAMPLES) / len(own)
            drawn = [_tokens_ratio(a, b, tokens) for a, b in zip(counts @ own, counts @ base, strict=True)]
            low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
            ratio = Interval(
                _tokens_ratio(own.mean(axis=0), base.mean(axis=0), tokens), float(low), float(high), len(own)
            )
        rows.append(ReplayedArm(arm, tuple(tokens.tolist()), curve, curve[-1], gap, paired(arm, WHOLE), ratio))
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
