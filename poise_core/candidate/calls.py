"""The calls into a candidate, each with its result checked: what the gate and the trainer share.

What a candidate raises or returns against the contract is a ContractViolation, whose message is a sentence for its author.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from poise_core.candidate.loading import Candidate
from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch


class ContractViolation(Exception):
    """The candidate broke the contract; the message is a sentence for its author."""


def copy_batch(batch: RolloutBatch) -> RolloutBatch:
    """The batch with every tensor cloned, so that a candidate that writes into its input cannot spoil the probe."""
    return RolloutBatch(**{f.name: getattr(batch, f.name).clone() for f in fields(batch)})


def call_advantages(candidate: Candidate, batch: RolloutBatch, dynamics: Dynamics) -> Advantages:
    """``compute_advantages`` on a copy of the batch, without gradients, its result checked for types and shapes."""
    with torch.no_grad():
        advantages = guarded(
            "compute_advantages", lambda: candidate.compute_advantages(copy_batch(batch), _own(dynamics))
        )
    if not isinstance(advantages, Advantages):
        raise ContractViolation(f"compute_advantages returns {_describe(advantages)}; return Advantages(values=...)")
    rows, length = batch.completion_mask.shape
    _expect(
        "Advantages.values",
        advantages.values,
        torch.float32,
        (rows, length),
        hint="use to_tokens(...) to repeat a number per completion",
    )
    if advantages.train_mask is not None:
        _expect("Advantages.train_mask", advantages.train_mask, torch.bool, (rows, length))
    if not isinstance(advantages.carry, Mapping):
        raise ContractViolation(f"Advantages.carry is {_describe(advantages.carry)}; use a dict of tensors")
    for key, value in advantages.carry.items():
        if not isinstance(key, str):
            raise ContractViolation(f"Advantages.carry has the key {key!r}; name its signals with strings")
        if not isinstance(value, Tensor) or tuple(value.shape) not in ((rows,), (rows, length)):
            raise ContractViolation(
                f"Advantages.carry[{key!r}] is {_describe(value)}; it must be a tensor of shape (B,) or (B, T), "
                f"here ({rows},) or ({rows}, {length})"
            )
    return advantages


def _own(dynamics: Dynamics) -> Dynamics:
    """With a controller state of its own, which a candidate that writes into it cannot use as a memory."""
    return replace(dynamics, controller=dict(dynamics.controller))


def call_loss(candidate: Candidate, inputs: LossInputs, dynamics: Dynamics) -> LossOutputs:
    """``compute_loss``, its result checked for types and shapes."""
    outputs = guarded("compute_loss", lambda: candidate.compute_loss(inputs, _own(dynamics)))
    if not isinstance(outputs, LossOutputs):
        raise ContractViolation(f"compute_loss returns {_describe(outputs)}; return LossOutputs(token_loss=...)")
    shape = tuple(inputs.mask.shape)
    _expect(
        "LossOutputs.token_loss",
        outputs.token_loss,
        torch.float32,
        shape,
        hint="leave masking and averaging to the trainer",
    )
    if not isinstance(outputs.metrics, Mapping):
        raise ContractViolation(f"LossOutputs.metrics is {_describe(outputs.metrics)}; use a dict of (B, T) tensors")
    for key, value in outputs.metrics.items():
        if not isinstance(key, str):
            raise ContractViolation(f"LossOutputs.metrics has the key {key!r}; name metrics with strings")
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            raise ContractViolation(
                f"metric {key!r} is {_describe(value)}; a metric is a detached (B, T) tensor, here {shape}"
            )
        if value.requires_grad:
            raise ContractViolation(f"metric {key!r} carries gradient; append .detach()")
    return outputs


def call_controller(candidate: Candidate, state: Mapping[str, float], dynamics: Dynamics) -> dict[str, float]:
    """``update_controller`` on a copy of the state, its result checked: names to finite floats."""
    if candidate.controller_function is None:
        return {}
    function, hp = candidate.controller_function, candidate.hyperparameters
    found = guarded("update_controller", lambda: function(dict(state), _own(dynamics), hp))
    if not isinstance(found, dict):
        raise ContractViolation(f"update_controller returns {_describe(found)}; return a dict of floats")
    for key, value in found.items():
        if (
            not isinstance(key, str)
            or isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ContractViolation(
                f"update_controller returns {{{key!r}: {value!r}}} at step {dynamics.step}; map names to finite floats"
            )
    return {key: float(value) for key, value in found.items()}


def guarded(what: str, call: Callable[[], Any]) -> Any:
    """The result of a call into candidate code; what it raises becomes a ``ContractViolation`` with its line."""
    try:
        return call()
    except (ContractViolation, MemoryError):
        raise
    except (Exception, SystemExit, GeneratorExit) as error:
        text = " ".join(str(error).split())
        if "can't allocate memory" in text or "not enough memory" in text:
            raise MemoryError(text) from error
        raise ContractViolation(f"{what} raises {type(error).__name__}: {text[:300]}{_line_of(error)}") from error


def _line_of(error: BaseException) -> str:
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith("<candidate "):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line} of the candidate)" if line else ""


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}" if value is not None else "None"


def _expect(what: str, value: object, dtype: torch.dtype, shape: tuple[int, ...], hint: str = "") -> None:
    if isinstance(value, Tensor) and value.dtype == dtype and tuple(value.shape) == shape:
        return
    wanted = f"a {str(dtype).removeprefix('torch.')} tensor of shape (B, T), here {shape}"
    raise ContractViolation(f"{what} is {_describe(value)}; it must be {wanted}{'; ' + hint if hint else ''}")
