"""Checks 6 to 8: what must not matter to a candidate: padding, order, labels, and how a step is split."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from poise_core.candidate.calls import ContractViolation, call_advantages, call_loss
from poise_core.candidate.loading import Candidate
from poise_core.contract import Advantages, LossInputs, RolloutBatch
from poise_core.verification.harness import Run, loss_inputs, reduce_and_differentiate, run_candidate
from poise_core.verification.probes import Probe, empty_and_full, make_probe, ordinary

TOLERANCE = (
    1e-4  # relative; the order of float32 sums moves results by about 1e-6, divisions by small deviations amplify
)


# ---- check 6


def check_padding(candidate: Candidate) -> None:
    """Check 6: independent garbage outside the masks, NaN and infinities included, changes nothing.

    Raises:
        ContractViolation: with the sentence for the author.
    """
    for probe in (ordinary(41), make_probe("uneven group sizes", (3, 1, 6, 4), 9, 42), empty_and_full(43)):
        clean = run_candidate(candidate, probe)
        for seed, kind in enumerate(("noise", "NaN", "infinity")):
            draw = torch.Generator().manual_seed(100 + seed)

            def spoil(values: Tensor, inside: Tensor, draw: torch.Generator = draw, kind: str = kind) -> Tensor:
                return (
                    torch.where(inside, values, _garbage(values, kind, draw)) if values.is_floating_point() else values
                )

            batch = probe.batch
            kept = batch.completion_mask
            spoiled = probe.with_batch(
                **{name: spoil(getattr(batch, name), kept) for name in ("old_logprobs", "ref_logprobs", "entropies")}
            )
            advantages = call_advantages(candidate, spoiled.batch, spoiled.dynamics)
            _compare_advantages(clean.advantages, advantages, clean.mask, f"{kind} in the padding of the batch")
            inputs = loss_inputs(probe, clean.advantages, torch.arange(clean.mask.shape[0]))
            outputs_of = replace(
                inputs,
                **{
                    name: spoil(getattr(inputs, name).detach(), clean.mask)
                    for name in ("logprobs", "entropies", "old_logprobs", "ref_logprobs", "advantages")
                },
                carry={k: spoil(v, clean.mask) if v.dim() == 2 else v for k, v in inputs.carry.items()},
            )
            _compare_loss(candidate, probe, clean, outputs_of, f"{kind} outside the mask")


def _garbage(values: Tensor, kind: str, draw: torch.Generator) -> Tensor:
    noise = torch.randn(values.shape, generator=draw)
    if kind == "NaN":
        return torch.full_like(values, float("nan"))
    if kind == "infinity":
        return torch.where(noise > 0, torch.tensor(float("inf")), torch.tensor(-1e30))
    return 5.0 * noise


def _compare_advantages(clean: Advantages, other: Advantages, mask: Tensor, change: str) -> None:
    if clean.train_mask is not None and (
        other.train_mask is None or not torch.equal(clean.train_mask, other.train_mask)
    ):
        raise ContractViolation(
            f"{change} changes Advantages.train_mask; select with torch.where or use the where= of reductions"
        )
    if not _same(clean.values, other.values, mask):
        raise ContractViolation(
            f"{change} changes Advantages.values of sampled tokens; reduce with masked_mean and masked_sum, or mask with "
            "torch.where (multiplying with the mask keeps NaN)"
        )
    for key, value in clean.carry.items():
        found = other.carry.get(key)
        inside = mask if value.dim() == 2 else torch.ones_like(value, dtype=torch.bool)
        if found is None or not _same(value.float(), found.float(), inside):
            raise ContractViolation(
                f"{change} changes Advantages.carry[{key!r}]; mask with torch.where before reducing"
            )


def _compare_loss(candidate: Candidate, probe: Probe, clean: Run, inputs: LossInputs, change: str) -> None:
    inputs = replace(inputs, logprobs=inputs.logprobs.requires_grad_(), entropies=inputs.entropies.requires_grad_())
    outputs = call_loss(candidate, inputs, probe.dynamics)
    _, grad_logprobs, grad_entropies = reduce_and_differentiate(candidate, inputs, outputs, clean.mask)
    if not _same(clean.outputs.token_loss.detach(), outputs.token_loss.detach(), clean.mask):
        raise ContractViolation(
            f"{change} changes token_loss of trained tokens; mask with torch.where before combining tokens of a row, as "
            "log_ratio and masked_mean do"
        )
    for name, before, after in (
        ("logprobs", clean.grad_logprobs, grad_logprobs),
        ("entropies", clean.grad_entropies, grad_entropies),
    ):
        if not _same(before, after, clean.mask):
            raise ContractViolation(
                f"{change} changes the gradient of {name} of trained tokens; mask with torch.where first"
            )
        if bool((~clean.mask & (after != 0)).any()):
            raise ContractViolation(
                f"{change} gives {name} outside the mask a gradient (0 times NaN is NaN); pass logprobs through log_ratio, "
                "or torch.where(inputs.mask, inputs.logprobs, torch.zeros_like(inputs.logprobs))"
            )


def _same(first: Tensor, second: Tensor, inside: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Equal within the tolerance relative to the largest entry, NaN equal to NaN, outside ``inside`` anything."""
    first, second = (torch.where(inside, values, torch.zeros_like(values)) for values in (first, second))
    finite = first[torch.isfinite(first)]
    scale = max(1e-6, float(finite.abs().max()) if finite.numel() else 0.0)
    return torch.allclose(first, second, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


# ---- check 7


def check_order(candidate: Candidate) -> None:
    """Check 7: the order of completions and the labels of groups carry no information.

    Raises:
        ContractViolation: with the sentence for the author.
    """
    for seed, probe in ((51, ordinary(51)), (52, make_probe("uneven group sizes", (2, 5, 1, 4), 7, 52))):
        clean = run_candidate(candidate, probe)
        rows = clean.mask.shape[0]
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        permuted = _permute(probe, order)
        _compare_runs(clean, run_candidate(candidate, permuted), order, "permuting the completions")
        unique, inverse = torch.unique(probe.batch.group_ids, return_inverse=True)
        labels = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[: unique.numel()] * 10**9 - 7
        relabelled = probe.with_batch(group_ids=labels[inverse])
        try:
            other = run_candidate(candidate, relabelled)
        except MemoryError as error:
            raise ContractViolation(
                "large group ids make it run out of memory; ids are any int64 numbers, so do not use them as sizes or indices"
            ) from error
        _compare_runs(clean, other, torch.arange(rows), "relabelling the groups")


def _permute(probe: Probe, order: Tensor) -> Probe:
    batch = RolloutBatch(**{f.name: getattr(probe.batch, f.name)[order] for f in fields(probe.batch)})
    return replace(probe, batch=batch, logprobs=probe.logprobs[order], entropies=probe.entropies[order])


def _compare_runs(clean: Run, other: Run, order: Tensor, change: str) -> None:
    mask = clean.mask[order]
    if not torch.equal(mask, other.mask):
        raise ContractViolation(f"{change} changes which tokens train; decide from values, not from positions or ids")
    pairs: list[tuple[str, Tensor, Tensor]] = [
        ("Advantages.values", clean.advantages.values, other.advantages.values),
        ("token_loss", clean.outputs.token_loss.detach(), other.outputs.token_loss.detach()),
        ("the gradient of logprobs", clean.grad_logprobs, other.grad_logprobs),
        ("the gradient of entropies", clean.grad_entropies, other.grad_entropies),
    ]
    for what, before, after in pairs:
        if not _same(before[order], after, mask):
            raise ContractViolation(
                f"{change} changes {what}; use the group reductions of poise_core.reductions, which need no order and no "
                "particular ids"
            )


# ---- check 8


def check_micro_batches(candidate: Candidate) -> None:
    """Check 8: the micro-batches of a step add up to the loss and the gradient of the whole batch, however it is split.

    Raises:
        ContractViolation: with the sentence for the author.
    """
    for seed, probe in ((61, make_probe("small groups", (4, 3, 4), 8, 61)), (62, empty_and_full(62))):
        whole = run_candidate(candidate, probe)
        rows = whole.mask.shape[0]
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        if rows < 12:
            _compare_split(
                candidate, probe, whole, list(torch.arange(rows).chunk(rows)), "single completions", trimmed=True
            )
        _compare_split(candidate, probe, whole, list(order.tensor_split([1, 4, 7])), "unequal parts", trimmed=rows < 12)


def _compare_split(
    candidate: Candidate, probe: Probe, whole: Run, parts: list[Tensor], how: str, trimmed: bool
) -> None:
    total = torch.zeros(())
    gradients = [torch.zeros_like(whole.grad_logprobs), torch.zeros_like(whole.grad_entropies)]
    for part in parts:
        inputs = loss_inputs(probe, whole.advantages, part)
        length = inputs.mask.shape[1]
        if trimmed:  # the trainer may cut padding that a micro-batch does not need
            used = inputs.mask.any(0).nonzero()
            length = int(used.max()) + 1 if used.numel() else 1
            inputs = _trim(inputs, length)
        outputs = call_loss(candidate, inputs, probe.dynamics)
        share, *grads = reduce_and_differentiate(candidate, inputs, outputs, whole.mask)
        total += share
        for gradient, grad in zip(gradients, grads, strict=True):
            gradient[part, :length] = grad
    everywhere = torch.ones_like(whole.mask)
    advice = (
        "compute_loss may combine numbers of one completion only, and not count padded columns; compute what needs the batch "
        "in compute_advantages and carry it"
    )
    if not _same(whole.total, total, torch.ones((), dtype=torch.bool)):
        values = f"{float(whole.total):.6g} to {float(total):.6g}"
        raise ContractViolation(f"splitting a step into {how} changes the total loss from {values}; {advice}")
    for name, before, after in zip(
        ("logprobs", "entropies"), (whole.grad_logprobs, whole.grad_entropies), gradients, strict=True
    ):
        if not _same(before, after, everywhere):
            raise ContractViolation(f"splitting a step into {how} changes the gradient of {name}; {advice}")


def _trim(inputs: LossInputs, length: int) -> LossInputs:
    def cut(values: Tensor) -> Tensor:
        return values[:, :length].detach().clone() if values.dim() == 2 else values

    changed = {f.name: cut(getattr(inputs, f.name)) for f in fields(inputs) if f.name != "carry"}
    for name in ("logprobs", "entropies"):
        changed[name] = changed[name].requires_grad_()
    return LossInputs(**changed, carry={key: cut(value) for key, value in inputs.carry.items()})
