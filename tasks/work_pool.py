"""The executor that hands whole candidates to other machines: as flow runs of their own, by whichever worker takes them.

The run directory is on storage that all workers share; what a worker has measured is in the archive there, and in its state
is no more than how it ended. While it has a candidate it gives signs of life there, since a machine that is lost tells the server
nothing. Flow runs carry idempotency keys: a parent that was killed finds the run that it had started,
and waits for it instead of starting another.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from poise_core.evolution import CandidateRef, ChildProcesses, Evolution
from poise_core.failures import Cancelled, InfrastructureError
from poise_core.heartbeat import Heartbeat, Listener
from tasks.server_faults import infrastructure_faults

POLL_SECONDS = 2.0
LOST_SECONDS = 600.0
"""For which a worker that has a candidate gives no sign of life before it is taken for lost; shared storage shows files late."""
CANCEL_SECONDS = 20.0
"""How long the end of a cancelled run is waited for: its worker gives it as long to end its training."""


class WorkPool(ChildProcesses):
    """Trainings and evaluations of a candidate go to the pool together, so that its rungs stay on one machine. What belongs to
    no child (the gate, the base policy, a replication) is done by processes of this machine."""

    def measure(self, evolution: Evolution, candidate: CandidateRef) -> None:
        """Have the candidate trained and evaluated by a worker, as far as the ladder lets it; all that is recorded.

        Raises:
            CandidateFailure: of the candidate; recorded.
            InfrastructureError: the flow run failed otherwise or its worker was lost, there is no such deployment, or the server
                does not answer; tried again, this waits for the same flow run where it still goes on.
            Cancelled: it was cancelled, or this run was.
        """
        if failure := evolution.trials.failure(candidate):
            raise failure
        if evolution.ladder.settled(candidate):
            return  # what was repaired or read back need not travel again
        with infrastructure_faults():
            state = _carried_out(evolution, candidate)
        if failure := evolution.trials.failure(candidate):
            raise failure
        if state.is_cancelled():
            raise Cancelled(f"the flow run of {candidate.label} was cancelled")
        if not state.is_completed():
            raise InfrastructureError(f"the flow run of {candidate.label} ended as {state.name}: {state.message}")


def _carried_out(evolution: Evolution, candidate: CandidateRef) -> Any:
    """The final state of the candidate's flow run."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        run = _found_or_started(client, evolution, candidate)
        worker = None
        while (state := client.read_flow_run(run).state) is None or not state.is_final():
            if evolution.stopped:
                return _cancelled(client, run, evolution.stop_reason)
            if state is None or not state.is_running():
                worker = None  # nobody has it yet
            else:
                worker = worker or Listener(_heartbeat(evolution, candidate))
                worker.hear()
                if worker.silent_seconds > LOST_SECONDS:
                    return _given_up(client, run)
            _wait(lambda: evolution.stopped)
        return state


@contextmanager
def kept_alive(evolution: Evolution, candidate: CandidateRef) -> Iterator[None]:
    """Give signs of life for as long as this process has the candidate: who handed it out cannot know otherwise."""
    path = _heartbeat(evolution, candidate)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = Heartbeat(path, host=socket.gethostname(), process=os.getpid())
    try:
        yield
    finally:
        own.end()


def _heartbeat(evolution: Evolution, candidate: CandidateRef) -> Path:
    return evolution.run.candidate_folder(candidate.candidate_id) / "worker.json"


def _given_up(client: Any, run: UUID) -> Any:
    """Say for a worker that is lost, with its machine or its pod, that its run has crashed; the next try makes a new one."""
    from prefect.states import Crashed

    client.set_flow_run_state(
        run, Crashed(message=f"its worker gave no sign of life for {LOST_SECONDS:g} s"), force=True
    )
    return client.read_flow_run(run).state


def _found_or_started(client: Any, evolution: Evolution, candidate: CandidateRef) -> UUID:
    """The flow run of this candidate that is still going, or a new one."""
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Scheduled

    name = evolution.preset.resources.dispatch_deployment
    try:
        deployment = client.read_deployment_by_name(name)
    except ObjectNotFound as error:
        raise InfrastructureError(f"there is no deployment {name!r}; make it with 'prefect deploy --all'") from error
    attempt = 0
    while True:  # ends at the first key that was not used yet, at the latest
        run = client.create_flow_run_from_deployment(
            deployment.id,
            name=candidate.label,
            parameters={"run_dir": str(evolution.run.path), "candidate": candidate.candidate_id},
            tags=[f"gen-{candidate.generation:02d}"],
            state=Scheduled(message=f"for the evolution in {evolution.run.path}"),
            idempotency_key=f"{evolution.run.path}:{candidate.candidate_id}:{attempt}",
            parent_task_run_id=_task_run(),
        )
        if run.state is None or not run.state.is_final():
            return UUID(str(run.id))
        attempt += 1


def _task_run() -> UUID | None:
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    return context.task_run.id if context else None


def _cancelled(client: Any, run: UUID, reason: str) -> Any:
    """Cancel the flow run; its state when its process has ended, or when that has taken too long."""
    from prefect.states import Cancelling

    client.set_flow_run_state(run, Cancelling(message=reason or "the evolution was stopped"))
    deadline = time.monotonic() + CANCEL_SECONDS
    while True:
        state = client.read_flow_run(run).state
        if state.is_final():
            return state
        if time.monotonic() > deadline:
            raise Cancelled("stopped; a worker is still ending the candidate's training")
        time.sleep(0.5)


def _wait(over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + POLL_SECONDS
    while time.monotonic() < deadline and not over():
        time.sleep(0.1)
