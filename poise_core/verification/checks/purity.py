"""The check `pure`: a candidate is deterministic, and changes neither its inputs nor its module nor the process."""

from __future__ import annotations

import builtins
import math
import os
import random
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from poise_core import contract, reductions
from poise_core.candidate.calls import (
    ContractViolation,
    call_controller,
    copy_batch,
    guarded,
    handed_batch,
    own_inputs,
)
from poise_core.candidate.loading import Candidate
from poise_core.verification.drawn import Draw
from poise_core.verification.harness import Run, loss_inputs, run_candidate
from poise_core.verification.probes import Probe

RANDOM_STATES = ("torch's random state", "Python's random state")


@dataclass(frozen=True)
class GlobalState:
    """The state of the process that a candidate must not change."""

    values: Mapping[str, object]
    members: Mapping[str, Mapping[str, int]]  # namespace -> member -> identity

    @classmethod
    def capture(cls) -> GlobalState:
        """Capture the current state."""
        values = {
            RANDOM_STATES[0]: torch.get_rng_state().numpy().tobytes(),
            RANDOM_STATES[1]: hash(random.getstate()),
            "torch's default dtype": torch.get_default_dtype(),
            "torch's default device": str(torch.get_default_device()),
            "the grad mode": torch.is_grad_enabled(),
            "the inference mode": torch.is_inference_mode_enabled(),
            "torch's number of threads": torch.get_num_threads(),
            "the deterministic mode": torch.are_deterministic_algorithms_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "anomaly detection": torch.is_anomaly_enabled(),
            "the environment variables": hash(frozenset(os.environ.items())),
            "the working directory": os.getcwd(),
            "sys.path": tuple(sys.path),
            "the recursion limit": sys.getrecursionlimit(),
            "the trace function": (id(sys.gettrace()), id(sys.getprofile())),
        }
        spaces: dict[str, Mapping[str, Any]] = {
            "torch": vars(torch),
            "torch.Tensor": vars(torch.Tensor),
            "torch.nn.functional": vars(torch.nn.functional),
            "torch.autograd": vars(torch.autograd),
            "math": vars(math),
            "builtins": vars(builtins),
            "poise_core.contract": vars(contract),
            "poise_core.reductions": vars(reductions),
        }
        return cls(values, {name: {key: id(value) for key, value in space.items()} for name, space in spaces.items()})

    def differences(self) -> list[str]:
        """Name what has changed since the capture."""
        now = GlobalState.capture()
        members = (
            f"{space}.{member}"
            for space, identities in self.members.items()
            for member, identity in identities.items()
            if now.members[space].get(member) != identity
        )
        return [*(what for what, value in self.values.items() if now.values[what] != value), *members]


def check_pure(candidate: Candidate, reload: Callable[[], Candidate], before: GlobalState, draw: Draw) -> None:
    """Check that the candidate is deterministic and changes nothing but its results.

    Args:
        candidate: the candidate, already used by earlier checks.
        reload: loads the candidate anew.
        before: the state of the process before the candidate was first loaded.
        draw: where the probes come from.

    Raises:
        ContractViolation: with the message for the author.
    """
    members = _members(candidate)
    first, second = draw.ordinary("pure"), draw.one_token()
    once = run_candidate(candidate, first)
    run_candidate(candidate, second)
    again = run_candidate(candidate, first)
    _expect_equal(
        once,
        again,
        "a second call with the same batch gives another result; a candidate is deterministic and keeps no state",
    )
    fresh = run_candidate(reload(), first)
    _expect_equal(
        once, fresh, "a freshly loaded candidate gives another result than a used one; it keeps state between calls"
    )
    _check_inputs(candidate, first, once)
    _check_controller(candidate, draw)
    changed = next((name for name, value in _members(candidate).items() if members.get(name) != value), "")
    if changed:
        raise ContractViolation(
            f"{changed} changed while the candidate ran; it keeps state between calls: use update_controller"
        )
    moved = before.differences()
    lasting = [what for what in moved if what not in RANDOM_STATES]
    blamed = lasting or _moved_each_time(moved, reload, draw)
    if blamed:
        raise ContractViolation(f"the candidate changes {blamed[0]}; it may only compute results from its arguments")


def _moved_each_time(moved: list[str], reload: Callable[[], Candidate], draw: Draw, times: int = 3) -> list[str]:
    """Keep the random states that move whenever the candidate is loaded and run; a library's thread draws now and then.

    Every time begins at states of its own: a candidate that seeds the generator moves it each time, too.
    """
    for _ in range(times):
        if not moved:
            break
        random.seed()
        torch.seed()
        before = GlobalState.capture()
        candidate = reload()
        run_candidate(candidate, draw.ordinary("pure"))
        run_candidate(candidate, draw.one_token())
        _check_controller(candidate, draw)
        again = before.differences()
        moved = [what for what in moved if what in again]
    return moved


