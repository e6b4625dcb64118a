"""Mirror descent of Kimi k1.5: REINFORCE on centred rewards, held at the policy of the last iteration by a squared log-ratio.

Source: Kimi Team, Kimi k1.5: Scaling Reinforcement Learning with LLMs, arXiv 2501.12599.

    A_i = R_i - mean_g R
    gradient = A grad log pi(y) - tau / 2 grad (log pi(y) - log pi_old(y))^2
    loss_t = -A log pi_t + tau / 2 (sum_t log pi_t - log pi_old_t)^2 / L

L = tokens of the completion; pi(y) is that of the whole completion, as is its squared log-ratio, spread over its tokens.
Losses are summed over a completion, so that its gradient is the one above, times 1 / the length limit.
"""

from dataclasses import dataclass

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-sum"
MECHANISMS = {
    "proximity": {"tau": 0.0},
}


@dataclass(frozen=True)
class Hyperparameters:
    tau: float = 0.1


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    advantage = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    return Advantages(values=to_tokens(advantage, batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    moved = log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask).sum(-1, keepdim=True)  # (B, 1)
    length = inputs.mask.sum(-1, keepdim=True).clamp(min=1)
    return LossOutputs(token_loss=0.5 * hp.tau * moved * moved / length - inputs.advantages * inputs.logprobs)
