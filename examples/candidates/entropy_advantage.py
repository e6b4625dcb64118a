"""Entropy-shaped advantage: a token's entropy adds to its advantage, by at most a share of that.

Source: Cheng et al., Reasoning with Exploration: An Entropy Perspective, arXiv 2506.14758.

    A_i = (R_i - mean_g R) / (std_g R + eps)
    A_t = A_i + min(entropy_coef H_t, |A_i| / bound)        H_t at rollout, without gradient
    loss_t = -min(r_t A_t, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A_t)

A bound above 1 never turns the sign of an advantage.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "entropy_shaping": {"entropy_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    entropy_coef: float = 0.4
    bound: float = 2.0
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.28


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    values = to_tokens(advantage, batch.completion_mask)
    return Advantages(values=values + torch.minimum(hp.entropy_coef * batch.entropies, values.abs() / hp.bound))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
