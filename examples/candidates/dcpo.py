"""DCPO: the clip range of a token widens as its probability under the old policy falls.

Source: Yang et al., DCPO: Dynamic Clipping Policy Optimization, arXiv 2509.02333.

    low_t  = 1/2 + 1/2 sqrt(max(1 - 4 clip_eps_low / q_t, 0))       q_t = pi_old of the token
    high_t = 1/2 + 1/2 sqrt(1 + 4 clip_eps_high / q_t)
    loss_t = -min(r_t A, clip(r_t, low_t, min(high_t, ratio_max)) A)

The bounds solve |r - 1| r q <= eps, a bound on the variance of the importance weight. The loss is the mean over each
completion.

Deviates: the paper also mixes the advantage with statistics of the same prompt from earlier steps, which a candidate does not
see.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "adaptive_bounds": {"adaptive": False},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    adaptive: bool = True
    clip_eps_low: float = 0.16
    clip_eps_high: float = 0.2
    ratio_max: float = 10.0


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    chance = inputs.old_logprobs.exp().clamp(min=1e-6)
    low = 0.5 + 0.5 * (1.0 - 4.0 * hp.clip_eps_low / chance).clamp(min=0.0).sqrt()
    high = (0.5 + 0.5 * (1.0 + 4.0 * hp.clip_eps_high / chance).sqrt()).clamp(max=hp.ratio_max)
    if not hp.adaptive:
        low, high = torch.full_like(low, 1.0 - hp.clip_eps_low), torch.full_like(high, 1.0 + hp.clip_eps_high)
    clipped = torch.minimum(torch.maximum(ratio, low), high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
