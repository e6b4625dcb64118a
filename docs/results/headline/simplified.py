"""NB-FX-HW: The gradient norm jumped to 49.8 at step 6 of seed 0, 31.8 times the steps around it. NB-FX-HW uses the
reward itself, without a baseline; divides by a fixed number, so that the advantage does not depend on how the group
turned out; weights groups up the lower their pass rate; is the plain policy gradient, without a ratio; does not clip
the ratio; does not tie the policy to the initial one; has no entropy control; sums over a completion's tokens with a
constant divisor, which removes the length bias.

This candidate uses the reward itself, without a baseline; divides by a fixed number, so that the advantage does not
depend on how the group turned out; weights groups up the lower their pass rate; is the plain policy gradient, without
a ratio; sums over a completion's tokens with a constant divisor, which removes the length bias.

Child of GRPO: baseline: group_mean -> none; scale: group_std(std_eps=0.0001) -> fixed(fixed_std=0.4); routing: all ->
hard_weighted(hard_weight=0.36); ratio: token -> none; clip: symmetric(clip_eps=0.4) -> none; kl: k3(kl_coef=0.00316)
-> none; entropy: bonus(entropy_coef=0.001) -> none; aggregation: sequence-mean -> sequence-sum

    R = c
    A = R
    A <- A / fixed_std
    A <- A (1 + hard_weight (1 - p))
    r_t A_t is replaced by logp_t A_t
    loss_t = -r_t A_t
    loss = sum of loss_t / (completions x length limit)

Sources: Williams 1992 (REINFORCE); POISE, arXiv 2603.23951 (SA); POISE, arXiv 2603.23951 (DACE); Dr. GRPO, arXiv
2503.20783.

Composition: baseline=none; scale=fixed(fixed_std=0.4); routing=hard_weighted(hard_weight=0.36); ratio=none;
clip=none; aggregation=sequence-sum
"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, to_tokens

LOSS_AGGREGATION = "sequence-sum"
MECHANISMS = {}


@dataclass(frozen=True)
class Hyperparameters:
    fixed_std: float = 1.0
    hard_weight: float = 0.0


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    pass_rate = group_mean(batch.correctness, batch.group_ids)  # (B,)
    reward = batch.correctness  # (B,)
    advantage = reward  # (B,)
    advantage = advantage / hp.fixed_std
    advantage = advantage * (1.0 + hp.hard_weight * (1.0 - pass_rate))
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    logprobs = torch.where(inputs.mask, inputs.logprobs, torch.zeros_like(inputs.logprobs))  # (B, T)
    surrogate = logprobs * inputs.advantages
    return LossOutputs(token_loss=-surrogate)
