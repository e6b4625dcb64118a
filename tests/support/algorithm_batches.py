"""Batches for the tests of the algorithms, with uneven groups, masked tokens, and NaN where no algorithm may read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from poise_core.candidate.loading import Candidate
from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import aggregate_loss

LIMIT = 7
"""Completion length limit of the batches, tokens; their tensors are two columns wider."""

DYNAMICS = Dynamics(
    step=3,
    progress=0.25,
    entropy=0.6,
    kl=0.01,
    reward_mean=0.4,
    completion_length=5.0,
    clip_fraction=0.1,
    all_fail_fraction=0.2,
    grad_norm=1.0,
    max_completion_length=LIMIT,
)

ROW_FIELDS = ("correctness", "format_valid", "truncated", "group_ids")
TOKEN_FIELDS = ("completion_mask", "old_logprobs", "ref_logprobs", "entropies")


def random_batch(seed: int, outside: float = float("nan")) -> RolloutBatch:
    """Six groups of 1 to 8 completions in random order.

    Group -3 passes throughout; group 12 fails throughout, half of it with a valid format; group 40 is all invalid;
    group 5 has one member. Every fourth completion has a hole in its mask.

    Args:
        seed: decides everything but the shapes.
        outside: what stands in the floating point tensors outside the mask.
    """
    generator = torch.Generator().manual_seed(seed)
    group_ids = torch.tensor([907] * 8 + [-3] * 5 + [12] * 4 + [5] * 1 + [40] * 3 + [41] * 6)
    count, width = len(group_ids), LIMIT + 2
    lengths = torch.randint(1, LIMIT + 1, (count,), generator=generator)
    mask = torch.arange(width) < lengths.unsqueeze(-1)
    mask = torch.where((torch.arange(count) % 4 == 0).unsqueeze(-1), mask.roll(2, -1), mask)  # a hole in front
    valid = torch.rand(count, generator=generator) < 0.7
    valid = (valid | (group_ids == -3)) & (group_ids != 40)
    valid = torch.where(group_ids == 12, torch.arange(count) % 2 == 0, valid)
    correct = (torch.rand(count, generator=generator) < 0.6) & valid
    correct = (correct | (group_ids == -3)) & (group_ids != 12)
    noise = torch.randn(3, count, width, generator=generator)
    old = -noise[0].abs() - 0.05
    batch = RolloutBatch(
        correctness=correct.float(),
        format_valid=valid,
        truncated=lengths == LIMIT,
        group_ids=group_ids,
        completion_mask=mask,
        old_logprobs=torch.where(mask, old, outside),
        ref_logprobs=torch.where(mask, old + 0.3 * noise[1], outside),
        entropies=torch.where(mask, noise[2].abs(), outside),
    )
    return take_rows(batch, torch.randperm(count, generator=generator))


def take_rows(batch: RolloutBatch, rows: Tensor) -> RolloutBatch:
    """The batch made of these rows, in this order."""
    return RolloutBatch(**{field.name: getattr(batch, field.name)[rows] for field in dataclasses.fields(batch)})


def current_policy(batch: RolloutBatch, spread: float = 0.4) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies, (B, T) each, of a policy some updates away; ``spread`` 0 is on-policy."""
    generator = torch.Generator().manual_seed(1000)
    logprobs = batch.old_logprobs + spread * torch.randn(batch.old_logprobs.shape, generator=generator)
    entropies = batch.entropies + 0.1 * torch.rand(batch.entropies.shape, generator=generator)
    return logprobs, entropies


def loss_inputs(batch: RolloutBatch, advantages: Advantages, logprobs: Tensor, entropies: Tensor) -> LossInputs:
    """What the trainer would hand to the loss; ``logprobs`` and ``entropies`` become leaves with gradient."""
    return LossInputs(
        logprobs=logprobs.detach().clone().requires_grad_(),
        entropies=entropies.detach().clone().requires_grad_(),
        old_logprobs=batch.old_logprobs,
        ref_logprobs=batch.ref_logprobs,
        advantages=advantages.values,
        mask=batch.completion_mask if advantages.train_mask is None else advantages.train_mask,
        carry=advantages.carry,
        correctness=batch.correctness,
        format_valid=batch.format_valid,
    )


