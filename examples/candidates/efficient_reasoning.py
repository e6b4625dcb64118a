"""Length-aware rewards for right answers: less than 1 for those longer than the group's right answers are on average.

Source: Arora and Zanette, Training Language Models to Reason Efficiently, arXiv 2502.04463.

    R_i = correct_i (1 - length_coef sigmoid((L_i - mean_right L) / std_right L))
    A_i = R_i - mean of R over the others of the group
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_count, group_mean, group_std, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "length_penalty": {"length_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    length_coef: float = 0.2
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    groups, right = batch.group_ids, batch.correctness > 0.5  # (B,)
    length = sequence_lengths(batch.completion_mask)
    longer = length - group_mean(length, groups, where=right)
    excess = torch.sigmoid(longer / (group_std(length, groups, where=right) + hp.std_eps))
    reward = batch.correctness * (1.0 - hp.length_coef * excess)
    size = group_count(groups)
    advantage = torch.where(size > 1.0, (reward - group_mean(reward, groups)) * size / (size - 1.0).clamp(min=1.0), 0.0)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
