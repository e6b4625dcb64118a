"""The checks `finite` and `gradient`: results on probes are finite, and the gradient reaches the right tensors and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from poise_core.candidate.calls import ContractViolation, call_controller
from poise_core.candidate.loading import Candidate
from poise_core.candidate.results import require_finite
from poise_core.contract import RolloutBatch
from poise_core.verification.drawn import Draw
from poise_core.verification.harness import Run, run_candidate
from poise_core.verification.probes import Probe

# ---- check `finite`


def check_finite(candidate: Candidate, draw: Draw) -> list[tuple[Probe, Run]]:
    """Check shapes, dtypes and finite values on every edge probe; return the runs, which later checks use.

    Raises:
        ContractViolation: with the message for the author.
    """
    runs = []
    for probe in draw.edge_probes():
        try:
            run = run_candidate(candidate, probe)
            if bool((run.mask & ~probe.batch.completion_mask).any()):
                raise ContractViolation("train_mask is True outside completion_mask; combine them with &")
            require_finite("Advantages.values", run.advantages.values, run.mask)
            require_finite("token_loss", run.outputs.token_loss, run.mask)
        except ContractViolation as violation:
            raise ContractViolation(f"on {probe.name}: {violation}") from violation
        runs.append((probe, run))
    state: dict[str, float] = {}
    for dynamics in draw.states():
        state = call_controller(candidate, state, replace(dynamics, controller=state))
    return runs


# ---- check `gradient`

LARGER_GROUPS = (16, 24, 32, 64)
"""Sizes that are tried where mixed groups of the usual size do not train."""


def check_gradient(runs: Sequence[tuple[Probe, Run]]) -> None:
    """Check which tensors and tokens the gradient reaches, and that it is finite.

    Args:
        runs: the runs of ``check_finite``, the ordinary batch first.

    Raises:
        ContractViolation: with the message for the author.
    """
    for probe, run in runs:
        leaves = _leaves(run.outputs.token_loss)
        if leaves - {id(run.inputs.logprobs), id(run.inputs.entropies)}:
            raise ContractViolation(
                "token_loss carries gradient to a tensor that the candidate made; only logprobs and entropies may"
            )
        for name, gradient in (("logprobs", run.grad_logprobs), ("entropies", run.grad_entropies)):
            bad = run.mask & ~torch.isfinite(gradient)
            if bool(bad.any()):
                row, position = (int(index) for index in bad.nonzero()[0])
                raise ContractViolation(
                    f"on {probe.name}: the gradient of {name} is {float(gradient[row, position])} at completion {row}, token "
                    f"{position}, although the loss is finite; sqrt, log and division have infinite slopes at 0, and "
                    "torch.where does not shield the branch that it does not take: clamp the argument first"
                )


def size_that_trains(candidate: Candidate, draw: Draw, runs: Sequence[tuple[Probe, Run]]) -> int | None:
    """The size of group from which on mixed groups train; None where those of the ordinary batch do.

    A mechanism may count completions: pass@8 has nothing to say of six. So larger groups are tried, where the training's group size
    is not known.

    Args:
        candidate: the candidate.
        draw: where the probes come from.
        runs: the runs of ``check_finite``, the ordinary batch first.

    Raises:
        ContractViolation: mixed groups train at no size, or not at that of the training.
    """
    probe, run = runs[0]
    learns = _learns(candidate, probe)
    if learns and _trains(probe, run):
        return None
    own, found = probe.batch.group_ids.unique(return_counts=True)[1].max().item(), 0
    for size in LARGER_GROUPS:
        larger = draw.rollout(f"groups of {size}", f"gradient in groups of {size}", [size] * 4, 8)
        if size > own and _learns(candidate, larger):
            found = size
            break
    if draw.conditions.group_size is None and (found or _trains(probe, run)):
        return found or None
    if not found and _trains(probe, run):
        return None  # at no size do outcomes matter, which the check `direction` reports
    raise ContractViolation(
        f"groups with both correct and wrong completions learn nothing from them; groups of {found} do, those of this training "
        f"have {draw.conditions.group_size}: make what counts completions a share of group_count(batch.group_ids)"
        if found
        else "groups with both correct and wrong completions get no gradient at all; token_loss must depend on "
        "inputs.logprobs where advantages differ from 0, so do not detach it"
    )


def _learns(candidate: Candidate, probe: Probe) -> bool:
    """Whether mixed groups get another gradient where right and wrong are exchanged: a penalty is no learning."""
    valid = torch.ones_like(probe.batch.format_valid)
    plain = probe.with_batch(format_valid=valid, truncated=~valid)
    swapped = plain.with_batch(correctness=1.0 - plain.batch.correctness)
    mixed = _mixed(probe.batch)
    one, other = (run_candidate(candidate, each).grad_logprobs[mixed] for each in (plain, swapped))
    return not torch.allclose(one, other, rtol=1e-4, atol=1e-9)


def _trains(probe: Probe, run: Run) -> bool:
    return bool((run.grad_logprobs[_mixed(probe.batch)] != 0).any())


def _mixed(batch: RolloutBatch) -> Tensor:
    """Mark the completions of groups with both outcomes. (B,) bool."""
    same = batch.group_ids.unsqueeze(0) == batch.group_ids.unsqueeze(1)  # (B, B)
    return (same & (batch.correctness.unsqueeze(0) != batch.correctness.unsqueeze(1))).any(-1)


def _leaves(value: Tensor) -> set[int]:
    """Return the identities of the leaf tensors that a result's gradient reaches."""
    found, seen, pending = set(), set(), [value.grad_fn]
    if value.grad_fn is None and value.requires_grad:
        return {id(value)}
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        pending.extend(parent for parent, _ in node.next_functions)
    return found
