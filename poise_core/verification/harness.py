"""Running a candidate on a probe the way the trainer does.

The trainer computes advantages once on the whole batch without gradients, hands each micro-batch its rows with zeros
outside the mask, and reduces with global denominators; the calls themselves (``poise_core.candidate.calls``) are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poise_core.candidate.calls import LossCall, call_advantages, call_loss, handed_inputs
from poise_core.candidate.loading import Candidate
from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.verification.probes import Probe


@dataclass(frozen=True)
class Run:
    """What a candidate did on one probe."""

    advantages: Advantages
    mask: Tensor  # (B, T) bool, the tokens that train
    inputs: LossInputs  # what the candidate was handed; ``logprobs`` and ``entropies`` are the leaves
    outputs: LossOutputs
    total: Tensor  # scalar, detached
    grad_logprobs: Tensor  # (B, T) d total / d logprobs, 0 outside the mask
    grad_entropies: Tensor  # (B, T) d total / d entropies, 0 outside the mask


def run_candidate(candidate: Candidate, probe: Probe, max_length: int | None = None) -> Run:
    """Advantages, loss and gradient of one probe as one micro-batch; ``max_length`` as in ``loss_and_gradient``.

    Raises:
        ContractViolation: the candidate raises, or returns something else than the contract says.
    """
    advantages = call_advantages(candidate, probe.batch, probe.dynamics)
    mask = claimed_mask(advantages, probe.batch)
    inputs = loss_inputs(candidate, probe, advantages, torch.arange(mask.shape[0]))
    call = loss_and_gradient(candidate, inputs, probe.dynamics, mask, max_length)
    return Run(advantages, mask, call.inputs, call.outputs, call.total, call.grad_logprobs, call.grad_entropies)


def claimed_mask(advantages: Advantages, batch: RolloutBatch) -> Tensor:
    """The tokens that train by the candidate's word, inside ``completion_mask`` or not. (B, T) bool."""
    return batch.completion_mask if advantages.train_mask is None else advantages.train_mask


def loss_inputs(candidate: Candidate, probe: Probe, advantages: Advantages, rows: Tensor) -> LossInputs:
    """The micro-batch of the given rows as the candidate is handed it."""
    batch = probe.batch
    inputs = LossInputs(
        logprobs=probe.logprobs[rows],
        entropies=probe.entropies[rows],
        old_logprobs=batch.old_logprobs[rows],
        ref_logprobs=batch.ref_logprobs[rows],
        advantages=advantages.values[rows],
        mask=claimed_mask(advantages, batch)[rows],
        carry={key: value[rows] for key, value in advantages.carry.items()},
        correctness=batch.correctness[rows],
        format_valid=batch.format_valid[rows],
    )
    return handed_inputs(candidate, inputs, batch.completion_mask[rows])


def loss_and_gradient(
    candidate: Candidate, inputs: LossInputs, dynamics: Dynamics, whole_mask: Tensor, max_length: int | None = None
) -> LossCall:
    """The micro-batch's share of the total loss and its gradients, with the denominators of ``whole_mask``.

    ``max_length`` is the T of the length limit, by default that of ``whole_mask``.
    """
    return call_loss(
        candidate,
        inputs,
        dynamics,
        token_count=whole_mask.sum(),
        sequence_count=whole_mask.any(-1).sum(),
        max_length=max_length or whole_mask.shape[1],
    )
