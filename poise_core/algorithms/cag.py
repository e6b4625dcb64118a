"""CAG: correct answers that are longer than the group's correct average pay, by the square of the pass rate.

Source: POISE, arXiv 2603.23951, CAG-GRPO (Overall 49.5).

    A_i = (R_i - mean_g R) / (std_g R + eps)
          + length_coef * p^2 * min((mean_L - L_i) / mean_L, 0) * 1[i correct]          p = mean_g R
    loss_t = -min(r_t A, clip(r_t) A) + kl_coef * k3_t

mean_L is taken over the group's correct completions. Brevity itself earns nothing, so there is no race to the shortest
answer. The paper withholds length_coef (its beta0); 0.5 is chosen here. std_g divides by n - 1. KL estimator k3.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "gated_length_penalty": {"length_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    length_coef: float = 0.5
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    reward, groups = batch.correctness, batch.group_ids  # (B,)
    pass_rate = group_mean(reward, groups)
    accuracy = (reward - pass_rate) / (group_std(reward, groups) + hp.std_eps)
    correct = reward > 0.5
    length = sequence_lengths(batch.completion_mask)
    mean_length = group_mean(length, groups, where=correct).clamp(min=1.0)
    excess = pass_rate.square() * ((mean_length - length) / mean_length).clamp(max=0.0)
    advantage = accuracy + hp.length_coef * torch.where(correct, excess, torch.zeros_like(excess))
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0
    return LossOutputs(token_loss=hp.kl_coef * k3 - surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