def _expect_equal(first: Run, second: Run, message: str) -> None:
    pairs = [
        (first.advantages.values, second.advantages.values),
        (first.mask, second.mask),
        (first.outputs.token_loss, second.outputs.token_loss),
        (first.grad_logprobs, second.grad_logprobs),
        (first.grad_entropies, second.grad_entropies),
        *((value, second.advantages.carry.get(key)) for key, value in first.advantages.carry.items()),
        *((value, second.outputs.metrics.get(key)) for key, value in first.outputs.metrics.items()),
    ]
    if any(other is None or not _identical(value, other) for value, other in pairs):
        raise ContractViolation(message)


def _identical(first: Tensor, second: Tensor) -> bool:
    first, second = first.detach(), second.detach()
    return first.shape == second.shape and torch.equal(torch.nan_to_num(first), torch.nan_to_num(second))


def _check_inputs(candidate: Candidate, probe: Probe, run: Run) -> None:
    state = {"poise_probe": 0.5}
    dynamics = replace(probe.dynamics, controller=state)
    given = handed_batch(candidate, probe.batch)
    batch = copy_batch(given)
    with torch.no_grad():
        guarded("compute_advantages", lambda: candidate.compute_advantages(batch, dynamics))
    _expect_untouched("compute_advantages", "batch", batch, given)
    original = loss_inputs(candidate, probe, run.advantages)
    inputs = own_inputs(original)
    guarded("compute_loss", lambda: candidate.compute_loss(inputs, dynamics))
    _expect_untouched("compute_loss", "inputs", inputs, original)
    if state != {"poise_probe": 0.5}:
        raise ContractViolation(
            "the candidate writes into dynamics.controller; return the new state from update_controller"
        )


def _unwritten(copy: Tensor, original: Tensor) -> bool:
    """Whether a fresh copy was left alone; torch counts writes, those of the same numbers too."""
    return copy._version == 0 and _identical(copy, original)


def _expect_untouched(function: str, name: str, value: Any, original: Any) -> None:
    for field in fields(original):
        now, then = getattr(value, field.name), getattr(original, field.name)
        same = (
            _unwritten(now, then)
            if isinstance(then, Tensor)
            else now.keys() == then.keys() and all(_unwritten(now[key], then[key]) for key in then)
        )
        if not same:
            raise ContractViolation(
                f"{function} writes into {name}.{field.name}; -= and += change a tensor in place: write x = x - y, or clone"
            )


def _check_controller(candidate: Candidate, draw: Draw) -> None:
    if candidate.controller_function is None:
        return
    middle, late = draw.middle("controller"), draw.late("controller")
    state = call_controller(candidate, call_controller(candidate, {}, middle), late)
    once, again = (call_controller(candidate, state, late) for _ in range(2))
    if once != again:
        raise ContractViolation(
            "update_controller gives another state when it is called again; it is a function of its arguments"
        )
    given = dict(state)
    guarded("update_controller", lambda: candidate.update_controller(given, late))
    if given != state:
        raise ContractViolation("update_controller writes into state; build and return a new dict")


def _members(candidate: Candidate) -> dict[str, str]:
    """Describe by value every object in which a candidate's module could keep state."""
    found: dict[str, str] = {}
    space = candidate.loss_function.__globals__
    for name, value in space.items():
        if name.startswith("__") and name.endswith("__"):
            continue
        if isinstance(value, types.FunctionType) and value.__globals__ is space:
            cells = [_cell(cell) for cell in value.__closure__ or ()]
            found[name] = _describe([value.__defaults__, value.__kwdefaults__, vars(value), cells])
        elif not isinstance(value, types.ModuleType | types.FunctionType | types.BuiltinFunctionType):
            found[name] = _describe(vars(value) if isinstance(value, type) else value)
    return found


def _cell(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _describe(value: object, depth: int = 0) -> str:
    if depth > 4:
        return type(value).__name__
    if isinstance(value, Tensor):
        return f"{value.dtype}{tuple(value.shape)}{value.detach().flatten()[:1000].tolist()}"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key!s}:{_describe(item, depth + 1)}" for key, item in list(value.items())[:1000]) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ",".join(_describe(item, depth + 1) for item in list(value)[:1000]) + f"]{len(value)}"
    if is_dataclass(value) and not isinstance(value, type):
        return _describe({field.name: getattr(value, field.name) for field in fields(value)}, depth + 1)
    if isinstance(value, bool | int | float | str | bytes | None):
        return repr(value)[:1000]
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type | staticmethod | classmethod | property):
        return str(type(value).__name__)
    inner = _describe(vars(value), depth + 1) if hasattr(value, "__dict__") else str(id(value))
    return type(value).__name__ + inner
