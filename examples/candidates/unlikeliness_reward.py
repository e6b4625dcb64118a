"""Unlikeliness reward: of the right answers of a group, those that the policy found unlikely get more.

Source: He, Fried and Welleck, Rewarding the Unlikely: Lifting GRPO Beyond Distribution Sharpening, arXiv 2506.02355.

    R_i = correct_i (1 - rank_coef (n - rank_i) / n)        rank_i of log pi_old(y_i) in the group, 0 for the likeliest
    A_i = (R_i - mean_g R) / (std_g R + eps)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)

Deviates: completions of equal probability share their rank.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_count, group_mean, group_rank, group_std, log_ratio, masked_sum, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "unlikeliness": {"rank_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    rank_coef: float = 0.25
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    likelihood = masked_sum(batch.old_logprobs, batch.completion_mask, dim=-1)  # (B,)
    size = group_count(batch.group_ids)
    rank = group_rank(-likelihood, batch.group_ids)
    reward = batch.correctness * (1.0 - hp.rank_coef * (size - rank) / size)
    advantage = (reward - group_mean(reward, batch.group_ids)) / (group_std(reward, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
