"""REINFORCE++-baseline: group-centred rewards, normalized over the whole batch, with a k2 term to the reference in the loss.

Source: Hu et al., REINFORCE++: Stabilizing Critic-Free Policy Optimization, arXiv 2501.03262.

    B_i = R_i - mean_g R
    A_i = (B_i - mean_batch B) / (std_batch B + eps)        over the tokens of the batch
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A) + kl_coef (log pi_t - log pi_ref_t)^2 / 2
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, log_ratio, masked_mean, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "group_baseline": {"group_baseline": False},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    group_baseline: bool = True
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    reward = batch.correctness  # (B,)
    if hp.group_baseline:
        reward = reward - group_mean(reward, batch.group_ids)
    values = to_tokens(reward, batch.completion_mask)
    centred = values - masked_mean(values, batch.completion_mask)
    spread = masked_mean(centred * centred, batch.completion_mask).sqrt()
    return Advantages(values=centred / (spread + hp.std_eps))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    away = log_ratio(inputs.logprobs, inputs.ref_logprobs, inputs.mask)
    return LossOutputs(
        token_loss=0.5 * hp.kl_coef * away * away - surrogate, metrics={"clip_fraction": (clipped != ratio).float()}
    )
