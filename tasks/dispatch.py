"""The task that has a candidate trained and evaluated elsewhere."""

from __future__ import annotations

from poise_core.evolution import CandidateRef
from tasks.session import current_evolution
from tasks.stages import stage
from tasks.work_pool import WorkPool


@stage("{candidate.label}/elsewhere")
def evaluate_elsewhere(run_dir: str, candidate: CandidateRef) -> CandidateRef:
    """Have the candidate measured by a worker; a failure of the candidate is raised as if it had happened here.

    Raises:
        CandidateFailure, InfrastructureError, Cancelled: see ``tasks.work_pool.WorkPool.measure``.
    """
    evolution = current_evolution(run_dir)
    assert isinstance(evolution.executor, WorkPool)  # flows.evolve.measurement asks for this task only then
    evolution.executor.measure(evolution, candidate)
    return candidate
