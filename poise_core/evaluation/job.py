"""The job of an evaluation, as data only, so that code which plans one needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from poise_core.config import ResourceSpec
from poise_core.config.protocol import Protocol
from poise_core.environments import Split


@dataclass(frozen=True)
class EvaluationJob:
    """Trained policies of one candidate, to be scored on one split."""

    folder: Path  # gets seed-<s>-<split>.json
    protocol: Protocol
    resources: ResourceSpec
    split: Split
    policies: tuple[tuple[int, Path], ...]  # (seed, policy folder)
    examination: int = (
        0  # which problems of the split: an examination reads some that no earlier one of its run has read
    )
