"""CISPO: the importance weight is clipped and detached, so every token keeps its gradient.

Source: MiniMax-M1, arXiv 2506.13585, eq. 4 and 5.

    A_i = (R_i - mean_g R) / (std_g R + eps)
    w_t = stop_gradient(min(r_t, 1 + clip_eps_high))
    loss_t = -w_t A_i logp_t

There is no lower bound and no KL term, as published; losses are averaged over all tokens of the batch. std_g divides by
n - 1. MiniMax-M1 does not state clip_eps_high. Chosen here: 0.28, DAPO's upper range, so that the bound acts in short
runs; ScaleRL, arXiv 2510.13786, caps the weight of far staler samples at 5.

Against verl: std_eps is 1e-4 (verl 1e-6), and a group of one gets A = 0. Reasons: docs/algorithms.md.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "importance_weight": {"use_weight": False},
    "weight_clip": {"clip_eps_high": 1e9},
    "group_std_scale": {"scale_by_std": False},
}


@dataclass(frozen=True)
class Hyperparameters:
    use_weight: bool = True
    scale_by_std: bool = True
    std_eps: float = 1e-4
    clip_eps_high: float = 0.28


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    if hp.scale_by_std:
        advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp().detach()  # (B, T)
    weight = ratio.clamp(max=1.0 + hp.clip_eps_high) if hp.use_weight else torch.ones_like(ratio)
    logprobs = torch.where(inputs.mask, inputs.logprobs, torch.zeros_like(inputs.logprobs))
    outside = (ratio > 1.0 + hp.clip_eps_high).float()
    return LossOutputs(token_loss=-weight * inputs.advantages * logprobs, metrics={"clip_fraction": outside})
