"""Checks 6 to 8: what must not matter to a candidate: padding, order, labels, and how a step is split."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as functional
from torch import Tensor

from poise_core.candidate.calls import (
    ContractViolation,
    call_advantages,
    copy_batch,
    guarded,
    handed_batch,
    own_inputs,
)
from poise_core.candidate.loading import Candidate
from poise_core.contract import LossInputs, RolloutBatch
from poise_core.verification.drawn import Draw, permuted
from poise_core.verification.harness import (
    Run,
    claimed_mask,
    denominators,
    loss_and_gradient,
    loss_inputs,
    run_candidate,
    ties_alone,
)
from poise_core.verification.probes import Probe

T = TypeVar("T")
TOLERANCE = (
    1e-4  # relative; the order of float32 sums moves results by about 1e-6, divisions by small deviations amplify
)
ROUNDING = 1e-2  # relative; a larger difference is never taken for rounding
AGAIN = 3  # further batches on which a smaller one must show


def _systematic(compare: Callable[[str, float], T], purpose: str) -> T:
    """What a comparison returns, where a small difference counts only if it shows on other batches, too.

    Rewards that differ by a small penalty alone, divided by their deviation, turn the last digit of float32 into some 1e-4 of
    the result. Of 60 random compositions with the KL in the reward one shows that in a tenth of all batches, the others hardly
    ever. A dependence on the order, on ids or on padding shows in every batch, or is large where it shows.

    Args:
        compare: takes what a batch is drawn for, and the tolerance.
        purpose: of the first batch.

    Raises:
        ContractViolation: of the first batch.
    """
    try:
        return compare(purpose, TOLERANCE)
    except ContractViolation as violation:
        with contextlib.suppress(ContractViolation):
            compare(purpose, ROUNDING)
            for number in range(1, AGAIN + 1):
                with contextlib.suppress(ContractViolation):
                    return compare(f"{purpose} {number}", TOLERANCE)
        raise violation


# ---- check 6


def check_padding(candidate: Candidate, draw: Draw) -> None:
    """Check `padding`: more padding, zeros in every tensor, changes nothing.

    The trainer pads a batch to its longest completion, or to the length limit, as it comes.

    Raises:
        ContractViolation: with the sentence for the author.
    """

    def compare(drawn: Callable[[str], Probe], purpose: str, tolerance: float) -> None:
        probe, rng = drawn(purpose), draw.rng(f"columns of {purpose}")
        clean = run_candidate(candidate, probe)
        for columns in (1, rng.randint(1, 3) * clean.mask.shape[1]):
            wide = _padded(probe, columns)
            try:
                _compare_padded(candidate, clean, wide, columns, tolerance)
            except ContractViolation as violation:
                raise ContractViolation(f"{violation}{_to_mask(candidate, wide)}") from violation

    _systematic(partial(compare, draw.ordinary), "padding")
    _systematic(partial(compare, draw.uneven), "padding uneven")
    _systematic(partial(compare, draw.empty_and_full), "padding empty")


def _to_mask(candidate: Candidate, wide: Probe) -> str:
    """Name the tensors whose padding reaches the result, found by writing into the padding of one after another."""
    given = handed_batch(candidate, wide.batch)

    def values(batch: RolloutBatch) -> Tensor:
        found = guarded("compute_advantages", lambda: candidate.compute_advantages(copy_batch(batch), wide.dynamics))
        return torch.as_tensor(found.values)

    def losses(inputs: LossInputs) -> Tensor:
        found = guarded("compute_loss", lambda: candidate.compute_loss(own_inputs(inputs), wide.dynamics))
        return torch.as_tensor(found.token_loss)

    found = []
    with torch.no_grad():
        inside, plain = wide.batch.completion_mask, values(given)
        for name in ("old_logprobs", "ref_logprobs", "entropies"):
            batch: dict[str, Any] = {name: _spoiled(getattr(given, name), inside)}
            if not _same(plain, values(replace(given, **batch)), inside):
                found.append(f"batch.{name}")
        advantages = call_advantages(candidate, wide.batch, wide.dynamics)
        inputs = loss_inputs(candidate, wide, advantages)
        before = losses(inputs)
        for name in ("logprobs", "old_logprobs", "ref_logprobs", "entropies", "advantages"):
            rows: dict[str, Any] = {name: _spoiled(getattr(inputs, name), inside)}
            if not _same(before, losses(replace(inputs, **rows)), inputs.mask):
                found.append(f"inputs.{name}")
    if not found:
        return ""
    owner = found[0].partition(".")[0]
    mask = "batch.completion_mask" if owner == "batch" else "inputs.mask"
    return f"; what stands in the padding of {' and '.join(found)} counts: write torch.where({mask}, {found[0]}, 0.0) first"


def _spoiled(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.full_like(values, -0.7))


def _padded(probe: Probe, columns: int) -> Probe:
    def pad(values: Tensor) -> Tensor:
        return functional.pad(values, (0, columns)) if values.dim() == 2 else values

    batch = RolloutBatch(**{f.name: pad(getattr(probe.batch, f.name)) for f in fields(probe.batch)})
    return replace(probe, batch=batch, logprobs=pad(probe.logprobs), entropies=pad(probe.entropies))


def _compare_padded(candidate: Candidate, clean: Run, wide: Probe, columns: int, tolerance: float) -> None:
    change = f"{columns} more column{'s' * (columns > 1)} of padding"
    length = clean.mask.shape[1]
    advantages = call_advantages(candidate, wide.batch, wide.dynamics)
    mask = claimed_mask(advantages, wide.batch)
    if not torch.equal(functional.pad(clean.mask, (0, columns)), mask):
        raise ContractViolation(
            f"{change} changes Advantages.train_mask; count tokens with completion_mask.sum(-1), not columns"
        )
    reduce = "reduce with masked_mean and masked_sum, and take lengths from completion_mask.sum(-1), not from shapes"
    if not _same(clean.advantages.values, advantages.values[:, :length], clean.mask, tolerance):
        raise ContractViolation(f"{change} changes Advantages.values of sampled tokens; {reduce}")
    for key, value in clean.advantages.carry.items():
        found = advantages.carry.get(key)
        inside = clean.mask if value.dim() == 2 else torch.ones_like(value, dtype=torch.bool)
        if (
            found is None
            or found.dim() != value.dim()
            or not _same(value, found[..., : value.shape[-1]], inside, tolerance)
        ):
            raise ContractViolation(f"{change} changes Advantages.carry[{key!r}]; {reduce}")
    inputs = loss_inputs(candidate, wide, advantages)
    call = loss_and_gradient(candidate, inputs, wide.dynamics, mask, max_length=length)
    if not _same(
        clean.outputs.token_loss.detach(), call.outputs.token_loss.detach()[:, :length], clean.mask, tolerance
    ):
        raise ContractViolation(f"{change} changes token_loss of trained tokens; {reduce}")
    for name, before, after in (
        ("logprobs", clean.grad_logprobs, call.grad_logprobs),
        ("entropies", clean.grad_entropies, call.grad_entropies),
    ):
        if not _same(before, after[:, :length], clean.mask, tolerance):
            raise ContractViolation(f"{change} changes the gradient of {name} of trained tokens; {reduce}")


def _same(first: Tensor, second: Tensor, inside: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Equal within the tolerance relative to the largest entry, NaN equal to NaN, outside ``inside`` anything."""
    outside = ~inside
    first, second = (values.masked_fill(outside, 0).float() for values in (first, second))
    largest = float(first.abs().max()) if first.numel() else 0.0
    if not math.isfinite(largest):
        finite = first[torch.isfinite(first)]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
    scale = max(1e-6, largest)
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


