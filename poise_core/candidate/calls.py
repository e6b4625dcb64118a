"""The calls into a candidate: what it is handed and what becomes of its results. The gate and the trainer share them.

What a candidate gets are copies. Outside the mask it finds zeros, and what it computes there is not taken: advantages and
gradients are set to zero, losses and metrics are left out. What it does not read is not a number.

Whatever a candidate raises or returns against the contract is a ContractViolation, whose message is a sentence for its
author; beside that there are MemoryError and CallTimedOut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from poise_core.candidate.budget import CallTimedOut, Expired, within_budget
from poise_core.candidate.loading import Candidate
from poise_core.candidate.results import (
    ContractViolation,
    NotFinite,
    checked_advantages,
    checked_controller,
    checked_outputs,
)
from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import aggregate_loss

__all__ = [
    "CallTimedOut",
    "ContractViolation",
    "LossCall",
    "NotFinite",
    "call_advantages",
    "call_controller",
    "call_loss",
    "copy_batch",
    "guarded",
    "handed_batch",
    "handed_inputs",
    "own_inputs",
    "train_mask",
]


@dataclass(frozen=True)
class LossCall:
    """A call of compute_loss on some rows, reduced and differentiated."""

    inputs: LossInputs  # what the candidate was handed; ``logprobs`` and ``entropies`` are the leaves
    outputs: LossOutputs
    total: Tensor  # scalar, detached: these rows' share of the loss
    grad_logprobs: Tensor  # (B, T) d total / d logprobs, 0 outside the mask
    grad_entropies: Tensor  # (B, T) d total / d entropies, 0 outside the mask


# ---- what a candidate is handed


def copy_batch(batch: RolloutBatch) -> RolloutBatch:
    """The batch with every tensor cloned."""
    return RolloutBatch(**{f.name: getattr(batch, f.name).clone() for f in fields(batch)})


def handed_batch(candidate: Candidate, batch: RolloutBatch) -> RolloutBatch:
    """The batch as a candidate gets it: copies, zeros outside ``completion_mask``, NaN where it reads nothing."""
    outside = ~batch.completion_mask
    return replace(
        copy_batch(batch),
        old_logprobs=_zero(outside, batch.old_logprobs),
        ref_logprobs=_if_read(candidate.reads_reference, outside, batch.ref_logprobs),
        entropies=_zero(outside, batch.entropies),
    )


def handed_inputs(candidate: Candidate, inputs: LossInputs, completion_mask: Tensor) -> LossInputs:
    """The rows of a micro-batch as a candidate gets them.

    Advantages are zero where ``inputs.mask`` is False; all else of shape (B, T) is zero outside ``completion_mask``, and
    NaN where the candidate reads nothing. ``logprobs`` and ``entropies`` keep their graph.
    """
    outside = ~completion_mask
    return replace(
        inputs,
        logprobs=_zero(outside, inputs.logprobs),
        entropies=_if_read(candidate.reads_entropies, outside, inputs.entropies),
        old_logprobs=_zero(outside, inputs.old_logprobs),
        ref_logprobs=_if_read(candidate.reads_reference, outside, inputs.ref_logprobs),
        advantages=_zero(~inputs.mask, inputs.advantages),
        carry={name: _zero(outside, value) if value.dim() == 2 else value for name, value in inputs.carry.items()},
    )


def train_mask(advantages: Advantages, completion_mask: Tensor) -> Tensor:
    """The tokens that train and count in denominators. (B, T) bool."""
    return completion_mask if advantages.train_mask is None else advantages.train_mask & completion_mask


def _zero(outside: Tensor, values: Tensor) -> Tensor:
    return values.masked_fill(outside, 0)


def _if_read(read: bool, outside: Tensor, values: Tensor) -> Tensor:
    return _zero(outside, values) if read else torch.full_like(values, math.nan)


def own_inputs(inputs: LossInputs) -> LossInputs:
    """Copies of everything: what a candidate writes into them reaches nobody, the model's graph least of all."""
    copies = {f.name: getattr(inputs, f.name).detach().clone() for f in fields(inputs) if f.name != "carry"}
    for name in ("logprobs", "entropies"):
        copies[name].requires_grad_()
    return LossInputs(**copies, carry={name: value.detach().clone() for name, value in inputs.carry.items()})


