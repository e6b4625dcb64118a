"""What "Suspend" in Prefect's UI does to a run: stages stop at their checkpoints, the process exits, "Resume" starts a new one."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

POLL_SECONDS = 3.0

logger = logging.getLogger(__name__)


@contextmanager
def stopped_when_suspended(stop: Callable[[str], None]) -> Iterator[None]:
    """Call ``stop`` when the flow run of this process is suspended; only runs of deployments can be."""
    run = _current_flow_run()
    if run is None or run.deployment_id is None:
        yield
        return
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(run.id, stop, over), name="suspension", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()


def _current_flow_run() -> FlowRun | None:
    """Of this process; it imports ``prefect``, which then reads its settings, only where a flow has done so already."""
    if "prefect" not in sys.modules:
        return None
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return context.flow_run if context else None


def _watch(flow_run: UUID, stop: Callable[[str], None], over: threading.Event) -> None:
    while not over.wait(POLL_SECONDS):
        if suspended_state(flow_run) is not None:
            stop("suspended; goes on when it is resumed")
            return


def suspended_state(flow_run: UUID) -> Any:
    """The state of a flow run, if it is a suspended one; None too where the server does not answer."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run).state
    except (httpx.HTTPError, PrefectHTTPStatusError, OSError) as error:
        logger.debug("cannot tell whether %s is suspended: %s", flow_run, error)
        return None
    return state if state is not None and state.is_paused() else None
