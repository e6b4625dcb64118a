"""lambda-GRPO: completions of a group weigh by a power of their standardized length.

Source: Wang et al., lambda-GRPO: Unifying the GRPO Frameworks with Learnable Token Preferences, arXiv 2510.06870.

    z_i = (L_i - mean_g L) / (std_g L + eps);    h_i = 1 + spread z_i
    f_i = n softmax_g(h_i^power)
    A_i = f_i (R_i - mean_g R) / (std_g R + eps)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A), averaged over tokens

power is the paper's lambda: 0 weighs all alike (DAPO), above 0 long completions more, below 0 short ones.

Deviates: lambda is fixed here, where the paper learns it with the policy; h is at least 0.05.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "length_preference": {"power": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    power: float = -0.5
    spread: float = 0.1111  # the paper's r = 1 / 9
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.28


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    length, groups = sequence_lengths(batch.completion_mask), batch.group_ids  # (B,)
    standardized = (length - group_mean(length, groups)) / (group_std(length, groups) + hp.std_eps)
    preference = (1.0 + hp.spread * standardized).clamp(min=0.05).pow(hp.power).exp()
    weight = preference / group_mean(preference, groups)
    advantage = batch.correctness - group_mean(batch.correctness, groups)
    advantage = weight * advantage / (group_std(batch.correctness, groups) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
