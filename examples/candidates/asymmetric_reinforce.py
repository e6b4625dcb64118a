"""AsymRE: off-policy REINFORCE without ratios, whose baseline lies a little below the group's mean.

Source: Arnal et al., Asymmetric REINFORCE for off-Policy Reinforcement Learning, arXiv 2506.20520.

    A_i = R_i - (mean_g R + shift)        shift < 0 leans on right answers
    loss_t = -A log pi_t
"""

from dataclasses import dataclass

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "shifted_baseline": {"shift": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    shift: float = -0.1


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - (group_mean(batch.correctness, batch.group_ids) + hp.shift)  # (B,)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    return LossOutputs(token_loss=-inputs.advantages * inputs.logprobs)
