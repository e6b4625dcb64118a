"""NFT: right answers train the policy by likelihood, wrong ones train it through the negative policy that they imply.

Source: Chen et al., Bridging Supervised Learning and Reinforcement Learning in Math Reasoning, arXiv 2505.18116.

    loss_t = -w log r_t                                             of a right answer
    loss_t = -w log max((1 - p r_t) / (1 - p), negative_floor)      of a wrong one
    w = sqrt((1 - p) / p), p the group's pass rate; groups of one outcome do not train

Deviates: the straight-through gradient below the floor is the one of the floor, which is none.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "negative_policy": {"negatives": False},
    "prompt_weight": {"weighted": False},
}


@dataclass(frozen=True)
class Hyperparameters:
    negatives: bool = True
    weighted: bool = True
    negative_floor: float = 1e-3


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    rate = group_mean(batch.correctness, batch.group_ids)  # (B,)
    mixed = (rate > 0.0) & (rate < 1.0)
    weight = ((1.0 - rate) / rate.clamp(min=1e-3)).sqrt() if hp.weighted else torch.ones_like(rate)
    train_mask = batch.completion_mask & mixed.unsqueeze(-1)
    return Advantages(
        values=to_tokens(weight, batch.completion_mask), train_mask=train_mask, carry={"rate": rate.clamp(0.01, 0.99)}
    )


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    rate = inputs.carry["rate"].unsqueeze(-1)  # (B, 1)
    implied = ((1.0 - rate * ratio) / (1.0 - rate)).clamp(min=hp.negative_floor)
    right = to_tokens(inputs.correctness, inputs.mask)
    wrong = (1.0 - right) * implied.log() if hp.negatives else torch.zeros_like(right)
    return LossOutputs(token_loss=-inputs.advantages * (right * ratio.log() + wrong))
