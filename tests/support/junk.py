"""Whatever a candidate might return: strategies of values that the contract does not allow, and of some that it does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from poise_core.candidate.loading import Candidate
from poise_core.contract import Advantages, LossOutputs

DTYPES = (
    torch.float32, torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.int64,
    torch.uint8, torch.complex64,
)  # fmt: skip


class Label(str):
    """A text that is not quite one."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        raise ValueError("labels are not compared \ud800")


class Unspeakable(Exception):
    """An error that does not say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class Sub(Tensor):
    """A tensor of a class of its own."""


def tensors(rows: int, length: int) -> st.SearchStrategy[Tensor]:
    """Tensors of right and wrong shapes, dtypes, devices, layouts and contents."""
    shapes = st.sampled_from(
        [(rows, length), (rows, length), (rows, length), (rows,), (), (length, rows), (0,), (rows, length, 1)]
    )
    fills = st.sampled_from([0.0, 1.0, -3.0, math.nan, math.inf, -math.inf, 1e38, 1e-45])
    made = st.builds(_tensor, shapes, st.sampled_from(DTYPES), fills)
    return st.builds(lambda tensor, change: change(tensor), made, st.sampled_from(CHANGES))


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> Tensor:
    if not dtype.is_floating_point and not dtype.is_complex:
        fill = 1.0
    return torch.full(shape, fill, dtype=torch.float64).to(dtype)


def _nested(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def _grown(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.is_floating_point() or tensor.is_complex())


def _quantized(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(torch.zeros(tensor.shape), 0.1, 0, torch.quint8)


CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    *(6 * [lambda tensor: tensor]),
    lambda tensor: tensor.to("meta"),
    lambda tensor: tensor.to_sparse(),
    lambda tensor: tensor.as_subclass(Sub),
    lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    lambda tensor: tensor[..., :1].expand(tensor.shape) if tensor.dim() and tensor.shape[-1] else tensor,
    _leaf,
    _nested,
    _quantized,
)

names = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        ["ok", "..", "clip_fraction", "\ud800", "a\x00b", "../x", "[red]", "x" * 10_000, "\u202e", Label("label"), ""]
    ),
    st.integers(),
    st.none(),
    st.tuples(st.integers()),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5),
    st.sampled_from([10**400, 10**4000, -(10**13), math.nan, 1e300, "\ud800", object, print]),
)  # fmt: skip


def tables(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Dicts, and what passes for one."""
    plain = st.builds(_table, st.lists(st.tuples(names, values), max_size=3))
    huge = st.builds(lambda value: {f"m{i}": value for i in range(1000)}, values)
    proper = st.builds(lambda value: {"ok": value}, values)
    return st.one_of(
        proper, proper, plain, huge, st.builds(MappingProxyType, proper), scalars, st.lists(values, max_size=2)
    )


def _table(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    for name, value in pairs:
        if not any(isinstance(other, Label) for other in (*table, name)) or not table:
            table[name] = value
    return table


def anything(rows: int, length: int) -> st.SearchStrategy[Any]:
    """Values of any kind at any place."""
    leaves = st.one_of(scalars, tensors(rows, length))
    return st.recursive(leaves, lambda inner: st.one_of(st.lists(inner, max_size=2), tables(inner)), max_leaves=4)


def advantages(rows: int, length: int) -> st.SearchStrategy[Any]:
    """What compute_advantages might return."""
    good = st.just(torch.ones(rows, length))
    some = anything(rows, length)
    return st.one_of(
        some,
        st.builds(Advantages, some),
        st.builds(Advantages, st.one_of(good, tensors(rows, length)), st.one_of(st.none(), some)),
        st.builds(Advantages, good, st.none(), tables(tensors(rows, length))),
        st.builds(Advantages, good, st.none(), tables(some)),
    )


def outputs(rows: int, length: int) -> st.SearchStrategy[Any]:
    """What compute_loss might return; True stands for a sound loss."""
    some = anything(rows, length)
    return st.one_of(
        some,
        st.builds(LossOutputs, some),
        st.builds(LossOutputs, tensors(rows, length)),
        st.builds(LossOutputs, st.just(True), tables(tensors(rows, length))),
        st.builds(LossOutputs, st.just(True), tables(some)),
    )


errors = st.sampled_from(
    [
        ValueError("\ud800 \x1b[2J \u202e"), KeyError("\ud800"), Unspeakable(), SystemExit(1), GeneratorExit(), RecursionError(),
        StopIteration(), RuntimeError("not enough memory"), MemoryError("\ud800"), torch.OutOfMemoryError("CUDA out of memory"),
        TimeoutError(), UnicodeDecodeError("utf-8", b"x", 0, 1, "x"), ExceptionGroup("several", [ValueError("x")]),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Hyperparameters:
    """None."""


def candidate_returning(
    advantages: Callable[..., Any], loss: Callable[..., Any], controller: Callable[..., Any] | None = None
) -> Candidate:
    """A candidate of three Python functions, without a file."""
    return Candidate(
        name="junk",
        source="",
        loss_aggregation="token-mean",
        mechanisms={},
        hyperparameters=Hyperparameters(),
        advantages_function=advantages,
        loss_function=loss,
        controller_function=controller,
        reads=frozenset({"ref_logprobs", "entropies"}),
    )
