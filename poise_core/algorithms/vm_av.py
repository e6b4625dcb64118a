"""VM-AV: statistics over format-valid completions, Beta-smoothed; analytic scale; invalid ones get a fixed floor.

Source: POISE, arXiv 2603.23951, VM-AV-GRPO (Overall 52.5, the best published variant). V: the valid completions of a
group.

    mu_v = (sum_V R + a) / (|V| + a + b)        sigma_v = sqrt(mu_v (1 - mu_v))
    A_i = (R_i - mu_v) / max(sigma_v, sigma_floor)     i in V; if A_i < 0, divided by clip(L_i / mean_V L, 0.5, 2)
    A_i = invalid_advantage                            i not in V
    loss_t = -min(r_t A, clip(r_t) A) + kl_coef * k3_t - entropy_coef * scale * H_t
    scale <- clip(scale + entropy_gain * (entropy_target - H / H_initial), 0, 10)

The paper withholds the constants and the adaptive entropy control. Chosen here: a = b = 1, sigma_floor = 0.1,
invalid_advantage = -1, and a controller that pays an entropy bonus only while the running entropy H is below half of
its first value. Because of the smoothing, groups that all pass or all fail still carry a small signal. KL estimator
k3.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_count, group_mean, group_sum, log_ratio, sequence_lengths, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {
    "valid_subset": {"valid_only": False},
    "beta_smoothing": {"beta_a": 0.0, "beta_b": 0.0},
    "analytic_variance": {"scale_by_sigma": False},
    "length_discount": {"length_low": 1.0, "length_high": 1.0},
    "entropy_control": {"entropy_coef": 0.0},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
    "reference_kl": {"kl_coef": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    valid_only: bool = True
    beta_a: float = 1.0
    beta_b: float = 1.0
    scale_by_sigma: bool = True
    sigma_floor: float = 0.1
    invalid_advantage: float = -1.0
    length_low: float = 0.5
    length_high: float = 2.0
    entropy_coef: float = 0.001
    entropy_target: float = 0.5  # share of the initial entropy
    entropy_gain: float = 0.1
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2
    kl_coef: float = 0.01


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    reward, groups = batch.correctness, batch.group_ids  # (B,)
    valid = batch.format_valid if hp.valid_only else torch.ones_like(batch.format_valid)
    # a group without valid completions and without smoothing would be 0 / 0; its statistics are not used
    count = (group_count(groups, where=valid) + hp.beta_a + hp.beta_b).clamp(min=1e-6)
    mean = (group_sum(reward, groups, where=valid) + hp.beta_a) / count
    advantage = reward - mean
    if hp.scale_by_sigma:
        advantage = advantage / (mean * (1.0 - mean)).clamp(min=hp.sigma_floor**2).sqrt()
    length = sequence_lengths(batch.completion_mask)
    relative = length / group_mean(length, groups, where=valid, empty=1.0).clamp(min=1.0)
    advantage = torch.where(advantage < 0, advantage / relative.clamp(hp.length_low, hp.length_high), advantage)
    advantage = torch.where(valid, advantage, torch.full_like(advantage, hp.invalid_advantage))
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
    scale = state.get("entropy_scale", 1.0) + hp.entropy_gain * (hp.entropy_target - level)
    return {"initial_entropy": initial, "entropy_scale": min(max(scale, 0.0), 10.0)}
