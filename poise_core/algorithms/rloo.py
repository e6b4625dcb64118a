"""RLOO: REINFORCE whose baseline is the mean of the other completions; KL to the initial policy inside the reward.

Source: Ahmadian et al., Back to Basics, arXiv 2402.14740, after Kool et al., 2019.

    R_i = correctness_i - kl_coef * sum_t (old_t - ref_t)                 KL estimator k1, summed over the completion
    A_i = R_i - mean of R over the group's other completions
    loss_t = -A_i logp_t

The whole completion is one action, so token losses are summed, not averaged over its length. There is neither a ratio
nor a clip: the estimate is unbiased for the first update after a rollout and drifts with further ones. A group of one
has no baseline and gets A = 0. kl_coef = 0.03 is the paper's (appendix C).

verl lets a group of one keep its reward. Reasons: docs/algorithms.md.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_count, group_mean, masked_sum, to_tokens

LOSS_AGGREGATION = "sequence-sum"
MECHANISMS = {
    "leave_one_out": {"leave_one_out": False},
    "kl_in_reward": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    leave_one_out: bool = True
    kl_coef: float = 0.03


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    kl = masked_sum(batch.old_logprobs - batch.ref_logprobs, batch.completion_mask, dim=-1)  # (B,)
    reward = batch.correctness - hp.kl_coef * kl
    advantage = reward - group_mean(reward, batch.group_ids)
    if hp.leave_one_out:  # R_i - (sum - R_i) / (n - 1) = (R_i - mean) n / (n - 1)
        size = group_count(batch.group_ids)
        advantage = advantage * size / (size - 1.0).clamp(min=1.0)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    logprobs = torch.where(inputs.mask, inputs.logprobs, torch.zeros_like(inputs.logprobs))  # (B, T)
    return LossOutputs(token_loss=-inputs.advantages * logprobs)
