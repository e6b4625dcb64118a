"""DACE: hard prompts weigh more, brevity is rewarded where the group already succeeds, the entropy target anneals.

Source: POISE, arXiv 2603.23951, DACE-GRPO (Overall 51.7 at 0.709 of the length).

    A_acc = (R_i - mean_g R) / (std_g R + eps)                 p = mean_g R
    A_eff = (mean_C L - L_i) / (std_C L + eps)                 C: the group's correct completions
    A_i = A_acc (1 + difficulty_coef (1 - p)) + length_coef * A_eff * p * 1[i correct]
    loss_t = -min(r_t A, clip(r_t) A) + kl_coef * k3_t - entropy_coef * scale * H_t
    target = H_initial * (target_start + (target_end - target_start) * progress)
    scale <- clip(scale + entropy_gain * (target - H) / H_initial, 0, 10)

The paper withholds the constants and the controller. Chosen here: difficulty_coef = 0.5, length_coef = 0.3, and a
target that falls from the initial entropy to 0.3 of it over the run, H being the running entropy. Deviations divide by
n - 1. KL estimator k3.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "difficulty_weight": {"difficulty_coef": 0.0},
    "gated_brevity": {"length_coef": 0.0},
    "annealed_entropy": {"entropy_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    difficulty_coef: float = 0.5
    length_coef: float = 0.3
    entropy_coef: float = 0.001
    target_start: float = 1.0  # shares of the initial entropy
    target_end: float = 0.3
    entropy_gain: float = 0.1
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    reward, groups = batch.correctness, batch.group_ids  # (B,)
    pass_rate = group_mean(reward, groups)
    accuracy = (reward - pass_rate) / (group_std(reward, groups) + hp.std_eps)
    correct = reward > 0.5
    length = sequence_lengths(batch.completion_mask)
    shorter = group_mean(length, groups, where=correct) - length
    efficiency = shorter / (group_std(length, groups, where=correct) + hp.std_eps)
    efficiency = torch.where(correct, efficiency * pass_rate, torch.zeros_like(efficiency))
    advantage = accuracy * (1.0 + hp.difficulty_coef * (1.0 - pass_rate)) + hp.length_coef * efficiency
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    reference = log_ratio(inputs.ref_logprobs, inputs.logprobs, inputs.mask)
    k3 = reference.exp() - reference - 1.0
    entropy_coef = hp.entropy_coef * dynamics.controller.get("entropy_scale", 1.0)
    token_loss = hp.kl_coef * k3 - surrogate - entropy_coef * inputs.entropies
    return LossOutputs(token_loss=token_loss, metrics={"clip_fraction": (clipped != ratio).float()})


def update_controller(state: dict[str, float], dynamics: Dynamics, hp: Hyperparameters) -> dict[str, float]:
    initial = state.get("initial_entropy", 0.0) or dynamics.entropy
    target = hp.target_start + (hp.target_end - hp.target_start) * dynamics.progress
    level = dynamics.entropy / initial if initial > 0.0 else 1.0
    scale = state.get("entropy_scale", 1.0) + hp.entropy_gain * (target - level)
    return {"initial_entropy": initial, "entropy_scale": min(max(scale, 0.0), 10.0)}
