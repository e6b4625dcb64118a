"""SA: the baseline is a blend of group and batch mean, the scale a constant, and entropy is rewarded.

Source: POISE, arXiv 2603.23951, SA-GRPO (Overall 34.5, a published failure).

    anchor = alpha * mean_g R + (1 - alpha) * mean_batch R
    A_i = (R_i - anchor) / sigma
    loss_t = -min(r_t A, clip(r_t) A) + kl_coef * k3_t - entropy_coef * H_t

The paper withholds alpha, sigma and entropy_coef. Chosen here: alpha = 0.5; sigma = 0.5, the largest deviation of a
binary reward; entropy_coef = 0.05, a strong bonus, because the published scores fall where completions are sampled
(AIME, AMC) and hold where they are greedy, which is how too much entropy shows. KL estimator k3 as in GRPO.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "batch_anchor": {"alpha": 1.0},
    "fixed_scale": {"sigma": 1.0},
    "entropy_bonus": {"entropy_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    alpha: float = 0.5
    sigma: float = 0.5
    entropy_coef: float = 0.05
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    reward = batch.correctness  # (B,)
    anchor = hp.alpha * group_mean(reward, batch.group_ids) + (1.0 - hp.alpha) * reward.mean()
    return Advantages(values=to_tokens((reward - anchor) / hp.sigma, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0
    token_loss = hp.kl_coef * k3 - surrogate - hp.entropy_coef * inputs.entropies
    return LossOutputs(token_loss=token_loss, metrics={"clip_fraction": (clipped != ratio).float()})