# ---- check 7


def check_order(candidate: Candidate, draw: Draw) -> bool:
    """Check `order`: the order of completions and the labels of groups carry no information.

    Returns:
        Whether it decides by their order which of several completions of one prompt with the same outcome train.

    Raises:
        ContractViolation: with the sentence for the author.
    """

    def compare(drawn: Callable[[str], Probe], purpose: str, tolerance: float) -> bool:
        by_order, probe, generator = False, drawn(purpose), draw.generator(f"permutation of {purpose}")
        clean = run_candidate(candidate, probe)
        rows = clean.mask.shape[0]
        order = torch.randperm(rows, generator=generator)
        other = run_candidate(candidate, permuted(probe, order))
        found = other.mask[order.argsort()]
        if not torch.equal(clean.mask, found) and ties_alone(probe.batch, clean.mask, found):
            by_order, both = True, clean.mask & found
            other = replace(other, mask=both[order])  # gradients are shares of other denominators
            _compare_runs(
                replace(clean, mask=both), other, order, "permuting the completions", tolerance, gradients=False
            )
        else:
            _compare_runs(clean, other, order, "permuting the completions", tolerance)
        unique, inverse = torch.unique(probe.batch.group_ids, return_inverse=True)
        labels = torch.randperm(1000, generator=generator)[: unique.numel()] * 10**9 - 7
        relabelled = probe.with_batch(group_ids=labels[inverse])
        try:
            other = run_candidate(candidate, relabelled)
        except MemoryError as error:
            raise ContractViolation(
                "large group ids make it run out of memory; ids are any int64 numbers, so do not use them as sizes or indices"
            ) from error
        _compare_runs(clean, other, torch.arange(rows), "relabelling the groups", tolerance)
        return by_order

    found = [
        _systematic(partial(compare, draw.ordinary), "order"),
        _systematic(partial(compare, draw.uneven), "order uneven"),
        _systematic(partial(compare, draw.graded), "order graded"),
    ]
    return any(found)


