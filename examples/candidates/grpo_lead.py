"""GRPO-LEAD: brevity among right answers, a penalty for wrong ones, and more weight for hard prompts.

Source: Zhang and Zuo, GRPO-LEAD: A Difficulty-Aware Reinforcement Learning Approach for Concise Mathematical Reasoning, arXiv
2504.09696.

    R_i = exp(-length_coef z_i) of a right answer, z_i its standardized length among the right ones of the group
    R_i = wrong_reward of a wrong one
    A_i = (R_i - mean_g R) / (std_g R + eps), times w(p) where positive and w(1 - p) where negative, p the pass rate
    w(p) = weight_low + weight_range / (1 + exp(weight_slope (p - weight_middle)))
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "length_reward": {"length_coef": 0.0},
    "wrong_penalty": {"wrong_reward": 0.0},
    "difficulty_weight": {"weight_range": 0.0, "weight_low": 1.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    length_coef: float = 0.05
    wrong_reward: float = -1.0
    weight_low: float = 0.4
    weight_range: float = 1.1
    weight_middle: float = 0.75
    weight_slope: float = 10.0
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    groups, right = batch.group_ids, batch.correctness > 0.5  # (B,)
    length = sequence_lengths(batch.completion_mask)
    spread = group_std(length, groups, where=right) + hp.std_eps
    standardized = ((length - group_mean(length, groups, where=right)) / spread).clamp(-5.0, 5.0)
    reward = torch.where(right, (-hp.length_coef * standardized).exp(), hp.wrong_reward)
    advantage = (reward - group_mean(reward, groups)) / (group_std(reward, groups) + hp.std_eps)
    rate = group_mean(right.float(), groups)
    rate = torch.where(advantage > 0.0, rate, 1.0 - rate)
    weight = hp.weight_low + hp.weight_range * torch.sigmoid(-hp.weight_slope * (rate - hp.weight_middle))
    advantage = weight * advantage
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
