"""TOPR: right answers are learned without an importance weight, wrong ones with one that is cut at 1.

Source: Le Roux et al., Tapered Off-Policy REINFORCE, arXiv 2503.14286.

    loss_t = -A log pi_t                      where A >= 0
    loss_t = -sg(min(r_i, 1)) A log pi_t      where A < 0
    r_i = exp(sum_t log pi_t - log pi_old_t) of the whole completion;  A_i = R_i - mean_g R

Deviates: the paper's rewards are +1 and -1 without a baseline; centred, they are rewards of one group compared with one
another.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "tapering": {"taper": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    taper: float = 1.0  # largest weight of a wrong answer


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    moved = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).sum(-1, keepdim=True).detach()  # (B, 1)
    weight = moved.clamp(max=20.0).exp().clamp(max=hp.taper)
    weight = torch.where(inputs.advantages < 0.0, weight, 1.0)
    return LossOutputs(token_loss=-weight * inputs.advantages * inputs.logprobs)
