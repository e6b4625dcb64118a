"""The candidate contract: what a policy-optimization algorithm sees, and what it returns.

A candidate is one Python file with a docstring, a frozen ``Hyperparameters`` dataclass, the constant
``LOSS_AGGREGATION``, the table ``MECHANISMS`` and the functions::

    compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages
    compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs
    update_controller(state: Mapping[str, float], dynamics: Dynamics, hp: Hyperparameters) -> dict[str, float]   # optional

It imports ``math``, ``dataclasses``, ``torch``, ``poise_core.contract`` and ``poise_core.reductions``, and nothing else.

Shapes: B counts completions, T completion tokens. Position t scores completion token t (already shifted). Floating
point tensors are float32.

Outside the mask: what a candidate is handed is 0 there (False in masks). That holds outside ``completion_mask`` for
log-probabilities, entropies and carried (B, T) signals, and outside ``mask`` for ``LossInputs.advantages``. What it returns
there is ignored, whatever it is: advantages and gradients are set to 0, token losses and metrics are left out. How many
columns of padding a batch has, and so T, is chance: more of them change nothing. ``ref_logprobs``, and
``LossInputs.entropies``, are NaN everywhere where the file does not name them.

Every tensor is a copy of the candidate's own. Names (of mechanisms, metrics, carried signals and controller values) have 1
to 60 of the characters ``A-Z a-z 0-9 _ . -``, and there are at most 64 of each. Metrics and carried signals are finite under
the mask, controller values are at most 1e12 in size, and a call ends within 30 seconds.

Advantages need whole groups, so ``compute_advantages`` runs once on the gathered global batch, without gradients. The
loss runs on micro-batches in which a group may be split, so ``compute_loss`` may only combine numbers of one row.
Everything else (shifting, masking, the reduction named by ``LOSS_AGGREGATION``, the optimizer) belongs to the trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

LOSS_AGGREGATIONS = ("token-mean", "sequence-mean", "sequence-sum")
"""Allowed values of ``LOSS_AGGREGATION``; the formulas are in ``poise_core.reductions.aggregate_loss``."""


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """One global batch of completions with what the verifier said of them; no tensor requires grad."""

    correctness: Tensor  # (B,) float in [0, 1], the verifier's outcome
    format_valid: Tensor  # (B,) bool, the answer parses
    truncated: Tensor  # (B,) bool, the completion hit the length limit
    group_ids: Tensor  # (B,) int64, equal = same prompt; any values, any order, sizes may differ
    completion_mask: Tensor  # (B, T) bool, True = sampled token
    old_logprobs: Tensor  # (B, T) log-probability under the policy that sampled the batch
    ref_logprobs: Tensor  # (B, T) log-probability under the frozen initial policy
    entropies: Tensor  # (B, T) entropy in nats of the sampling policy at each position


@dataclass(frozen=True, slots=True)
class Advantages:
    """What ``compute_advantages`` returns."""

    values: Tensor  # (B, T) what the loss multiplies
    train_mask: Tensor | None = (
        None  # (B, T) bool, the subset of completion_mask that trains and counts in denominators
    )
    carry: Mapping[str, Tensor] = field(default_factory=dict)  # named (B,) or (B, T) signals for the loss


@dataclass(frozen=True, slots=True)
class LossInputs:
    """One micro-batch of rows. Only ``logprobs`` and ``entropies`` carry gradient."""

    logprobs: Tensor  # (B, T) log-probability under the current policy, with grad
    entropies: Tensor  # (B, T) entropy in nats of the current policy, with grad
    old_logprobs: Tensor  # (B, T)
    ref_logprobs: Tensor  # (B, T)
    advantages: Tensor  # (B, T) ``Advantages.values`` of these rows
    mask: Tensor  # (B, T) bool, ``train_mask`` (or ``completion_mask``) of these rows
    carry: Mapping[str, Tensor]  # ``Advantages.carry`` of these rows
    correctness: Tensor  # (B,) float in [0, 1]
    format_valid: Tensor  # (B,) bool


@dataclass(frozen=True, slots=True)
class Dynamics:
    """Scalars that a controller or a schedule may react to.

    Running values are exponential averages over steps (weight 0.9 on the past). Those of the rollout (``entropy``,
    ``kl``, ``reward_mean``, ``completion_length``, ``all_fail_fraction``) include this step's rollout, those of the
    update (``clip_fraction``, ``grad_norm``) end with the step before and are 0 at the first.
    """

    step: int  # optimizer-side training step, from 0
    progress: float  # step / total steps, in [0, 1)
    entropy: float  # running mean token entropy, nats
    kl: float  # running KL(policy || initial policy) per token, nats, k3 estimate
    reward_mean: float  # running mean correctness
    completion_length: float  # running mean completion length, tokens
    clip_fraction: float  # running share of tokens whose ratio left the clip range (0 where the loss reports none)
    all_fail_fraction: float  # running share of groups in which no completion was correct
    grad_norm: float  # running gradient norm before clipping
    max_completion_length: (
        int  # the length limit in tokens, the same at every step; longer completions are ``truncated``
    )
    controller: Mapping[str, float] = field(default_factory=dict)  # what ``update_controller`` returned last step


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """What ``compute_loss`` returns: neither masked nor reduced; the trainer does both."""

    token_loss: Tensor  # (B, T) to minimize, with grad
    metrics: Mapping[str, Tensor] = field(default_factory=dict)  # detached (B, T); the trainer takes masked means
