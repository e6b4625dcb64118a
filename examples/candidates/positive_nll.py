"""PPO with a likelihood term on right answers, the part of VAPO that needs no critic.

Source: Yue et al., VAPO: Efficient and Reliable Reinforcement Learning for Advanced Reasoning Tasks, arXiv 2504.05118.

    A_i = (R_i - mean_g R) / (std_g R + eps)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A) - nll_coef correct_i log pi_t

Deviates: the paper's advantages come from a critic with a length-adaptive GAE; its likelihood is averaged over right answers
alone.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "positive_likelihood": {"nll_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    nll_coef: float = 0.1
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.28


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    likelihood = to_tokens(inputs.correctness, inputs.mask) * inputs.logprobs
    return LossOutputs(
        token_loss=-surrogate - hp.nll_coef * likelihood, metrics={"clip_fraction": (clipped != ratio).float()}
    )
