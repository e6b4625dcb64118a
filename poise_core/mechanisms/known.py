"""The shipped algorithms as compositions, so that a search can vary files that were written by hand, and with other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from poise_core.algorithms import algorithm_path, display_name, list_algorithms
from poise_core.candidate.identity import source_digest
from poise_core.candidate.switches import Switches
from poise_core.mechanisms.composition import GRPO, Composition, compose
from poise_core.mechanisms.render import composition_of, render


class Known(NamedTuple):
    """A shipped algorithm as a composition."""

    composition: Composition
    left_out: str = ""  # what only the file does; empty where both compute the same numbers, see ABOVE_HALF


_PLAIN = compose(scale="none", ratio="none", clip="none", kl="none", aggregation="sequence-sum")
_NO_KL = compose(kl="none")

KNOWN: Mapping[str, Known] = {
    "reinforce_group_baseline": Known(_PLAIN),
    "rloo": Known(compose(_PLAIN, baseline="leave_one_out", kl="k1_reward", numbers={"kl_coef": 0.03})),
    "reinforce_plus_plus": Known(
        compose(_NO_KL, baseline="batch_mean", scale="batch_std", aggregation="token-mean"),
        "the KL charge on every token's return, and normalisation over tokens instead of completions",
    ),
    "grpo": Known(GRPO),
    "pass_at_k": Known(GRPO, "its advantages, which are those of the best of k completions"),
    "dr_grpo": Known(compose(_NO_KL, scale="none", aggregation="sequence-sum")),
    "dapo": Known(
        compose(
            _NO_KL,
            reward="signed",
            length="overlong_soft",
            routing="mixed_and_complete",
            clip="higher",
            aggregation="token-mean",
            numbers={"overlong_coef": 1.0, "overlong_cache": 0.2},
        )
    ),
    "gspo": Known(
        compose(_NO_KL, ratio="sequence", clip="higher", numbers={"clip_eps_low": 3e-4, "clip_eps_high": 4e-4})
    ),
    "cispo": Known(compose(_NO_KL, clip="detached_weight", aggregation="token-mean")),
    "gmpo": Known(compose(_NO_KL, ratio="geometric", clip="none")),
    "sapo": Known(compose(_NO_KL, clip="soft_gate")),
    "bn": Known(compose(scale="batch_std", entropy="bonus", numbers={"entropy_coef": 0.01}), "its clip at +-3"),
    "av": Known(
        compose(
            reward="format_bonus",
            scale="analytic_std",
            entropy="bonus",
            numbers={"format_bonus": 0.5, "entropy_coef": 0.001},
        )
    ),
    "vm_av": Known(
        compose(
            baseline="beta_valid",
            scale="beta_std",
            length="failure_discount",
            format="invalid_floor",
            entropy="adaptive",
            numbers={"entropy_coef": 0.001},
        )
    ),
    "msa": Known(compose(reward="format_bonus", scale="fallback_std", length="ratio_power")),
    "fa": Known(
        compose(failure="graded_penalty", numbers={"all_fail_invalid": 2.0, "all_fail_wrong": 0.5}),
        "its clip at +-3, which acts in groups of more than ten completions",
    ),
    "sa": Known(
        compose(
            baseline="anchor_mix",
            scale="fixed",
            entropy="bonus",
            numbers={"anchor_weight": 0.5, "fixed_std": 0.5, "entropy_coef": 0.05},
        )
    ),
    "dace": Known(
        compose(
            routing="hard_weighted",
            length="brevity_zscore",
            entropy="annealed",
            numbers={"length_coef": 0.3, "entropy_coef": 0.001},
        )
    ),
    "cag": Known(compose(length="excess_penalty")),
    "dcbe": Known(
        compose(length="brevity_relative", entropy="adaptive", numbers={"entropy_coef": 0.01, "entropy_target": 1.0}),
        "its entropy controller, which is exponential",
    ),
}
"""By the name of the file in ``poise_core.algorithms``; a file that is missing here cannot be varied."""

ABOVE_HALF = ("cag", "dace", "dcbe")
"""Files for which a completion is correct where its correctness is above 1/2, and for the catalogue where it is above 0. With
rewards of 0 and 1 that is the same; with partial credit the file and its composition differ in it."""

_TWICE = {"dace": {"std_eps": "length_eps"}}
"""Numbers of a file that are two in the catalogue."""


def composition_for(source: str) -> Known | None:
    """The composition of a candidate file that the catalogue has rendered or that is shipped; None for any other."""
    rendered = composition_of(source)
    if rendered is not None:
        return Known(rendered)
    digest = source_digest(source)
    for name in list_algorithms():
        if name in KNOWN and source_digest(algorithm_path(name).read_text()) == digest:
            return KNOWN[name]
    return None


class Numbered(NamedTuple):
    """A shipped algorithm with other numbers than its file's."""

    source: str
    composition: Composition | None  # None where the catalogue cannot express the file with these numbers


