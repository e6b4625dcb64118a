"""Probes: small, fixed rollouts on which the gate runs a candidate.

Every probe is drawn from its own generator, so that building one does not change the global random state. A correct
completion always has a valid format, as in training, except where a probe's docstring states otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poise_core.contract import Dynamics, RolloutBatch

LENGTH = 12
"""T of an ordinary probe, its length limit."""

START = Dynamics(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, LENGTH)
"""The dynamics of the first step, where nothing has been measured yet and every running value is 0."""

MIDDLE = Dynamics(40, 0.4, 1.1, 0.02, 0.35, 8.0, 0.1, 0.3, 0.8, LENGTH)
LATE = Dynamics(95, 0.95, 0.25, 0.3, 0.7, 5.0, 0.3, 0.1, 2.5, LENGTH)


@dataclass(frozen=True)
class Probe:
    """A rollout with the log-probabilities and entropies of the current policy."""

    name: str
    batch: RolloutBatch
    logprobs: Tensor  # (B, T) current policy
    entropies: Tensor  # (B, T) current policy
    dynamics: Dynamics

    def with_batch(self, **changes: Tensor) -> Probe:
        """Return the same probe with some tensors of the batch replaced."""
        return replace(self, batch=replace(self.batch, **changes))

    def at(self, dynamics: Dynamics) -> Probe:
        """Return the same probe at another state of the training, under its own length limit."""
        limit = self.dynamics.max_completion_length
        return replace(self, dynamics=replace(dynamics, max_completion_length=limit))


def make_probe(
    name: str,
    sizes: Sequence[int],
    length: int,
    seed: int,
    *,
    drift: float = 0.15,
    dynamics: Dynamics = MIDDLE,
    pass_rate: float = 0.5,
) -> Probe:
    """Draw a random rollout.

    Args:
        name: the probe's name in messages.
        sizes: completions per group, in order.
        length: T, and the length limit; completions have 1 to T tokens.
        seed: seed of the generator.
        drift: standard deviation of log(current / old) and log(current / reference).
        dynamics: the state of the training that the candidate receives; its length limit is replaced.
        pass_rate: probability that a completion is correct.
    """
    draw = torch.Generator().manual_seed(seed)
    rows = sum(sizes)
    group_ids = torch.cat([torch.full((size,), 7 + 5 * index, dtype=torch.int64) for index, size in enumerate(sizes)])
    lengths = torch.randint(1, length + 1, (rows,), generator=draw)
    mask = torch.arange(length).expand(rows, length) < lengths.unsqueeze(-1)
    correctness = (torch.rand(rows, generator=draw) < pass_rate).float()
    if pass_rate == 0.5:  # so that most groups are mixed, independent of the draw
        start = 0
        for size in sizes:
            if size > 1:
                correctness[start], correctness[start + 1] = 1.0, 0.0
            start += size
    format_valid = (correctness > 0) | (torch.rand(rows, generator=draw) < 0.5)
    truncated = (lengths == length) & ~format_valid
    old_logprobs = -torch.rand((rows, length), generator=draw) * 2.5 - 0.05
    batch = RolloutBatch(
        correctness=correctness,
        format_valid=format_valid,
        truncated=truncated,
        group_ids=group_ids,
        completion_mask=mask,
        old_logprobs=old_logprobs,
        ref_logprobs=old_logprobs + drift * torch.randn((rows, length), generator=draw),
        entropies=torch.rand((rows, length), generator=draw) * 2.0 + 0.02,
    )
    current = old_logprobs + drift * torch.randn((rows, length), generator=draw)
    entropies = (batch.entropies + 0.1 * torch.randn((rows, length), generator=draw)).clamp(min=0.01)
    return Probe(name, batch, current, entropies, replace(dynamics, max_completion_length=length))


def ordinary(seed: int = 11, dynamics: Dynamics = MIDDLE) -> Probe:
    """Return five groups of six, three mixed, one failed and one passed entirely; some rows hit the length limit."""
    probe = make_probe("an ordinary batch", (6, 6, 6, 6, 6), LENGTH, seed, dynamics=dynamics)
    correctness, valid = probe.batch.correctness.clone(), probe.batch.format_valid.clone()
    mask, truncated = probe.batch.completion_mask.clone(), probe.batch.truncated.clone()
    correctness[18:24], correctness[24:30] = 0.0, 1.0
    valid[18:24] = torch.tensor([True, False, True, False, True, False])
    valid[24:30] = True
    for row in (3, 21):  # wrong, and truncated at the limit
        correctness[row], valid[row], mask[row], truncated[row] = 0.0, False, True, True
    return probe.with_batch(correctness=correctness, format_valid=valid, completion_mask=mask, truncated=truncated)


def _with_log_ratio(name: str, sign: str, seed: int) -> Probe:
    probe = ordinary(seed)
    rows, length = probe.logprobs.shape
    signs = {"+": torch.ones(rows, length), "-": -torch.ones(rows, length)}.get(sign)
    if signs is None:
        signs = torch.where((torch.arange(rows).unsqueeze(-1) + torch.arange(length)) % 2 == 0, 1.0, -1.0)
    old = torch.where(signs > 0, torch.tensor(-30.5), torch.tensor(-0.5))
    reference = torch.where(signs > 0, torch.tensor(-0.5), torch.tensor(-30.5))
    changed = probe.with_batch(old_logprobs=old, ref_logprobs=reference)
    return replace(changed, name=name, logprobs=old + 30.0 * signs)


def alternating_log_ratios(seed: int) -> Probe:
    """Return an ordinary batch far from the policy that sampled it, with log-ratios of +30 and -30 in turn."""
    return _with_log_ratio("log-ratios alternating between +30 and -30", "+-", seed)


def empty_and_full(seed: int) -> Probe:
    """Return an ordinary batch in which every fifth completion is empty and every fifth has full length."""
    probe = ordinary(seed)
    mask = probe.batch.completion_mask.clone()
    mask[0::5], mask[1::5] = False, True
    empty = ~mask.any(-1)
    return replace(
        probe.with_batch(
            completion_mask=mask,
            correctness=torch.where(empty, torch.zeros(()), probe.batch.correctness),
            format_valid=probe.batch.format_valid & ~empty,
            truncated=mask.all(-1) & ~probe.batch.format_valid,
        ),
        name="empty and full-length completions",
    )


def graded(seed: int) -> Probe:
    """Return three groups of four completions with fractional correctness in [0, 1]."""
    probe = make_probe("fractional correctness", (4, 4, 4), 8, seed)
    draw = torch.Generator().manual_seed(seed)
    return probe.with_batch(correctness=torch.rand(12, generator=draw), format_valid=torch.ones(12, dtype=torch.bool))


def far_from_the_limit(seed: int) -> Probe:
    """Return an ordinary batch under a length limit that no completion comes near, so that none is truncated."""
    probe = ordinary(seed)
    probe = probe.with_batch(truncated=torch.zeros_like(probe.batch.truncated))
    dynamics = replace(probe.dynamics, max_completion_length=4096)
    return replace(probe, name="a length limit that no completion comes near", dynamics=dynamics)


def _rounded(seed: int) -> Probe:
    probe = ordinary(seed)

    def rounded(values: Tensor) -> Tensor:
        return values.bfloat16().float() if values.is_floating_point() else values

    fields = {f.name: rounded(getattr(probe.batch, f.name)) for f in dataclasses.fields(probe.batch)}
    return replace(
        probe,
        name="bfloat16-rounded inputs",
        batch=RolloutBatch(**fields),
        logprobs=rounded(probe.logprobs),
        entropies=rounded(probe.entropies),
    )


def edge_probes() -> list[Probe]:
    """Return the probes of the check `finite`, each an edge case that occurs in training."""
    uniform = make_probe("all groups failed", (4, 4, 4), 8, 23)
    rows = uniform.batch.correctness.shape[0]
    half_valid = torch.arange(rows) % 2 == 0
    no, yes = torch.zeros(rows, dtype=torch.bool), torch.ones(rows, dtype=torch.bool)
    probes = [
        ordinary(),
        replace(ordinary(12, START), name="the first step of training"),
        replace(ordinary(13, LATE), name="a late step of training"),
        _with_log_ratio("log-ratios of +30", "+", 14),
        _with_log_ratio("log-ratios of -30", "-", 15),
        alternating_log_ratios(16),
        make_probe("groups of one", (1, 1, 1, 1), 6, 17),
        make_probe("one completion", (1,), 6, 18),
        make_probe("one token per completion", (4, 4), 1, 19),
        make_probe("one token in all", (1,), 1, 25),
        make_probe("uneven group sizes", (1, 2, 3, 7), 9, 20),
        empty_and_full(21),
        graded(22),
        far_from_the_limit(26),
        uniform.with_batch(correctness=torch.zeros(rows), format_valid=half_valid),
        replace(uniform.with_batch(correctness=torch.ones(rows), format_valid=yes), name="all groups passed"),
        replace(
            uniform.with_batch(correctness=torch.full((rows,), 0.5), format_valid=yes), name="equal rewards of 0.5"
        ),
        replace(
            uniform.with_batch(correctness=torch.zeros(rows), format_valid=no, truncated=no),
            name="no completion with a valid format",
        ),
        _rounded(24),
    ]
    return probes
