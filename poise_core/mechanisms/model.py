"""The parts of the catalogue: a slot is a design decision, a choice is one answer to it, with its code.

A choice carries the lines that it contributes to a candidate file, by stage. The stages of ``compute_advantages`` are
``ADVANTAGE_STAGES``, in that order; every stage reads and rewrites the local ``reward`` or ``advantage``, shape
(B,), or, from ``tokens`` on, ``values``, shape (B, T). Those of ``compute_loss`` are ``LOSS_STAGES``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

ADVANTAGE_STAGES = (
    "reward", "reward_shaping", "baseline", "scale", "bound", "routing", "length", "format", "failure",
    "tokens", "train_mask",
)  # fmt: skip
LOSS_STAGES = ("ratio", "surrogate", "regularizers")


@dataclass(frozen=True)
class Parameter:
    """A number of a choice; it becomes a field of the candidate's ``Hyperparameters``.

    ``grid`` holds values that are known to be sensible. Random search and mutation move the number on a log scale within ``span``,
    by default from the grid's least to its largest magnitude; with one value there it stands still. A composition may hold any
    value in [low, high].
    """

    name: str
    default: float
    grid: tuple[float, ...]
    low: float = 0.0
    high: float = math.inf
    span: tuple[float, float] = (0.0, 0.0)  # magnitudes; (0, 0) stands for the grid's

    def __post_init__(self) -> None:
        if self.default not in self.grid or not all(self.low <= value <= self.high for value in self.grid):
            raise ValueError(f"{self.name}: the default must be in the grid and the grid in [{self.low}, {self.high}]")
        if self.span == (0.0, 0.0):
            sizes = [abs(value) for value in self.grid]
            object.__setattr__(self, "span", (min(sizes), max(sizes)))
        signs = {math.copysign(1.0, value) for value in self.grid}
        if (
            not 0.0 < self.span[0] <= min(map(abs, self.grid)) <= max(map(abs, self.grid)) <= self.span[1]
            or len(signs) > 1
        ):
            raise ValueError(
                f"{self.name}: the span {self.span} must be positive and hold the grid, which must have one sign"
            )
        if not all(self.low <= math.copysign(end, self.default) <= self.high for end in self.span):
            raise ValueError(f"{self.name}: the span {self.span} leaves [{self.low}, {self.high}]")

    @cached_property
    def movable(self) -> bool:
        """Whether variation moves it."""
        return self.span[0] < self.span[1]

    @cached_property
    def log_span(self) -> tuple[float, float]:
        """Natural logarithms of the span's ends."""
        return math.log(self.span[0]), math.log(self.span[1])


@dataclass(frozen=True)
class Effect:
    """What a choice is expected to move in training or evaluation, and why."""

    metric: str
    direction: Literal["increase", "decrease"]
    why: str


@dataclass(frozen=True)
class Choice:
    """One answer to a slot's question."""

    name: str
    tag: str  # two or three letters, for the names of candidates
    idea: str  # a clause that completes "This candidate ..."
    formulas: tuple[str, ...] = ()  # lines of the candidate's docstring
    source: str = ""
    parameters: tuple[Parameter, ...] = ()
    switches: Mapping[str, bool] = field(default_factory=dict)  # boolean hyperparameters that exist to be turned off
    off: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # entries of MECHANISMS
    needs: tuple[str, ...] = ()  # shared locals, see LOCALS
    code: Mapping[str, str] = field(default_factory=dict)  # stage -> lines
    loss_terms: tuple[str, ...] = ()  # expressions (B, T) with their sign, added to -surrogate
    metrics: Mapping[str, str] = field(default_factory=dict)  # metric -> expression (B, T)
    carry: Mapping[str, str] = field(default_factory=dict)  # name -> expression (B,)
    controller: str = ""  # lines of update_controller
    controller_state: Mapping[str, str] = field(
        default_factory=dict
    )  # key -> expression, what update_controller returns
    answers: tuple[str, ...] = ()  # diagnoses of poise_core.agents.rules that it responds to
    effects: tuple[Effect, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of its parameters."""
        return tuple(parameter.name for parameter in self.parameters)


@dataclass(frozen=True)
class Slot:
    """One design decision; the first choice is the neutral one, which does nothing or the plainest thing."""

    name: str
    question: str
    choices: tuple[Choice, ...]

    @property
    def neutral(self) -> Choice:
        """The choice that adds no mechanism."""
        return self.choices[0]

    def choice(self, name: str) -> Choice:
        """The choice called ``name``.

        Raises:
            KeyError: there is none; the message lists those that exist.
        """
        if name not in self.named:
            raise KeyError(f"slot {self.name} has no choice {name!r}; choices: {', '.join(self.named)}")
        return self.named[name]

    @cached_property
    def named(self) -> Mapping[str, Choice]:
        """Its choices by name."""
        return {choice.name: choice for choice in self.choices}


LOCALS: Mapping[str, str] = {
    "correct": "correct = batch.correctness > 0  # (B,)",
    "pass_rate": "pass_rate = group_mean(batch.correctness, batch.group_ids)  # (B,)",
    "all_fail": "all_fail = group_max(batch.correctness, batch.group_ids) <= 0  # (B,)",
    "valid": "valid = batch.format_valid.float()  # (B,)",
    "lengths": "lengths = sequence_lengths(batch.completion_mask)  # (B,), tokens",
}
"""Locals that several choices share, defined once at the top of ``compute_advantages``, in this order."""
