"""Rules that end a training early, read from its trajectory by the process that watches the worker.

A rule judges the steps after ``grace_steps`` and fires when ``patience`` steps in a row break it, so that no single spike stops a
training. Whether and where a training is stopped is a function of its trajectory alone: it does not depend on when the watcher
looked, and a resumed training is stopped at the same step.

Four rules are failures of the candidate, each a ``poise_core.failures.FailureKind``. The fifth stops a training whose reward is
certainly below the parent's (``CertainLoss``), which is no failure: the algorithm works, but is worse. It judges only where reward
is what is scored (``Protocol.scored_by_reward``): where pass@k counts, less reward may be more Overall.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from poise_core.config import HealthSpec
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.trajectory import Column

Row = Mapping[str, float]


class CertainLoss(Exception):
    """The reward of a training is certainly below the parent's, so that it ends early; not a failure. One sentence."""


NEARLY_FINISHED = 0.9
"""Share of a training's steps from which on a certain loss no longer ends it."""


@dataclass
class HealthWatch:
    """Judges the steps of one candidate's trainings as they come; call ``observe`` with every row of every seed in order.

    Args:
        spec: the thresholds.
        parent: seed -> the parent's trajectory under the same protocol: the same prompts at the same steps.
        by_reward: whether a certain loss of reward ends a training; ``Protocol.scored_by_reward``.
        steps: of a whole training; in the last tenth of it no loss of reward ends it. None: at no step.
    """

    spec: HealthSpec
    parent: Mapping[int, Sequence[Row]] = field(default_factory=dict)
    by_reward: bool = False
    steps: int | None = None
    stopped: bool = False  # whether a rule has fired
    _broken: dict[tuple[int, FailureKind], int] = field(default_factory=dict)
    _losses: dict[int, list[float]] = field(default_factory=dict)

    def observe(self, seed: int, row: Row) -> None:
        """Judge one more step; a trajectory that is read again from its start is judged anew.

        Raises:
            CandidateFailure: KL_BLOWUP, ENTROPY_COLLAPSE, LENGTH_DRIFT or CLIP_SATURATION.
            CertainLoss: the reward is certainly below the parent's.
        """
        step = int(row["step"])
        if step == 0:
            self.stopped = False
            self._losses[seed] = []
            self._broken = {key: count for key, count in self._broken.items() if key[0] != seed}
        if not self.spec.enabled:
            return
        theirs = self._parent_row(seed, step)
        if theirs is not None:
            self._losses.setdefault(seed, []).append(_number(theirs, "reward_mean") - _number(row, "reward_mean"))
        if step < self.spec.grace_steps:
            return
        for kind, sentence in self._rules(row, theirs).items():
            count = self._broken.get((seed, kind), 0) + 1 if sentence else 0
            self._broken[seed, kind] = count
            if sentence and count >= self.spec.patience:
                self.stopped = True
                where = f"at step {step} of seed {seed}, for {count} steps"
                raise CandidateFailure(kind, "train", f"{sentence} {where}")
        if self.steps is not None and step >= NEARLY_FINISHED * self.steps:
            return  # a seed that is nearly finished is finished: what it scores is worth more than what is left to train
        if self.by_reward and (loss := certain_loss(self._losses.get(seed, []), self.spec)):
            self.stopped = True
            raise CertainLoss(f"{loss} at step {step} of seed {seed}")

    def observe_all(self, seed: int, rows: Sequence[Row]) -> None:
        """``observe`` every row."""
        for row in rows:
            self.observe(seed, row)

    def judged(self, seed: int, rows: Sequence[Row]) -> int:
        """How many rows are observed until a rule fires; all where none does."""
        for count, row in enumerate(rows, start=1):
            try:
                self.observe(seed, row)
            except (CandidateFailure, CertainLoss):
                return count
        return len(rows)

    def _parent_row(self, seed: int, step: int) -> Row | None:
        rows = self.parent.get(seed, ())
        return rows[step] if step < len(rows) else None

    def _rules(self, row: Row, parent: Row | None) -> dict[FailureKind, str]:
        """Kind -> what is wrong with this step, empty where nothing is. A number that is missing or NaN breaks no rule."""
        spec = self.spec
        kl, entropy = _number(row, "kl"), _number(row, "entropy")
        truncated, clipped = _number(row, "truncated"), _number(row, "clip_fraction")
        length, theirs = _number(row, "completion_length"), _number(parent or {}, "completion_length")
        drift = ""
        if truncated >= spec.truncated_limit:
            drift = f"{truncated:.0%} of the completions are cut off (limit {spec.truncated_limit:.0%})"
        elif length > spec.length_factor * theirs or length * spec.length_factor < theirs:
            drift = (
                f"completions have {length:.1f} tokens, the parent's {theirs:.1f} (limit {spec.length_factor:g} times)"
            )
        return {
            FailureKind.KL_BLOWUP: f"KL is {kl:.3g} nats per token (limit {spec.kl_limit:g})"
            if kl > spec.kl_limit
            else "",
            FailureKind.ENTROPY_COLLAPSE: (
                f"entropy is {entropy:.2g} nats per token (floor {spec.entropy_floor:g})"
                if entropy < spec.entropy_floor
                else ""
            ),
            FailureKind.LENGTH_DRIFT: drift,
            FailureKind.CLIP_SATURATION: (
                f"{clipped:.0%} of the tokens are clipped (limit {spec.clip_limit:.0%})"
                if clipped > spec.clip_limit
                else ""
            ),
        }


def certain_loss(losses: Sequence[float], spec: HealthSpec) -> str:
    """One sentence on how far the reward is certainly below the parent's; empty where that is not certain.

    ``losses`` are the parent's reward minus the child's, step by step on the same prompts. Over the last ``loss_window`` of them
    the mean must be at least ``loss_margin`` and lie ``loss_errors`` standard errors above half of it. Successive steps are
    correlated, so the standard error is inflated by sqrt((1 + r) / (1 - r)), r the lag-1 correlation (at least 0, at most 0.9).
    """
    count = spec.loss_window
    recent = losses[-count:]
    if count < 3 or len(losses) < spec.grace_steps + count or not all(map(math.isfinite, recent)):
        return ""
    mean = math.fsum(recent) / count
    rest = [loss - mean for loss in recent]
    squares = math.fsum(one * one for one in rest)
    lagged = math.fsum(one * other for one, other in itertools.pairwise(rest))
    lag_one = min(max(lagged / squares, 0.0), 0.9) if squares > 0 else 0.0
    error = math.sqrt(squares / (count - 1) / count * (1 + lag_one) / (1 - lag_one))
    if mean < spec.loss_margin or mean - spec.loss_errors * error < spec.loss_margin / 2:
        return ""
    return f"reward is {mean:.3f} +- {error:.3f} below the parent's on the same prompts, mean of {count} steps,"


def _number(row: Row, name: Column) -> float:
    value = row.get(name)
    return math.nan if value is None else float(value)
