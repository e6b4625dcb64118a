"""The trainer, which is independent of the algorithm: rollouts, advantages, minibatch updates.

In one step every process samples its share of the completions of the next prompts. The global batch is gathered, and the
candidate turns it into advantages. For every minibatch of every inner epoch the candidate's token losses are masked,
reduced with global denominators and back-propagated. All random numbers derive from (seed, step), so that a resumed
training goes on exactly, and results do not depend on the number of processes.

Log-probabilities of the initial policy and entropies with gradient are computed only for candidates that read them, and are NaN
for others. The KL of the trajectory is then measured on every ``KL_MONITOR_STRIDE``-th completion.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from poise_core.candidate.calls import handed_inputs
from poise_core.candidate.loading import Candidate
from poise_core.config import ResourceSpec
from poise_core.config.protocol import TrainingSpec
from poise_core.contract import Dynamics, LossInputs, RolloutBatch
from poise_core.environments import Environment, Problem, verify_all
from poise_core.environments.prompts import step_problems
from poise_core.evaluation.kept import (
    COMPLETION_CHARACTERS,
    PROMPT_CHARACTERS,
    TRAINING,
    KeptCompletion,
    cut,
    kept_rows,
)
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.policies.model import PromptCodec
from poise_core.randomness import ROLLOUT, hash_key, uniforms
from poise_core.reductions import group_max, group_min, masked_mean
from poise_core.sampling.local import rows_within, sample_in_batches
from poise_core.sampling.scoring import returns_products, score_completions, separates_packed
from poise_core.training.algorithm import Algorithm, MicroLoss, TrainingSignal, not_finite
from poise_core.training.batches import GlobalBatch, Rendezvous, gather_batch, importance_weights, mismatch
from poise_core.training.behaviour import Recheck
from poise_core.training.engine import Engine, micro_batch_count

KL_MONITOR_STRIDE = 8
RUNNING_WEIGHT = 0.9
KEPT_STEPS = 5
"""Steps of a training that keep completions to be read."""

_ORDER = 2  # purpose in the keys of random streams, beside ROLLOUT


@dataclass
class TrainerState:
    """The state that a checkpoint holds beside weights and optimizer."""

    step: int = 0
    running: dict[str, float] = field(default_factory=dict)
    controller: dict[str, float] = field(default_factory=dict)


class Trainer:
    """The training of one policy with one candidate and one seed."""

    def __init__(
        self,
        candidate: Candidate,
        engine: Engine,
        reference: Any,
        codec: PromptCodec,
        environment: Environment | None,
        problems: list[Problem],
        training: TrainingSpec,
        resources: ResourceSpec,
        seed: int,
        *,
        rank: int,
        device: torch.device,
        fingerprint: str | None = None,
        rendezvous: Rendezvous | None = None,
    ) -> None:
        self.recheck = Recheck(candidate, training.max_completion_length, fingerprint)
        self.algorithm = Algorithm(candidate, training.max_completion_length)
        self.candidate, self.engine, self.reference, self.codec = candidate, engine, reference, codec
        self.environment, self.problems, self.training, self.resources = environment, problems, training, resources
        self.seed, self.rank, self.device = seed, rank, device
        self.state = TrainerState()
        self.rendezvous = rendezvous
        self.kept: list[KeptCompletion] = []  # a few completions of the last step, where it is one that keeps some
        self._importance: Tensor | None = None  # (B, T), of this step; None where the trainer samples itself
        self._packed, self._tiled = separates_packed(reference), returns_products(reference)
        # decoding and scoring agree in float32; in other types they round otherwise, and what a candidate sees is of one kind
        self._exact = next(engine.model.parameters()).dtype == torch.float32

    def steps(self) -> Iterator[dict[str, float]]:
        """Run the remaining steps, yielding one trajectory row after each.

        Raises:
            CandidateFailure: the candidate raised, broke the contract, computed a number that is not finite, or behaved otherwise
                than in the gate.
        """
        while self.state.step < self.training.steps:
            yield self._step()

    def _step(self) -> dict[str, float]:
        started = time.perf_counter()
        batch = self._rollout()
        self._importance = importance_weights(batch, self.rendezvous.spec if self.rendezvous else None)
        self.kept = self._completions_to_read(batch) if self._keeps else []
        row = self._rollout_metrics(batch)
        self._follow(row, ("entropy", "kl", "reward_mean", "completion_length", "all_fail_fraction"))
        row["seconds_rollout"] = time.perf_counter() - started
        started = time.perf_counter()
        dynamics = self._dynamics()
        self.recheck.begin_step()
        signal = self.algorithm.signal(self._as_seen(batch), dynamics)
        self.recheck.signal(self._as_seen(batch), dynamics, signal)
        row["learning_rate"] = self.engine.learning_rate
        row.update(self._update(batch, signal, dynamics))
        self.recheck.end_step()
        row["seconds_update"] = time.perf_counter() - started
        self._follow(row, ("clip_fraction", "grad_norm"))
        self.state.controller = self.algorithm.controller(self.state.controller, self._dynamics())
        row.update({f"controller/{key}": value for key, value in self.state.controller.items()})
        row["step"] = float(self.state.step)
        self.state.step += 1
        return row

    @property
    def _keeps(self) -> bool:
        """Whether this step keeps completions: the first, the last, and a few evenly between them, on one process."""
        last = self.training.steps - 1
        kept = {round(number * last / (KEPT_STEPS - 1)) for number in range(KEPT_STEPS)}
        return self.rank == 0 and self.state.step in kept

    def _completions_to_read(self, batch: GlobalBatch) -> list[KeptCompletion]:
        lengths = batch.completion_mask.sum(-1).tolist()
        correctness, valid, truncated = (
            value.tolist() for value in (batch.correctness, batch.format_valid, batch.truncated)
        )
        chosen = kept_rows(correctness, valid, lengths)
        rows = torch.tensor(list(chosen.values()), device=self.device)
        asked = zip(batch.prompt_ids[rows], batch.prompt_mask[rows], strict=True)
        prompts = [self.codec.tokenizer.decode(ids[mask].tolist()) for ids, mask in asked]
        texts = self.codec.decode(batch.completion_ids[rows], batch.completion_mask[rows])
        return [
            KeptCompletion(
                TRAINING,
                self.state.step,
                kind,
                cut(prompt, PROMPT_CHARACTERS),
                cut(text, COMPLETION_CHARACTERS),
                float(correctness[row]),
                bool(valid[row]),
                bool(truncated[row]),
                int(lengths[row]),
            )
            for (kind, row), prompt, text in zip(chosen.items(), prompts, texts, strict=True)
        ]

    # rollout

    def _rollout(self) -> GlobalBatch:
        spec, step = self.training, self.state.step
        own = spec.batch_size // self.engine.world_size
        rows = range(self.rank * own, (self.rank + 1) * own)
        if self.rendezvous is not None:
            return gather_batch(self._with_reference(self._handed(self.rendezvous, rows)), spec.max_completion_length)
        assert self.environment is not None
        problems = step_problems(self.problems, spec, step)
        groups = torch.tensor([row // spec.group_size for row in rows])
        ids, mask = self.codec.encode(
            [problem.prompt for problem in problems]
        )  # whole batch, for one width on all processes
        present, counts = torch.unique(groups, return_counts=True)
        noise = uniforms(spec.batch_size, spec.max_completion_length, self.seed, step, ROLLOUT)[rows.start : rows.stop]
        with self.engine.whole_model() as model:
            width = ids.shape[1] + spec.max_completion_length
            sampled = sample_in_batches(
                model,
                ids[present].to(self.device),
                mask[present].to(self.device),
                counts.to(self.device),
                rows=rows_within(model, width, self.resources.sampler.memory_gib),
                max_length=spec.max_completion_length,
                eos_ids=self.codec.eos_ids,
                pad_id=self.codec.pad_id,
                noise=noise,
                temperature=spec.temperature,
                stops=self.codec.stops,
            )
        texts = self.codec.decode(sampled.ids, sampled.mask)
        verdicts = verify_all(self.environment, [problems[int(g)] for g in groups], texts)
        correctness = torch.tensor([v.correctness for v in verdicts], device=self.device)
        valid = torch.tensor([v.format_valid for v in verdicts], device=self.device) & ~sampled.truncated
        groups = groups.to(self.device)
        prompt_ids, prompt_mask = ids.to(self.device)[groups], mask.to(self.device)[groups]
        batch = GlobalBatch(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=sampled.ids,
            completion_mask=sampled.mask,
            old_logprobs=sampled.logprobs,
            sampler_logprobs=sampled.logprobs,
            ref_logprobs=torch.zeros_like(sampled.logprobs),
            entropies=sampled.entropies,
            correctness=torch.where(valid, correctness, torch.zeros_like(correctness)),
            format_valid=valid,
            truncated=sampled.truncated,
            group_ids=groups,
        )
        if not self._exact:
            batch = self._rescored(batch)
        return gather_batch(self._with_reference(batch), spec.max_completion_length)

    def _handed(self, rendezvous: Rendezvous, rows: range) -> GlobalBatch:
        """Have another process sample and grade, and compute log-probabilities and entropies with the trainer's own model."""
        with self.engine.whole_model() as model:
            rendezvous.hand_over(model, self.seed, self.state.step, writes=self.rank == 0)
        return self._rescored(
            rendezvous.rollout(self.seed, self.state.step, rows, self.training.group_size, self.device)
        )

    @torch.no_grad()
    def _rescored(self, batch: GlobalBatch) -> GlobalBatch:
        """Replace log-probabilities and entropies by those of the trainer's own pass over the completions."""
        old, spread = torch.zeros_like(batch.sampler_logprobs), torch.zeros_like(batch.sampler_logprobs)
        rows = torch.arange(len(old), device=self.device)
        budget = self.resources.micro_batch_tokens
        parts = batch.own_by_tokens(budget) if budget else self._parts(batch, [rows], 0)
        for chunk in parts:
            part = batch.select(chunk)
            logprobs, entropies = self._score(self.engine.model, part, entropies=True)
            old[chunk, : logprobs.shape[1]], spread[chunk, : logprobs.shape[1]] = logprobs, entropies
        return replace(batch, old_logprobs=old, entropies=spread)

    @torch.no_grad()
    def _with_reference(self, batch: GlobalBatch) -> GlobalBatch:
        rows = self._measured(self.rank * len(batch.group_ids), len(batch.group_ids)).nonzero().squeeze(-1)
        if not len(rows):
            return batch
        for chunk in self._parts(batch, [rows], 0):
            part = batch.select(chunk)
            scored, _ = self._score(self.reference, part, entropies=False)
            batch.ref_logprobs[chunk, : scored.shape[1]] = torch.where(
                part.completion_mask, scored, torch.zeros_like(scored)
            )
        return batch

    def _parts(self, batch: GlobalBatch, shares: Sequence[Tensor], rank: int) -> tuple[Tensor, ...]:
        """Split the rows of a process, of which every process has a share, into those of each forward pass."""
        if budget := self.resources.micro_batch_tokens:
            return batch.by_tokens(shares, rank, budget)
        own = shares[rank]
        return batch.by_length(own, micro_batch_count(len(own), self.resources.micro_batch_size))

    def _score(self, model: Any, part: GlobalBatch, *, entropies: bool) -> tuple[Tensor, Tensor]:
        return score_completions(
            model,
            part.prompt_ids,
            part.prompt_mask,
            part.completion_ids,
            part.completion_mask,
            temperature=self.training.temperature,
            entropies=entropies,
            packed=self._packed,
            tiled=self._tiled,
        )

    def _rollout_metrics(self, batch: GlobalBatch) -> dict[str, float]:
        mask, correctness, groups = batch.completion_mask, batch.correctness, batch.group_ids
        measured = self._measured(0, len(groups))
        log_ratio = (batch.ref_logprobs - batch.old_logprobs).clamp(-20, 20)
        k3 = log_ratio.exp() - log_ratio - 1
        lengths = mask.sum(-1).float()
        return {
            "reward_mean": float(correctness.mean()),
            "format_valid": float(batch.format_valid.float().mean()),
            "truncated": float(batch.truncated.float().mean()),
            "completion_length": float(lengths.mean()),
            "entropy": float(masked_mean(batch.entropies, mask)),
            "kl": float(masked_mean(k3, mask & measured.unsqueeze(-1))),
            "all_fail_fraction": float((group_max(correctness, groups) <= 0).float().mean()),
            "all_pass_fraction": float((group_min(correctness, groups) >= 1).float().mean()),
            "tokens": float(lengths.sum()),
            **mismatch(batch),
        }

    def _measured(self, first: int, count: int) -> Tensor:
        """Mark the rows of the global batch, from ``first``, whose reference log-probabilities are computed. (count,) bool."""
        rows = torch.arange(first, first + count, device=self.device)
        return rows % (1 if self.candidate.reads_reference else KL_MONITOR_STRIDE) == 0

    def _as_seen(self, batch: GlobalBatch) -> RolloutBatch:
        """Return what the candidate is handed of the batch."""
        return RolloutBatch(
            correctness=batch.correctness,
            format_valid=batch.format_valid,
            truncated=batch.truncated,
            group_ids=batch.group_ids,
            completion_mask=batch.completion_mask,
            old_logprobs=batch.old_logprobs,
            ref_logprobs=batch.ref_logprobs,
            entropies=batch.entropies,
        )

    # update

    def _update(self, batch: GlobalBatch, signal: TrainingSignal, dynamics: Dynamics) -> dict[str, float]:
        spec = self.training
        sums: dict[str, float] = {}
        norms: list[float] = []
        for epoch in range(spec.inner_epochs):
            generator = torch.Generator().manual_seed(hash_key(self.seed, self.state.step, _ORDER, epoch))
            order = torch.randperm(spec.batch_size, generator=generator).to(self.device)
            norms += [self._minibatch(batch, signal, rows, dynamics, sums) for rows in order.chunk(spec.minibatches)]
        updates = len(norms)
        result = {key: value / updates for key, value in self._over_processes(sums).items()}
        result.setdefault("clip_fraction", 0.0)
        result["grad_norm"] = sum(norms) / updates
        return result

    def _minibatch(
        self, batch: GlobalBatch, signal: TrainingSignal, rows: Tensor, dynamics: Dynamics, sums: dict[str, float]
    ) -> float:
        """Make one optimizer update, add this process's share of loss and metrics to ``sums``, and return the gradient norm."""
        mask = signal.mask[rows]
        tokens, sequences = float(mask.sum()), float(mask.any(-1).sum())
        micro_batches = self._parts(batch, rows.chunk(self.engine.world_size), self.rank)
        norm = math.nan
        for number, chunk in enumerate(micro_batches):
            inputs = self._loss_inputs(batch, signal, chunk)
            loss = self.algorithm.loss(inputs, dynamics, tokens, sequences)
            if number == 0:
                self.recheck.loss(inputs, dynamics, tokens, sequences, loss)
            loss = self._weighted(loss, chunk)
            # the chain rule over the leaves at which the candidate differentiated
            through = (inputs.logprobs * loss.grad_logprobs).sum()
            if self.candidate.reads_entropies:
                through = through + (inputs.entropies * loss.grad_entropies).sum()
            self.engine.backward(through, last=number + 1 == len(micro_batches))
            norm = self.engine.step()
            self._add(sums, "loss", loss.value)
            for key, value in loss.metrics.items():
                self._add(sums, key if key == "clip_fraction" else f"candidate/{key}", value)
        if skipped := self.engine.skipped_updates:
            message = f"the gradient overflowed at step {self.state.step}; DeepSpeed skipped {skipped} update{'s' * (skipped > 1)}"
            raise CandidateFailure(FailureKind.DIVERGED, "train", message)
        if not math.isfinite(norm):
            raise not_finite("the gradient", self.state.step)
        return norm

    def _weighted(self, loss: MicroLoss, rows: Tensor) -> MicroLoss:
        """Correct the gradient at each token for the sampler's numbers; the trainer's own samples need none."""
        if self._importance is None:
            return loss
        weights = self._importance[rows, : loss.grad_logprobs.shape[1]]
        return replace(loss, grad_logprobs=weights * loss.grad_logprobs, grad_entropies=weights * loss.grad_entropies)

    def _over_processes(self, sums: dict[str, float]) -> dict[str, float]:
        """Add up the shares of each mean that the processes hold."""
        if self.engine.world_size == 1:
            return sums
        parts: list[dict[str, float]] = [{}] * self.engine.world_size
        dist.all_gather_object(parts, sums)  # as objects, because a process may lack a metric that none of its rows has
        keys = sorted({key for part in parts for key in part})
        return {key: sum(part.get(key, 0.0) for part in parts) for key in keys}

    @staticmethod
    def _add(sums: dict[str, float], key: str, value: float) -> None:
        sums[key] = sums.get(key, 0.0) + value

    def _loss_inputs(self, batch: GlobalBatch, signal: TrainingSignal, rows: Tensor) -> LossInputs:
        part = batch.select(rows)
        width = part.completion_mask.shape[1]
        logprobs, entropies = self._score(self.engine.model, part, entropies=self.candidate.reads_entropies)
        inputs = LossInputs(
            logprobs=logprobs,
            entropies=entropies,
            old_logprobs=part.old_logprobs,
            ref_logprobs=part.ref_logprobs,
            advantages=signal.advantages[rows, :width],
            mask=signal.mask[rows, :width],
            carry={k: v[rows] if v.dim() == 1 else v[rows, :width] for k, v in signal.carry.items()},
            correctness=part.correctness,
            format_valid=part.format_valid,
        )
        return handed_inputs(self.candidate, inputs, part.completion_mask)

    # dynamics

    def _follow(self, row: dict[str, float], keys: tuple[str, ...]) -> None:
        for key in keys:
            past = self.state.running.get(key, row[key])
            self.state.running[key] = RUNNING_WEIGHT * past + (1 - RUNNING_WEIGHT) * row[key]

    def _dynamics(self) -> Dynamics:
        running = self.state.running
        return Dynamics(
            step=self.state.step,
            progress=self.state.step / self.training.steps,
            entropy=running["entropy"],
            kl=running["kl"],
            reward_mean=running["reward_mean"],
            completion_length=running["completion_length"],
            clip_fraction=running.get("clip_fraction", 0.0),
            all_fail_fraction=running["all_fail_fraction"],
            grad_norm=running.get("grad_norm", 0.0),
            max_completion_length=self.training.max_completion_length,
            controller=dict(self.state.controller),
        )
