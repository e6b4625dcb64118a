"""The interface of an environment: prompts with a verifier, and three disjoint splits of its problems."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Split = Literal["train", "search", "report"]
"""``train`` feeds training, ``search`` drives selection, ``report`` is read only by the replication of a champion."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt, with the answer by which its completions are judged."""

    prompt: str
    answer: str
    kind: str
    data: str = ""  # JSON of further columns for graders that are functions


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verifier's result for one completion."""

    correctness: float  # in [0, 1]; 0 where the format is not valid
    format_valid: bool  # the answer parses
    how: str = (
        ""  # the outcome of grading by its name, see poise_core.grading.OUTCOMES; "" where the environment has none
    )


class Environment(Protocol):
    """A source of prompts whose completions can be verified."""

    name: str

    def problems(self, split: Split, kinds: Sequence[str], count: int, seed: str) -> list[Problem]:
        """Return ``count`` distinct problems of one split, kinds in equal shares; equal arguments give equal problems.

        For ``search`` and ``report`` the seed is a secret of the run, and the problems should not be known without it: use all of
        the seed, as ``random.Random(seed)`` does with a text.

        Raises:
            ValueError: unknown kind, or the split holds fewer problems.
        """
        ...

    def pool_size(self, kind: str) -> int:
        """Return how many distinct training problems of a kind can be requested."""
        ...

    def verify(self, problem: Problem, completion: str) -> Outcome:
        """Judge one completion, given as text without the end-of-sequence token."""
        ...


def verify_all(environment: Environment, problems: Sequence[Problem], completions: Sequence[str]) -> list[Outcome]:
    """Judge many completions, each of the problem at its place; side by side where the environment can."""
    together = getattr(environment, "verify_all", None)
    if together is not None:
        return list(together(problems, completions))
    return [environment.verify(problem, text) for problem, text in zip(problems, completions, strict=True)]


def split_of(prompt: str, shares: tuple[float, float] = (0.7, 0.15)) -> Split:
    """Return the split of a prompt from a hash of its text, so that no problem is in two splits."""
    position = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest()) / 2**64
    if position < shares[0]:
        return "train"
    return "search" if position < shares[0] + shares[1] else "report"


KINDS = ("right", "wrong", "malformed", "longest")
"""Which completions are kept, at most one of each: solved, with an answer that is wrong, without one that parses, the longest."""

TRAINING = "training"
"""Stands where a benchmark has its name."""

PROMPT_CHARACTERS, COMPLETION_CHARACTERS = 800, 1600
"""Of a kept prompt and a kept completion, at most; of a longer one the beginning and the end."""


@dataclass(frozen=True, slots=True)
class KeptCompletion:
    """One completion that is kept to be read, with its verdict."""

    benchmark: str  # ``TRAINING`` in training
    step: int  # of the training; -1 in an evaluation
    kind: str  # of ``KINDS``
    prompt: str
    completion: str
    correctness: float
    format_valid: bool
    truncated: bool
    tokens: int


def kept_rows(correctness: Sequence[float], format_valid: Sequence[bool], lengths: Sequence[int]) -> dict[str, int]:
    """Kind -> row of the completion that is kept: the first of its kind, and the first of the longest."""
    found: dict[str, int] = {}
    for row, (score, valid) in enumerate(zip(correctness, format_valid, strict=True)):
        found.setdefault("malformed" if not valid else "right" if score > 0 else "wrong", row)
    if lengths:
        found["longest"] = max(range(len(lengths)), key=lambda row: (lengths[row], -row))
    return {kind: found[kind] for kind in KINDS if kind in found}


def cut(text: str, limit: int) -> str:
    """The text in at most about ``limit`` characters, encodable as UTF-8: of a longer one the beginning and the end."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} [... {len(text) - limit} characters left out ...] {text[-(limit - limit // 2) :]}"
