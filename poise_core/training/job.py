"""The job of a training, as data only, so that code which plans one needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from poise_core.config import ResourceSpec
from poise_core.config.protocol import Protocol


@dataclass(frozen=True)
class TrainingJob:
    """The training of one candidate with some of the protocol's seeds."""

    candidate_path: Path  # the .py file
    candidate_name: str
    folder: Path  # gets seed-<s>/ for every seed
    protocol: Protocol
    resources: ResourceSpec
    seeds: tuple[int, ...]
    pause_after: int | None = None  # steps after which every seed stops at a checkpoint; None: it trains to its end
    source_digest: str | None = None  # of the text that the gate admitted; None trains the file unchecked
    fingerprint: str | None = None  # with which the gate admitted it, and which it must still have in training
