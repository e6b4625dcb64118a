"""The rules that stop a training, on simulated trajectories: each fires where it should, once, and on nothing else."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest

from poise_core.config import HealthSpec
from poise_core.evolution.health import CertainLoss, HealthWatch, certain_loss
from poise_core.failures import CandidateFailure, FailureKind

SPEC = HealthSpec()
SOUND = {
    "reward_mean": 0.5,
    "kl": 0.1,
    "entropy": 0.2,
    "clip_fraction": 0.01,
    "completion_length": 15.0,
    "truncated": 0.01,
}
"""About what GRPO shows on the testbed."""


def trajectory(steps: int, since: int = 0, **changes: float) -> list[dict[str, float]]:
    """Sound steps; from step ``since`` on with other numbers."""
    return [{"step": step, **SOUND, **(changes if step >= since else {})} for step in range(steps)]


def stop_of(rows: list[dict[str, float]], parent: list[dict[str, float]] | None = None, **spec: Any) -> Any:
    """(what was raised, at which step), or None."""
    watch = HealthWatch(HealthSpec(**spec), {0: parent} if parent else {}, by_reward=True)
    for row in rows:
        try:
            watch.observe(0, row)
        except (CandidateFailure, CertainLoss) as stop:
            return stop, row["step"]
    return None


BROKEN = [
    (FailureKind.KL_BLOWUP, {"kl": 3.1}),
    (FailureKind.ENTROPY_COLLAPSE, {"entropy": 0.002}),
    (FailureKind.LENGTH_DRIFT, {"truncated": 0.95}),
    (FailureKind.LENGTH_DRIFT, {"completion_length": 61.0}),
    (FailureKind.LENGTH_DRIFT, {"completion_length": 3.7}),
    (FailureKind.CLIP_SATURATION, {"clip_fraction": 0.71}),
]


@pytest.mark.parametrize(("kind", "changes"), BROKEN, ids=str)
def test_a_state_is_stopped_after_patience_steps_with_its_cause(
    kind: FailureKind, changes: Mapping[str, float]
) -> None:
    found = stop_of(trajectory(40, since=12, **changes), trajectory(40))
    assert found is not None
    failure, step = found
    assert isinstance(failure, CandidateFailure)
    assert (failure.kind, failure.stage, step) == (kind, "train", 12 + SPEC.patience - 1)
    assert "limit" in failure.message or "floor" in failure.message
    assert f"at step {step} of seed 0" in failure.message


@pytest.mark.parametrize(("kind", "changes"), BROKEN, ids=str)
def test_spikes_and_the_first_steps_are_let_through(kind: FailureKind, changes: Mapping[str, float]) -> None:
    spikes = [{**row, **(changes if row["step"] % SPEC.patience else {})} for row in trajectory(60)]
    assert stop_of(spikes, trajectory(60)) is None  # four bad steps, one sound one, again and again
    early = trajectory(60, **changes)[: SPEC.grace_steps + SPEC.patience - 1]
    assert stop_of(early, trajectory(60)) is None
    assert stop_of(trajectory(60, **changes), trajectory(60), enabled=False) is None


def test_missing_numbers_and_nan_break_no_rule() -> None:
    unknown = [{"step": step, "reward_mean": math.nan, "kl": math.nan} for step in range(60)]
    assert stop_of(unknown, trajectory(60)) is None
    assert stop_of([{"step": step} for step in range(60)]) is None


def test_the_length_rule_needs_the_parent_s_steps() -> None:
    assert stop_of(trajectory(60, completion_length=70.0)) is None
    assert stop_of(trajectory(60, completion_length=70.0), trajectory(3)) is None


def test_a_certain_loss_by_hand() -> None:
    # window 4, no grace; losses alternate 0.3 and 0.1: mean 0.2, deviations +-0.1, variance 4 * 0.01 / 3, lag-1 negative -> 0
    spec = HealthSpec(loss_window=4, grace_steps=0, loss_margin=0.15, loss_errors=2.0)
    # standard error sqrt(0.04 / 3 / 4) = 0.0577; 0.2 - 2 * 0.0577 = 0.0845 > 0.075
    assert "0.200 +- 0.058" in certain_loss([0.3, 0.1, 0.3, 0.1], spec)
    assert not certain_loss([0.3, 0.1, 0.3, 0.1], spec.model_copy(update={"loss_errors": 2.2}))  # 0.073 < 0.075
    assert not certain_loss([0.2, 0.1, 0.15, 0.1], spec)  # mean 0.1375 < 0.15
    assert not certain_loss([0.3, 0.3, 0.3], spec)  # the window is not full
    # 0.5, 0.5, 0.1, 0.1: mean 0.3, squares 0.16, lagged 0.04 - 0.04 + 0.04 = 0.04 -> r = 0.25, inflated by sqrt(1.25 / 0.75)
    # 0.3 - 2 * sqrt(0.16 / 3 / 4 * 5 / 3) = 0.3 - 2 * 0.149 = 0.002 < 0.075
    assert not certain_loss([0.5, 0.5, 0.1, 0.1], spec)
    assert not certain_loss([math.nan, 0.5, 0.5, 0.5], spec)


def test_a_child_as_good_as_its_parent_is_never_certain_to_lose() -> None:
    """Rewards of 128 completions around a policy that drifts as far from the parent's as two seeds of GRPO do."""
    draw, stopped = random.Random(0), 0
    for _ in range(300):
        gap, losses = 0.0, []
        for _ in range(60):
            gap = 0.9 * gap + draw.gauss(0, 0.02)  # sd 0.046 in the long run
            losses.append(gap + draw.gauss(0, 0.06))
            stopped += bool(certain_loss(losses, SPEC))
    assert stopped == 0


def test_a_child_far_below_its_parent_is_stopped_without_being_called_a_failure() -> None:
    draw = random.Random(1)
    parent = [{**row, "reward_mean": 0.6} for row in trajectory(60)]
    child = [{**row, "reward_mean": 0.3 + draw.gauss(0, 0.06)} for row in trajectory(60)]
    found = stop_of(child, parent)
    assert found is not None
    assert isinstance(found[0], CertainLoss)
    assert found[1] < 40
    left_alone = HealthWatch(SPEC, {0: parent})  # where pass@k counts
    left_alone.observe_all(0, child)
    assert not left_alone.stopped


def test_the_verdict_does_not_depend_on_where_reading_began() -> None:
    """A resumed training is read from its first step; a second seed is judged on its own."""
    rows = trajectory(40, since=12, kl=9.0)
    watch = HealthWatch(SPEC)
    watch.observe_all(0, rows[:15])  # three bad steps, then the process is killed
    assert watch.judged(0, rows) == 17
    assert watch.stopped
    watch.observe_all(1, trajectory(40))
    assert not watch.stopped
    assert watch.judged(1, rows) == 17


def test_a_seed_that_is_nearly_finished_is_finished() -> None:
    parent, mine = trajectory(60), trajectory(60, since=45, reward_mean=0.0)
    stopped = HealthWatch(SPEC, {0: parent}, by_reward=True)
    at = stopped.judged(0, mine)
    assert 45 < at < 60
    early = HealthWatch(SPEC, {0: parent}, by_reward=True, steps=at)
    assert early.judged(0, mine) == 60  # the loss became certain in the last tenth
