"""A composition: one choice per slot with its numbers.

``Composition.model_dump(mode="json")`` is the form kept in the archive's ``mechanisms`` column; ``to_text`` is the one-line
form that a rendered file carries in its docstring.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping

from pydantic import Field, model_validator

from poise_core.config.protocol import FrozenModel
from poise_core.mechanisms.catalogue import CORE_SLOTS, SLOTS
from poise_core.mechanisms.model import Choice


class Composition(FrozenModel):
    """An algorithm as choices over all slots; parameter names are unique within one composition.

    Slots that are left out are neutral and parameters that are left out have their defaults; both are filled in, so two
    equal algorithms compare equal.

    Raises:
        ValueError: an unknown slot, choice or parameter, or a number outside its bounds.
    """

    choices: dict[str, str]
    parameters: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        given, numbers = dict(data.get("choices", {})), dict(data.get("parameters", {}))
        unknown = given.keys() - SLOTS.keys()
        if unknown:
            raise ValueError(f"unknown slot {', '.join(sorted(unknown))}; slots: {', '.join(SLOTS)}")
        choices = {name: given.get(name, slot.neutral.name) for name, slot in SLOTS.items()}
        try:
            used = [SLOTS[slot].choice(choice) for slot, choice in choices.items()]
        except KeyError as error:
            raise ValueError(str(error.args[0])) from error
        parameters = {parameter.name: parameter for choice in used for parameter in choice.parameters}
        surplus = numbers.keys() - parameters.keys()
        if surplus:
            raise ValueError(f"no choice has the parameter {', '.join(sorted(surplus))}")
        values = {name: float(numbers.get(name, parameter.default)) for name, parameter in parameters.items()}
        for name, value in values.items():
            if not parameters[name].low <= value <= parameters[name].high:
                raise ValueError(f"{name} is {value:g}; allowed: {parameters[name].low:g} to {parameters[name].high:g}")
        return {"choices": choices, "parameters": values}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Composition):
            return NotImplemented
        return self.choices == other.choices and self.parameters == other.parameters

    def __hash__(self) -> int:
        return hash((*self.choices.values(), *self.parameters.values()))  # always in the order of the slots

    @property
    def key(self) -> str:
        """Sixteen hex digits that name this composition."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:16]

    def choice(self, slot: str) -> Choice:
        """The catalogue's entry for what this composition chose in ``slot``."""
        return SLOTS[slot].choice(self.choices[slot])

    def chosen(self) -> list[Choice]:
        """The catalogue's entries in slot order."""
        return [self.choice(slot) for slot in SLOTS]

    def numbers(self, slot: str) -> dict[str, float]:
        """The parameters that the choice in ``slot`` takes."""
        if not self.parameters:
            return {}
        return {parameter.name: self.parameters[parameter.name] for parameter in self.choice(slot).parameters}

    def with_choices(self, changes: Mapping[str, str], numbers: Mapping[str, float] | None = None) -> Composition:
        """This composition with other choices in some slots; kept choices keep their numbers, new ones get defaults.

        A search makes thousands of variations per candidate, so only what changes is checked.

        Raises:
            ValueError: as the class does.
        """
        given, parameters = dict(numbers or {}), dict[str, float]()
        for slot, entry in SLOTS.items():
            kept = slot not in changes
            choice = entry.named.get(self.choices[slot] if kept else changes[slot])
            if choice is None:
                return self._checked(changes, numbers)
            for one in choice.parameters:
                name = one.name
                if kept and name not in given:
                    parameters[name] = self.parameters[name]
                    continue
                value = float(given.pop(name, one.default))
                if not one.low <= value <= one.high:
                    return self._checked(changes, numbers)
                parameters[name] = value
        if given or changes.keys() - SLOTS.keys():
            return self._checked(changes, numbers)
        return Composition.model_construct(choices={**self.choices, **changes}, parameters=parameters)

    def _checked(self, changes: Mapping[str, str], numbers: Mapping[str, float] | None) -> Composition:
        """The same by way of the class, for its refusal of what is wrong."""
        replaced = {one.name for slot in changes if slot in SLOTS for one in self.choice(slot).parameters}
        kept = {name: value for name, value in self.parameters.items() if name not in replaced}
        return Composition(choices={**self.choices, **changes}, parameters={**kept, **(numbers or {})})

    def describe(self, slot: str) -> str:
        """One slot as text, for example ``baseline=anchor_mix(anchor_weight=0.7)``."""
        choice = self.choice(slot)
        numbers = ", ".join(f"{one.name}={_number(self.parameters[one.name])}" for one in choice.parameters)
        return f"{slot}={choice.name}" + (f"({numbers})" if numbers else "")

    def to_text(self) -> str:
        """All slots that are not neutral, and the core ones, on one line."""
        shown = [s for s in SLOTS if s in CORE_SLOTS or self.choices[s] != SLOTS[s].neutral.name]
        return "; ".join(self.describe(slot) for slot in shown)

    @classmethod
    def from_text(cls, text: str) -> Composition:
        """Undo ``to_text``; blanks and line breaks do not count.

        Raises:
            ValueError: the text is not a composition.
        """
        choices: dict[str, str] = {}
        parameters: dict[str, float] = {}
        for part in "".join(text.split()).rstrip(".").split(";"):
            match = re.fullmatch(r"([a-z]+)=([a-z0-9_-]+)(?:\(([^()]*)\))?", part)
            if match is None:
                raise ValueError(f"not a slot of a composition: {part!r}")
            choices[match[1]] = match[2]
            for item in filter(None, (match[3] or "").split(",")):
                name, _, value = item.partition("=")
                parameters[name] = float(value)
        return cls(choices=choices, parameters=parameters)


