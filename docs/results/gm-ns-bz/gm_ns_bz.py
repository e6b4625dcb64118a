"""GM-NS-BZ: KL spiked to 0.348 at step 58 of seed 0, 4.1 times the steps around it. GM-NS-BZ centres rewards by the
group mean; leaves the advantage unscaled, so that no group counts more than its spread; moves length from
length=brevity_zscore(length_coef=0.1, length_eps=0.0001) to length=brevity_zscore(length_coef=0.2, length_eps=1);
treats an unparseable answer as a wrong one.

This candidate weakens negative advantages, because pushing down off-policy failures is what destabilises; rewards
brevity among the correct completions of a group, gated by its pass rate; clips the ratio on both sides alike; ties
the policy to the initial one by the low-variance k3 estimate; pays a fixed entropy bonus.

Child of VM-BS-BZ and HT-BZ-EC: baseline: beta_valid(prior_success=1, prior_failure=1) -> group_mean; scale:
beta_std(std_floor=0.45) -> none; length: brevity_zscore(length_coef=0.1, length_eps=0.0001) ->
brevity_zscore(length_coef=0.2, length_eps=1); format: stream(format_weight=0.1, format_eps=0.0001) -> none (taken
from HT-BZ-EC)

    R = c
    A = R - mean_g R
    A <- negative_weight A where A < 0
    A <- A + length_coef p (mean_C L - L) / (std_C L + length_eps) for correct completions
    r_t = exp(logp_t - old_t)
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps, 1 + clip_eps) A)
    loss_t <- loss_t + kl_coef k3_t, k3_t = exp(ref_t - logp_t) - (ref_t - logp_t) - 1
    loss_t <- loss_t - entropy_coef H_t
    loss = mean over completions of mean_t loss_t

Sources: after Asymmetric REINFORCE, arXiv 2506.20520, which lowers the baseline instead; POISE, arXiv 2603.23951
(DACE); PPO, arXiv 1707.06347, eq. 7; GRPO, arXiv 2402.03300, eq. 4; A3C, arXiv 1602.01783.

Composition: baseline=group_mean; scale=none; bound=damp_negative(negative_weight=0.25);
length=brevity_zscore(length_coef=0.2, length_eps=1); ratio=token; clip=symmetric(clip_eps=0.2); kl=k3(kl_coef=0.03);
entropy=bonus(entropy_coef=0.003); aggregation=sequence-mean
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "negative_damping": {"negative_weight": 1.0},
    "gated_brevity": {"length_coef": 0.0},
    "ratio_clip": {"clip_eps": 1e6},
    "reference_kl": {"kl_coef": 0.0},
    "entropy_bonus": {"entropy_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    negative_weight: float = 0.25
    length_coef: float = 0.2
    length_eps: float = 1.0
    clip_eps: float = 0.2
    kl_coef: float = 0.03
    entropy_coef: float = 0.003


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    correct = batch.correctness > 0  # (B,)
    pass_rate = group_mean(batch.correctness, batch.group_ids)  # (B,)
    lengths = sequence_lengths(batch.completion_mask)  # (B,), tokens
    reward = batch.correctness  # (B,)
    advantage = reward - group_mean(reward, batch.group_ids)  # (B,)
    advantage = torch.where(advantage < 0, hp.negative_weight * advantage, advantage)
    spread = group_std(lengths, batch.group_ids, where=correct) + hp.length_eps
    brevity = pass_rate * (group_mean(lengths, batch.group_ids, where=correct) - lengths) / spread
    advantage = advantage + hp.length_coef * torch.where(correct, brevity, 0.0)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps, 1.0 + hp.clip_eps)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0  # (B, T)
    token_loss = -surrogate + hp.kl_coef * k3 - hp.entropy_coef * inputs.entropies
    return LossOutputs(token_loss=token_loss, metrics={"clip_fraction": (clipped != ratio).float()})
