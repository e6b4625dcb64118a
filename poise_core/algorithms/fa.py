"""FA: groups with a success are normalised as in GRPO; groups that all fail get fixed, format-aware penalties.

Source: POISE, arXiv 2603.23951, FA-GRPO (Overall 49.9).

    max_g R > 0:   A_i = clip((R_i - mean_g R) / (std_g R + eps), -3, 3)
    max_g R = 0:   A_i = -2.0 if the format is invalid, -0.5 if it is valid but the answer wrong
    loss_t = -min(r_t A, clip(r_t) A) + kl_coef * k3_t

All constants but the loss's are published; the loss is GRPO's with its defaults (KL estimator k3, std_g with divisor n
- 1).
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_max, group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "all_fail_penalty": {"invalid_penalty": 0.0, "wrong_penalty": 0.0},
    "format_awareness": {"invalid_penalty": 0.5},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    invalid_penalty: float = 2.0
    wrong_penalty: float = 0.5
    advantage_clip: float = 3.0
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    reward, groups = batch.correctness, batch.group_ids  # (B,)
    normalized = (reward - group_mean(reward, groups)) / (group_std(reward, groups) + hp.std_eps)
    normalized = normalized.clamp(-hp.advantage_clip, hp.advantage_clip)
    wrong = torch.full_like(reward, -hp.wrong_penalty)
    penalty = torch.where(batch.format_valid, wrong, torch.full_like(reward, -hp.invalid_penalty))
    advantage = torch.where(group_max(reward, groups) > 0, normalized, penalty)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0
    return LossOutputs(token_loss=hp.kl_coef * k3 - surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
