"""Truncated importance sampling: REINFORCE whose weights are cut at a constant and carry no gradient.

Source: Espeholt et al., IMPALA, arXiv 1802.01561.

    A_i = R_i - mean_g R
    loss_t = -sg(min(r_t, ratio_max)) A log pi_t

Unlike CISPO's, the cap is far from 1: it bounds the variance and is not meant to be met often.
"""

from dataclasses import dataclass

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "truncation": {"ratio_max": 1e9},
}


@dataclass(frozen=True)
class Hyperparameters:
    ratio_max: float = 2.0


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    weight = ratio.detach().clamp(max=hp.ratio_max)
    return LossOutputs(
        token_loss=-weight * inputs.advantages * inputs.logprobs,
        metrics={"clip_fraction": (ratio.detach() > hp.ratio_max).float()},
    )
