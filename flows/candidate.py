"""One candidate, verified, trained and evaluated: by hand from a file, or for an evolution that dispatches its candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows.evolve import WORKERS, Child, here
from flows.forms import Seeds, Text
from poise_core.archive import ArchiveError
from poise_core.evolution.run_context import MANUAL_ARM
from poise_core.render.lines import candidate_headline
from poise_core.run_directory import RunDirectory, RunDirectoryError
from poise_core.views import leaderboard
from tasks.outcomes import raise_for_the_candidate, with_typed_end
from tasks.reports import update_tracking
from tasks.session import candidate_session, find_candidate_ref, make_run
from tasks.stages import admit
from tasks.work_pool import kept_alive


def _label() -> str:
    """``gen-03/VM-AV``; ``manual/NAME`` for a file that the run does not know yet."""
    given = flow_run.parameters
    try:
        return find_candidate_ref(RunDirectory.read(given["run_dir"]).archive, given["candidate"]).label
    except (RunDirectoryError, ArchiveError):
        return f"manual/{Path(given['candidate']).stem}"


@flow(name="evaluate-candidate", flow_run_name=_label, task_runner=WORKERS)
@with_typed_end
def evaluate_candidate(
    run_dir: Text = "runs/laptop",
    candidate: Text = "poise_core/algorithms/dapo.py",
    preset: Text = "laptop",
    seeds: Seeds = None,
) -> State[Any]:
    """Train and score one algorithm exactly as a child of the evolution is; finished seeds are read back.

    Args:
        run_dir: where its results go, and whose baseline it is compared with; absolute or relative to the clone.
        candidate: name or id of a candidate of the run, or the path of a candidate file.
        preset: laptop, smoke, or the path of a YAML file. Only for a new run directory: a run that is there keeps its own.
        seeds: how many of the protocol's training seeds; empty for as many as the run's own candidates get.
    """
    make_run(run_dir, preset)
    with candidate_session(run_dir, seeds) as evolution:
        file = Path(candidate)
        ref = evolution.trials.adopt(file) if file.is_file() else find_candidate_ref(evolution.run.archive, candidate)
        with kept_alive(evolution, ref):
            child = Child.of(run_dir, admit.submit(run_dir, ref))
            for step in here(evolution.rungs if ref.generation else ("all",)):
                child.take(step)
            raise_for_the_candidate(child.stages)
        if evolution.run.archive.rows("candidates", candidate_id=ref.candidate_id, arm=MANUAL_ARM):
            update_tracking.submit(run_dir).wait()  # of its own candidates the evolution reports
        return Completed(message=candidate_headline(leaderboard(evolution.run.evidence()), ref.candidate_id))
