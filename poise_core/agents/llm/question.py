"""A question of a role to a language model, and the answer that came back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from poise_core.agents.llm.faults import CallFailed
from poise_core.agents.llm.prompts import Prompt
from poise_core.agents.roles import ProposalContext
from poise_core.failures import CandidateFailure, FailureKind

A = TypeVar("A", bound=BaseModel)


@dataclass(frozen=True)
class ToolCall:
    """A tool call in a reply, as the model has made it."""

    name: str
    arguments: str  # JSON, or whatever else came


@dataclass(frozen=True)
class Tools(Generic[A]):
    """Tools that a model may call in place of its answer."""

    documents: tuple[dict[str, Any], ...]  # in OpenAI's form, which LangChain's ``bind_tools`` takes for every provider
    read: Callable[[Sequence[ToolCall]], A]  # what the calls of one reply stand for
    without: tuple[str, ...] = ()  # fields of the form by which a model without tool calls asks for them


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
    tools: Tools[A] | None = None  # for models that have tool calls

    def with_tools(self, tools: Tools[A] | None) -> Question[A]:
        """The same, with tools that may be called."""
        return replace(self, tools=tools)

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
