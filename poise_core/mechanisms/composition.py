"""A composition: one choice per slot with its numbers, and what may not be combined.

``Composition.model_dump(mode="json")`` is the form kept in the archive's ``mechanisms`` column; ``to_text`` is the one-line
form that a rendered file carries in its docstring.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pydantic import Field, model_validator

from poise_core.evaluation.protocol import FrozenModel
from poise_core.mechanisms.catalogue import CORE_SLOTS, SLOTS
from poise_core.mechanisms.model import Choice, Parameter


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

    def __hash__(self) -> int:
        return hash(self.to_text())

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
        return {parameter.name: self.parameters[parameter.name] for parameter in self.choice(slot).parameters}

    def with_choices(self, changes: Mapping[str, str], numbers: Mapping[str, float] | None = None) -> Composition:
        """This composition with other choices in some slots; kept choices keep their numbers, new ones get defaults."""
        kept = {k: v for slot in SLOTS if slot not in changes for k, v in self.numbers(slot).items()}
        return Composition(choices={**self.choices, **changes}, parameters={**kept, **(numbers or {})})

    def describe(self, slot: str) -> str:
        """One slot as text, for example ``baseline=anchor_mix(anchor_weight=0.7)``."""
        numbers = ", ".join(f"{name}={value:.12g}" for name, value in self.numbers(slot).items())
        return f"{slot}={self.choices[slot]}" + (f"({numbers})" if numbers else "")

    def to_text(self) -> str:
        """All slots that are not neutral, and the core ones, on one line."""
        shown = [s for s in SLOTS if s in CORE_SLOTS or self.choices[s] != SLOTS[s].neutral.name]
        return "; ".join(self.describe(slot) for slot in shown)

    @classmethod
    def from_text(cls, text: str) -> Composition:
        """Undo :meth:`to_text`; blanks and line breaks do not count.

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
        return 0.25 if a.numbers(slot) != b.numbers(slot) else 0.0

    return sum(map(one, SLOTS)) / len(SLOTS)


def changed_slots(a: Composition, b: Composition) -> list[str]:
    """Slots on which the two differ, in choice or in numbers."""
    return [slot for slot in SLOTS if a.describe(slot) != b.describe(slot)]


def parameter(name: str, choices: Iterable[Choice]) -> Parameter:
    """The parameter called ``name`` among those of ``choices``.

    Raises:
        KeyError: none of them has it.
    """
    for choice in choices:
        for candidate in choice.parameters:
            if candidate.name == name:
                return candidate
    raise KeyError(name)


class Conflict(NamedTuple):
    """Slots that do not go together, and why."""

    slots: tuple[str, ...]
    reason: str
    remedies: tuple[tuple[str, str], ...] = ()  # (slot, choice) that also resolve it, beside a neutral slot


UNIFORM_NONZERO = ("none", "batch_mean", "anchor_mix", "running_mean", "beta_valid")
"""Baselines under which a group of equal rewards has advantages other than zero."""


_SHIFT_INVARIANT = ("group_mean", "leave_one_out", "group_median", "batch_mean", "anchor_mix")


def conflicts(composition: Composition) -> list[Conflict]:
    """Why this composition is excluded; empty where it is not."""
    return [*_reward_conflicts(composition), *_signal_conflicts(composition), *_loss_conflicts(composition)]


def incompatibilities(composition: Composition) -> list[str]:
    """The reasons of :func:`conflicts`, as sentences."""
    return [conflict.reason for conflict in conflicts(composition)]


