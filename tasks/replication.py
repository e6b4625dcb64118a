"""The examination of a champion candidate and the ablation of a candidate as tasks, within an open session of their run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from poise_core.escaping import markdown
from poise_core.evidence.examination import conclude, unfinished
from poise_core.experiments.ablation import BUDGET, AblationStudy
from poise_core.experiments.examination import Examination
from poise_core.render.markdown import render_ablation_page, render_examination_page
from tasks.session import current_evolution, find_candidate_ref
from tasks.stages import stage


@stage("replicate {name}")
def replicate(
    run_dir: str,
    candidate_id: str,
    name: str,
    seeds: int | None = None,
    undeclared: bool = False,
    conditions: Sequence[str] = (),
) -> dict[str, Any]:
    """Examine a candidate beside the baseline with fresh seeds on sealed problems; a second time, read the record.

    Args:
        run_dir: of the open session.
        candidate_id: of the candidate.
        name: of the candidate.
        seeds: how many fresh ones a comparison has; by default as the preset says.
        undeclared: also a candidate that is no champion candidate.
        conditions: those to examine; by default all.

    Returns:
        Of the row of ``replications`` outcome and message, among others; and what the conditions say together.

    Raises:
        ReplicationRefused: it cannot be examined here.
        InfrastructureError: a process failed; the same call goes on.
        Cancelled: the run was stopped.
    """
    examination = Examination.within(current_evolution(run_dir), candidate_id)
    logger = get_run_logger()
    record = examination.examine(seeds, undeclared=undeclared, conditions=conditions or None, say=logger.info)
    row, rows = record.replication, record.rows
    page = f"**{markdown(name)}**: {markdown(row['message'])}\n" + (
        f"\n{render_examination_page(rows, name)}" if rows else ""
    )
    create_markdown_artifact(page, key=f"replication-{candidate_id}", description=f"Examination of {markdown(name)}")
    told = {key: row[key] for key in ("candidate_id", "outcome", "message", "seeds", "declared")}
    return told | {"examination": conclude(rows).sentence if rows else ""}


@stage("ablate {name}")
def ablate(
    run_dir: str, candidate_id: str, name: str, budget: int = BUDGET, seeds: int | None = None
) -> dict[str, Any]:
    """Ablate a candidate, or go on with its ablation; with its budget spent, read the record.

    Args:
        run_dir: of the open session.
        candidate_id: of the candidate.
        name: of the candidate.
        budget: trainings of the whole ablation.
        seeds: with how many of the candidate's seeds; by default all.

    Returns:
        ``poise_core.evidence.ablation.Ablation.to_dict``.

    Raises:
        AblationRefused: it cannot be ablated here.
        InfrastructureError: a process failed; the same call goes on.
        Cancelled: the run was stopped.
    """
    study = AblationStudy.within(current_evolution(run_dir), candidate_id)
    found = study.carry_out(budget, seeds=seeds, say=get_run_logger().info)
    create_markdown_artifact(
        render_ablation_page(found), key=f"ablation-{candidate_id}", description=f"Ablation of {markdown(name)}"
    )
    return found.to_dict()


def champion_candidate(run_dir: str) -> tuple[str, str] | None:
    """Id and name of the best champion candidate that was not replicated yet, or whose examination has not come to its end."""
    run = current_evolution(run_dir).run
    evidence = run.evidence()
    examined = evidence.examinations
    waiting = [
        one
        for one in evidence.champions
        if one.candidate_id not in evidence.replications or unfinished(examined.get(one.candidate_id, ()))
    ]
    if not waiting:
        return None
    best = max(waiting, key=lambda one: one.delta.estimate)
    return best.candidate_id, find_candidate_ref(run.archive, best.candidate_id).name
