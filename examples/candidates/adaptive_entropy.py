"""Adaptive entropy control: an entropy bonus whose coefficient rises while entropy is below its target, and else falls.

Source: He et al., Skywork Open Reasoner 1 Technical Report, arXiv 2505.22312.

    coef_k = clip(coef_(k-1) + change if entropy < target else coef_(k-1) - change, 0, coef_max)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A) - coef_k H_t, the bonus only while entropy < target

Deviates: the coefficient is bounded from above; entropy is the running mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "entropy_control": {"change": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    target: float = 0.5  # nats
    change: float = 0.005
    coef_max: float = 0.05
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    coef = dynamics.controller.get("coef", 0.0) if dynamics.entropy < hp.target else 0.0
    return LossOutputs(
        token_loss=-surrogate - coef * inputs.entropies, metrics={"clip_fraction": (clipped != ratio).float()}
    )


def update_controller(state: Mapping[str, float], dynamics: Dynamics, hp: Hyperparameters) -> dict[str, float]:
    change = hp.change if dynamics.entropy < hp.target else -hp.change
    return {"coef": min(max(state.get("coef", 0.0) + change, 0.0), hp.coef_max)}
