"""W-REINFORCE: REINFORCE on rewards of +1 and -1 in which right answers weigh a tenth of wrong ones.

Source: Zhu et al., The Surprising Effectiveness of Negative Reinforcement in LLM Reasoning, arXiv 2506.01347.

    A_i = positive_weight R_i - (1 - R_i)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)

Deviates: with several updates per rollout the ratio is clipped as in PPO; at the first update it is the paper's REINFORCE.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "weighting": {"positive_weight": 1.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    positive_weight: float = 0.1
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = hp.positive_weight * batch.correctness - (1.0 - batch.correctness)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
