"""Clip-Cov: the few tokens whose log-probability and advantage vary together most get no gradient.

Source: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617.

    cov_t = (log pi_old_t - mean) (A_t - mean)       means over all tokens of the batch
    tokens with the largest cov_t, at most a share of the batch and above cov_floor, are left out of the loss
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A) of the others

Deviates: cov is that of the policy at rollout, because it needs the batch; the paper draws the tokens from those between two
bounds, and a candidate draws nothing, so the largest are taken. Left out by a weight of 0, they still count in the
denominator. share is the paper's 2e-4 times ten, for batches of some thousand tokens instead of some million; at least one
token is looked at.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, masked_mean, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "cov_clip": {"share": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    share: float = 2e-3
    cov_floor: float = 1.0  # the paper's lower bound omega_low
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.28


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    within = batch.completion_mask
    values = torch.where(within, to_tokens(advantage, within), 0.0)
    surprise = batch.old_logprobs - masked_mean(batch.old_logprobs, within)
    covariance = torch.where(within, surprise * (values - masked_mean(values, within)), -1e9)
    count = int(hp.share * float(within.sum()) + 0.999)  # rounded up
    largest = torch.sort(covariance.flatten(), descending=True).values[max(count - 1, 0)]
    left_out = (covariance >= largest.clamp(min=hp.cov_floor)) & (count > 0)
    return Advantages(values=torch.where(left_out, 0.0, values))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
