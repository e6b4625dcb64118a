"""PODS: of every group only the completions with the highest and the lowest rewards train.

Source: Xu et al., Not All Rollouts are Useful: Down-Sampling Rollouts in LLM Reinforcement Learning, arXiv 2504.13818.

    keep the m completions of a group whose rewards vary most: the k highest and the m - k lowest
    A_i = (R_i - mean_kept R) / (std_kept R + eps)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)

For rewards of 0 and 1 as many of either outcome are kept as there are, at most m / 2 each if both have them.

Deviates: of several completions with the same reward the least likely of the right and the likeliest of the wrong ones are
kept, where the paper takes any; those that are equally likely too, such as identical ones, are kept or left out together.
k is m / 2.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_count, group_mean, group_rank, group_std, log_ratio, masked_mean, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "down_sampling": {"share": 1.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    share: float = 0.5  # of a group that is kept
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    rewards, groups = batch.correctness, batch.group_ids  # (B,)
    likelihood = masked_mean(batch.old_logprobs, batch.completion_mask, dim=-1)
    size = group_count(groups)
    half = (hp.share * size / 2.0).ceil()
    lowest = group_rank(rewards, groups, ties=-likelihood, reduce="amin") < half
    highest = group_rank(rewards, groups, ties=-likelihood, reduce="amax") >= size - half
    kept = lowest | highest
    advantage = rewards - group_mean(rewards, groups, where=kept)
    advantage = advantage / (group_std(rewards, groups, where=kept) + hp.std_eps)
    train_mask = batch.completion_mask & kept.unsqueeze(-1)
    return Advantages(values=to_tokens(advantage, batch.completion_mask), train_mask=train_mask)


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
