"""Length reward of Kimi k1.5: short right answers gain, long answers lose, from some step on.

Source: Kimi Team, Kimi k1.5: Scaling Reinforcement Learning with LLMs, arXiv 2501.12599.

    lambda_i = 1/2 - (L_i - L_min) / (L_max - L_min)        shortest and longest of the group
    R_i = correct_i + length_coef lambda_i                  of a right completion
    R_i = correct_i + length_coef min(0, lambda_i)          of a wrong one
    A_i = R_i - mean_g R;    loss_t = -min(r_t A, clip(r_t) A)

Groups of one length have no length reward. Deviates: the clipped loss is PPO's; warm-up is a share of the training.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_max, group_mean, group_min, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "length_reward": {"length_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    length_coef: float = 0.5
    begins: float = 0.05  # share of the training without it
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    length, groups = sequence_lengths(batch.completion_mask), batch.group_ids  # (B,)
    shortest, longest = group_min(length, groups), group_max(length, groups)
    bonus = 0.5 - (length - shortest) / (longest - shortest).clamp(min=1.0)
    bonus = torch.where(batch.correctness > 0.5, bonus, bonus.clamp(max=0.0))
    bonus = torch.where(longest > shortest, bonus, 0.0)
    reward = batch.correctness + (hp.length_coef if dynamics.progress >= hp.begins else 0.0) * bonus
    advantage = reward - group_mean(reward, groups)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
