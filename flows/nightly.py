"""The nightly run: one more generation on the archive of earlier runs, within a budget, and a nightly report.

A run that comes to the end of its budget stops at checkpoints; the next one goes on with the same generation.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun
from prefect.states import Completed

from flows.evolve import WORKERS, establish_baseline, generation
from flows.forms import Changes, Dollars, GpuHours, Hours, Text
from poise_core.escaping import one_line
from poise_core.evolution import EvolutionError
from poise_core.experiments.replication import ReplicationRefused
from poise_core.failures import Cancelled, InfrastructureError
from poise_core.render.lines import generation_headline
from poise_core.views import leaderboard
from poise_core.views.nightly import NightlyRun
from tasks.budget import Budget
from tasks.outcomes import raise_for_the_run, with_typed_end
from tasks.replication import champion_candidate, replicate
from tasks.reports import leave_nightly_report, update_tracking
from tasks.session import chosen_preset, evolution_session, next_generation


@flow(name="nightly-generation", flow_run_name="nightly run of {run_dir}", task_runner=WORKERS)
@with_typed_end
def nightly_generation(
    run_dir: Text = "runs/nightly",
    preset: Text = "laptop",
    hours: Hours = 8.0,
    dollars: Dollars = None,
    gpu_hours: GpuHours = None,
    replicate_champion: bool = True,
    changes: Changes = [],  # noqa: B006  (never changed, and shown as it is in the form)
) -> State[Any]:
    """One more generation on the archive of earlier nightly runs, within a budget of time and money, and a nightly report.

    Args:
        run_dir: the run directory that every nightly run adds to; absolute or relative to the clone. Made where it is missing.
        preset: laptop, smoke, or the path of a YAML file. Only for a new run directory: a run that is there keeps its own.
        hours: the time budget. At its end trainings stop at their checkpoints; the next nightly run goes on from there.
        dollars: the cost budget of language models. A call that could exceed it is not made; what needs no further call is
            finished, and the rest waits for the next nightly run. Empty for no limit.
        gpu_hours: the budget of GPU-hours, of all GPUs that the preset uses (parallel_candidates x those that one holds),
            which are held whether they are busy or not. At its end the same happens as at that of the time. Empty for no limit.
        replicate_champion: examine a new champion candidate with fresh seeds, under all conditions of the preset.
        changes: to the preset, KEY=VALUE: search.parents=3, resources.dispatch=pool, agents.model=openai:NAME.
    """
    number = next_generation(run_dir)
    budget = Budget(hours, dollars, since=_began(), gpu_hours=gpu_hours)
    wanted = [*changes, f"search.generations={number}"]
    with (
        evolution_session(
            run_dir, lambda: chosen_preset(run_dir, preset, wanted), allowance=budget.allowance
        ) as evolution,
        budget.kept(evolution),
    ):
        trouble: Exception | None = None
        examined = replicated = ""
        try:
            establish_baseline(run_dir).wait()
            generation(run_dir, number)
            if replicate_champion:
                examined, replicated = prove_champion(run_dir)
        except (Cancelled, CancelledRun):
            if not budget.used_up:
                raise
        except (InfrastructureError, EvolutionError) as error:
            trouble = error
        nightly = NightlyRun(
            generation=number,
            began=budget.since,
            ended=dt.datetime.now(dt.UTC),
            finished=evolution.finished(number),
            stopped=str(trouble) if trouble else evolution.stop_reason,
            hours=hours,
            dollars=dollars,
            gpu_hours=gpu_hours,
            replication=replicated,
            examined=examined,
        )
        evolution.go_on()  # whose stages have ended: what stopped them must not cut the reports short, too
        leave_nightly_report.submit(run_dir, nightly).wait()
        update_tracking.submit(run_dir).wait()
        if trouble is not None:
            raise trouble
        said = generation_headline(leaderboard(evolution.run.evidence()), number)
        if nightly.stopped:
            return Completed(
                name="BudgetUsedUp", message=f"{one_line(nightly.stopped)}; gen-{number:02d} so far: {said}"
            )
        return Completed(message=f"gen-{number:02d}: {said}")


def prove_champion(run_dir: str) -> tuple[str, str]:
    """Examine the champion candidate, if there is one that was not.

    Returns:
        Its id, and the outcome in one sentence; both empty where there was no such candidate.
    """
    found = champion_candidate(run_dir)
    if found is None:
        return "", ""
    candidate, name = found
    done = replicate.submit(run_dir, candidate, name)
    try:
        raise_for_the_run([done])
    except ReplicationRefused as refusal:
        return candidate, f"{name} is a champion candidate and was not replicated: {refusal}"
    row = done.result()
    return candidate, f"{name}: {'. '.join(filter(None, (row['message'], row['examination'])))}"


def _began() -> dt.datetime:
    """When the flow run began for the first time: what it has spent before a retry counts too."""
    context = FlowRunContext.get()
    began = context.flow_run.start_time if context and context.flow_run else None
    return began or dt.datetime.now(dt.UTC)
