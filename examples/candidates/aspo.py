"""ASPO: for positive advantages the importance weight is turned round, so that tokens which are still unlikely gain most.

Source: Wang et al., ASPO: Asymmetric Importance Sampling Policy Optimization, arXiv 2510.06062.

    loss_t = -sg(min(1 / r_t, flip_max)) (r_t / sg(r_t)) A       where A > 0 and r_t <= 1 + clip_eps_high
    loss_t = -max(min(r_t A, clip(r_t) A), dual_clip A)          where A < 0

sg stops the gradient; a token with A > 0 whose ratio has left the range has none, as under PPO's clip.

Deviates: the weight is bounded by flip_max from above, where the paper has a soft dual clip.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "flipped_weight": {"flip": False},
    "dual_clip": {"dual_clip": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    flip: bool = True
    flip_max: float = 3.0
    dual_clip: float = 3.0
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.28


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    advantages = inputs.advantages
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    negative = torch.maximum(surrogate, hp.dual_clip * advantages)
    weight = (1.0 / ratio.detach()).clamp(max=hp.flip_max) if hp.flip else ratio.detach()
    inside = ratio.detach() <= 1.0 + hp.clip_eps_high
    positive = torch.where(inside, weight * advantages * ratio / ratio.detach(), (weight * advantages).detach())
    surrogate = torch.where(advantages > 0.0, positive, negative)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
