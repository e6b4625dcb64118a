"""GMPO: the geometric instead of the arithmetic mean of a completion's token objectives, clipped per token.

Source: Zhao et al., Geometric-Mean Policy Optimization, arXiv 2507.20673, the GMPO objective.

    A_i = (R_i - mean_g R) / (std_g R + eps)
    J_i = sgn(A) prod_t |min(r_t A, clip(r_t, exp(-0.4), exp(0.4)) A)|^(1 / L_i)
        = A exp(sgn(A) (1 / L_i) sum_t min(sgn(A) d_t, sgn(A) clip(d_t, -0.4, 0.4)))        d_t = logp_t - old_t
    loss_i = -J_i                                                    the same number at every token of completion i

A is one number per completion. The clip is on the log-ratio and far wider than GRPO's. No KL term. std_g divides by n
- 1.

Against verl: std_eps is 1e-4 (verl 1e-6), and a group of one gets A = 0. Reasons: docs/algorithms.md.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, masked_mean, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "geometric_mean": {"geometric_mean": False},
    "group_std_scale": {"scale_by_std": False},
    "ratio_clip": {"clip_log_low": 1e6, "clip_log_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    geometric_mean: bool = True
    scale_by_std: bool = True
    std_eps: float = 1e-4
    clip_log_low: float = 0.4
    clip_log_high: float = 0.4


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    if hp.scale_by_std:
        advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    # every token feeds the row's mean, so an advantage outside the mask must not reach it through the gradient
    advantages = torch.where(inputs.mask, inputs.advantages, torch.zeros_like(inputs.advantages))
    sign = advantages.sign()  # (B, T), equal along a row
    change = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask)
    clipped = change.clamp(-hp.clip_log_low, hp.clip_log_high)
    pessimistic = sign * torch.minimum(sign * change, sign * clipped)
    if hp.geometric_mean:
        pessimistic = masked_mean(pessimistic, inputs.mask, dim=-1).unsqueeze(-1)  # (B, 1)
    token_loss = -advantages * pessimistic.exp()
    return LossOutputs(token_loss=token_loss, metrics={"clip_fraction": (clipped != change).float()})
