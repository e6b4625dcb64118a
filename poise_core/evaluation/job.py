"""The job of an evaluation, as data only, so that code which plans one needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from poise_core.config import ResourceSpec
from poise_core.config.protocol import Protocol
from poise_core.environments import Split
from poise_core.evaluation.problems import ProblemSecret


@dataclass(frozen=True)
class EvaluationJob:
    """Trained policies of one candidate, to be scored on one split."""

    folder: Path  # gets seed-<s>-<split>.json
    protocol: Protocol
    resources: ResourceSpec
    split: Split
    policies: tuple[tuple[int, Path], ...]  # (seed, policy folder)
    secret: ProblemSecret | None = field(repr=False)  # of the run; None asks the public problems
    examination: int = 0  # which problems of the split, see ProblemSecret.problem_set
