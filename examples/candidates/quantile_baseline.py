"""QAE: a quantile of the group's rewards is the baseline, so that hard prompts teach by right answers and easy ones by wrong
ones.

Source: Wu et al., Quantile Advantage Estimation for Entropy-Safe Reasoning, arXiv 2509.22611.

    A_i = (R_i - Q_K(R of the group)) / (std_g R + eps)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)

For rewards of 0 and 1 the quantile is 0 up to a pass rate of 1 - quantile, and 1 above it.

Deviates: where the quantile lies between two rewards it is interpolated.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_max, group_min, group_quantile, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "quantile": {"quantile": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    quantile: float = 0.4
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.28


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_quantile(batch.correctness, batch.group_ids, hp.quantile)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    uniform = group_max(batch.correctness, batch.group_ids) == group_min(batch.correctness, batch.group_ids)
    advantage = torch.where(uniform, 0.0, advantage)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
