"""The shipped algorithms as compositions, so that a search can vary files that were written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.candidate.identity import source_digest
from poise_core.mechanisms.composition import GRPO, Composition, compose
from poise_core.mechanisms.render import composition_of


class Known(NamedTuple):
    """A shipped algorithm as a composition."""

    composition: Composition
    left_out: str = ""  # what the file does and the composition does not; empty where they compute the same numbers


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
