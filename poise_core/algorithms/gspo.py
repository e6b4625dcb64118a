"""GSPO: one importance ratio per completion, the geometric mean of its token ratios, clipped as a whole.

Source: Zheng et al., Group Sequence Policy Optimization, arXiv 2507.18071, eq. 5 to 7 and section 5.1.

    A_i = (R_i - mean_g R) / (std_g R + eps)
    s_i = exp((1 / L_i) sum_t (logp_t - old_t))
    loss_i = -min(s_i A, clip(s_i, 1 - 3e-4, 1 + 4e-4) A)           the same number at every token of completion i

No KL term. std_g divides by n - 1. The clip range is the published one, found for completions of thousands of tokens.
In completions of tens of tokens s_i spreads about ten times wider, so soon after the first update on a rollout most
completions that have moved in their advantage's direction are clipped: learning is cautious, not impossible.

Against verl: std_eps is 1e-4 (verl 1e-6); log s_i is bounded by 20 per token before the mean (verl: by 10 after it), and
the gradient goes through s_i itself, to the same sum. Reasons: docs/algorithms.md.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, masked_mean, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "sequence_ratio": {"sequence_level": False},
    "group_std_scale": {"scale_by_std": False},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    sequence_level: bool = True
    scale_by_std: bool = True
    std_eps: float = 1e-4
    clip_eps_low: float = 3e-4
    clip_eps_high: float = 4e-4


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    if hp.scale_by_std:
        advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    change = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask)  # (B, T)
    if hp.sequence_level:
        change = masked_mean(change, inputs.mask, dim=-1).unsqueeze(-1).expand_as(change)
    ratio = change.exp()
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    # every token feeds the row's ratio, so an advantage outside the mask must not reach it through the gradient
    advantages = torch.where(inputs.mask, inputs.advantages, torch.zeros_like(inputs.advantages))
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
