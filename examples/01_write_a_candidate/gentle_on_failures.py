"""GRPO that learns less from failures: advantages below zero count half.

    A_i = R_i - mean_g R,  times failure_weight where it is negative
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps, 1 + clip_eps) A)

R is the verifier's outcome, r_t the ratio of the current to the sampling policy. Losses are averaged over all tokens.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {  # mechanism -> the hyperparameters that switch it off
    "gentle_on_failures": {"failure_weight": 1.0},
    "ratio_clip": {"clip_eps": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    """Every field has a default."""

    failure_weight: float = 0.5
    clip_eps: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    """Sees whole groups: one number per completion, (B,), repeated over its tokens, (B, T)."""
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)
    advantage = torch.where(advantage < 0, hp.failure_weight * advantage, advantage)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    """Sees rows of a micro-batch: one loss per token, (B, T), which the trainer masks and averages."""
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()
    clipped = ratio.clamp(1.0 - hp.clip_eps, 1.0 + hp.clip_eps)
    return LossOutputs(token_loss=-torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages))
