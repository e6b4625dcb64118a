"""MSA: the scale falls back from the outcome's to the total reward's deviation; length reweights by sign.

Source: POISE, arXiv 2603.23951, MSA-GRPO (Overall 50.7).

    T_i = correctness_i + format_weight * 1[format valid]
    sigma = std_g correctness if it exceeds sigma_eps, else std_g T
    A_i = (T_i - mean_g T) / (sigma + sigma_eps), times alpha_uniform in groups of one outcome
    A_i *= (L_i / mean_g L)^length_power if A_i > 0, (L_i / mean_g L)^-length_power if A_i < 0
    loss_t = -min(r_t A, clip(r_t) A) + kl_coef * k3_t

So among successes the longer weigh more, and among failures the longer are punished less. The paper withholds the
constants. Chosen here: format_weight = 0.2, sigma_eps = 1e-4, alpha_uniform = 0.3, length_power = 0.2. Deviations
divide by n - 1. KL estimator k3.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "scale_fallback": {"alpha_uniform": 0.0},
    "uniform_damping": {"alpha_uniform": 1.0},
    "format_reward": {"format_weight": 0.0},
    "length_reweighting": {"length_power": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    format_weight: float = 0.2
    sigma_eps: float = 1e-4
    alpha_uniform: float = 0.3
    length_power: float = 0.2
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    groups = batch.group_ids
    total = batch.correctness + hp.format_weight * batch.format_valid.float()  # (B,)
    outcome_std = group_std(batch.correctness, groups)
    uniform = outcome_std <= hp.sigma_eps
    sigma = torch.where(uniform, group_std(total, groups), outcome_std)
    advantage = (total - group_mean(total, groups)) / (sigma + hp.sigma_eps)
    advantage = torch.where(uniform, hp.alpha_uniform * advantage, advantage)
    length = sequence_lengths(batch.completion_mask).clamp(min=1.0)
    weight = (length / group_mean(length, groups)).pow(hp.length_power)
    advantage = torch.where(advantage > 0, advantage * weight, advantage / weight)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0
    return LossOutputs(token_loss=hp.kl_coef * k3 - surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
