"""OPO: on-policy REINFORCE with the baseline that minimizes the variance of its gradient, a mean reward weighted by length.

Source: Hao et al., On-Policy RL with Optimal Reward Baseline, arXiv 2505.23585.

    b = sum_g L_j R_j / sum_g L_j        L = tokens of a completion
    A_i = R_i - b
    loss_t = -A log pi_t
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_sum, sequence_lengths, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "length_weighted_baseline": {"by_length": False},
}


@dataclass(frozen=True)
class Hyperparameters:
    by_length: bool = True


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    weight = sequence_lengths(batch.completion_mask) if hp.by_length else torch.ones_like(batch.correctness)  # (B,)
    total = group_sum(weight, batch.group_ids).clamp(min=1.0)
    advantage = batch.correctness - group_sum(weight * batch.correctness, batch.group_ids) / total
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    return LossOutputs(token_loss=-inputs.advantages * inputs.logprobs)
