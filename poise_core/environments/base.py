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
