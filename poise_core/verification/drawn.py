"""Probes that are drawn anew for every verification, so that no constant gives them away.

Kind by kind they are what ``poise_core.verification.probes`` fixes for the fingerprint. Shapes, values, lengths, rewards and
dynamics follow from one seed, which the report names. Half of them are laid out as the trainer lays out a batch (equal groups one
after the other, numbered from 0), the others have rows in any order and groups under any numbers.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from poise_core.contract import Dynamics, RolloutBatch
from poise_core.randomness import hash_key
from poise_core.verification.probes import START, Probe
from poise_core.verification.report import ANY_TRAINING, Conditions

LARGEST_LOG_RATIO = 30.0


LARGEST_GROUP = 64
LONGEST = 4096
"""Completions of a group and tokens of a completion that a probe has at most."""


@dataclass(frozen=True)
class Draw:
    """All that one verification draws; equal seeds draw the same under the same conditions."""

    seed: int
    conditions: Conditions = ANY_TRAINING

    def rng(self, purpose: str) -> random.Random:
        """Return a generator of this purpose's own, which changes no global state."""
        return random.Random(f"{self.seed}/{purpose}")

    def generator(self, purpose: str) -> torch.Generator:
        """Return torch's generator of this purpose."""
        return torch.Generator().manual_seed(hash_key(self.rng(purpose).getrandbits(63)))

    # dynamics

    def dynamics(self, purpose: str, low: float, high: float) -> Dynamics:
        """Draw the state of a training at a progress between ``low`` and ``high``."""
        rng = self.rng(f"dynamics of {purpose}")
        drawn = rng.randint(60, 400)
        steps = self.conditions.steps or drawn
        step = min(
            steps - 1, max(1, round(rng.uniform(low, high) * steps))
        )  # a training of one step has none but the first
        return replace(
            START,
            step=step,
            progress=step / steps,
            entropy=rng.uniform(0.2, 1.5),
            kl=rng.uniform(0.001, 0.3),
            reward_mean=rng.uniform(0.1, 0.8),
            completion_length=rng.uniform(4.0, 10.0),
            clip_fraction=rng.uniform(0.02, 0.3),
            all_fail_fraction=rng.uniform(0.05, 0.5),
            grad_norm=rng.uniform(0.3, 3.0),
        )

    def middle(self, purpose: str) -> Dynamics:
        """Draw the state in the middle of a training."""
        return self.dynamics(purpose, 0.35, 0.65)

    def late(self, purpose: str) -> Dynamics:
        """Draw the state near the end of a training."""
        return self.dynamics(purpose, 0.9, 0.99)

    def start(self, purpose: str) -> Dynamics:
        """Draw the state of the first step: nothing is measured yet, or the first rollout is."""
        if self.rng(f"start of {purpose}").random() < 0.5:
            return START
        first = self.dynamics(purpose, 0.0, 0.0)
        return replace(first, step=0, progress=0.0, kl=0.0, clip_fraction=0.0, grad_norm=0.0)

    # rollouts

    def group(self, rng: random.Random, low: int, high: int) -> int:
        """Completions of a group: those of the training that is verified for, or a number between the two."""
        drawn = rng.randint(low, high)
        return min(self.conditions.group_size or drawn, LARGEST_GROUP)

    def rollout(
        self,
        name: str,
        purpose: str,
        sizes: Sequence[int],
        length: int,
        *,
        drift: float | None = None,
        dynamics: Dynamics | None = None,
    ) -> Probe:
        """Draw a rollout in which every group of two and more is mixed.

        Args:
            name: the probe's name in messages.
            purpose: of the generators.
            sizes: completions per group.
            length: T; completions have 1 to T tokens.
            drift: standard deviation of log(current / old) and log(current / reference); by default drawn around 0.15.
            dynamics: the state of the training; by default one in its middle.
        """
        rng, draw = self.rng(purpose), self.generator(purpose)
        drift = rng.uniform(0.1, 0.25) if drift is None else drift
        rows, shape = sum(sizes), (sum(sizes), length)
        lengths = torch.randint(1, length + 1, (rows,), generator=draw)
        mask = torch.arange(length).expand(shape) < lengths.unsqueeze(-1)
        correctness = (torch.rand(rows, generator=draw) < rng.uniform(0.3, 0.7)).float()
        labels = list(range(len(sizes))) if rng.random() < 0.5 else rng.sample(range(1000), len(sizes))
        first, groups, mixed = 0, [], []
        for label, size in zip(labels, sizes, strict=True):
            groups += [label] * size
            if size > 1:
                mixed.append(rng.sample(range(first, first + size), 2))
            first += size
        if mixed:
            right, wrong = torch.tensor(mixed).T
            correctness.index_fill_(0, right, 1.0).index_fill_(0, wrong, 0.0)
        valid = (correctness > 0) | (torch.rand(rows, generator=draw) < rng.uniform(0.3, 0.8))
        spread, power = rng.uniform(1.5, 4.0), rng.choice((1, 2, 3))  # sampled tokens are often nearly certain
        old = -(torch.rand(shape, generator=draw) ** power) * spread - rng.uniform(0.01, 0.06)
        entropies = torch.rand(shape, generator=draw) ** power * rng.uniform(1.0, 2.5) + 0.02
        batch = RolloutBatch(
            correctness=correctness,
            format_valid=valid,
            truncated=(lengths == length) & ~valid,
            group_ids=torch.tensor(groups),
            completion_mask=mask,
            old_logprobs=old,
            ref_logprobs=old + drift * torch.randn(shape, generator=draw),
            entropies=entropies,
        )
        current = old + drift * torch.randn(shape, generator=draw)
        now = (entropies + 0.1 * torch.randn(shape, generator=draw)).clamp(min=0.01)
        state = replace(dynamics or self.middle(purpose), max_completion_length=length)
        probe = Probe(name, batch, current, now, state)
        return permuted(probe, torch.randperm(rows, generator=draw)) if rng.random() < 0.5 else probe

    def ordinary(self, purpose: str, dynamics: Dynamics | None = None) -> Probe:
        """Draw at least five equal groups, one failed and one passed entirely, the others mixed; two wrong rows are truncated."""
        rng = self.rng(f"ordinary {purpose}")
        size, length = self.group(rng, 5, 8), rng.randint(8, 16)
        probe = self.rollout("an ordinary batch", purpose, [size] * rng.randint(5, 7), length, dynamics=dynamics)
        batch = probe.batch
        groups, correctness = batch.group_ids.tolist(), batch.correctness.tolist()
        valid, truncated = batch.format_valid.tolist(), batch.truncated.tolist()
        failed, passed, other = rng.sample(sorted(set(groups)), 3)
        rows: dict[int, list[int]] = {group: [] for group in groups}
        for row, group in enumerate(groups):
            rows[group].append(row)
        for place, row in enumerate(rows[failed]):
            correctness[row], valid[row] = 0.0, place % 2 == 0
            truncated[row] = truncated[row] and not valid[row]
        for row in rows[passed]:
            correctness[row], valid[row], truncated[row] = 1.0, True, False
        full = [max(row for row in rows[group] if correctness[row] == 0) for group in (failed, other)]
        for row in full:
            valid[row], truncated[row] = False, True
        return probe.with_batch(
            correctness=torch.tensor(correctness),
            format_valid=torch.tensor(valid),
            completion_mask=batch.completion_mask.index_fill(0, torch.tensor(full), True),
            truncated=torch.tensor(truncated),
        )

    def log_ratios(self, name: str, purpose: str, sign: str) -> Probe:
        """Draw an ordinary batch far from the policy that sampled it; the signs are +, - or both."""
        probe, draw = self.ordinary(purpose), self.generator(f"log-ratios {purpose}")
        shape = probe.logprobs.shape
        signs = torch.where(torch.rand(shape, generator=draw) < 0.5, 1.0, -1.0)
        signs = {"+": torch.ones(shape), "-": -torch.ones(shape)}.get(sign, signs)
        size = LARGEST_LOG_RATIO - 6.0 * torch.rand(shape, generator=draw) ** 2
        near = -0.2 - torch.rand(shape, generator=draw)
        old, reference = (torch.where(signs == far, near - size, near) for far in (1.0, -1.0))
        changed = probe.with_batch(old_logprobs=old, ref_logprobs=reference)
        return replace(changed, name=name, logprobs=old + size * signs)

    def empty_and_full(self, purpose: str) -> Probe:
        """Draw an ordinary batch in which every fifth completion is empty and every fifth has full length."""
        probe, first = self.ordinary(purpose), self.rng(f"empty {purpose}").randint(0, 4)
        mask = probe.batch.completion_mask.clone()
        mask[first::5], mask[(first + 2) % 5 :: 5] = False, True
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

    def uneven(self, purpose: str, length: int | None = None, drift: float | None = None) -> Probe:
        """Draw groups of different sizes, one of them a single completion."""
        rng = self.rng(f"uneven {purpose}")
        sizes = [1, rng.randint(2, 3), rng.randint(4, 6), rng.randint(4, 7)]
        rng.shuffle(sizes)
        return self.rollout("uneven group sizes", purpose, sizes, length or rng.randint(6, 11), drift=drift)

    def graded(self, purpose: str, dynamics: Dynamics | None = None) -> Probe:
        """Draw three groups with fractional correctness in [0, 1]."""
        rng = self.rng(f"graded {purpose}")
        sizes, length = [rng.randint(3, 6)] * 3, rng.randint(6, 10)
        probe = self.rollout("fractional correctness", purpose, sizes, length, dynamics=dynamics)
        rewards = torch.rand(sum(sizes), generator=self.generator(f"rewards {purpose}"))
        valid = torch.ones(sum(sizes), dtype=torch.bool)
        return probe.with_batch(correctness=rewards, format_valid=valid, truncated=~valid)

    def first_update(self, purpose: str) -> Probe:
        """Draw an ordinary batch at the first update of a training, where the policy, the sampler and the reference are one."""
        probe = self.ordinary(purpose, self.start(purpose))
        same = probe.with_batch(ref_logprobs=probe.batch.old_logprobs)
        return replace(same, logprobs=probe.batch.old_logprobs, entropies=probe.batch.entropies)

    # what the checks use

    def scenario(self, number: int) -> Iterator[Probe]:
        """Draw, one by one, a short training of five probes of the kinds of the fingerprint's scenario."""
        purposes = [f"scenario {number} probe {index}" for index in range(5)]
        yield self.ordinary(purposes[0], self.start(purposes[0]))
        yield self.ordinary(purposes[1], self.dynamics(purposes[1], 0.04, 0.15))
        yield self.uneven(purposes[2], drift=0.6)
        yield self.log_ratios("far off-policy", purposes[3], "both")
        yield self.graded(purposes[4], self.late(purposes[4]))

    def states(self) -> list[Dynamics]:
        """Draw the states of a training on which a controller is tried, in their order, the last one extreme."""
        late = self.late("last state")
        return [
            self.start("first state"),
            self.dynamics("early state", 0.01, 0.1),
            self.middle("middle state"),
            self.late("late state"),
            replace(late, entropy=0.0, kl=50.0, grad_norm=1e4),
        ]

    def one_token(self) -> Probe:
        """Draw a batch of one completion of one token."""
        return self.rollout("one token in all", "one token", [1], 1)

    def far_from_the_limit(self, purpose: str) -> Probe:
        """Draw an ordinary batch under a length limit that no completion comes near, so that none is truncated."""
        probe = self.ordinary(purpose)
        probe = probe.with_batch(truncated=torch.zeros_like(probe.batch.truncated))
        limit = max(self.rng(f"limit of {purpose}").randint(1000, 5000), self.conditions.max_completion_length or 0)
        state = replace(probe.dynamics, max_completion_length=limit)
        return replace(probe, name="a length limit that no completion comes near", dynamics=state)

    def reach(self, numbers: Sequence[float]) -> Iterator[tuple[bool, Callable[[], Probe]]]:
        """Name probes far from the ordinary ones, for mechanisms that act seldom: long trainings, large groups, long completions.

        Args:
            numbers: those that stand in the candidate's file: thresholds, numbers of steps, of completions or of tokens.

        Yields:
            Whether the probe lies within the conditions, and what draws it; its name says what is special in it.
        """
        near = sorted({round(number) for number in numbers if 2 <= number <= 1_000_000})[:12]
        steps, size, limit = self.conditions.steps, self.conditions.group_size, self.conditions.max_completion_length
        if steps:
            for share in (0.02, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 0.98):
                yield True, partial(self._at_step, min(round(steps * share), steps - 1), steps)
        if limit:
            yield True, partial(self._long, min(limit, LONGEST), limit)
        for number in range(8):
            yield size is None or size <= LARGEST_GROUP, partial(self._unusual, number)
        for step in (*near, 500, 5_000, 100_000):
            for at, of in ((step, 2 * step), (step + 1, 40 * step), (2 * step, 2 * step + step // 20 + 1)):
                yield steps is None or at < steps, partial(self._at_step, at, of)
        for group in (*near, 16, 32, LARGEST_GROUP):
            for rate in (0.1, 0.5, 0.9):
                if group < LARGEST_GROUP:
                    yield size is None or group + 1 <= size, partial(self._of_groups, group + 1, rate)
                if 2 * group <= LARGEST_GROUP:
                    yield size is None or 2 * group <= size, partial(self._of_groups, 2 * group, rate)
        for length in (*near, 64, 512):
            if length <= LONGEST:
                yield limit is None or length <= limit, partial(self._long, length, length)
                yield limit is None or 2 * length <= limit, partial(self._long, min(2 * length, LONGEST), 2 * length)

    def _at_step(self, step: int, steps: int) -> Probe:
        purpose = f"step {step} of {steps}"
        state = replace(self.middle(purpose), step=step, progress=min(step / steps, 0.999))
        return replace(self.ordinary(purpose, state), name=f"step {step} of {steps}")

    def _of_groups(self, size: int, rate: float) -> Probe:
        purpose = f"groups of {size}, of which {rate:.0%} is right"
        probe = self.rollout(purpose, purpose, [size] * 4, 8)
        right = torch.rand(probe.logprobs.shape[0], generator=self.generator(f"rewards of {purpose}")) < rate
        return probe.with_batch(correctness=right.float(), format_valid=probe.batch.format_valid | right)

    def _long(self, length: int, limit: int) -> Probe:
        probe = self.rollout(f"completions of up to {length} tokens", f"length {length} of {limit}", [4, 4], length)
        return replace(probe, dynamics=replace(probe.dynamics, max_completion_length=limit))

    def _unusual(self, number: int) -> Probe:
        """An ordinary batch at which every running value is very small or very large."""
        rng, purpose = self.rng(f"unusual {number}"), f"unusual {number}"
        probe = self.ordinary(purpose)
        extremes = {
            "entropy": (0.01, 4.0), "kl": (0.0, 20.0), "reward_mean": (0.01, 0.99), "clip_fraction": (0.0, 0.9),
            "completion_length": (1.0, float(probe.dynamics.max_completion_length)), "all_fail_fraction": (0.0, 0.97),
            "grad_norm": (0.01, 100.0),
        }  # fmt: skip
        drawn: dict[str, Any] = {name: rng.choice(pair) for name, pair in extremes.items()}
        state = replace(probe.dynamics, **drawn)
        return replace(probe, name="unusual dynamics", dynamics=state)

    def at_the_limit(self, purpose: str) -> Probe:
        """Draw two groups whose completions come near the length limit, of which a probe has at most 512 tokens."""
        rng = self.rng(f"near the limit {purpose}")
        limit = min(self.conditions.max_completion_length or rng.randint(24, 48), 512)
        probe = self.rollout("completions near the length limit", purpose, [min(self.group(rng, 3, 5), 8)] * 2, limit)
        short = probe.batch.completion_mask.sum(-1, keepdim=True) // 4  # the last quarter of the limit, and the limit
        mask = torch.arange(limit).expand(probe.logprobs.shape) < limit - short
        cut = mask.all(-1) & ~probe.batch.format_valid
        return probe.with_batch(completion_mask=mask, truncated=cut)

    def edge_probes(self) -> list[Probe]:
        """Draw the probes of the check `finite`, each an edge case that occurs in training, the ordinary one first."""
        rng = self.rng("edges")
        size = rng.randint(3, 6)
        uniform = self.rollout("all groups failed", "uniform", [size] * 3, rng.randint(6, 10))
        rows = 3 * size
        half_valid = torch.arange(rows) % 2 == 0
        no, yes = torch.zeros(rows, dtype=torch.bool), torch.ones(rows, dtype=torch.bool)
        failed = uniform.with_batch(correctness=torch.zeros(rows), format_valid=half_valid)
        passed = uniform.with_batch(correctness=torch.ones(rows), format_valid=yes, truncated=no)
        tied = passed.with_batch(correctness=torch.full((rows,), 0.5))
        return [
            self.ordinary("ordinary"),
            replace(self.first_update("first"), name="the first step of training"),
            replace(self.ordinary("late", self.late("late")), name="a late step of training"),
            self.log_ratios("log-ratios of up to +30", "high", "+"),
            self.log_ratios("log-ratios of down to -30", "low", "-"),
            self.log_ratios("log-ratios between -30 and +30", "both", "both"),
            self.rollout("groups of one", "groups of one", [1] * rng.randint(3, 6), rng.randint(4, 8)),
            self.rollout("one completion", "one completion", [1], rng.randint(4, 8)),
            self.rollout("one token per completion", "one token each", [rng.randint(3, 5)] * 2, 1),
            self.one_token(),
            self.uneven("uneven"),
            self.empty_and_full("empty and full"),
            self.graded("graded"),
            self.far_from_the_limit("far from the limit"),
            self.at_the_limit("at the limit"),
            failed,
            replace(passed, name="all groups passed"),
            replace(tied, name="equal rewards of 0.5"),
            replace(failed.with_batch(format_valid=no, truncated=no), name="no completion with a valid format"),
            _rounded(self.ordinary("rounded")),
        ]


def permuted(probe: Probe, order: Tensor) -> Probe:
    """Return the probe with its completions in another order."""
    batch = RolloutBatch(**{f.name: getattr(probe.batch, f.name)[order] for f in dataclasses.fields(probe.batch)})
    return replace(probe, batch=batch, logprobs=probe.logprobs[order], entropies=probe.entropies[order])


def _rounded(probe: Probe) -> Probe:
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
