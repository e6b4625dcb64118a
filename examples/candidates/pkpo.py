"""PKPO: rewards transformed so that the gradient is that of pass@k, for any k up to the size of the group.

Source: Walder and Karkhanis, Pass@K Policy Optimization, arXiv 2505.15201.

    s_i = k / n                                                     of a right completion, c of n are right
    s_i = k / n (1 - C(n - 1 - c, k - 1) / C(n - 1, k - 1))         of a wrong one
    A_i = s_i - mean of s over the others of the group
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)

Deviates: the baseline is the leave-one-out mean of s; the paper's s_loo-1 leaves the completion out of the subsets too.
Correctness above 1/2 counts as right. k is cut at the size of the group.
"""

import math
from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_count, group_sum, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "pass_at_k": {"k": 1},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    k: int = 4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def rest_is_wrong(n: int, c: int, k: int) -> float:
    """Chance that a wrong completion and k - 1 of the others are all wrong."""
    if c >= n:
        return 0.0
    return math.comb(n - 1 - c, k - 1) / math.comb(n - 1, k - 1)


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    right = batch.correctness > 0.5  # (B,)
    size = group_count(batch.group_ids)
    passed = group_count(batch.group_ids, where=right)
    counts = zip(size.tolist(), passed.tolist(), strict=True)
    missed = [rest_is_wrong(int(n), int(c), min(hp.k, int(n))) for n, c in counts]
    share = torch.tensor([min(hp.k, n) / n for n in size.tolist()], device=size.device)
    reward = torch.where(right, share, share * (1.0 - torch.tensor(missed, device=size.device)))
    others = (size - 1.0).clamp(min=1.0)
    advantage = reward - (group_sum(reward, batch.group_ids) - reward) / others
    advantage = torch.where(size > 1.0, advantage, 0.0)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
