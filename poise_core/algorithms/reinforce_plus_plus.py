"""REINFORCE++: no group statistics; KL inside the token rewards, advantages normalised over the whole batch.

Source: Hu et al., REINFORCE++, arXiv 2501.03262, the variant without a group baseline.

    G_t = R_i - kl_coef * sum_{s >= t} (old_s - ref_s)                    KL estimator k1, summed to the end
    A_t = (G_t - mean G) / (std G + eps)                                  over all tokens of the batch
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)

The deviation is the population's (divisor: the token count). kl_coef = 0.01; losses are averaged over all tokens.

verl divides by the token count less one and takes eps = 1e-8 within the root. Reasons: docs/algorithms.md.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import log_ratio, masked_mean, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "batch_normalization": {"normalize": False},
    "kl_in_reward": {"kl_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    normalize: bool = True
    std_eps: float = 1e-4
    kl_coef: float = 0.01
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    mask = batch.completion_mask
    kl = torch.where(mask, batch.old_logprobs - batch.ref_logprobs, torch.zeros_like(batch.old_logprobs))  # (B, T)
    kl_to_go = kl.flip(-1).cumsum(-1).flip(-1)
    values = to_tokens(batch.correctness, mask) - hp.kl_coef * kl_to_go
    if hp.normalize:
        centred = values - masked_mean(values, mask)
        values = centred / (masked_mean(centred.square(), mask).sqrt() + hp.std_eps)
    return Advantages(values=values)


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
