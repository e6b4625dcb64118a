"""RAFT++: only right answers are learned, with PPO's ratio and clip.

Source: Xiong et al., A Minimalist Approach to LLM Reasoning: from Rejection Sampling to Reinforce, arXiv 2504.11343.

    A_i = R_i
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A), over the tokens of right answers

Deviates: a right answer is one with correctness above 1/2; the others leave the denominators, as rejected samples do.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import log_ratio, to_tokens

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
    advantage = batch.correctness  # (B,)
    right = batch.correctness > 0.5
    trained = right if hp.reject else torch.ones_like(right)
    train_mask = batch.completion_mask & trained.unsqueeze(-1)
    return Advantages(values=to_tokens(advantage, batch.completion_mask), train_mask=train_mask)


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
