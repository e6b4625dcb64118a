"""BN: centred by the group, scaled by the batch; explicit KL and entropy terms.

Source: POISE, arXiv 2603.23951, BN-GRPO (Overall 44.2; its descendants lead to VM-AV).

    C_i = R_i - mean_g R
    A_i = clip(C_i / (sqrt(mean_batch C^2) + eps), -3, 3)
    loss_t = -min(r_t A, clip(r_t) A) + kl_coef * k3_t - entropy_coef * H_t

The paper withholds kl_coef and entropy_coef; chosen here are 0.01 and 0.01. KL estimator k3.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "batch_scale": {"scale_by_batch": False},
    "entropy_bonus": {"entropy_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    scale_by_batch: bool = True
    scale_eps: float = 1e-4
    advantage_clip: float = 3.0
    entropy_coef: float = 0.01
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    if hp.scale_by_batch:
        advantage = advantage / (advantage.square().mean().sqrt() + hp.scale_eps)
    advantage = advantage.clamp(-hp.advantage_clip, hp.advantage_clip)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0
    token_loss = hp.kl_coef * k3 - surrogate - hp.entropy_coef * inputs.entropies
    return LossOutputs(token_loss=token_loss, metrics={"clip_fraction": (clipped != ratio).float()})
