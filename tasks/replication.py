"""The replication of a champion candidate as a task, within an open session of its run."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_markdown_artifact

from poise_core.evidence.run_evidence import RunEvidence
from poise_core.experiments.replication import Replication
from tasks.session import current_evolution, find_candidate_ref
from tasks.stages import stage


@stage("replicate {name}")
def replicate(
    run_dir: str, candidate_id: str, name: str, seeds: int | None = None, undeclared: bool = False
) -> dict[str, Any]:
    """Train a candidate and the baseline with fresh seeds and read the sealed split; a second time, read the record.

    Returns:
        The row of ``replications``: outcome and message, among others.

    Raises:
        ReplicationRefused: it cannot be replicated here.
        InfrastructureError: a process failed; the same call goes on.
        Cancelled: the run was stopped.
    """
    evolution = current_evolution(run_dir)
    replication = Replication(
        evolution.run,
        candidate_id,
        executor=evolution.executor,
        observer=evolution.observer,
        should_stop=lambda: evolution.stopped,
        compute_slot=evolution.trials.compute_slot,
    )
    row = replication.carry_out(seeds, undeclared=undeclared)
    create_markdown_artifact(
        f"**{name}**: {row['message']}\n", key=f"replication-{candidate_id}", description=f"Replication of {name}"
    )
    return {key: row[key] for key in ("candidate_id", "outcome", "message", "seeds", "declared")}


def champion_candidate(run_dir: str) -> tuple[str, str] | None:
    """Id and name of the best champion candidate that was not replicated yet."""
    run = current_evolution(run_dir).run
    evidence = RunEvidence.load(run.archive, run.preset.protocol, run.current_preset.search.planned)
    waiting = [one for one in evidence.champions if one.candidate_id not in evidence.replications]
    if not waiting:
        return None
    best = max(waiting, key=lambda one: one.delta.estimate)
    return best.candidate_id, find_candidate_ref(run.archive, best.candidate_id).name
