"""A candidate's behaviour as numbers: observations on a fixed scenario, a fingerprint of them, and distances between them.

The scenario is a short training of five probes in which the controller is updated, chosen so that clips, length terms,
format terms, filters and schedules all act. The gradient trains a policy; loss and advantages may differ by a
constant or a factor between two files that train alike, so distances compare gradients.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from poise_core.candidate.calls import call_controller
from poise_core.candidate.loading import Candidate
from poise_core.contract import Dynamics
from poise_core.verification.drawn import Draw, permuted
from poise_core.verification.harness import run_candidate
from poise_core.verification.probes import (
    LATE,
    LENGTH,
    MIDDLE,
    START,
    Probe,
    alternating_log_ratios,
    graded,
    make_probe,
    ordinary,
)

PROJECTIONS = 32
QUANTUM = 1e-3
SAME = 1e-5  # relative distance below which two behaviours are one; rewriting a formula moves float32 results by about 1e-7

_EARLY = Dynamics(8, 0.08, 1.4, 0.004, 0.2, 9.0, 0.05, 0.45, 1.2, LENGTH)


@dataclass(frozen=True)
class Observation:
    """The results of a candidate on one probe of the scenario, scaled so that no entry dominates the others."""

    gradient: Tensor  # (2 B T + B T,) d loss / d logprobs, d loss / d entropies per trained token, and the train mask
    rest: Tensor  # (B T + 1,) advantages of trained tokens, and the loss

    @cached_property
    def size(self) -> float:
        """The norm of ``gradient``, by which differences from it are measured."""
        return float(self.gradient.norm())


@lru_cache(maxsize=1)
def scenario() -> tuple[Probe, ...]:
    """Return the fixed probes, in the order in which a controller is updated on them."""
    return (
        replace(ordinary(31, START), name="the first step"),
        replace(ordinary(32, _EARLY), name="an early step"),
        make_probe("an off-policy step with uneven groups", (1, 2, 5, 8, 6), 10, 33, drift=0.6, dynamics=MIDDLE),
        replace(alternating_log_ratios(34), name="far off-policy", dynamics=replace(MIDDLE, step=60, progress=0.6)),
        replace(graded(35).at(LATE), name="a late step with fractional correctness"),
    )


def observe(candidate: Candidate, disguise: Draw | None = None, in_order: bool = False) -> tuple[Observation, ...]:
    """Run the scenario with the candidate's controller in the loop.

    Args:
        candidate: the candidate.
        disguise: if given, the scenario is disguised by it: rows in another order, groups under other numbers, more columns of
            padding, numbers moved by a millionth. For a candidate that keeps the contract the observations are the same.
        in_order: whether the disguise keeps the completions of a group in their order.

    Raises:
        ContractViolation: the candidate raises or breaks the contract.
    """
    return tuple(observe_one_by_one(candidate, scenario(), disguise, in_order))


def observe_one_by_one(
    candidate: Candidate, probes: Iterable[Probe], disguise: Draw | None = None, in_order: bool = False
) -> Iterator[Observation]:
    """Observe the candidate on these probes one at a time, for a caller that may stop early."""
    state: Mapping[str, float] = {}
    for index, plain in enumerate(probes):
        columns, probe, place = plain.logprobs.shape[1], plain, None
        if disguise is not None:
            probe, place = _disguised(plain, disguise, f"disguise of probe {index}", in_order)
        dynamics = replace(probe.dynamics, controller=state)
        run = run_candidate(candidate, replace(probe, dynamics=dynamics), max_length=columns)

        def seen(values: Tensor, place: Tensor | None = place, columns: int = columns) -> Tensor:
            return values if place is None else values[place, :columns]

        tokens = run.mask.sum().clamp(min=1)
        inside = run.mask.float()
        gradient = torch.cat(
            [
                _squash(seen(run.grad_logprobs) * tokens),
                _squash(seen(run.grad_entropies) * tokens),
                seen(inside).flatten(),
            ]
        )
        advantages = torch.where(run.mask, run.advantages.values, torch.zeros_like(run.advantages.values))
        yield Observation(gradient, torch.cat([_squash(seen(advantages)), _squash(run.total.reshape(1))]))
        state = call_controller(candidate, state, dynamics)


def _disguised(probe: Probe, draw: Draw, purpose: str, in_order: bool) -> tuple[Probe, Tensor]:
    """The probe in another dress, and where each of its rows is found in that."""
    rng, generator = draw.rng(purpose), draw.generator(purpose)
    rows = probe.logprobs.shape[0]
    order, more = torch.randperm(rows, generator=generator), rng.randint(1, 4)
    if in_order:  # every group keeps its places, and has its rows there as they came
        groups = probe.batch.group_ids
        order[torch.argsort(groups[order], stable=True)] = torch.argsort(groups, stable=True)

    def moved(values: Tensor) -> Tensor:
        size, sign = (torch.rand(values.shape, generator=generator) for _ in range(2))
        return values * (
            1.0 + torch.where(sign < 0.5, -1e-6, 1e-6) * (0.5 + 1.5 * size)
        )  # so that none stays as it was

    def wide(values: Tensor) -> Tensor:
        return functional.pad(values, (0, more)) if values.dim() == 2 else values

    batch = probe.batch
    unique, inverse = torch.unique(batch.group_ids, return_inverse=True)
    labels = torch.tensor(rng.sample(range(1000), unique.numel()))
    batch = replace(
        batch,
        group_ids=labels[inverse],
        old_logprobs=moved(batch.old_logprobs),
        ref_logprobs=moved(batch.ref_logprobs),
        entropies=moved(batch.entropies),
    )
    batch = replace(batch, **{f.name: wide(getattr(batch, f.name)) for f in fields(batch)})
    floats = {f.name: getattr(probe.dynamics, f.name) for f in fields(probe.dynamics)}
    near: dict[str, Any] = {
        name: value * (1 + rng.gauss(0, 1e-6)) for name, value in floats.items() if type(value) is float
    }
    other = Probe(
        probe.name, batch, wide(moved(probe.logprobs)), wide(moved(probe.entropies)), replace(probe.dynamics, **near)
    )
    return permuted(other, order), order.argsort()


def _squash(values: Tensor) -> Tensor:
    """Apply asinh, which is linear near 0 and logarithmic far from it."""
    return torch.nan_to_num(values, nan=1e9, posinf=1e9, neginf=-1e9).flatten().asinh()


def distance(first: Sequence[Observation], second: Sequence[Observation]) -> float:
    """Return the largest relative difference of the gradients on any probe: 0 for equal updates, 1 or more for unrelated ones."""
    return max(_apart(one, other) for one, other in zip(first, second, strict=True))


def _apart(first: Observation, second: Observation) -> float:
    """The relative difference of two gradients."""
    return _relative(first.gradient, second.gradient, max(first.size, second.size))


def differs(first: Observation, second: Observation, threshold: float) -> bool:
    """Whether gradient, advantages or loss of one probe differ by more than a relative threshold."""
    return _apart(first, second) > threshold or _relative(first.rest, second.rest) > threshold


def _relative(first: Tensor, second: Tensor, scale: float | None = None) -> float:
    """The norm of the difference, relative to ``scale``, by default the larger norm of the two."""
    if scale is None:
        scale = max(float(first.norm()), float(second.norm()))
    return float((first - second).norm()) / scale if scale > 0 else 0.0


@lru_cache(maxsize=8)
def _directions(size: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn((PROJECTIONS, size), generator=draw) / size**0.5


def fingerprint(observations: tuple[Observation, ...]) -> str:
    """Return ``<16 hex digits>.<base64>``, a hash of the quantized behaviour and a sketch of the gradients in 32 numbers.

    The hash identifies the behaviour. The sketch lets ``same_behaviour`` compare stored fingerprints without the code, and
    is stable where a number lies on the edge of a quantum.
    """
    gradient = torch.cat([observation.gradient for observation in observations])
    everything = torch.cat([gradient, *(observation.rest for observation in observations)])
    quanta = torch.round(_directions(everything.numel(), 1) @ everything / QUANTUM).to(torch.int64)
    digest = hashlib.sha256(" ".join(str(value) for value in quanta.tolist()).encode()).hexdigest()[:16]
    sketch = (_directions(gradient.numel(), 2) @ gradient).to(torch.float32)
    return f"{digest}.{base64.urlsafe_b64encode(sketch.numpy().astype('<f4').tobytes()).decode()}"


def same_behaviour(first: str, second: str) -> bool:
    """Whether two fingerprints describe one behaviour."""
    if first.partition(".")[0] == second.partition(".")[0]:
        return True
    return sketched_distance(first, second) < SAME


def sketched_distance(first: str, second: str) -> float:
    """Estimate the relative difference of the gradients over all probes from the sketches of two fingerprints.

    A sketch has 32 numbers, so the estimate is right within about a quarter. It is infinite where a text is no fingerprint.
    """
    one, other = _sketch(first), _sketch(second)
    return _relative(one, other) if one is not None and other is not None else float("inf")


def _sketch(text: str) -> Tensor | None:
    try:
        raw = base64.urlsafe_b64decode(text.partition(".")[2].encode())
    except ValueError:
        return None
    return torch.frombuffer(bytearray(raw), dtype=torch.float32) if len(raw) == 4 * PROJECTIONS else None