def _reward_conflicts(composition: Composition) -> list[Conflict]:
    of = composition.choices
    shaped = of["length"] == "overlong_soft" or of["kl"] == "k1_reward"
    found = []
    if of["scale"] in ("group_std", "analytic_std", "pass_rate", "fallback_std") and of["baseline"] in UNIFORM_NONZERO:
        found.append(
            Conflict(
                ("baseline", "scale"),
                f"{of['baseline']} leaves non-zero advantages in groups of equal rewards, and {of['scale']} "
                "divides them by a number near zero",
            )
        )
    if of["scale"] == "beta_std" and of["baseline"] != "beta_valid":
        found.append(
            Conflict(("baseline", "scale"), "beta_std needs the smoothed pass rate of the beta_valid baseline")
        )
    if of["scale"] == "fallback_std" and of["reward"] in ("correctness", "signed") and not shaped:
        reason = "without format in the reward, fallback_std has nothing to fall back on"
        found.append(Conflict(("reward", "scale"), reason, (("reward", "format_bonus"),)))
    if of["reward"] == "signed":
        if of["baseline"] in ("beta_valid", "running_mean"):
            found.append(
                Conflict(("baseline", "reward"), f"{of['baseline']} estimates correctness, not a reward of +-1")
            )
        if of["scale"] == "pass_rate":
            found.append(Conflict(("scale", "reward"), "the mean of a reward of +-1 is no pass rate"))
        if of["scale"] in ("group_std", "batch_std") and of["baseline"] in _SHIFT_INVARIANT and not shaped:
            found.append(
                Conflict(("scale", "reward"), "centring and scaling undo the signed reward: the same as correctness")
            )
    return found


_FAILURE_SIGNALS = tuple(choice.name for choice in SLOTS["failure"].choices[1:])


def _signal_conflicts(composition: Composition) -> list[Conflict]:
    of = composition.choices
    found = []
    if of["routing"] in ("mixed_only", "mixed_and_complete"):
        idle = [slot for slot in ("failure", "kl") if of[slot] in (*_FAILURE_SIGNALS, "k3_all_fail")]
        found += [
            Conflict(("routing", slot), f"{of[slot]} acts in all-fail groups, which {of['routing']} leaves out")
            for slot in idle
        ]
    if of["baseline"] == "none" and of["reward"] != "signed":
        idle = [slot for slot in ("bound", "length") if of[slot] in ("damp_negative", "failure_discount")]
        found += [
            Conflict(("baseline", slot), f"without a baseline nothing is negative, so {of[slot]} does nothing")
            for slot in idle
        ]
    if of["bound"] == "clip" and composition.parameters["advantage_clip"] > 0.6 * _largest_advantage(composition):
        found.append(
            Conflict(
                ("scale", "bound"),
                f"advantages scaled by {of['scale']} hardly exceed {_largest_advantage(composition):.2f} in groups of "
                f"eight, so a clip at {composition.parameters['advantage_clip']:g} would do next to nothing",
            )
        )
    return found


def _largest_advantage(composition: Composition) -> float:
    """Advantage of the only success among eight completions, before the bound."""
    lone = 7 / 8
    by_scale = {
        "none": lone,
        "group_std": lone / 0.35355,  # sqrt(1/8 * 7/8 * 8/7)
        "fallback_std": lone / 0.35355,
        "analytic_std": lone / 0.33072,  # sqrt(1/8 * 7/8)
        "batch_std": 2.0,  # a batch in which the deviation is 0.44
        "pass_rate": lone * 8,
        "fixed": lone / composition.parameters.get("fixed_std", 1.0),
    }
    if composition.choices["scale"] == "beta_std":
        a, b = (composition.parameters.get(name, 1.0) for name in ("prior_success", "prior_failure"))
        rate = (1 + a) / (8 + a + b)
        return (1 - rate) / max((rate * (1 - rate)) ** 0.5, composition.parameters["std_floor"])
    return by_scale[composition.choices["scale"]]


def _loss_conflicts(composition: Composition) -> list[Conflict]:
    of = composition.choices
    if of["clip"] == "none":
        return []
    if of["ratio"] == "none":
        return [Conflict(("ratio", "clip"), "the plain policy gradient has no ratio to clip")]
    if of["ratio"] == "geometric":
        return [Conflict(("ratio", "clip"), "the geometric ratio is clipped per token already")]
    return []
