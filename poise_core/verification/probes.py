"""Fixed probes: small rollouts of which the fingerprint's scenario is made, always the same, so that fingerprints can be compared.

The checks of the gate use probes that are drawn (``poise_core.verification.drawn``), and none rests on these alone.

Every probe is drawn from its own generator, so that building one does not change the global random state. A correct
completion always has a valid format, as in training, except where a probe's docstring states otherwise.
"""

from __future__ import annotations

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


def alternating_log_ratios(seed: int) -> Probe:
    """Return an ordinary batch far from the policy that sampled it, with log-ratios of +30 and -30 in turn."""
    probe = ordinary(seed)
    rows, length = probe.logprobs.shape
    signs = torch.where((torch.arange(rows).unsqueeze(-1) + torch.arange(length)) % 2 == 0, 1.0, -1.0)
    old = torch.where(signs > 0, torch.tensor(-30.5), torch.tensor(-0.5))
    reference = torch.where(signs > 0, torch.tensor(-0.5), torch.tensor(-30.5))
    changed = probe.with_batch(old_logprobs=old, ref_logprobs=reference)
    name = "log-ratios alternating between +30 and -30"
    return replace(changed, name=name, logprobs=old + 30.0 * signs)


def graded(seed: int) -> Probe:
    """Return three groups of four completions with fractional correctness in [0, 1]."""
    probe = make_probe("fractional correctness", (4, 4, 4), 8, seed)
    draw = torch.Generator().manual_seed(seed)
    return probe.with_batch(correctness=torch.rand(12, generator=draw), format_valid=torch.ones(12, dtype=torch.bool))