@dataclasses.dataclass(frozen=True)
class Update:
    """One pass through a candidate."""

    advantages: Advantages
    outputs: LossOutputs
    mask: Tensor  # (B, T) what trains
    loss: Tensor  # scalar
    logprobs_grad: Tensor  # (B, T)
    entropies_grad: Tensor  # (B, T)


def gradients(loss: Tensor, inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Gradients of the scalar with respect to ``logprobs`` and ``entropies``; zeros for what it does not use."""
    leaves = (inputs.logprobs, inputs.entropies)
    found = torch.autograd.grad(loss, leaves, allow_unused=True) if loss.requires_grad else (None, None)
    filled = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True)]
    return filled[0], filled[1]


def run_update(
    candidate: Candidate,
    batch: RolloutBatch,
    policy: tuple[Tensor, Tensor],
    dynamics: Dynamics = DYNAMICS,
) -> Update:
    """Advantages, loss and gradients as the trainer computes them for one batch in one piece.

    ``policy`` holds the current log-probabilities and entropies, see ``current_policy``.
    """
    with torch.no_grad():
        advantages = candidate.compute_advantages(batch, dynamics)
    inputs = loss_inputs(batch, advantages, *policy)
    outputs = candidate.compute_loss(inputs, dynamics)
    loss = aggregate_loss(outputs.token_loss, inputs.mask, candidate.loss_aggregation, max_length=LIMIT)
    return Update(advantages, outputs, inputs.mask, loss.detach(), *gradients(loss, inputs))


def small_batch(
    correct: Sequence[float],
    groups: list[int] | None = None,
    lengths: list[int] | None = None,
    valid: list[bool] | None = None,
    truncated: list[bool] | None = None,
    kl: list[list[float]] | None = None,
) -> RolloutBatch:
    """A batch for hand-computed examples: one group of one-token completions unless said otherwise.

    ``kl`` gives log(old / ref) of every token; log-probabilities are -1 elsewhere, entropies 0.5.
    """
    count = len(correct)
    lengths = [1] * count if lengths is None else lengths
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)
    old = torch.full(mask.shape, -1.0)
    ref = old.clone()
    for row, values in enumerate(kl or []):
        ref[row, : len(values)] -= torch.tensor(values)
    return RolloutBatch(
        correctness=torch.tensor(correct, dtype=torch.float32),
        format_valid=torch.tensor([True] * count if valid is None else valid),
        truncated=torch.tensor([False] * count if truncated is None else truncated),
        group_ids=torch.tensor([0] * count if groups is None else groups),
        completion_mask=mask,
        old_logprobs=old,
        ref_logprobs=ref,
        entropies=torch.full(mask.shape, 0.5),
    )


@dataclasses.dataclass(frozen=True)
class OneCompletion:
    """Loss of a single completion: token losses and the gradients of their mean, as plain lists."""

    loss: list[float]
    logprobs_grad: list[float]
    entropies_grad: list[float]


def one_completion(
    candidate: Candidate,
    advantage: float,
    ratios: list[float],
    *,
    logprob: float = -1.0,
    ref_ratio: float = 1.0,
    entropy: float = 0.5,
    dynamics: Dynamics = DYNAMICS,
) -> OneCompletion:
    """The loss of one completion whose tokens have these ratios current / old.

    Args:
        candidate: the algorithm.
        advantage: of the completion.
        ratios: one per token.
        logprob: current log-probability of every token.
        ref_ratio: initial policy / current policy.
        entropy: of the current policy at every token.
        dynamics: handed to the loss.
    """
    current = torch.full((1, len(ratios)), logprob)
    inputs = LossInputs(
        logprobs=current.clone().requires_grad_(),
        entropies=torch.full_like(current, entropy).requires_grad_(),
        old_logprobs=current - torch.tensor([ratios]).log(),
        ref_logprobs=current + torch.tensor(ref_ratio).log(),
        advantages=torch.full_like(current, advantage),
        mask=torch.ones_like(current, dtype=torch.bool),
        carry={},
        correctness=torch.ones(1),
        format_valid=torch.ones(1, dtype=torch.bool),
    )
    token_loss = candidate.compute_loss(inputs, dynamics).token_loss
    logprobs_grad, entropies_grad = gradients(token_loss.mean(), inputs)
    return OneCompletion(token_loss[0].tolist(), logprobs_grad[0].tolist(), entropies_grad[0].tolist())