def _compare_runs(clean: Run, other: Run, order: Tensor, change: str, tolerance: float, gradients: bool = True) -> None:
    mask = clean.mask[order]
    if not torch.equal(mask, other.mask):
        raise ContractViolation(
            f"{change} changes which tokens train; decide from values, not from positions or ids: rank completions with "
            "group_rank(values, batch.group_ids, ties=...), where ties are other values, such as the completion's log-probability"
        )
    pairs: list[tuple[str, Tensor, Tensor]] = [
        ("Advantages.values", clean.advantages.values, other.advantages.values),
        ("token_loss", clean.outputs.token_loss.detach(), other.outputs.token_loss.detach()),
        ("the gradient of logprobs", clean.grad_logprobs, other.grad_logprobs),
        ("the gradient of entropies", clean.grad_entropies, other.grad_entropies),
    ]
    for what, before, after in pairs if gradients else pairs[:2]:
        if not _same(before[order], after, mask, tolerance):
            raise ContractViolation(
                f"{change} changes {what}; use the group reductions of poise_core.reductions, which need no order and no "
                "particular ids"
            )


# ---- check 8


def check_micro_batches(candidate: Candidate, draw: Draw) -> None:
    """Check `micro-batches`: micro-batches add up to the loss and gradient of the whole batch, however it is split.

    Raises:
        ContractViolation: with the sentence for the author.
    """
    rng = draw.rng("micro-batches")
    sizes = [rng.randint(3, 4) for _ in range(3)]
    small = draw.rollout("small groups", "micro-batches small", sizes, rng.randint(6, 10))
    for probe in (small, draw.empty_and_full("micro-batches empty")):
        whole = run_candidate(candidate, probe)
        rows = whole.mask.shape[0]
        order = torch.randperm(rows, generator=draw.generator(f"parts of {probe.name}"))
        if probe is small:
            _compare_split(
                candidate, probe, whole, list(torch.arange(rows).chunk(rows)), "single completions", trimmed=True
            )
        parts = list(order.tensor_split([1, rng.randint(3, 4), rng.randint(6, 7)]))
        _compare_split(candidate, probe, whole, parts, "unequal parts", trimmed=probe is small)
    # as many completions as a step of the trainer has, split as it splits them, early and late in a training
    groups = [rng.randint(6, 8)] * rng.randint(8, 16)
    large = draw.rollout("many groups", "micro-batches large", groups, rng.randint(6, 10))
    for step in (1, rng.randint(2, 9), rng.randint(10, 60), large.dynamics.step):
        probe = replace(large, dynamics=replace(large.dynamics, step=step))
        whole = run_candidate(candidate, probe)
        parts = list(torch.randperm(whole.mask.shape[0], generator=draw.generator(f"parts of {step}")).split(8))
        _compare_split(candidate, probe, whole, parts, "micro-batches of eight", trimmed=True)


