"""Forking tokens: only the fifth of the tokens with the highest entropy, where the reasoning forks, gets gradient.

Source: Wang et al., Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective RL for LLM Reasoning, arXiv
2506.01939.

    train the tokens whose entropy at rollout is at least the (1 - share) quantile of the batch
    A_i = (R_i - mean_g R) / (std_g R + eps)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)

Deviates: the paper trains DAPO with it; here groups of one outcome stay in the denominators, and truncated completions train.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "high_entropy_tokens": {"share": 1.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    share: float = 0.2
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.28


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    within = batch.completion_mask
    entropies = torch.sort(torch.where(within, batch.entropies, -1.0).flatten(), descending=True).values
    count = int(hp.share * float(within.sum()) + 0.999)  # rounded up
    forking = within & (batch.entropies >= entropies[max(count - 1, 0)])
    return Advantages(values=to_tokens(advantage, within), train_mask=forking)


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
