"""A question of a role to a language model, and the answer that came back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

from poise_core.agents.llm.faults import CallFailed
from poise_core.agents.llm.prompts import Prompt
from poise_core.agents.roles import ProposalContext
from poise_core.failures import CandidateFailure, FailureKind

A = TypeVar("A", bound=BaseModel)


@dataclass(frozen=True)
class Question(Generic[A]):
    """What a role asks a language model."""

    role: str
    scope: str  # what it is about, for example gen-01/slot-0: equal prompts of two slots are two questions
    generation: int
    kind: type[A]  # of the answer
    build: Callable[[int], tuple[str, str]]  # context budget in tokens -> system and user text
    prompt: str  # label of the prompt file
    model: str | None = None  # in place of the role's; that one is asked where this one fails

    @classmethod
    def about_slot(
        cls,
        role: str,
        context: ProposalContext,
        kind: type[A],
        prompt: Prompt,
        build: Callable[[int], tuple[str, str]],
        model: str | None = None,
    ) -> Question[A]:
        """What a role asks about one child slot."""
        return Question(role, context.scope, context.generation, kind, build, prompt.label, model)


@dataclass(frozen=True)
class Answer(Generic[A]):
    """An answer that was read from a reply."""

    value: A
    call_id: str
    prompt: str
    model: str


@contextmanager
def failing_as(stage: str, name: str) -> Iterator[None]:
    """Turn a question without an answer into a typed failure of the candidate."""
    try:
        yield
    except CallFailed as failure:
        raise CandidateFailure(FailureKind.NO_ANSWER, stage, f"{name}: {failure.outcome}: {failure.message}") from None