def _compare_split(
    candidate: Candidate, probe: Probe, whole: Run, parts: list[Tensor], how: str, trimmed: bool
) -> None:
    total, counts = torch.zeros(()), denominators(whole.mask)
    order, begin = torch.cat(parts), 0
    gradients = [torch.zeros_like(whole.grad_logprobs), torch.zeros_like(whole.grad_entropies)]
    sizes = [len(part) for part in parts]
    lengths = [whole.mask.shape[1]] * len(parts)
    if trimmed:  # the trainer cuts columns that no completion of a micro-batch needs
        lengths = [max(1, *part) for part in _used_columns(probe.batch.completion_mask[order], sizes)]
    handed = loss_inputs(candidate, probe, whole.advantages, order)
    for inputs, size, length in zip(_split(handed, sizes), sizes, lengths, strict=True):
        call = loss_and_gradient(candidate, _trim(inputs, length), probe.dynamics, whole.mask, counts=counts)
        total += call.total
        for gradient, grad in zip(gradients, (call.grad_logprobs, call.grad_entropies), strict=True):
            gradient[begin : begin + size, :length] = grad
        begin += size
    place = order.argsort()
    gradients = [gradient[place] for gradient in gradients]
    everywhere = torch.ones_like(whole.mask)
    advice = (
        "compute_loss may combine numbers of one completion only, and not count padded columns; compute what needs the batch "
        "in compute_advantages and carry it"
    )
    # terms of either sign may nearly cancel: a sum rounds at the size of its terms, one unit in the last place of their mean
    terms = whole.outputs.token_loss.detach()[whole.mask].abs()
    rounding = torch.finfo(terms.dtype).eps * float(terms.mean()) if terms.numel() else 0.0
    rounded = abs(float(whole.total - total)) <= rounding  # False where one is not a number
    if not rounded and not _same(whole.total, total, torch.ones((), dtype=torch.bool)):
        values = f"{float(whole.total):.6g} to {float(total):.6g}"
        raise ContractViolation(f"splitting a step into {how} changes the total loss from {values}; {advice}")
    for name, before, after in zip(
        ("logprobs", "entropies"), (whole.grad_logprobs, whole.grad_entropies), gradients, strict=True
    ):
        if not _same(before, after, everywhere):
            raise ContractViolation(f"splitting a step into {how} changes the gradient of {name}; {advice}")


def _used_columns(mask: Tensor, sizes: list[int]) -> Iterator[list[int]]:
    """For every part of so many completions, up to which column each of them has tokens."""
    columns = torch.where(mask, torch.arange(1, mask.shape[1] + 1), 0).amax(-1)
    return (part.tolist() for part in columns.split(sizes))


def _split(inputs: LossInputs, sizes: list[int]) -> Iterator[LossInputs]:
    """The parts of so many completions, one after the other."""
    columns = {f.name: getattr(inputs, f.name).split(sizes) for f in fields(inputs) if f.name != "carry"}
    carry = {key: value.split(sizes) for key, value in inputs.carry.items()}
    for index in range(len(sizes)):
        yield LossInputs(
            **{name: parts[index] for name, parts in columns.items()},
            carry={key: parts[index] for key, parts in carry.items()},
        )


def _trim(inputs: LossInputs, length: int) -> LossInputs:
    if length == inputs.mask.shape[1]:
        return inputs

    def cut(values: Tensor) -> Tensor:
        return values[:, :length] if values.dim() == 2 else values

    changed = {f.name: cut(getattr(inputs, f.name)) for f in fields(inputs) if f.name != "carry"}
    return LossInputs(**changed, carry={key: cut(value) for key, value in inputs.carry.items()})
