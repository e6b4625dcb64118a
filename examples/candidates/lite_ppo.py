"""Lite PPO: group mean, deviation of the whole batch, token-mean loss, and nothing else.

Source: Liu et al., Part I: Tricks or Traps? A Deep Dive into RL for LLM Reasoning, arXiv 2508.08221.

    A_i = (R_i - mean_g R) / (std_batch R + eps)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "batch_std": {"by_batch": False},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    by_batch: bool = True
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    spread = group_std(batch.correctness, batch.group_ids)
    if hp.by_batch:
        spread = group_std(batch.correctness, torch.zeros_like(batch.group_ids))  # one group of all
    advantage = advantage / (spread + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