def _number(value: float) -> str:
    """To twelve digits where that is the number itself, else all that it takes to read the same number back."""
    short = f"{value:.12g}"
    return short if float(short) == value else repr(value)


GRPO = Composition(
    choices={
        "baseline": "group_mean", "scale": "group_std", "ratio": "token", "clip": "symmetric", "kl": "k3",
        "aggregation": "sequence-mean",
    }
)  # fmt: skip
"""The baseline of every search."""


def compose(base: Composition = GRPO, *, numbers: Mapping[str, float] | None = None, **choices: str) -> Composition:
    """``base`` with some slots answered differently: ``compose(baseline="leave_one_out", kl="none")``."""
    return base.with_choices(choices, numbers)


def distance(a: Composition, b: Composition) -> float:
    """Mean over slots of 1 where the choices differ and 0.25 where only their numbers do; in [0, 1], 0 if equal."""

    def one(slot: str) -> float:
        if a.choices[slot] != b.choices[slot]:
            return 1.0
        return 0.25 if differ(a, b, slot) else 0.0

    return sum(map(one, SLOTS)) / len(SLOTS)


def number_distance(a: Composition, b: Composition) -> float:
    """How far the numbers of two compositions with the same choices lie apart: the largest |log(x / y)| over those that differ,
    in units of log 4, at most 1; 1 where a sign differs or one of them is 0."""

    def one(x: float, y: float) -> float:
        return min(1.0, abs(math.log(x / y)) / math.log(4.0)) if x * y > 0 else 1.0

    differing = [one(x, b.parameters[name]) for name, x in a.parameters.items() if x != b.parameters[name]]
    return max(differing, default=0.0)


def changed_slots(a: Composition, b: Composition) -> list[str]:
    """Slots on which the two differ, in choice or in numbers."""
    return [slot for slot in SLOTS if differ(a, b, slot)]


def differ(a: Composition, b: Composition, slot: str) -> bool:
    """Whether the two answer a slot differently, in choice or in numbers."""
    if a.choices[slot] != b.choices[slot]:
        return True
    return any(a.parameters[name] != b.parameters[name] for name in a.choice(slot).names)
