"""Reinforce-Rej: REINFORCE with a clip on +1 and -1, without the groups that are all right or all wrong.

Source: Xiong et al., A Minimalist Approach to LLM Reasoning: from Rejection Sampling to Reinforce, arXiv 2504.11343.

    A_i = 2 R_i - 1
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A), over groups with both outcomes
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_max, group_min, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "rejection": {"reject": False},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    reject: bool = True
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = 2.0 * batch.correctness - 1.0  # (B,)
    mixed = group_max(batch.correctness, batch.group_ids) > group_min(batch.correctness, batch.group_ids)
    trained = mixed if hp.reject else torch.ones_like(mixed)
    train_mask = batch.completion_mask & trained.unsqueeze(-1)
    return Advantages(values=to_tokens(advantage, batch.completion_mask), train_mask=train_mask)


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
