"""Archer: tokens where reasoning forks may move farther than those that carry knowledge, by their entropy within the answer.

Source: Wang et al., Stabilizing Knowledge, Promoting Reasoning: Dual-Token Constraints for RLVR, arXiv 2507.15778.

    a token is a reasoning token where its entropy at rollout is at least the quantile of its completion
    reasoning tokens: clip within 1 +- clip_eps_reasoning, kl_coef_reasoning;
    knowledge tokens: clip_eps_knowledge, kl_coef_knowledge
    loss_t = -min(r_t A, clip(r_t) A) + kl_coef * k3_t

Deviates: the quantile is found by counting the tokens of a completion with a lower entropy.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {
    "dual_clip_range": {"clip_eps_reasoning": 0.2},
    "dual_kl": {"kl_coef_reasoning": 0.001},
    "knowledge_kl": {"kl_coef_knowledge": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    quantile: float = 0.8
    clip_eps_reasoning: float = 0.5
    clip_eps_knowledge: float = 0.2
    kl_coef_reasoning: float = 0.0
    kl_coef_knowledge: float = 0.001
    std_eps: float = 1e-4


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    within = batch.completion_mask
    lower = (batch.entropies.unsqueeze(-1) > batch.entropies.unsqueeze(-2)) & within.unsqueeze(-2)  # (B, T, T)
    share = lower.sum(-1) / sequence_lengths(within).clamp(min=1.0).unsqueeze(-1)
    reasoning = (share >= hp.quantile).float()
    return Advantages(values=to_tokens(advantage, within), carry={"reasoning": reasoning})


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    reasoning = inputs.carry["reasoning"] > 0.5
    width = torch.where(reasoning, hp.clip_eps_reasoning, hp.clip_eps_knowledge)
    clipped = torch.minimum(torch.maximum(ratio, 1.0 - width), 1.0 + width)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0
    kl_coef = torch.where(reasoning, hp.kl_coef_reasoning, hp.kl_coef_knowledge)
    return LossOutputs(token_loss=kl_coef * k3 - surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