def _own(dynamics: Dynamics) -> Dynamics:
    """With a controller state of its own, which a candidate that writes into it cannot use as a memory."""
    return replace(dynamics, controller=dict(dynamics.controller))


# ---- the calls


def call_advantages(candidate: Candidate, batch: RolloutBatch, dynamics: Dynamics) -> Advantages:
    """``compute_advantages`` without gradients; its result, as returned, in tensors of its own."""

    def call() -> Advantages:
        with torch.no_grad():
            found = candidate.compute_advantages(handed_batch(candidate, batch), _own(dynamics))
            return checked_advantages(found, batch.completion_mask)

    advantages: Advantages = guarded("compute_advantages", call)
    return advantages


def call_loss(
    candidate: Candidate,
    inputs: LossInputs,
    dynamics: Dynamics,
    *,
    token_count: Tensor | float,
    sequence_count: Tensor | float,
    max_length: int,
) -> LossCall:
    """``compute_loss``, the reduction of its result, and the gradient at ``logprobs`` and ``entropies``.

    Args:
        candidate: the candidate.
        inputs: rows as from ``handed_inputs``; the candidate gets a copy.
        dynamics: of the step.
        token_count: trained tokens of all rows whose losses are added up.
        sequence_count: completions with a trained token among them.
        max_length: T of the length limit.
    """
    own = own_inputs(inputs)
    outputs: LossOutputs = guarded(
        "compute_loss", lambda: checked_outputs(candidate.compute_loss(own, _own(dynamics)), inputs.mask)
    )

    def differentiate() -> tuple[Tensor, Tensor, Tensor]:
        total = aggregate_loss(
            outputs.token_loss,
            inputs.mask,
            candidate.loss_aggregation,
            token_count=token_count,
            sequence_count=sequence_count,
            max_length=max_length,
        )
        grads: tuple[Tensor | None, ...] = (None, None)
        if total.requires_grad:
            grads = torch.autograd.grad(total, [own.logprobs, own.entropies], allow_unused=True)
        zero = torch.zeros_like(inputs.logprobs)
        first, second = (zero if grad is None else torch.where(inputs.mask, grad, zero) for grad in grads)
        return total.detach(), first.detach(), second.detach()

    return LossCall(own, outputs, *guarded("the gradient of token_loss", differentiate))


def call_controller(candidate: Candidate, state: Mapping[str, float], dynamics: Dynamics) -> dict[str, float]:
    """``update_controller`` on a copy of the state, its result checked: names to finite floats."""
    if candidate.controller_function is None:
        return {}
    function, hp = candidate.controller_function, candidate.hyperparameters
    found: dict[str, float] = guarded(
        "update_controller", lambda: checked_controller(function(dict(state), _own(dynamics), hp), dynamics.step)
    )
    return found


_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")  # what torch's allocators say


def guarded(what: str, call: Callable[[], Any]) -> Any:
    """The result of a call into candidate code; what it raises becomes a ``ContractViolation`` with its line.

    Raises:
        ContractViolation: the call raised.
        MemoryError: memory ran out.
        CallTimedOut: it took too long.
    """
    try:
        return within_budget(what, call)
    except (ContractViolation, MemoryError, CallTimedOut):
        raise
    except (KeyboardInterrupt, Expired):  # of a person, and of a call around this one
        raise
    except BaseException as error:
        text = _text_of(error)
        if isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
            raise MemoryError(text[:300]) from error
        raise ContractViolation(f"{what} raises {type(error).__name__}: {text[:300]}{_line_of(error)}") from error


def _text_of(error: BaseException) -> str:
    """One line, with escapes for what no file or terminal should get: halves of surrogate pairs, control characters."""
    try:
        text = " ".join(str(error)[:10_000].split())
    except Exception:
        return "(an error that does not say what it is)"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _line_of(error: BaseException) -> str:
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith("<candidate "):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line} of the candidate)" if line else ""
