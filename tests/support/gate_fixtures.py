"""A sound candidate, and broken variants of it that exactly one check of the gate catches.

Every variant differs from the base in one or two lines, so that a reader sees the fault.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

BASE = '''"""Base: group-relative advantages with a clipped ratio, for tests."""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_count, group_mean, group_sum, log_ratio, masked_mean, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {"clip": {"clip_eps": 1e6}}


@dataclass(frozen=True)
class Hyperparameters:
    clip_eps: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()
    clipped = ratio.clamp(1.0 - hp.clip_eps, 1.0 + hp.clip_eps)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate)
'''

ADVANTAGE = "    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)\n"
RATIO = "    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()\n"
RETURN = "    return LossOutputs(token_loss=-surrogate)\n"
MECHANISMS = 'MECHANISMS = {"clip": {"clip_eps": 1e6}}\n'


def edited(*edits: tuple[str, str]) -> str:
    """The base with each old text, which must stand in it exactly once, replaced."""
    source = BASE
    for old, new in edits:
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in the base"
        source = source.replace(old, new)
    return source


WITH_TUPLES = edited(
    (MECHANISMS, 'MECHANISMS = {"clip": {"clip": (1.0, 1e6)}, "weights": {"weights": (0.0,)}}\n'),
    ("    clip_eps: float = 0.2\n",
     "    clip: tuple[float, float] = (0.2, 0.28)\n    weights: tuple[float, ...] = (-0.05, 0.02)\n"),
    ("    clipped = ratio.clamp(1.0 - hp.clip_eps, 1.0 + hp.clip_eps)\n",
     "    low, high = hp.clip\n    clipped = ratio.clamp(1.0 - low, 1.0 + high)\n"
     "    penalty = sum(w * (ratio - 1.0).abs() for w in hp.weights) / len(hp.weights) * max(hp.clip)\n"),
    ("token_loss=-surrogate)", "token_loss=penalty - surrogate)"),
)  # fmt: skip
"""Sound as well; two hyperparameters are tuples, each with a switch."""


GRPO_IN_OTHER_WORDS = '''"""GRPO written out by hand: other names, other operations, the same algorithm."""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_count, group_sum

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {"trust_region": {"width": 1e6}}


@dataclass(frozen=True)
class Hyperparameters:
    width: float = 0.2
    beta: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    outcome, ids = batch.correctness, batch.group_ids
    size = group_count(ids)
    centred = outcome - group_sum(outcome, ids) / size
    spread = (group_sum(centred * centred, ids) / (size - 1.0).clamp(min=1.0)).sqrt()
    return Advantages(values=(centred / (spread + 1e-4)).unsqueeze(-1) * torch.ones_like(batch.old_logprobs))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    zeros = torch.zeros_like(inputs.logprobs)
    moved = torch.where(inputs.mask, inputs.logprobs - inputs.old_logprobs, zeros).clamp(-20.0, 20.0)
    away = torch.where(inputs.mask, inputs.ref_logprobs - inputs.logprobs, zeros).clamp(-20.0, 20.0)
    ratio = torch.exp(moved)
    bounded = torch.clamp(ratio, 1.0 - hp.width, 1.0 + hp.width)
    gain = torch.where(
        inputs.advantages > 0,
        torch.minimum(ratio, bounded) * inputs.advantages,
        torch.maximum(ratio, bounded) * inputs.advantages,
    )
    return LossOutputs(token_loss=hp.beta * (torch.exp(away) - 1.0 - away) - gain)
'''

RLOO_IN_OTHER_WORDS = '''"""RLOO as the paper writes it: every completion against the mean of the others."""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_count, group_sum, masked_sum

LOSS_AGGREGATION = "sequence-sum"
MECHANISMS = {"divergence_penalty": {"penalty": 0.0}}


@dataclass(frozen=True)
class Hyperparameters:
    penalty: float = 0.03


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    divergence = masked_sum(batch.old_logprobs - batch.ref_logprobs, batch.completion_mask, dim=-1)
    reward = batch.correctness - hp.penalty * divergence
    others = group_count(batch.group_ids) - 1.0
    baseline = (group_sum(reward, batch.group_ids) - reward) / others.clamp(min=1.0)
    advantage = torch.where(others > 0, reward - baseline, torch.zeros_like(reward))
    return Advantages(values=advantage.unsqueeze(-1).expand(batch.completion_mask.shape))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    return LossOutputs(token_loss=-torch.where(inputs.mask, inputs.logprobs, 0.0) * inputs.advantages)
'''

BROKEN: dict[str, dict[str, tuple[str, str]]] = {
    "language": {
        "imports_os_without_using_it": (edited(("import torch\n", "import os\n\nimport torch\n")), "importing os is not allowed"),
        "prints": (edited((RETURN, f"    print(ratio.mean())\n{RETURN}")), "line 28"),
        "loops_until": (
            edited((RETURN, f"    steps = 0\n    while steps < 3:\n        steps = steps + 1\n{RETURN}")),
            "a while loop may never end",
        ),
    },
    "interface": {
        "no_docstring": (
            edited(('"""Base: group-relative advantages with a clipped ratio, for tests."""\n', "")),
            "no docstring",
        ),
        "renamed_parameter": (
            edited(("def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics)",
                    "def compute_loss(inputs: LossInputs, hp: Hyperparameters, state: Dynamics)")),
            "write def compute_loss(inputs, hp, dynamics)",
        ),
        "extra_parameter": (
            edited(("def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics)",
                    "def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics, scale: float = 1.0)")),
            "has the wrong parameters",
        ),
    },
    "finite": {
        "unbounded_sequence_ratio": (
            edited((RATIO, "    moved = torch.where(inputs.mask, inputs.logprobs - inputs.old_logprobs, 0.0)\n"
                           "    ratio = moved.sum(-1, keepdim=True).exp().expand_as(moved)\n"
                           "    ratio = torch.where(inputs.mask, ratio, 1.0)\n")),
            "on log-ratios of up to +30",
        ),
        "group_of_one_divides_by_zero": (
            edited((ADVANTAGE, f"{ADVANTAGE}    size = group_count(batch.group_ids)\n"
                               "    advantage = advantage * size / (size - 1.0)\n")),
            "on groups of one: Advantages.values is nan",
        ),
    },
    "switches": {
        "switch_sets_the_default": (
            edited((MECHANISMS, 'MECHANISMS = {"clip": {"clip_eps": 0.2}}\n')),
            "switching mechanism 'clip' off (clip_eps=0.2) changes nothing",
        ),
        "switch_of_a_mechanism_that_is_not_there": (
            edited((MECHANISMS, 'MECHANISMS = {"entropy_bonus": {"entropy_coef": 0.0}}\n'),
                   ("    clip_eps: float = 0.2\n", "    clip_eps: float = 0.2\n    entropy_coef: float = 0.01\n")),
            "switching mechanism 'entropy_bonus' off",
        ),
    },
    "pure": {
        "subtracts_in_place": (
            edited((ADVANTAGE, "    advantage = batch.correctness.float()\n"
                               "    advantage -= group_mean(batch.correctness, batch.group_ids)\n")),
            "writes into batch.correctness",
        ),
        "cleans_its_input": (
            edited((RATIO, f"    behaviour = inputs.old_logprobs.contiguous()\n"
                           f"    behaviour[~inputs.mask] = 0.0\n{RATIO}")),
            "writes into inputs.old_logprobs",
        ),
    },
    "gradient": {
        "infinite_slope_at_zero": (
            edited((RETURN, "    logprobs = torch.where(inputs.mask, inputs.logprobs, -1.0)\n"
                            "    spread = to_tokens((2.0 * inputs.correctness - 1.0).abs(), inputs.mask)\n"
                            "    return LossOutputs(token_loss=1e-3 * (spread * logprobs.abs()).sqrt() - surrogate)\n")),
            "although the loss is finite",
        ),
        "stops_learning_after_the_warm_up": (
            edited((RETURN, "    learning = 1.0 if dynamics.progress < 0.3 else 0.0\n"
                            "    return LossOutputs(token_loss=-surrogate * learning)\n")),
            "get no gradient at all",
        ),
    },
    "padding": {
        "averages_over_padding": (
            edited((ADVANTAGE, ADVANTAGE + "    advantage = advantage * (1.0 + 0.1 * batch.entropies.mean())\n")),
            "1 more column of padding changes Advantages.values",
        ),
        "weighs_by_padded_columns": (
            edited((ADVANTAGE, ADVANTAGE + "    advantage = advantage * (batch.completion_mask.shape[1] / 10.0)\n")),
            "1 more column of padding changes Advantages.values",
        ),
        "counts_padding_as_certain_tokens": (
            edited((ADVANTAGE, ADVANTAGE + "    certain = (batch.old_logprobs > -0.2).float().mean(-1)\n"
                                           "    advantage = advantage * (1.0 + 0.1 * certain)\n")),
            "1 more column of padding changes Advantages.values",
        ),
        "carries_the_position_from_the_end": (
            edited(("Advantages(values=to_tokens(advantage, batch.completion_mask))",
                    'Advantages(\n        values=to_tokens(advantage, batch.completion_mask), carry={"late": late(batch)}\n    )'),
                   ("\n\ndef compute_advantages", "\n\ndef late(batch: RolloutBatch) -> torch.Tensor:\n"
                    "    x = torch.ones_like(batch.entropies)\n    return x.cumsum(-1) / x.shape[-1]\n\n\ndef compute_advantages")),
            "1 more column of padding changes Advantages.carry['late']",
        ),
    },
    "order": {
        "baseline_is_the_row_before": (
            edited((ADVANTAGE, "    advantage = batch.correctness - batch.correctness.roll(1)\n")),
            "permuting the completions changes Advantages.values",
        ),
        "weighs_by_label": (
            edited((ADVANTAGE, ADVANTAGE + "    advantage = advantage * (1.0 + (batch.group_ids % 2).float())\n")),
            "relabelling the groups changes Advantages.values",
        ),
        "weighs_later_completions_a_little_less": (
            edited((ADVANTAGE, ADVANTAGE + "    advantage = advantage * (1.0 - 0.0002 * torch.arange(advantage.shape[0]))\n")),
            "permuting the completions changes Advantages.values",
        ),
    },
    "micro-batches": {
        "normalizes_over_the_micro_batch": (
            edited((RETURN, "    scale = masked_mean(inputs.advantages.abs(), inputs.mask) + 0.1\n"
                            "    return LossOutputs(token_loss=-surrogate / scale)\n")),
            "changes the total loss",  # the draw decides at which of the splits it shows first
        ),
        "scales_with_what_succeeds_beside_it": (
            edited((RETURN, "    return LossOutputs(token_loss=-surrogate / (inputs.correctness.mean() + 0.5))\n")),
            "changes the total loss",  # the draw decides at which of the splits it shows first
        ),
        "turns_round_in_small_batches_early_on": (
            edited((RETURN, "    early = 0 < dynamics.step < 8 and inputs.mask.shape[0] < 30\n"
                            "    return LossOutputs(token_loss=surrogate if early else -surrogate)\n")),
            "splitting a step into micro-batches of eight changes the total loss",
        ),
    },
    "direction": {
        "wrong_sign": (
            edited((ADVANTAGE, "    advantage = group_mean(batch.correctness, batch.group_ids) - batch.correctness\n")),
            "points away from REINFORCE's (cosine -1.00)",
        ),
        "drowned_in_entropy": (
            edited((RETURN, "    return LossOutputs(token_loss=-surrogate - 50.0 * inputs.entropies)\n")),
            "updates on a bandit with five arms move the reward",
        ),
    },
    "novelty": {
        "grpo_in_other_words": (GRPO_IN_OTHER_WORDS, "it trains exactly as grpo"),
        "rloo_in_other_words": (RLOO_IN_OTHER_WORDS, "it trains exactly as rloo"),
    },
}  # fmt: skip
"""check -> name -> (source, part of the message)."""

COUNTS_COLUMNS_IN_THE_LOSS = edited(
    (RETURN, "    return LossOutputs(token_loss=-surrogate * (inputs.mask.shape[-1] / 10.0))\n")
)
"""Two checks catch it: it counts padding, and a micro-batch has less of that."""

UNMASKED = {
    "masks_by_multiplication": edited(
        (
            RATIO,
            "    moved = (inputs.logprobs - inputs.old_logprobs) * inputs.mask.float()\n"
            "    ratio = moved.clamp(-20.0, 20.0).exp()\n",
        ),
    ),
    "masks_nothing": edited(
        (RATIO, "    ratio = torch.exp((inputs.logprobs - inputs.old_logprobs).clamp(-20.0, 20.0))\n"),
        (RETURN, '    return LossOutputs(token_loss=-surrogate, metrics={"ratio": ratio.detach()})\n'),
    ),
    "sums_a_row_with_its_zeros": edited(
        (
            RATIO,
            "    moved = (inputs.logprobs - inputs.old_logprobs).clamp(-20.0, 20.0)\n"
            "    length = inputs.mask.float().sum(-1, keepdim=True).clamp(min=1.0)\n"
            "    ratio = (moved.sum(-1, keepdim=True) / length).expand(inputs.mask.shape).exp()\n",
        ),
    ),
    "carries_what_is_not_a_number_outside": edited(
        (
            "Advantages(values=to_tokens(advantage, batch.completion_mask))",
            'Advantages(\n        values=to_tokens(advantage, batch.completion_mask), carry={"x": 1.0 / batch.old_logprobs}\n    )',
        ),
        (RETURN, '    return LossOutputs(token_loss=-surrogate - 1e-3 * inputs.carry["x"].sum(-1, keepdim=True))\n'),
    ),
}
"""Sound candidates that lean on the zeros that the trainer puts outside the mask."""


def written(folder: Path, source: str) -> Path:
    """The source as a file."""
    path = folder / "child.py"
    path.write_text(source, encoding="utf-8")
    return path


FOREVER = edited(("    clipped = ratio", "    while True:\n        pass\n    clipped = ratio"))


def in_a_fresh_process(work: Callable[..., list[str]], *arguments: Any) -> list[str]:
    """What a function of a module returns, as the gate runs: with no thread beside it, which may move Python's random state."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()
