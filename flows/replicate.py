"""The examination of a champion candidate, trained beside the baseline with fresh seeds and read on sealed problems; and the
ablation of a candidate, trained with its mechanisms switched off."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.evolve import WORKERS
from flows.forms import Conditions, FreshSeeds, Seeds, Text, Trainings
from poise_core.escaping import one_line
from poise_core.experiments.ablation import BUDGET, AblationRefused
from poise_core.experiments.replication import ReplicationRefused
from tasks.outcomes import raise_for_the_run, with_typed_end
from tasks.replication import ablate, replicate
from tasks.session import evolution_session, find_candidate_ref


@flow(name="replicate-champion", flow_run_name="replicate {candidate}", task_runner=WORKERS)
@with_typed_end
def replicate_champion(
    run_dir: Text,
    candidate: Text,
    seeds: FreshSeeds = None,
    undeclared: bool = False,
    conditions: Conditions = [],  # noqa: B006  (never changed, and shown as it is in the form)
) -> State[Any]:
    """Examine a champion candidate beside the baseline with fresh seeds on sealed problems. Once per candidate.

    Args:
        run_dir: of the run that the candidate is in; absolute or relative to the clone.
        candidate: its name, its id, or the beginning of its id.
        seeds: how many fresh ones a comparison has; empty for as many as the preset says.
        undeclared: also a candidate that is no champion candidate; the record says so.
        conditions: only these, after the primary one, such as primary, rates or policy; empty for all of the preset.
    """
    with evolution_session(run_dir) as evolution:
        found = find_candidate_ref(evolution.run.archive, candidate)
        done = replicate.submit(run_dir, found.candidate_id, found.name, seeds, undeclared, conditions)
        try:
            raise_for_the_run([done])
        except ReplicationRefused as refusal:
            return Failed(name="Refused", message=one_line(refusal))
        row = done.result()
        told = ". ".join(filter(None, (row["message"], row["examination"])))
        return Completed(name=str(row["outcome"]).capitalize(), message=one_line(f"{found.name}: {told}"))


@flow(name="ablate-candidate", flow_run_name="ablate {candidate}", task_runner=WORKERS)
@with_typed_end
def ablate_candidate(run_dir: Text, candidate: Text, budget: Trainings = BUDGET, seeds: Seeds = None) -> State[Any]:
    """Train a candidate's file with its mechanisms switched off and its numbers moved, and say what its score rests on.

    Args:
        run_dir: of the run that the candidate is in; absolute or relative to the clone.
        candidate: its name, its id, or the beginning of its id.
        budget: trainings of the whole ablation, those of earlier flow runs included.
        seeds: with how many of the candidate's training seeds; empty for all.
    """
    with evolution_session(run_dir) as evolution:
        found = find_candidate_ref(evolution.run.archive, candidate)
        done = ablate.submit(run_dir, found.candidate_id, found.name, budget, seeds)
        try:
            raise_for_the_run([done])
        except AblationRefused as refusal:
            return Failed(name="Refused", message=one_line(refusal))
        return Completed(name="Ablated", message=one_line(f"{found.name}: {done.result()['says']}"))
