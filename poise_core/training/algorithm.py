"""The trainer's side of the candidate contract: calls, checks, and the gradient of a micro-batch.

The calls are those of the admission gate (``poise_core.candidate.calls``). Here each has a kind of failure: an exception or a wrong
result of a candidate is CRASHED, numbers that are not finite are DIVERGED, a call that takes too long is TIMED_OUT.

The loss of a candidate is a function of the leaf tensors ``logprobs`` and ``entropies`` alone. The model is updated with the
gradient at these leaves, set to zero outside the mask. So a candidate cannot reach the model's graph, and a failure
between the leaves and the parameters is not its fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from poise_core.candidate import calls
from poise_core.candidate.loading import Candidate
from poise_core.contract import Advantages, Dynamics, LossInputs, RolloutBatch
from poise_core.failures import CandidateFailure, FailureKind


@dataclass(frozen=True)
class TrainingSignal:
    """Advantages, mask and carried tensors, as the minibatches use them."""

    advantages: Tensor  # (B, T), 0 outside the mask
    mask: Tensor  # (B, T) bool, the tokens that train and count
    carry: Mapping[str, Tensor]  # (B,) or (B, T) each


@dataclass(frozen=True)
class MicroLoss:
    """The loss of a micro-batch with its gradients and metrics, all detached."""

    value: float  # this micro-batch's share of the minibatch's loss
    grad_logprobs: Tensor  # (B, T) d value / d logprobs, 0 outside the mask
    grad_entropies: Tensor  # (B, T)
    metrics: dict[str, float]  # shares of the minibatch's masked means


class Algorithm:
    """A candidate in training.

    Every method raises ``CandidateFailure``.
    """

    def __init__(self, candidate: Candidate, max_length: int) -> None:
        self.candidate, self._max_length = candidate, max_length

    def signal(self, batch: RolloutBatch, dynamics: Dynamics) -> TrainingSignal:
        """Compute the advantages of the whole batch."""
        found: Advantages = _blamed(dynamics, lambda: calls.call_advantages(self.candidate, batch, dynamics))
        mask = calls.train_mask(found, batch.completion_mask)
        advantages = torch.where(mask, found.values, torch.zeros_like(found.values))
        _require_finite(advantages, "an advantage", dynamics)
        return TrainingSignal(advantages, mask, found.carry)

    def loss(self, inputs: LossInputs, dynamics: Dynamics, tokens: float, sequences: float) -> MicroLoss:
        """Compute loss and gradient of some rows of a minibatch that trains ``tokens`` tokens in ``sequences`` completions."""
        call: calls.LossCall = _blamed(
            dynamics,
            lambda: calls.call_loss(
                self.candidate,
                inputs,
                dynamics,
                token_count=tokens,
                sequence_count=sequences,
                max_length=self._max_length,
            ),
        )
        _require_finite(call.total, "the loss", dynamics)
        metrics = {
            key: float(torch.where(inputs.mask, value, torch.zeros_like(value)).sum() / max(tokens, 1.0))
            for key, value in call.outputs.metrics.items()
        }
        for key, share in metrics.items():
            if not math.isfinite(share):
                raise not_finite(f"the mean of metric {key!r}", dynamics.step)
        _require_finite(call.grad_logprobs + call.grad_entropies, "the gradient of the loss", dynamics)
        return MicroLoss(float(call.total), call.grad_logprobs, call.grad_entropies, metrics)

    def controller(self, state: Mapping[str, float], dynamics: Dynamics) -> dict[str, float]:
        """Compute the controller's state for the next step; empty where the candidate has no controller."""
        return dict(_blamed(dynamics, lambda: calls.call_controller(self.candidate, state, dynamics)))


def _blamed(dynamics: Dynamics, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except calls.CallTimedOut as error:
        raise CandidateFailure(FailureKind.TIMED_OUT, "train", f"{error} (step {dynamics.step})") from error
    except calls.ContractViolation as error:
        kind = FailureKind.DIVERGED if isinstance(error, calls.NotFinite) else FailureKind.CRASHED
        message = f"{error} (step {dynamics.step})"
        raise CandidateFailure(kind, "train", message) from error.__cause__ or error
    except MemoryError as error:
        message = f"out of memory at step {dynamics.step}: {error}"
        raise CandidateFailure(FailureKind.OUT_OF_MEMORY, "train", message) from error


def _require_finite(values: Tensor, what: str, dynamics: Dynamics) -> None:
    if not bool(torch.isfinite(values).all()):
        raise not_finite(what, dynamics.step)


def not_finite(what: str, step: int) -> CandidateFailure:
    """Return the failure of a candidate that computed a number which is not finite."""
    return CandidateFailure(FailureKind.DIVERGED, "train", f"{what} is not finite at step {step}")
