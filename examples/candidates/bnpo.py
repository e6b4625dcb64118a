"""BNPO: the advantage is normalized by a Beta density of the prompt's pass rate, fitted to the pass rates of the batch.

Source: Xiao et al., BNPO: Beta Normalization Policy Optimization, arXiv 2506.02864.

    p = pass rate of the group; (a, b) = Beta parameters of the batch's pass rates by the method of moments
    A_i = (R_i - p) / f(p; 1 + a / 3, 1 + b / 3)        f = density of the Beta distribution
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)

Deviates: a and b are kept between 0.1 and 30, p between 0.02 and 0.98 and the density above 0.1; moments are over
completions, which for groups of one size is over groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "beta_normalisation": {"normalize": False},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    normalize: bool = True
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def beta_density(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    return ((a - 1.0) * x.log() + (b - 1.0) * (1.0 - x).log() - log_beta).exp()


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    rate = group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = batch.correctness - rate
    if hp.normalize:
        mean = rate.mean().clamp(0.02, 0.98)
        variance = ((rate - rate.mean()) ** 2).mean().clamp(min=1e-4)
        total = mean * (1.0 - mean) / variance - 1.0
        a = 1.0 + (mean * total).clamp(0.1, 30.0) / 3.0
        b = 1.0 + ((1.0 - mean) * total).clamp(0.1, 30.0) / 3.0
        advantage = advantage / beta_density(rate.clamp(0.02, 0.98), a, b).clamp(min=0.1)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
