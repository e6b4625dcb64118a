"""DAPO: clip-higher, token-level loss, dynamic sampling, soft overlong punishment and overlong filtering; no KL.

Source: Yu et al., DAPO, arXiv 2503.14476, eq. 8 to 13 and table 1.

    R_i = 2 correctness_i - 1 + overlong_i
    overlong_i = clip((L_max - L_cache - L_i) / L_cache, -1, 0)        L_cache = overlong_cache * L_max
    A_i = (R_i - mean_g R) / (std_g R + eps)
    loss_t = -min(r_t A, clip(r_t, 1 - 0.2, 1 + 0.28) A)

Dynamic sampling resamples until every group has 0 < pass rate < 1. Here prompts are the protocol's, so uniform groups
are left out of the update (train_mask) and not replaced. Truncated completions are left out too, after their
punishment has entered the group's mean. L_max is the length limit of the training. overlong_cache = 0.2 is the
published 4,096 of 20,480. std_g divides by n - 1.

Against verl: std_eps is 1e-4 (verl 1e-6), and there is no dual clip. Reasons: docs/algorithms.md.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_max, group_mean, group_min, group_std, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "clip_higher": {"clip_eps_high": 0.2},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "overlong_punishment": {"overlong_coef": 0.0},
    "overlong_filtering": {"filter_truncated": False},
    "dynamic_sampling": {"filter_uniform": False},
}


@dataclass(frozen=True)
class Hyperparameters:
    overlong_coef: float = 1.0
    overlong_cache: float = 0.2  # share of the length limit over which the punishment grows from 0 to 1
    filter_truncated: bool = True
    filter_uniform: bool = True
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.28


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    correctness, groups = batch.correctness, batch.group_ids  # (B,)
    length = sequence_lengths(batch.completion_mask)
    limit = dynamics.max_completion_length
    cache = max(hp.overlong_cache * limit, 1.0)
    overlong = ((limit - cache - length) / cache).clamp(-1.0, 0.0)
    reward = 2.0 * correctness - 1.0 + hp.overlong_coef * overlong
    advantage = (reward - group_mean(reward, groups)) / (group_std(reward, groups) + hp.std_eps)
    trained = torch.ones_like(batch.truncated)
    if hp.filter_truncated:
        trained = trained & ~batch.truncated
    if hp.filter_uniform:
        trained = trained & (group_max(correctness, groups) > group_min(correctness, groups))
    train_mask = batch.completion_mask & trained.unsqueeze(-1)  # (B, T)
    return Advantages(values=to_tokens(advantage, batch.completion_mask), train_mask=train_mask)


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
