"""REINFORCE with the group mean as baseline: the plain policy gradient, nothing else.

Source: Williams, Simple Statistical Gradient-Following Algorithms, Machine Learning 8, 1992: episodic REINFORCE.

    A_i = R_i - mean_g R
    loss_t = -A_i logp_t

Token losses are summed over the completion, as the gradient of its log-probability demands. The mean includes
completion i itself, which shrinks the estimate by (n - 1) / n. Without a ratio or a clip it is meant for one update
per rollout.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, to_tokens

LOSS_AGGREGATION = "sequence-sum"
MECHANISMS = {"group_baseline": {"use_baseline": False}}


@dataclass(frozen=True)
class Hyperparameters:
    use_baseline: bool = True


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness  # (B,)
    if hp.use_baseline:
        advantage = advantage - group_mean(batch.correctness, batch.group_ids)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    logprobs = torch.where(inputs.mask, inputs.logprobs, torch.zeros_like(inputs.logprobs))  # (B, T)
    return LossOutputs(token_loss=-inputs.advantages * logprobs)
