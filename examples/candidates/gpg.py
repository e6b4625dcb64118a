"""GPG: plain policy gradient on group-centred rewards, rescaled for the groups that teach nothing.

Source: Chu et al., GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning, arXiv 2504.02546.

    A_i = alpha (R_i - mean_g R)
    alpha = completions / completions in groups with both outcomes
    loss_t = -A log pi_t
"""

from dataclasses import dataclass

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_max, group_mean, group_min, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "valid_group_rescaling": {"rescale": False},
}


@dataclass(frozen=True)
class Hyperparameters:
    rescale: bool = True


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    mixed = group_max(batch.correctness, batch.group_ids) > group_min(batch.correctness, batch.group_ids)
    if hp.rescale:
        advantage = advantage * mixed.numel() / mixed.sum().clamp(min=1)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    return LossOutputs(token_loss=-inputs.advantages * inputs.logprobs)
