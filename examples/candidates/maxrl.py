"""MaxRL: the group's advantage is divided by its mean reward, which makes the gradient that of a likelihood.

Source: Tajwar et al., Maximum Likelihood Reinforcement Learning, arXiv 2602.02710.

    A_i = (R_i - mean_g R) / mean_g R       0 where the group has no right answer
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)

The mean of grad log pi over right answers estimates the gradient of log p to the order of the group's size; hard prompts
weigh 1 / p.

Deviates: with several updates per rollout the ratio is clipped as in PPO.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "mean_normalisation": {"by_mean": False},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    by_mean: bool = True
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    mean = group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = batch.correctness - mean
    if hp.by_mean:
        advantage = torch.where(mean > 0.0, advantage / mean.clamp(min=1e-3), 0.0)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
