"""Evaluation: trained policies of a candidate, scored on the ``search`` split; the untrained policy too, once, and the last policy
of a training that was stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from poise_core.archive import UNTRAINED_ARM, completion_rows, evaluation_rows
from poise_core.evaluation.job import EvaluationJob
from poise_core.evaluation.results import SeedEvaluation
from poise_core.evidence.format import format_overall
from poise_core.evidence.intervals import overall_interval
from poise_core.evolution.records import CandidateRef
from poise_core.evolution.run_context import RunContext
from poise_core.failures import CandidateFailure

UNTRAINED = "base policy"
"""Name of the row that holds the scores of the policy before any training."""


def evaluate(context: RunContext, candidate: CandidateRef, seeds: Sequence[int]) -> list[SeedEvaluation]:
    """Score the trained policies on the ``search`` split.

    Raises:
        InfrastructureError: the evaluation could not be done.
        Cancelled: ``should_stop`` returned true.
    """

    with context.stage(candidate, "evaluate") as done:
        if all(context.contains("evaluations", candidate, split="search", seed=seed) for seed in seeds):
            return context.evaluations(candidate, seeds)
        trained = context.executor.train(
            context.training_job(candidate, seeds), should_stop=context.should_stop
        )  # finished: reads only
        policies = tuple((one.seed, one.policy_folder) for one in trained)
        folder = context.run.evaluate_folder(candidate.candidate_id)
        job = EvaluationJob(folder, context.protocol, context.resources, "search", policies, context.run.secret)
        with context.alone(candidate):
            results = context.executor.evaluate(job, should_stop=context.should_stop)
        for result in results:
            # scores last: where they are, nothing of the stage is done again
            kept = [one for benchmark in result.benchmarks for one in benchmark.kept]
            rows = completion_rows(candidate.candidate_id, context.protocol.digest, result.seed, "search", kept)
            context.archive.append("completions", rows, keep_existing=True)
            context.archive.append(
                "evaluations", evaluation_rows(candidate.candidate_id, context.protocol.digest, result)
            )
        done(f"Overall {format_overall(overall_interval(results, context.protocol))}")
        return results


def evaluate_stopped(context: RunContext, candidate: CandidateRef, seed: int, steps: int) -> tuple[float, int] | None:
    """Score the policy at which a training was stopped, which is no score of the candidate: nothing is written to ``evaluations``.

    Args:
        seed: whose training was stopped.
        steps: that it had done. Where its process was ended between two checkpoints, these steps are done again.

    Returns:
        Overall in percent, and the step of the policy: beyond ``steps`` where the process was that far when it was ended. None
        where no policy was kept, or the candidate fails at being trained up to there.

    Raises:
        InfrastructureError: the evaluation could not be done.
        Cancelled: ``should_stop`` returned true.
    """
    with context.announced("evaluate", candidate.name, candidate.generation) as done:
        try:
            with context.alone(candidate):
                (trained,) = context.executor.train(
                    context.training_job(candidate, [seed], steps), should_stop=context.should_stop
                )
                reached = len(trained.trajectory())
        except CandidateFailure as failure:
            done(f"no policy of the stop: {failure.message}")
            return None
        if (policy := trained.last_policy) is None:
            return None
        folder = context.run.evaluate_folder(candidate.candidate_id) / "stopped"
        job = EvaluationJob(
            folder, context.protocol, context.resources, "search", ((seed, policy),), context.run.secret
        )
        with context.alone(candidate):
            (result,) = context.executor.evaluate(job, should_stop=context.should_stop)
        done(f"Overall {result.overall:.1f} when it was stopped, after {reached} steps")
        return result.overall, reached


def evaluate_untrained(context: RunContext, seeds: Sequence[int]) -> CandidateRef:
    """Score the policy that every training starts from, as a row of its own.

    It is evaluated once: sampling does not depend on the training seed. The result is recorded under every seed, so that
    it can be paired with the candidates'.

    Raises:
        InfrastructureError: the evaluation could not be done.
        Cancelled: ``should_stop`` returned true.
    """

    source = f"# no algorithm: the policy {context.protocol.policy_digest}, before any training\n"
    candidate = context.register(UNTRAINED, source, written_by="poise", arm=UNTRAINED_ARM)
    with context.stage(candidate, "evaluate") as done:
        if all(context.contains("evaluations", candidate, split="search", seed=seed) for seed in seeds):
            return candidate
        policies = ((seeds[0], Path(context.protocol.policy)),)
        folder = context.run.evaluate_folder(candidate.candidate_id)
        job = EvaluationJob(folder, context.protocol, context.resources, "search", policies, context.run.secret)
        with context.alone(candidate):
            (result,) = context.executor.evaluate(job, should_stop=context.should_stop)
        for seed in seeds:
            copy = dataclasses.replace(result, seed=seed)
            context.archive.append(
                "evaluations", evaluation_rows(candidate.candidate_id, context.protocol.digest, copy)
            )
        done(f"Overall {format_overall(overall_interval([result], context.protocol))}")
    return candidate
