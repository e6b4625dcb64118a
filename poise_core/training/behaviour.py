"""Whether a candidate behaves in training as it did in the gate.

A gate can only show how a file behaves on the gate's batches. So the trainer looks again. On real batches, which nobody made
for the candidate, the file is loaded anew and must compute the same when completions have another order, groups other numbers,
rows more padding, and a micro-batch another split or its rows several times over. And once it has seen a real batch, it must
still have the fingerprint with which it was admitted. The first two steps of every process are looked at, and later ones that
no candidate can foresee. Nothing of this touches the training: the numbers of a trajectory are the same with it and without it.

What is compared are relative differences of whole tensors. Honest files stay at rounding, about 1e-6. One token that rounding moves
over a threshold changes a batch of n tokens by about 1 / sqrt(n), so ``LIMIT`` lets that pass; what differs by less is no
other algorithm.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from poise_core.candidate.loading import Candidate, CandidateError, load_candidate_source
from poise_core.contract import Dynamics, LossInputs, RolloutBatch
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.training.algorithm import Algorithm, MicroLoss, TrainingSignal
from poise_core.verification.fingerprint import fingerprint, observe, sketched_distance
from poise_core.verification.harness import ties_alone

FIRST_STEPS = 2
LATER_SHARE = 1 / 16
"""Of the later steps. A file that behaves otherwise from some step on is found out within 16 steps on average."""

LIMIT = 0.05
FLOOR = 1e-5
"""Per entry: a difference below it is rounding, whatever it is relative to."""

SAME_FINGERPRINT = 0.01
"""Of sketches, over the whole scenario; other threads and another processor move it by about 1e-6."""


class Recheck:
    """Looks at some steps of the trainings of one candidate in one process."""

    def __init__(self, candidate: Candidate, max_length: int, admitted: str | None = None) -> None:
        """Begin.

        Args:
            candidate: as the trainer uses it.
            max_length: T of the length limit.
            admitted: the fingerprint with which the gate admitted it; None where it has none.
        """
        self._candidate, self._max_length, self._admitted = candidate, max_length, admitted
        self._chance = random.SystemRandom()
        self._steps = 0
        self._fresh: Algorithm | None = None

    def begin_step(self) -> None:
        """Decide whether this step is looked at.

        Raises:
            CandidateFailure: INCONSISTENT, the file does not load a second time.
        """
        due = self._steps < FIRST_STEPS or self._chance.random() < LATER_SHARE
        self._fresh = Algorithm(_loaded_anew(self._candidate), self._max_length) if due else None
        self._steps += 1

    def end_step(self) -> None:
        """After the first step: compare the behaviour on the fingerprint's scenario with what the gate has seen.

        Raises:
            CandidateFailure: INCONSISTENT, it has seen a real batch and has another fingerprint now.
        """
        if self._admitted is None or self._steps != 1:
            return
        distance = sketched_distance(fingerprint(observe(self._candidate)), self._admitted)
        if SAME_FINGERPRINT < distance < float("inf"):  # infinite where what was archived is no fingerprint
            raise CandidateFailure(
                FailureKind.INCONSISTENT,
                "train",
                f"on the batches of its fingerprint it behaves otherwise than in the gate (distance {distance:.2g}); an algorithm "
                "depends on its arguments alone",
            )

    def signal(self, batch: RolloutBatch, dynamics: Dynamics, found: TrainingSignal) -> None:
        """Compare the advantages of a real batch with those of the same batch in another dress.

        Raises:
            CandidateFailure: INCONSISTENT, or what the candidate raises.
        """
        if self._fresh is None:
            return
        order = self._order(len(batch.group_ids))
        back, length = order.argsort(), batch.completion_mask.shape[1]
        other = self._fresh.signal(self._dressed(batch, order), dynamics)
        trained, again = found.mask, other.mask[back, :length]
        if not torch.equal(trained, again) and ties_alone(batch, trained, again):
            trained = trained & again  # which of several completions with one outcome train may go by their order
            again = trained
        self._same("compute_advantages", "the mask", dynamics, trained.float(), again.float())
        pair = (torch.where(trained, values, 0.0) for values in (found.advantages, other.advantages[back, :length]))
        self._same("compute_advantages", "advantages", dynamics, *pair)
        if found.carry.keys() != other.carry.keys():
            raise self._failure("compute_advantages", "the names of carried signals", dynamics, 1.0)
        for name, value in found.carry.items():
            carried = other.carry[name][back]
            inside = (
                trained if value.dim() == 2 else trained.any(-1) | (found.mask == other.mask[back, :length]).all(-1)
            )
            carried = carried[:, :length] if value.dim() == 2 else carried
            zero = torch.zeros_like(value)
            pair = (torch.where(inside, values, zero) for values in (value, carried))
            self._same("compute_advantages", "a carried signal", dynamics, *pair)

    def loss(self, inputs: LossInputs, dynamics: Dynamics, tokens: float, sequences: float, found: MicroLoss) -> None:
        """Compare loss and gradient of a real micro-batch with the sums over its parts in another dress.

        Raises:
            CandidateFailure: INCONSISTENT, or what the candidate raises.
        """
        if self._fresh is None:
            return
        length, total = inputs.mask.shape[1], 0.0
        gradients = [torch.zeros_like(found.grad_logprobs), torch.zeros_like(found.grad_entropies)]
        for rows, times, part in self._parts(inputs):
            again = self._fresh.loss(part, dynamics, tokens, sequences)
            total += again.value / times
            for gradient, own in zip(gradients, (again.grad_logprobs, again.grad_entropies), strict=True):
                gradient[rows] = own[: len(rows), :length]
        trained = max(tokens, 1.0)  # gradients are shares of a mean over tokens
        value = torch.tensor([found.value, total])
        self._same("compute_loss", "the loss", dynamics, value[:1], value[1:])
        for what, own, gradient in zip(
            ("logprobs", "entropies"), (found.grad_logprobs, found.grad_entropies), gradients, strict=True
        ):
            self._same("compute_loss", f"the gradient of {what}", dynamics, own * trained, gradient * trained)

    # the other dress

    def _order(self, rows: int) -> Tensor:
        order = list(range(rows))
        self._chance.shuffle(order)
        return torch.tensor(order)

    def _wide(self, values: Tensor, columns: int) -> Tensor:
        return functional.pad(values, (0, columns)) if values.dim() == 2 else values

    def _dressed(self, batch: RolloutBatch, order: Tensor) -> RolloutBatch:
        order = order.to(batch.group_ids.device)
        unique, inverse = torch.unique(batch.group_ids, return_inverse=True)
        labels = torch.tensor(self._chance.sample(range(10**6), unique.numel()), device=inverse.device)
        columns = self._chance.randint(1, 3)
        dressed = replace(batch, group_ids=labels[inverse])
        return replace(
            dressed, **{f.name: self._wide(getattr(dressed, f.name)[order], columns) for f in fields(dressed)}
        )

    def _parts(self, inputs: LossInputs) -> Iterator[tuple[Tensor, int, LossInputs]]:
        """Two parts of a micro-batch, as (rows, times, inputs); one of them holds its rows several times over.

        A file must not behave otherwise in small batches than in large ones.
        """
        count = len(inputs.mask)
        order = self._order(count).to(inputs.mask.device)
        repeated = self._chance.randrange(2) if count > 1 else 0
        for number, rows in enumerate(order.tensor_split([self._chance.randint(1, count - 1)] if count > 1 else 1)):
            columns = self._chance.randint(1, 3)
            many = self._chance.randint(4 * count, 8 * count + 64)  # rows, more than the trainer ever calls with
            times = -(-many // len(rows)) if number == repeated else 1

            taken = rows.repeat(times)

            def cut(values: Tensor, taken: Tensor = taken, columns: int = columns) -> Tensor:
                return self._wide(values.detach()[taken], columns)

            tensors = {f.name: cut(getattr(inputs, f.name)) for f in fields(inputs) if f.name != "carry"}
            carry: Mapping[str, Tensor] = {name: cut(value) for name, value in inputs.carry.items()}
            yield rows, times, LossInputs(**tensors, carry=carry)

    # the comparison

    def _same(self, function: str, what: str, dynamics: Dynamics, found: Tensor, again: Tensor) -> None:
        scale = max(float(found.double().norm()), float(again.double().norm()))
        apart = float((found.double() - again.double()).norm())
        if apart > LIMIT * scale + FLOOR * max(1, found.numel()) ** 0.5:
            raise self._failure(function, what, dynamics, apart / scale)

    @staticmethod
    def _failure(function: str, what: str, dynamics: Dynamics, apart: float) -> CandidateFailure:
        return CandidateFailure(
            FailureKind.INCONSISTENT,
            "train",
            f"on a real batch {function} changes {what} by {apart:.0%} when the file is loaded anew and completions, group ids, "
            f"padding and micro-batches are arranged otherwise (step {dynamics.step}); it did not do so in the gate: let "
            "results depend on the arguments' values alone",
        )


def _loaded_anew(candidate: Candidate) -> Candidate:
    try:
        fresh: Any = load_candidate_source(candidate.source, candidate.name)
    except CandidateError as error:
        raise CandidateFailure(
            FailureKind.INCONSISTENT, "train", f"the file does not load a second time: {error}"
        ) from error
    return replace(fresh, hyperparameters=candidate.hyperparameters)
