"""What passes between the stages of a generation: small values that name what is recorded in the run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise_core.archive import EVOLUTION_ARM
from poise_core.failures import CandidateFailure, FailureKind, InfrastructureError
from poise_core.files import write_atomically


@dataclass(frozen=True)
class CandidateRef:
    """A candidate on its way through the stages."""

    candidate_id: str
    name: str
    generation: int = 0
    parent_id: str | None = None  # the primary parent

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> CandidateRef:
        """The candidate of a row of ``candidates``."""
        return cls(row["candidate_id"], row["name"], row["generation"], next(iter(row["parent_ids"]), None))

    @property
    def label(self) -> str:
        """For people: ``gen-03/VM-AV``."""
        return f"gen-{self.generation:02d}/{self.name}"


@dataclass(frozen=True)
class ChildSlot:
    """One slot of a generation: a parent that gets one implemented child."""

    generation: int
    number: int  # in its generation, from 0
    parent_id: str
    parent_name: str
    repeat: int = 0  # how many earlier slots of this generation have the same parent
    reason: str = ""  # why it was selected

    @property
    def label(self) -> str:
        """For people and for folders: ``gen-01/slot-0``."""
        return f"gen-{self.generation:02d}/slot-{self.number}"

    @property
    def child_to_be(self) -> tuple[str, str]:
        """Identity and name of a child that there is no idea for yet."""
        return f"{EVOLUTION_ARM}-g{self.generation}-s{self.number}", f"child of {self.parent_name}"


@dataclass(frozen=True)
class Draft:
    """One answer of the implementer for a slot: a candidate file, or why there is none."""

    number: int  # from 0, in the order in which they were asked for
    index: int  # of the proposal
    candidate_id: str | None
    name: str
    failure: dict[str, str] | None = None  # kind, stage, message, detail; exactly where there is no file
    repairs: str | None = None  # the admitted candidate whose training it answers

    def candidate(self, slot: ChildSlot) -> CandidateRef:
        """What it is called where there is a file."""
        assert self.candidate_id is not None
        return CandidateRef(self.candidate_id, self.name, slot.generation, slot.parent_id)


def write_record(path: Path, document: Any) -> None:
    """Put a stage's record into the run directory, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(document, indent=1) + "\n")


def load_record(path: Path) -> Any:
    """A stage's record in the run directory, or None where the stage has not finished.

    Raises:
        InfrastructureError: the file is there and cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InfrastructureError(
            f"{path}: not readable, left as it is; restore it, or move it away to have its stage redone ({error})"
        ) from error


def failure_to_dict(failure: CandidateFailure) -> dict[str, str]:
    """For records and evidence."""
    return {
        "kind": str(failure.kind),
        "stage": failure.stage,
        "message": failure.message,
        "detail": failure.detail,
    }


def failure_from_dict(document: Mapping[str, Any]) -> CandidateFailure:
    """Undo ``failure_to_dict``; also reads a row of the ``failures`` table."""
    return CandidateFailure(
        FailureKind(document["kind"]), document["stage"], document["message"], document["detail"] or ""
    )
