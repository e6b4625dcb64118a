"""GFPO: samples more completions than it learns from, and learns from those of each group with most reward per token.

Source: Shrivastava et al., Sample More to Think Less: Group Filtered Policy Optimization for Concise Reasoning, arXiv
2508.09726.

    keep the share of a group with the largest metric: R / L, or -L
    A_i = (R_i - mean_kept R) / (std_kept R + eps) of those kept, nothing of the others
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A) + kl_coef * k3_t

Deviates: equal metrics, as those of all wrong completions by R / L, are ranked by length, the shortest first, then by
likelihood, and those that are equal in all of it are kept or left out together; completions that are not kept leave the
denominators too.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import (
    group_count,
    group_mean,
    group_rank,
    group_std,
    log_ratio,
    masked_mean,
    sequence_lengths,
    to_tokens,
)

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "group_filter": {"share": 1.0},
    "reward_per_token": {"by_efficiency": False},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    share: float = 0.5  # of a group that is kept
    by_efficiency: bool = True
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.001


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    rewards, groups = batch.correctness, batch.group_ids  # (B,)
    length = sequence_lengths(batch.completion_mask).clamp(min=1.0)
    metric = rewards / length if hp.by_efficiency else -length
    likelihood = masked_mean(batch.old_logprobs, batch.completion_mask, dim=-1)
    first = group_rank(-length, groups, ties=-likelihood)
    rank = group_rank(metric, groups, ties=first, reduce="amax")
    kept = rank >= (group_count(groups) * (1.0 - hp.share)).floor()
    advantage = rewards - group_mean(rewards, groups, where=kept)
    advantage = advantage / (group_std(rewards, groups, where=kept) + hp.std_eps)
    train_mask = batch.completion_mask & kept.unsqueeze(-1)
    return Advantages(values=to_tokens(advantage, batch.completion_mask), train_mask=train_mask)


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0
    return LossOutputs(token_loss=hp.kl_coef * k3 - surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
