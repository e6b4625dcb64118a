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


_SCALE_INVARIANT = ("group_std", "analytic_std", "batch_std")
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
        reason = "beta_std needs the smoothed pass rate of the beta_valid baseline"
        found.append(Conflict(("baseline", "scale"), reason, (("baseline", "beta_valid"),)))
    if of["scale"] == "fallback_std" and of["reward"] in ("correctness", "signed") and not shaped:
        reason = "without format in the reward, fallback_std has nothing to fall back on"
        found.append(Conflict(("reward", "scale"), reason, (("reward", "format_bonus"),)))
    if of["reward"] != "correctness" and of["baseline"] in ("beta_valid", "running_mean"):
        reason = f"{of['baseline']} estimates correctness, which is not the mean of a {of['reward']} reward"
        found.append(Conflict(("baseline", "reward"), reason))
    if of["reward"] == "signed":
        if of["scale"] == "pass_rate":
            found.append(Conflict(("scale", "reward"), "the mean of a reward of +-1 is no pass rate"))
        if of["scale"] in _SCALE_INVARIANT and of["baseline"] in _SHIFT_INVARIANT and not shaped:
            found.append(
                Conflict(("scale", "reward"), "centring and scaling undo the signed reward: the same as correctness")
            )
    return found


_NEEDS_NEGATIVE = ("damp_negative", "failure_discount", "dual")
_FOR_UNIFORM_GROUPS = ("graded_penalty", "format_contrast", "entropy_credit", "k3_all_fail", "fallback_std")


def _signal_conflicts(composition: Composition) -> list[Conflict]:
    of = composition.choices
    found = []
    if of["routing"] in ("mixed_only", "mixed_and_complete"):
        idle = [slot for slot in ("failure", "kl", "scale") if of[slot] in _FOR_UNIFORM_GROUPS]
        found += [
            Conflict(("routing", slot), f"{of[slot]} acts in groups of one outcome, which {of['routing']} leaves out")
            for slot in idle
        ]
    if of["baseline"] == "none" and of["reward"] != "signed":
        idle = [slot for slot in ("bound", "length", "clip") if of[slot] in _NEEDS_NEGATIVE]
        found += [
            Conflict(
                ("baseline", slot), f"without a baseline no failure is negative, so {of[slot]} finds nothing to act on"
            )
            for slot in idle
        ]
    if of["format"] == "invalid_floor":
        if of["baseline"] == "group_median" and of["reward"] in ("format_bonus", "hierarchical"):
            reason = f"under the median, {of['reward']} sets apart the unparseable only, which invalid_floor overwrites"
            found.append(Conflict(("baseline", "format"), reason))
        if of["scale"] == "pass_rate" and composition.parameters["invalid_advantage"] == -1.0:
            reason = "under pass_rate every failure of a mixed group has advantage -1 already"
            found.append(Conflict(("scale", "format"), reason))
    if of["bound"] == "clip":
        found += [Conflict((slot, "bound"), reason) for slot, reason in _idle_clip(composition)]
    return found


def _idle_clip(composition: Composition) -> list[tuple[str, str]]:
    """Why a clip of the advantage would cut nothing, or everything alike, in groups of eight: (slot, reason)."""
    of, bound = composition.choices, composition.parameters["advantage_clip"]
    if of["baseline"] in ("none", "batch_mean", "running_mean", "group_median"):
        return [
            ("baseline", f"outcomes under {of['baseline']} give only two sizes of advantage: a clip cuts all or none")
        ]
    balanced, lone = _advantage_range(composition)
    if bound > 0.6 * lone:
        return [
            ("scale", f"under {of['scale']} advantages hardly exceed {lone:.2f}, so a clip at {bound:g} cuts nothing")
        ]
    if bound < 0.8 * balanced:
        return [("scale", f"under {of['scale']} most advantages exceed {0.8 * balanced:.2f}; {bound:g} cuts them all")]
    return []


def _advantage_range(composition: Composition) -> tuple[float, float]:
    """Advantage of a success among eight completions, before the bound: with four successes, and as the only one."""
    numbers = composition.parameters
    reach = 2.0 if composition.choices["reward"] == "signed" else 1.0
    fixed, eps = numbers.get("fixed_std", 1.0), numbers.get("std_eps", 0.0)
    floor, rate_floor = numbers.get("std_floor", 0.0), numbers.get("rate_floor", 0.0)
    a, b = numbers.get("prior_success", 1.0), numbers.get("prior_failure", 1.0)
    rare, even = (1 + a) / (8 + a + b), (4 + a) / (8 + a + b)
    sample = (0.5 / (0.5345 + eps), 0.875 / (0.3536 + eps))  # sample deviations sqrt(2 / 7) and sqrt(1 / 8)
    return {
        "none": (0.5 * reach, 0.875 * reach),
        "fixed": (0.5 * reach / fixed, 0.875 * reach / fixed),
        "group_std": sample,
        "fallback_std": sample,
        "analytic_std": (1.0, 0.875 / max(0.3307, floor)),
        "beta_std": (
            (1 - even) / max((even * (1 - even)) ** 0.5, floor),
            (1 - rare) / max((rare * (1 - rare)) ** 0.5, floor),
        ),
        "batch_std": (0.5 / (0.44 + eps), 0.875 / (0.44 + eps)),  # 0.44: half the groups are mixed
        "pass_rate": (1.5, 0.875 / max(0.125, rate_floor)),  # most failures have size 1, so a clip has to lie above
    }[composition.choices["scale"]]


def _loss_conflicts(composition: Composition) -> list[Conflict]:
    of = composition.choices
    if of["clip"] == "none":
        return []
    if of["ratio"] == "none":
        return [Conflict(("ratio", "clip"), "the plain policy gradient has no ratio to clip")]
    if of["ratio"] == "geometric":
        return [Conflict(("ratio", "clip"), "the geometric ratio is clipped per token already")]
    if of["ratio"] == "sequence" and of["clip"] == "dual":
        return [Conflict(("ratio", "clip"), "the mean ratio of a completion hardly ever reaches dual_clip")]
    return []
