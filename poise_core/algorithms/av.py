"""AV: the group's analytic deviation with a floor, a strict format penalty inside the reward, little entropy bonus.

Source: POISE, arXiv 2603.23951, AV-GRPO (Overall 50.9, child of BN).

    R_i = correctness_i - format_penalty * 1[format invalid]
    sigma = sqrt(mean_g R^2 - (mean_g R)^2)                  for binary R: sqrt(p (1 - p))
    A_i = (R_i - mean_g R) / max(sigma, sigma_min)
    loss_t = -min(r_t A, clip(r_t) A) + kl_coef * k3_t - entropy_coef * H_t

sigma is the group's population deviation, so what sets AV apart from GRPO is the floor, the penalty and the entropy
term. The paper withholds the constants. Chosen here: format_penalty = 0.5, sigma_min = 0.1, and entropy_coef = 0.001,
a tenth of BN's. KL estimator k3.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "analytic_variance": {"scale_by_sigma": False},
    "format_penalty": {"format_penalty": 0.0},
    "entropy_bonus": {"entropy_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    scale_by_sigma: bool = True
    sigma_min: float = 0.1
    format_penalty: float = 0.5
    entropy_coef: float = 0.001
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    groups = batch.group_ids
    reward = batch.correctness - hp.format_penalty * (~batch.format_valid).float()  # (B,)
    mean = group_mean(reward, groups)
    advantage = reward - mean
    if hp.scale_by_sigma:
        variance = group_mean(reward.square(), groups) - mean.square()
        advantage = advantage / variance.clamp(min=hp.sigma_min**2).sqrt()
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0
    token_loss = hp.kl_coef * k3 - surrogate - hp.entropy_coef * inputs.entropies
    return LossOutputs(token_loss=token_loss, metrics={"clip_fraction": (clipped != ratio).float()})
