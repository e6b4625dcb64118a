"""SAPO: a smooth gate on the ratio instead of a clip, closing faster where the advantage is negative.

Source: Gao et al., Soft Adaptive Policy Optimization, arXiv 2511.20347, the SAPO objective.

    A_i = (R_i - mean_g R) / (std_g R + eps)
    f_t = (4 / tau) sigmoid(tau (r_t - 1))                   tau = tau_pos if A > 0 else tau_neg
    loss_t = -f_t A_i

The gate's slope is 1 at r = 1 and decays on both sides, so that far off-policy tokens fade out instead of being cut.
The temperatures are the published ones. No KL term. std_g divides by n - 1.

Against verl: std_eps is 1e-4 (verl 1e-6), and a group of one gets A = 0. Reasons: docs/algorithms.md.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "soft_gate": {"soft_gate": False},
    "asymmetric_temperature": {"tau_neg": 1.0},
    "group_std_scale": {"scale_by_std": False},
}


@dataclass(frozen=True)
class Hyperparameters:
    soft_gate: bool = True
    tau_pos: float = 1.0
    tau_neg: float = 1.05
    scale_by_std: bool = True
    std_eps: float = 1e-4


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    if hp.scale_by_std:
        advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    if not hp.soft_gate:
        return LossOutputs(token_loss=-ratio * inputs.advantages)
    positive = torch.full_like(ratio, hp.tau_pos)
    tau = torch.where(inputs.advantages > 0, positive, torch.full_like(ratio, hp.tau_neg))
    gate = 4.0 / tau * torch.sigmoid(tau * (ratio - 1.0))
    return LossOutputs(token_loss=-gate * inputs.advantages)