def defaults_of(algorithm: str) -> dict[str, float]:
    """The numbers among the hyperparameters of a shipped algorithm; switches, which are booleans, are left out.

    Raises:
        ValueError: there is no such algorithm.
    """
    defaults = Switches.of(algorithm_path(algorithm).read_text()).defaults
    return {
        name: float(value)
        for name, value in defaults.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def takes_entropy_bonus(algorithm: str) -> bool:
    """Whether ``with_numbers`` can add an entropy bonus: the catalogue expresses the whole file, which has none of its own."""
    known = KNOWN.get(algorithm)
    return known is not None and not known.left_out and known.composition.choices["entropy"] == "none"


def with_numbers(algorithm: str, numbers: Mapping[str, float]) -> Numbered:
    """A shipped algorithm with some of its hyperparameters set to other numbers.

    The file stays as it is but for these defaults, and for mechanisms that they switch off, which are then none.
    ``entropy_coef`` of an algorithm without an entropy bonus adds the catalogue's; the file is then rendered from the
    catalogue, which computes the same otherwise (of ``ABOVE_HALF``, with rewards of 0 and 1). There 0 adds nothing.

    Raises:
        ValueError: there is no such algorithm, it has no such hyperparameter, or the catalogue, which is to add the bonus, has no
            such numbers.
    """
    source, own = algorithm_path(algorithm).read_text(), defaults_of(algorithm)
    given = dict(numbers)
    bonus = given.pop("entropy_coef", 0.0) if "entropy_coef" not in own else 0.0
    if unknown := given.keys() - own.keys():
        raise ValueError(f"{algorithm} has no number {sorted(unknown)[0]}; it has {', '.join(sorted(own))}")
    if bonus and not takes_entropy_bonus(algorithm):
        raise ValueError(
            f"{algorithm} has no entropy_coef, and the catalogue cannot add it, since it does not express the file"
        )
    composition = _composition_with(algorithm, {name: given[name] for name in given if given[name] != own[name]})
    if bonus:
        if composition is None:
            raise ValueError(f"the catalogue, which adds entropy_coef to {algorithm}, cannot express its other numbers")
        composition = compose(composition, entropy="bonus", numbers={"entropy_coef": bonus})
        title = display_name(algorithm)
        return Numbered(
            render(composition, title, f"{title} with numbers of its own and an entropy bonus."), composition
        )
    return Numbered(Switches.of(source).with_numbers(given), composition)


def _composition_with(algorithm: str, changed: Mapping[str, float]) -> Composition | None:
    known = KNOWN.get(algorithm)
    if known is None:
        return None
    twice = {other: changed[name] for name, other in _TWICE.get(algorithm, {}).items() if name in changed}
    try:
        return _changed(known.composition, {**changed, **twice})
    except ValueError:  # a number outside the catalogue's bounds
        return None


def _changed(own: Composition, numbers: dict[str, float]) -> Composition | None:
    """The composition with these numbers of the file; None where the catalogue has no such number."""
    for name, slot in COEFFICIENTS.items():
        if name in own.parameters and numbers.get(name) == 0:  # the catalogue says that by another choice
            own = own.with_choices({slot: "none"}, None)
            del numbers[name]
    if "clip_eps" in own.parameters:  # one number in the catalogue, one for each side in the file
        low, high = (numbers.pop(name, own.parameters["clip_eps"]) for name in CLIP_SIDES)
        if low != high:
            return compose(own, clip="higher", numbers={**numbers, "clip_eps_low": low, "clip_eps_high": high})
        numbers["clip_eps"] = low
    if not numbers.keys() <= own.parameters.keys():
        return None
    return Composition(choices=own.choices, parameters={**own.parameters, **numbers})


CLIP_SIDES = ("clip_eps_low", "clip_eps_high")

COEFFICIENTS = {"kl_coef": "kl", "entropy_coef": "entropy"}
"""Numbers whose 0 leaves a term out, and the slot of that term."""
