"""CPGD: a policy gradient on log-ratios that are clipped, with a drift term to the old policy.

Source: Liu et al., CPGD: Toward Stable Rule-based Reinforcement Learning for Language Models, arXiv 2505.12504.

    s_t = min(l_t A, clip(l_t, log(1 - clip_eps_low), log(1 + clip_eps_high)) A)        l_t = log pi_t - log pi_old_t
    loss_t = -s_t + drift_coef sg(min(r_t - 1, drift_max)) l_t

sg stops the gradient; (r - 1) grad l is the gradient of the k3 estimate of KL(old || pi). At l = 0 it is REINFORCE.

Deviates: the advantage is GRPO's, without the paper's weights for prompts.
"""

import math
from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "log_ratio_clip": {"clip_eps_low": 0.999999, "clip_eps_high": 1e9},
    "policy_drift": {"drift_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    drift_coef: float = 0.1
    drift_max: float = 1.0


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    moved = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask)  # (B, T)
    clipped = moved.clamp(math.log(1.0 - hp.clip_eps_low), math.log(1.0 + hp.clip_eps_high))
    surrogate = torch.minimum(moved * inputs.advantages, clipped * inputs.advantages)
    drift = (moved.detach().exp() - 1.0).clamp(max=hp.drift_max) * moved
    return LossOutputs(
        token_loss=hp.drift_coef * drift - surrogate, metrics={"clip_fraction": (clipped != moved).float()}
    )
