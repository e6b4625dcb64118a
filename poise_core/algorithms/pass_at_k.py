"""Pass@k training: the analytic advantage of rewarding every k-subset of a group by its best member.

Source: Chen et al., Pass@k Training for Adaptively Balancing Exploration and Exploitation of Large Reasoning Models, arXiv
2508.10751, section 2.3; the loss is GRPO's (DeepSeekMath, arXiv 2402.03300, eq. 3).

    q = C(w, k) / C(n, k)                       share of k-subsets of a group of n, w of them wrong, without a right one
    sigma = sqrt(q (1 - q))
    A_i = q / sigma                             of a right completion
    A_i = (q - C(w - 1, k - 1) / C(n - 1, k - 1)) / sigma = -q (n - w) / (w sigma)    of a wrong one
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A) + kl_coef * k3_t
    k3_t = exp(ref - logp) - (ref - logp) - 1

k = 1 is GRPO with the population's deviation. A group with fewer than k wrong completions has q = 0 and teaches nothing, so that
learning goes where right answers are rare. k is at most the size of the group. Between 0 and 1 correctness counts as a share of a
right completion, and binomials are those of the gamma function. sigma is guarded by eps where it vanishes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_count, group_sum, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "pass_at_k": {"k": 1.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    k: float = 4.0
    eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def log_binomial(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1.0) - torch.lgamma(k + 1.0) - torch.lgamma(n - k + 1.0)


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    size = group_count(batch.group_ids)  # (B,)
    wrong = size - group_sum(batch.correctness, batch.group_ids)
    k = torch.clamp(size, max=hp.k)
    enough = wrong >= k
    some = torch.where(enough, wrong, k)  # where there are too few wrong ones nothing is taken from the binomials
    share = torch.where(enough, (log_binomial(some, k) - log_binomial(size, k)).exp(), torch.zeros_like(size))
    sigma = torch.sqrt(torch.clamp(share * (1.0 - share), min=0.0)) + hp.eps
    right = share / sigma
    pushed = -share * (size - wrong) / (torch.clamp(wrong, min=1.0) * sigma)
    advantage = batch.correctness * right + (1.0 - batch.correctness) * pushed
    mixed = (wrong > 0.0) & (wrong < size)
    advantage = torch.where(mixed, advantage, torch.zeros_like(advantage))
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0
    outside = (clipped != ratio).float()
    return LossOutputs(token_loss=hp.kl_coef * k3 - surrogate, metrics={"clip_fraction": outside})
