"""The replication of a champion candidate: trained beside the baseline with fresh seeds, and read on the sealed report split."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.evolve import WORKERS
from flows.forms import FreshSeeds, Text
from poise_core.escaping import one_line
from poise_core.experiments.replication import ReplicationRefused
from tasks.outcomes import raise_for_the_run, with_typed_end
from tasks.replication import replicate
from tasks.session import evolution_session, find_candidate_ref


@flow(name="replicate-champion", flow_run_name="replicate {candidate}", task_runner=WORKERS)
@with_typed_end
def replicate_champion(
    run_dir: Text, candidate: Text, seeds: FreshSeeds = None, undeclared: bool = False
) -> State[Any]:
    """Train a champion candidate and the baseline again with fresh seeds, and read the sealed split. Once per candidate.

    Args:
        run_dir: of the run that the candidate is in; absolute or relative to the clone.
        candidate: its name, its id, or the beginning of its id.
        seeds: how many that the search has not used; empty for all of them.
        undeclared: also a candidate that is no champion candidate; the record says so.
    """
    with evolution_session(run_dir) as evolution:
        found = find_candidate_ref(evolution.run.archive, candidate)
        done = replicate.submit(run_dir, found.candidate_id, found.name, seeds, undeclared)
        try:
            raise_for_the_run([done])
        except ReplicationRefused as refusal:
            return Failed(name="Refused", message=one_line(refusal))
        row = done.result()
        return Completed(name=str(row["outcome"]).capitalize(), message=one_line(f"{found.name}: {row['message']}"))
