"""Training: every seed of a candidate, watched while it runs; finished trajectories go to the archive.

Called again, what has finished is read back and what was interrupted goes on where its files stand.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

from poise_core.archive import ArchiveRowError, completion_rows, trajectory_rows
from poise_core.evidence.format import counted_seeds
from poise_core.evolution.events import Event
from poise_core.evolution.health import CertainLoss, HealthWatch
from poise_core.evolution.records import CandidateRef
from poise_core.evolution.run_context import RunContext
from poise_core.failures import CandidateFailure


def train(
    context: RunContext,
    candidate: CandidateRef,
    seeds: Sequence[int],
    *,
    pause_after: int | None = None,
    watch: HealthWatch | None = None,
) -> str | None:
    """Train the candidate with every seed; the trajectories of finished seeds go to the archive.

    Args:
        candidate: admitted.
        seeds: training seeds.
        pause_after: stop every seed at a checkpoint after so many steps; a later call goes on from there.
        watch: ends the training early, as a failure or as a certain loss.

    Returns:
        The sentence of the certain loss to the parent that has ended it; None where it was none.

    Raises:
        CandidateFailure: it crashed, diverged, took too long or broke a rule of ``watch``; recorded.
        InfrastructureError: something else ended the training.
        Cancelled: ``should_stop`` returned true.
    """
    try:
        with context.stage(candidate, "train") as done:
            try:
                if all(context.contains("trajectories", candidate, seed=seed) for seed in seeds):
                    _judge_again(context, candidate, seeds, watch)
                    return None
                done(_train(context, candidate, seeds, pause_after, watch))
            except CertainLoss as loss:
                _keep_unfinished(context, candidate, seeds, watch)
                done(f"stopped: {loss}")
                return str(loss)
    except CandidateFailure:
        _keep_unfinished(context, candidate, seeds, watch)
        raise
    return None


def _train(
    context: RunContext,
    candidate: CandidateRef,
    seeds: Sequence[int],
    pause_after: int | None,
    watch: HealthWatch | None,
) -> str:

    started = time.monotonic()

    def on_step(seed: int, row: dict[str, float]) -> None:
        context.observer(Event("step", "train", candidate.name, candidate.generation, seed=seed, row=row))
        if watch is not None:
            watch.observe(seed, row)

    job = context.training_job(candidate, seeds, pause_after)
    with context.alone(candidate):
        trained = context.executor.train(job, on_step=on_step, should_stop=context.should_stop)
    for one in trained:
        steps = one.trajectory()
        if watch is not None:
            watch.observe_all(one.seed, steps)  # what had finished before this process was not followed
        # one that was stopped and is trained further by hand keeps the steps that it was stopped at
        if pause_after is None and not context.contains("trajectories", candidate, seed=one.seed):
            _append_trajectory(context, candidate, one.seed, steps, one.confinement)
    length = f"{pause_after} steps" if pause_after else counted_seeds(len(seeds))
    return f"{length} in {time.monotonic() - started:.0f} s"


def keep_trajectory(context: RunContext, candidate: CandidateRef, seed: int, steps: int) -> None:
    """Archive the first ``steps`` steps of a training that goes no further."""
    if not context.contains("trajectories", candidate, seed=seed):
        found, confinement = context.unfinished_trajectory(candidate, seed)
        _append_trajectory(context, candidate, seed, found[:steps], confinement)


def _judge_again(context: RunContext, candidate: CandidateRef, seeds: Sequence[int], watch: HealthWatch | None) -> None:
    """Judge the archived steps again, since the last process may have ended before its verdict was recorded."""
    if watch is not None:
        stored = context.archive.trajectory(candidate.candidate_id, context.protocol.digest)
        for seed in seeds:
            watch.observe_all(seed, stored[seed])


def _keep_unfinished(
    context: RunContext, candidate: CandidateRef, seeds: Sequence[int], watch: HealthWatch | None
) -> None:
    """Archive the steps that a stopped candidate got to: they are the evidence for what went wrong.

    Where a rule stopped it, those up to that step: how much further the worker got depends on timing.
    """
    for seed in seeds:
        steps, confinement = context.unfinished_trajectory(candidate, seed)
        judged = watch.judged(seed, steps) if watch is not None else len(steps)
        if steps and not context.contains("trajectories", candidate, seed=seed):
            with contextlib.suppress(ArchiveRowError):  # it has failed already, perhaps of these very steps
                _append_trajectory(context, candidate, seed, steps[:judged], confinement)
        if watch is not None and watch.stopped:
            return


def _append_trajectory(
    context: RunContext,
    candidate: CandidateRef,
    seed: int,
    steps: Sequence[dict[str, float]],
    confinement: Mapping[str, str],
) -> None:
    from poise_core.training.launcher import kept_completions  # which a command that only reads need not import

    kept = kept_completions(context.run.train_folder(candidate.candidate_id) / f"seed-{seed}")
    kept = [one for one in kept if one.step < len(steps)]
    found = completion_rows(candidate.candidate_id, context.protocol.digest, seed, "train", kept)
    context.archive.append("completions", found, keep_existing=True)
    # last: where the trajectory is, nothing of the seed is done again
    rows = trajectory_rows(candidate.candidate_id, context.protocol.digest, seed, steps, confinement=confinement)
    context.archive.append("trajectories", rows)
