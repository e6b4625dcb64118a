"""What the end of a stage means to Prefect: retried, failed for good, or cancelled."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import CancelledRun, Pause
from prefect.futures import PrefectFuture
from prefect.states import Cancelled as CancelledState
from prefect.states import Completed

from poise_core.agents.llm.faults import AgentsUnusable
from poise_core.archive import ArchiveConflictError, ArchiveRowError
from poise_core.escaping import printable
from poise_core.failures import Cancelled, CandidateFailure, InfrastructureError
from tasks.run_log import forget_outcome, last_outcome
from tasks.session import retry_limit
from tasks.suspension import suspended_state

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAYS = [1.0, 5.0, 20.0]
"""Seconds before the first, the second and every later retry after a fault of the machine."""

MOST_RETRIES = 100
"""Above what any preset allows: the limit that holds is ``resources.infrastructure_retries``."""


def worth_retrying(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Whether the stage failed because of the machine and may be tried again under this run's preset."""
    lasting = (ArchiveConflictError, ArchiveRowError, AgentsUnusable)  # the same would be refused again
    fault = isinstance(state.data, InfrastructureError) and not isinstance(state.data, lasting)
    return fault and task_run.run_count <= retry_limit()


def with_typed_end(stage: Callable[P, R]) -> Callable[P, R]:
    """Turn a candidate's failure into a failed state that carries its kind as its name, and a stop into a cancelled one.

    For the functions of tasks and flows. All these states are final and say in their message what happened; whatever else
    is raised goes to Prefect as it is. A flow run that was suspended stays in that state, from which it can be resumed.
    """

    @functools.wraps(stage)
    def ended(*args: P.args, **kwargs: P.kwargs) -> R:
        forget_outcome()
        try:
            result = stage(*args, **kwargs)
            if isinstance(result, State) or not last_outcome():
                return result
            state: State[Any] = Completed(message=last_outcome(), data=result)
        except CandidateFailure as failure:
            name = str(failure.kind).replace("_", " ").title().replace(" ", "")
            state = State(type=StateType.FAILED, name=name, message=failure.message, data=failure)
        except (Cancelled, CancelledRun) as stop:
            leave_if_suspended()
            state = CancelledState(message=printable(str(stop)))
        return cast(R, state)

    # evaluated here, where the names in them are known: Prefect makes forms of them, and checks what comes back
    vars(ended)["__signature__"] = inspect.signature(stage, eval_str=True)
    return ended


def leave_if_suspended() -> None:
    """End this flow run's process where the run is suspended: the state that it is in stays, and resuming starts a new one.

    Raises:
        prefect.exceptions.Pause: it is.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context and TaskRunContext.get() is None else None
    if run is not None and run.deployment_id is not None and (state := suspended_state(run.id)):
        raise Pause(state=state)


def raise_for_the_run(futures: Iterable[PrefectFuture[Any]]) -> None:
    """Wait for all futures, then raise what ends the whole run; the failure of a candidate does not.

    Args:
        futures: of every stage: one that was never started because a stage before it failed does not say why.

    Raises:
        InfrastructureError: a stage failed because of the machine more often than the preset allows.
        Cancelled: a stage was stopped.
    """
    states = []
    for future in futures:
        future.wait()
        states.append(future.state)
    for state in states:
        if state.is_cancelled():
            raise Cancelled(state.message or "stopped")
        if state.is_failed() or state.is_crashed():
            error = state.result(raise_on_failure=False)
            if isinstance(error, CandidateFailure):
                continue
            raise error if isinstance(error, BaseException) else InfrastructureError(str(state.message))


def raise_for_the_candidate(futures: Iterable[PrefectFuture[Any]]) -> None:
    """Wait for all stages of one candidate, then raise what one of them has failed with; see ``raise_for_the_run``.

    Raises:
        CandidateFailure: it failed in one of them.
        InfrastructureError, Cancelled: as for a whole run.
    """
    stages = list(futures)
    raise_for_the_run(stages)
    for one in stages:
        error = one.state.result(raise_on_failure=False)
        if isinstance(error, CandidateFailure):
            raise error
