"""KL-Cov: the few tokens whose log-probability and advantage vary together most are held at the old policy by a KL term.

Source: Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617.

    cov_t = (log pi_old_t - mean) (A_t - mean)       means over all tokens of the batch
    loss_t = -r_t A + kl_coef * k2_t                 for the share of tokens with the largest cov_t
    loss_t = -r_t A                                  for the others
    k2_t = (log pi_t - log pi_old_t)^2 / 2

Deviates: cov is that of the policy at rollout, because it needs the batch; k2 has the gradient of the KL, the authors' code
takes the absolute log-ratio. share is the paper's 2e-3 times ten, for batches of some thousand tokens; at least one token is
held.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, masked_mean, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "cov_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    share: float = 2e-2
    kl_coef: float = 1.0


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    within = batch.completion_mask
    values = torch.where(within, to_tokens(advantage, within), 0.0)
    surprise = batch.old_logprobs - masked_mean(batch.old_logprobs, within)
    covariance = torch.where(within, surprise * (values - masked_mean(values, within)), -1e9)
    count = int(hp.share * float(within.sum()) + 0.999)  # rounded up
    largest = torch.sort(covariance.flatten(), descending=True).values[max(count - 1, 0)]
    held = (covariance >= largest) & within
    return Advantages(values=values, carry={"held": held.float()})


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    moved = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask)  # (B, T)
    held = hp.kl_coef * inputs.carry["held"] * 0.5 * moved * moved
    return LossOutputs(token_loss=held - moved.exp() * inputs.advantages)
