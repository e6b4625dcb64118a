"""Running a candidate on a probe the way the trainer does, and saying in words what went wrong.

The trainer computes advantages once on the whole batch without gradients, hands each micro-batch its rows, masks with
``torch.where`` and reduces with global denominators (``poise_core.reductions.aggregate_loss``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poise_core.candidate.calls import call_advantages, call_loss, guarded
from poise_core.candidate.loading import Candidate
from poise_core.contract import Advantages, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import aggregate_loss
from poise_core.verification.probes import Probe


@dataclass(frozen=True)
class Run:
    """What a candidate did on one probe."""

    advantages: Advantages
    mask: Tensor  # (B, T) bool, the tokens that train
    inputs: LossInputs
    outputs: LossOutputs
    total: Tensor  # scalar, detached
    grad_logprobs: Tensor  # (B, T) d total / d logprobs
    grad_entropies: Tensor  # (B, T) d total / d entropies


def run_candidate(candidate: Candidate, probe: Probe) -> Run:
    """Advantages, loss and gradient of one probe as one micro-batch.

    Raises:
        ContractViolation: the candidate raises, or returns something else than the contract says.
    """
    advantages = call_advantages(candidate, probe.batch, probe.dynamics)
    mask = train_mask(advantages, probe.batch)
    rows = torch.arange(mask.shape[0])
    inputs = loss_inputs(probe, advantages, rows)
    outputs = call_loss(candidate, inputs, probe.dynamics)
    total, grad_logprobs, grad_entropies = reduce_and_differentiate(candidate, inputs, outputs, mask)
    return Run(advantages, mask, inputs, outputs, total, grad_logprobs, grad_entropies)


def train_mask(advantages: Advantages, batch: RolloutBatch) -> Tensor:
    """The tokens that train and count in denominators. (B, T) bool."""
    return batch.completion_mask if advantages.train_mask is None else advantages.train_mask


def loss_inputs(probe: Probe, advantages: Advantages, rows: Tensor) -> LossInputs:
    """The micro-batch of the given rows, every tensor a fresh copy; ``logprobs`` and ``entropies`` are leaves."""
    batch = probe.batch
    return LossInputs(
        logprobs=probe.logprobs[rows].requires_grad_(),
        entropies=probe.entropies[rows].requires_grad_(),
        old_logprobs=batch.old_logprobs[rows],
        ref_logprobs=batch.ref_logprobs[rows],
        advantages=advantages.values[rows].detach(),
        mask=train_mask(advantages, batch)[rows],
        carry={key: value[rows].detach() for key, value in advantages.carry.items()},
        correctness=batch.correctness[rows],
        format_valid=batch.format_valid[rows],
    )


def reduce_and_differentiate(
    candidate: Candidate, inputs: LossInputs, outputs: LossOutputs, whole_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The micro-batch's share of the total loss and its gradients, with the denominators of ``whole_mask``."""
    total = aggregate_loss(
        outputs.token_loss,
        inputs.mask,
        candidate.loss_aggregation,
        token_count=whole_mask.sum(),
        sequence_count=whole_mask.any(-1).sum(),
        max_length=whole_mask.shape[1],
    )
    leaves = [inputs.logprobs, inputs.entropies]
    if not total.requires_grad:
        grads: tuple[Tensor | None, ...] = (None, None)
    else:
        grads = guarded("the gradient of token_loss", lambda: torch.autograd.grad(total, leaves, allow_unused=True))
    filled = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)]
    return total.detach(), filled[0], filled[1]
