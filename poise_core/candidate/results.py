"""What a candidate returns, checked against the contract and copied into plain objects.

Every check raises ContractViolation with a sentence for the author. A text of the candidate's own reaches such a sentence
only where it is a name of the allowed kind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from poise_core.candidate.identity import name_fault
from poise_core.contract import Advantages, LossOutputs

CONTROLLER_LIMIT = 1e12
"""Size that a value of a controller may reach."""

_REAL = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)  # fmt: skip


class ContractViolation(Exception):
    """The candidate broke the contract; the message is a sentence for its author."""


class NotFinite(ContractViolation):
    """A number that must be finite is not."""


def checked_advantages(found: object, completion_mask: Tensor) -> Advantages:
    """The advantages with tensors and a dict of their own.

    Raises:
        ContractViolation: types, shapes, devices or names are not as the contract says.
        NotFinite: a carried signal is not finite where it counts.
    """
    if type(found) is not Advantages:
        raise ContractViolation(f"compute_advantages returns {describe(found)}; return Advantages(values=...)")
    shape, device = tuple(completion_mask.shape), completion_mask.device
    hint = "use to_tokens(...) to repeat a number per completion"
    _expect("Advantages.values", found.values, torch.float32, shape, device, hint)
    _expect_detached("Advantages.values", found.values)
    mask = completion_mask
    if found.train_mask is not None:
        _expect("Advantages.train_mask", found.train_mask, torch.bool, shape, device)
        mask = found.train_mask & completion_mask
    carry = _named("Advantages.carry", "carried signal", "a dict of tensors", found.carry)
    for name, value in carry.items():
        what = f"Advantages.carry[{name!r}]"
        if not _is_plain(value, device) or tuple(value.shape) not in (shape[:1], shape):
            raise ContractViolation(
                f"{what} is {describe(value, device)}; it must be a tensor of real numbers of shape (B,) or (B, T), "
                f"here ({shape[0]},) or {shape}"
            )
        _expect_detached(what, value)
        require_finite(what, value, mask if value.dim() == 2 else torch.ones_like(value, dtype=torch.bool))
    return Advantages(
        values=found.values.detach().clone(),
        train_mask=None if found.train_mask is None else found.train_mask.clone(),
        carry={name: value.detach().clone() for name, value in carry.items()},
    )


def checked_outputs(found: object, mask: Tensor) -> LossOutputs:
    """The outputs of the loss, metrics in a dict of their own.

    Args:
        found: what compute_loss returned.
        mask: (B, T) bool, the tokens that train.

    Raises:
        ContractViolation: types, shapes, devices or names are not as the contract says.
        NotFinite: a metric is not finite under the mask.
    """
    if type(found) is not LossOutputs:
        raise ContractViolation(f"compute_loss returns {describe(found)}; return LossOutputs(token_loss=...)")
    shape, device = tuple(mask.shape), mask.device
    hint = "leave masking and averaging to the trainer"
    _expect("LossOutputs.token_loss", found.token_loss, torch.float32, shape, device, hint)
    metrics = _named("LossOutputs.metrics", "metric", "a dict of (B, T) tensors", found.metrics)
    for name, value in metrics.items():
        if not _is_plain(value, device) or tuple(value.shape) != shape:
            raise ContractViolation(
                f"metric {name!r} is {describe(value, device)}; a metric is a detached (B, T) tensor of real numbers, "
                f"here {shape}"
            )
        _expect_detached(f"metric {name!r}", value)
        require_finite(f"metric {name!r}", value, mask)
    return LossOutputs(token_loss=found.token_loss, metrics=metrics)


def checked_controller(found: object, step: int) -> dict[str, float]:
    """The state of a controller: names to floats.

    Raises:
        ContractViolation: it is no dict, or a name or a number is not allowed.
    """
    if type(found) is not dict:
        raise ContractViolation(f"update_controller returns {describe(found)}; return a dict of floats")
    state = _named("the state that update_controller returns", "controller value", "a dict of floats", found)
    for name, value in state.items():
        if type(value) not in (int, float) or not abs(value) <= CONTROLLER_LIMIT:
            shown = repr(value) if type(value) is float else describe(value)
            raise ContractViolation(
                f"update_controller returns {{{name!r}: {shown}}} at step {step}; map names to finite floats, at most "
                f"{CONTROLLER_LIMIT:g} in size: bound them with min and max"
            )
    return {name: float(value) for name, value in state.items()}


def require_finite(what: str, values: Tensor, inside: Tensor) -> None:
    """All numbers inside are finite.

    Raises:
        NotFinite: with the first place where they are not.
    """
    values = values.detach()
    if math.isfinite(float(values.sum())):  # so is every number, inside or not; one operator instead of six
        return
    bad = ~torch.isfinite(values) & inside
    if bool(bad.any()):
        where = [int(index) for index in bad.nonzero()[0]]
        place = f"completion {where[0]}" + (f", token {where[1]}" if len(where) > 1 else "")
        raise NotFinite(
            f"{what} is {float(values[tuple(where)])} at {place}; guard divisions with a positive epsilon and bound "
            "exponents, for example with log_ratio"
        )


def describe(value: object, device: torch.device | None = None) -> str:
    """What a value is, in words; of a tensor its device too where that is not the one given."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}" if value is not None else "None"
    if type(value) is not Tensor or value.is_nested:
        return f"a {'nested tensor' if value.is_nested else type(value).__name__}"
    place = f" on {value.device}" if device is not None and value.device != device else ""
    layout = "" if value.layout == torch.strided else f"{str(value.layout).removeprefix('torch.')} "
    return f"a {layout}{str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}{place}"


def _named(what: str, kind: str, wanted: str, found: object) -> dict[str, Any]:
    """A dict of its own with names of the allowed kind; what they name is for the caller to look at."""
    if not isinstance(found, Mapping):
        raise ContractViolation(f"{what} is {describe(found)}; use {wanted}")
    pairs = dict(found)
    for name in pairs:
        if type(name) is not str:
            raise ContractViolation(f"{what} has {describe(name)} among its keys; name each {kind} with a string")
    if fault := name_fault(kind, pairs):
        raise ContractViolation(fault)
    return pairs


def _is_plain(value: object, device: torch.device) -> bool:
    """Whether it is a dense tensor of real numbers on the device, and of no class of its own."""
    return (
        type(value) is Tensor
        and not value.is_nested
        and value.layout == torch.strided
        and value.device == device
        and value.dtype in _REAL
    )


def _expect(
    what: str, value: object, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device, hint: str = ""
) -> None:
    if isinstance(value, Tensor) and _is_plain(value, device) and value.dtype == dtype and tuple(value.shape) == shape:
        return
    wanted = f"a {str(dtype).removeprefix('torch.')} tensor of shape (B, T), here {shape}"
    if isinstance(value, Tensor) and value.device != device:
        hint = "keep tensors on the device of the arguments"
    raise ContractViolation(f"{what} is {describe(value, device)}; it must be {wanted}{'; ' + hint if hint else ''}")


def _expect_detached(what: str, value: Tensor) -> None:
    if value.requires_grad:
        raise ContractViolation(f"{what} carries gradient; append .detach()")
