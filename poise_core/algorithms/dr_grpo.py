"""Dr. GRPO: GRPO without the two divisions that bias it, by the group's deviation and by the completion's length.

Source: Liu et al., Understanding R1-Zero-Like Training, arXiv 2503.20783, section 3.2.

    A_i = R_i - mean_g R
    loss_t = -min(r_t A, clip(r_t, 1 - clip_eps_low, 1 + clip_eps_high) A)

Dividing by std_g over-weights prompts that are nearly solved or nearly hopeless; dividing by the length makes long
wrong answers cheap. Losses are summed over tokens and divided by completions x the length limit. There is no KL term.

Against verl: a group of one gets A = 0 (verl: its reward), and there is no dual clip. Reasons: docs/algorithms.md.
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-sum"
MECHANISMS = {
    "unscaled_advantage": {"scale_by_std": True},
    "ratio_clip": {"clip_eps_low": 1e6, "clip_eps_high": 1e6},
}


@dataclass(frozen=True)
class Hyperparameters:
    scale_by_std: bool = False
    std_eps: float = 1e-4
    clip_eps_low: float = 0.2
    clip_eps_high: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    if hp.scale_by_std:
        advantage = advantage / (group_std(batch.correctness, batch.group_ids) + hp.std_eps)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).exp()  # (B, T)
    clipped = ratio.clamp(1.0 - hp.clip_eps_low, 1.0 + hp.clip_eps_high)
    surrogate = torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages)
    return LossOutputs(token_loss=-surrogate, metrics={"clip_fraction": (clipped != ratio).float()})
