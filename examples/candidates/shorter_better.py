"""ShorterBetter: the shortest right answer of a group is the length that all are measured against.

Source: Yi et al., ShorterBetter: Guiding Reasoning Models to Find Optimal Inference Length for Efficient Reasoning, arXiv
2504.21370.

    L* = length of the shortest right answer; the mean length of the group where none is right
    R_i = correct_coef correct_i - length_coef |L_i - L*| / L_limit
    A_i = (R_i - mean_g R) / (std_g R + eps)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)

Deviates: lengths are shares of the length limit, where the paper counts tokens with a coefficient of 0.001 to 2 of right.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_min, group_std, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "optimal_length": {"length_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    correct_coef: float = 2.0
    length_coef: float = 1.0
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    groups, right = batch.group_ids, batch.correctness > 0.5  # (B,)
    length = sequence_lengths(batch.completion_mask)
    shortest = group_min(length, groups, where=right, empty=-1.0)
    wanted = torch.where(shortest >= 0.0, shortest, group_mean(length, groups))
    reward = hp.correct_coef * batch.correctness
    reward = reward - hp.length_coef * (length - wanted).abs() / dynamics.max_completion_length
    advantage = (reward - group_mean(reward, groups)) / (group_std(reward, groups) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
