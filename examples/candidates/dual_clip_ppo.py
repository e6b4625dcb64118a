"""Dual-clip PPO: where the advantage is negative the loss of a token is bounded, however far its ratio has grown.

Source: Ye et al., Mastering Complex Control in MOBA Games with Deep Reinforcement Learning, arXiv 1912.09729.

    A_i = (R_i - mean_g R) / (std_g R + eps)
    s_t = min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)
    loss_t = -max(s_t, dual_clip * A)     where A < 0
    loss_t = -s_t                         elsewhere

Deviates: the paper has a critic; the advantage here is GRPO's.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "dual_clip": {"dual_clip": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    dual_clip: float = 3.0


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    bounded = torch.maximum(surrogate, hp.dual_clip * inputs.advantages)
    surrogate = torch.where(inputs.advantages < 0.0, bounded, surrogate)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
