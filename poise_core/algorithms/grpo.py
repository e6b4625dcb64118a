"""GRPO: group-relative advantages, clipped ratio, KL to the frozen initial policy.

Source: Shao et al., DeepSeekMath, arXiv 2402.03300, eq. 3 and 4.

    A_i = (R_i - mean_g R) / (std_g R + eps)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A) + kl_coef * k3_t
    k3_t = exp(ref - logp) - (ref - logp) - 1

R is the verifier's outcome alone: an answer that does not parse cannot be correct, so format needs no reward of its
own. std_g divides by n - 1. Losses are averaged over a completion's tokens, then over completions. DeepSeekMath trains
with kl_coef = 0.04; the default here is the milder 0.01.

Against verl: std_eps is 1e-4 as in TRL (verl 1e-6); a group of one gets A = 0 (verl: its reward); there is no dual clip
and k3 is not cut at 10. Reasons: docs/algorithms.md.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "group_std_scale": {"scale_by_std": False},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    scale_by_std: bool = True
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    if hp.scale_by_std:
        advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0
    outside = (clipped != ratio).float()  # whichever side, whether or not it stops the gradient
    return LossOutputs(token_loss=hp.kl_coef * k3 - surrogate, metrics={"clip_fraction": outside})
