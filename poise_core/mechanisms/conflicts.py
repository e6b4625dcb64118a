"""What may not be combined, each for a reason that is true of the algorithm: a mechanism that could do nothing or little, a
division by nearly zero, a second name for the same thing. Reasons that depend on the group's size assume eight completions.

Two rules are wider than they need to be, and say so: ``random_composition`` draws what they leave, and recorded tables name their
compositions by the draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from poise_core.mechanisms.composition import Composition


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
    return [*choice_conflicts(composition.choices), *number_conflicts(composition)]


def choice_conflicts(choices: Mapping[str, str]) -> list[Conflict]:
    """Those of ``conflicts`` that no numbers can undo, of a choice for every slot."""
    return [*_reward_conflicts(choices), *_signal_conflicts(choices), *_loss_conflicts(choices)]


def incompatibilities(composition: Composition) -> list[str]:
    """The reasons of ``conflicts``, as sentences."""
    return [conflict.reason for conflict in conflicts(composition)]


def _reward_conflicts(of: Mapping[str, str]) -> list[Conflict]:
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


def _signal_conflicts(of: Mapping[str, str]) -> list[Conflict]:
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
                ("baseline", slot),
                f"without a baseline no failure is negative by its outcome, so {of[slot]} acts on nothing but what other "
                "choices, such as a penalty on length, make negative",
            )
            for slot in idle
        ]
    if (of["format"], of["baseline"]) == ("invalid_floor", "group_median") and of["reward"] in (
        "format_bonus",
        "hierarchical",
    ):
        reason = f"under the median, {of['reward']} sets apart the unparseable only, which invalid_floor overwrites"
        found.append(Conflict(("baseline", "format"), reason))
    return found


def number_conflicts(composition: Composition) -> list[Conflict]:
    """The others: those of a composition's numbers with its choices."""
    of, found = composition.choices, list[Conflict]()
    if of["format"] == "invalid_floor":
        failure = _common_failure(composition)
        if composition.parameters["invalid_advantage"] == failure:
            already = f"failures have advantage {failure:g} already"
            reason = f"by their outcome {already}, so invalid_floor sets none apart"
            if of["scale"] == "pass_rate":
                reason = f"under pass_rate with the group's mean {already}; invalid_floor there is left out with every baseline"
            found.append(Conflict(("scale", "format"), reason))
    if of["bound"] in ("clip", "tanh"):
        found += [Conflict((slot, "bound"), reason) for slot, reason in _idle_bound(composition)]
    return found


def _common_failure(composition: Composition) -> float | None:
    """The advantage that all failures of mixed groups share whatever the pass rate, where there is such a number.

    Under ``pass_rate`` it is that of the group's mean as baseline, whatever the baseline is.
    """
    of = composition.choices
    if of["scale"] == "pass_rate":
        return -1.0
    if of["baseline"] == "none" and of["reward"] == "signed" and of["scale"] in ("none", "fixed"):
        return -1.0 / composition.parameters.get("fixed_std", 1.0)
    return None


def _idle_bound(composition: Composition) -> list[tuple[str, str]]:
    """Why a bound would leave every advantage as it is, or make them all alike, in groups of eight: (slot, reason)."""
    of, balanced, lone = composition.choices, *_advantage_range(composition)
    if of["bound"] == "tanh":
        bound = composition.parameters["advantage_bound"]
        if bound < 0.5 * balanced:
            return [
                ("scale", f"under {of['scale']} most advantages exceed {2 * bound:g}: tanh makes them all {bound:g}")
            ]
        return []
    bound = composition.parameters["advantage_clip"]
    if of["baseline"] in ("none", "batch_mean", "running_mean", "group_median"):
        return [
            ("baseline", f"outcomes under {of['baseline']} give only two sizes of advantage: a clip cuts all or none")
        ]
    if bound > 0.6 * lone:
        return [("scale", f"under {of['scale']} advantages hardly exceed {lone:.2f}: a clip at {bound:g} cuts nothing")]
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


def _loss_conflicts(of: Mapping[str, str]) -> list[Conflict]:
    if of["clip"] == "none":
        return []
    if of["ratio"] == "none":
        return [Conflict(("ratio", "clip"), "the plain policy gradient has no ratio to clip")]
    if of["ratio"] == "geometric":
        return [Conflict(("ratio", "clip"), "the geometric ratio is clipped per token already")]
    if of["ratio"] == "sequence" and of["clip"] == "dual":
        return [Conflict(("ratio", "clip"), "the mean ratio of a completion hardly ever reaches dual_clip")]
    return []
