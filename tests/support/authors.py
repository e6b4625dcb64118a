"""An implementer that answers reports, and trainings that fail where a test requests it, for tests of repairs."""

from __future__ import annotations

from collections.abc import Sequence

from laboratory import Laboratory

from poise_core.agents.roles import Attempt, Proposal, ProposalContext
from poise_core.candidate.loading import source_digest
from poise_core.config import Preset
from poise_core.evolution import Roles, default_roles
from poise_core.failures import CandidateFailure, FailureKind


class Author:
    """An implementer that answers every report: the nth file of an idea says in its text that it is the nth."""

    revises = True

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[Attempt]]] = []

    def implement(self, proposal: Proposal, context: ProposalContext, attempts: Sequence[Attempt] = ()) -> str:
        self.asked.append((proposal.name, list(attempts)))
        return file_of(proposal.name, len(attempts))


def file_of(name: str, number: int) -> str:
    return f'"""{name}, file {number}."""\n'


class Faults:
    """Trainings that go wrong: (file's number, seed, step) -> the kind of failure."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.at: dict[tuple[int, int, int], FailureKind] = {}
        laboratory.step = self.step

    def step(self, name: str, digest: str, seed: int, step: int) -> dict[str, float]:
        number = next((n for n in range(9) if source_digest(file_of(name, n)) == digest), None)
        kind = self.at.get((number, seed, step)) if number is not None else None
        if kind is not None:
            raise CandidateFailure(kind, "train", f"it went wrong at step {step}", "Traceback: boom")
        return Laboratory._noise_step(name, digest, seed, step)


def with_author(preset: Preset, author: Author | None = None) -> Roles:
    roles = default_roles(preset)
    return Roles(roles.selector, roles.proposer, roles.screener, author or Author(), roles.reflector)
