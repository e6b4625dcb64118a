"""CE-GPPO: tokens that PPO's clip would silence keep a gradient of bounded size, scaled apart on the two sides.

Source: Su et al., CE-GPPO: Coordinating Entropy via Gradient-Preserving Clipping Policy Optimization, arXiv 2509.20712.

    loss_t = -low_scale (1 - clip_eps_low) (r_t / sg(r_t)) A       where r_t < 1 - clip_eps_low and A < 0
    loss_t = -high_scale (1 + clip_eps_high) (r_t / sg(r_t)) A     where r_t > 1 + clip_eps_high and A > 0
    loss_t = -r_t A                                                elsewhere

sg stops the gradient. low_scale and high_scale are the paper's beta_1 and beta_2; 0 for both is PPO's clip.

Deviates: a log-ratio is bounded by 20, beyond which no gradient is kept.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "low_gradient": {"low_scale": 0.0},
    "high_gradient": {"high_scale": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.28
    low_scale: float = 0.75
    high_scale: float = 1.0


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    advantages = inputs.advantages
    direction = ratio / ratio.detach()  # 1, with the gradient of the log-probability
    low = (ratio < 1.0 - hp.clip_eps_low) & (advantages < 0.0)
    high = (ratio > 1.0 + hp.clip_eps_high) & (advantages > 0.0)
    weight = torch.where(low, hp.low_scale * (1.0 - hp.clip_eps_low) * direction, ratio)
    weight = torch.where(high, hp.high_scale * (1.0 + hp.clip_eps_high) * direction, weight)
    return LossOutputs(token_loss=-weight * advantages, metrics={"clip_fraction": (low | high).float()})
