"""DCBE: brevity among correct answers is paid by the square of the pass rate; a controller steers entropy.

Source: POISE, arXiv 2603.23951, DCBE-GRPO (Overall 27.8, a published failure).

    A_i = (R_i - mean_g R) / (std_g R + eps)
          + length_coef * (n_correct / n)^2 * (mean_L - L_i) / (mean_L + eps) * 1[i correct]
    loss_t = -min(r_t A, clip(r_t) A) + kl_coef * k3_t - entropy_coef * scale * H_t
    scale <- clip(scale * exp(entropy_gain * (entropy_target - H / H_initial)), 1 / 100, 100)

mean_L is taken over the group's correct completions. The paper gives neither the constants nor the controller. Chosen
here: length_coef = 0.5, and an exponential controller that holds entropy at its initial level (entropy_target = 1). H
is the running entropy, H_initial its first value. KL estimator k3 and std_g with divisor n - 1, as in GRPO.
"""

import math
from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "gated_brevity": {"length_coef": 0.0},
    "entropy_controller": {"entropy_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    std_eps: float = 1e-4
    length_coef: float = 0.5
    length_eps: float = 1e-6
    entropy_coef: float = 0.01
    entropy_target: float = 1.0  # share of the initial entropy
    entropy_gain: float = 0.1
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    reward, groups = batch.correctness, batch.group_ids  # (B,)
    accuracy = (reward - group_mean(reward, groups)) / (group_std(reward, groups) + hp.std_eps)
    correct = reward > 0.5
    pass_rate = group_mean(correct.float(), groups)
    length = sequence_lengths(batch.completion_mask)
    mean_length = group_mean(length, groups, where=correct)  # 0 where none is correct, and then unused
    brevity = pass_rate.square() * (mean_length - length) / (mean_length + hp.length_eps)
    advantage = accuracy + hp.length_coef * torch.where(correct, brevity, torch.zeros_like(brevity))
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
    level = dynamics.entropy / initial if initial > 0.0 else 1.0
    scale = state.get("entropy_scale", 1.0) * math.exp(hp.entropy_gain * (hp.entropy_target - level))
    return {"initial_entropy": initial, "entropy_scale": min(max(scale, 0.01), 100.0)}
