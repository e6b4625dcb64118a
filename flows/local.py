"""Running the evolution in this process: session, Prefect server, Ctrl-C. Imports ``prefect`` only when it runs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from flows.server import prefect_server, wait_until_healthy
from poise_core.agents.llm.preflight import model_servers, say_unanswering
from poise_core.archive import Archive
from poise_core.config import Preset
from poise_core.escaping import without_credentials
from poise_core.evolution import Evolution, Observer
from poise_core.failures import Cancelled, InfrastructureError
from poise_core.run_directory import RunDirectory
from poise_core.surroundings import settle_proxies
from poise_core.tracking.sync import Tracker
from tasks.session import evolution_session

MOST_LOSSES = 20
"""How often one command goes on after its Prefect server was lost."""


def evolve_here(
    preset: Preset,
    run_dir: Path,
    *,
    observer: Observer,
    say: Callable[[str], None],
    replay: Archive | None = None,
) -> RunDirectory:
    """Evolve until the run holds the preset's generations.

    Args:
        preset: as loaded.
        run_dir: made where it is missing.
        observer: called with every event of the stages.
        say: called with a few words on what happens before and after the stages.
        replay: the archive of a recorded run to take all language models' answers from.

    Returns:
        The run, closed.

    Raises:
        RunDirectoryError: the directory cannot be used; nothing was written.
        EvolutionError: the search cannot go on.
        InfrastructureError: the machine failed more often than the preset allows; the run can go on.
        Cancelled: Ctrl-C or SIGTERM; child processes have ended, the run can go on.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the display tells what happens
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    settle_proxies(*_servers(preset, asks=replay is None))
    with (
        evolution_session(run_dir, preset, observer=observer, replay=replay) as evolution,
        _stopped_by_signals(evolution, say) as asked,
        prefect_server(evolution.run.path / "prefect") as server,
    ):
        if replay is None:
            threading.Thread(target=say_unanswering, args=(preset.agents,), name="models", daemon=True).start()
        where = without_credentials(server.url)
        say(f"asking the Prefect server of PREFECT_API_URL, {where}" if server.named else "starting the Prefect server")
        if server.named:
            wait_until_healthy(server, asked.is_set)
        import flows.evolve  # noqa: F401  (takes seconds, in which a private server starts)

        if os.environ.get("MLFLOW_TRACKING_URI"):  # the user's own: whether it answers is said now, and not after hours
            threading.Thread(target=Tracker.for_run(evolution.run).check, name="MLflow", daemon=True).start()
        if not server.named:
            wait_until_healthy(server, asked.is_set)
        count = evolution.preset.search.generations
        say(f"{count} generation{'s' if count > 1 else ''} in {evolution.run.path}; Ctrl-C stops, and it resumes")
        losses = 0
        while not _evolve_once(evolution, asked):
            losses += 1
            if losses > MOST_LOSSES:
                raise InfrastructureError(f"the Prefect server at {where} was lost {losses} times")
            say("the Prefect server does not answer; what is finished is kept, and it goes on when the server does")
            wait_until_healthy(server, asked.is_set, up=False)
            evolution.go_on()
        return evolution.run


def _servers(preset: Preset, *, asks: bool) -> list[str]:
    """The addresses of everything that a run of the preset asks by HTTP; of models only where it ``asks`` them."""
    own = [os.environ.get(name, "") for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")]
    return [
        address
        for address in (*own, *(model_servers(preset.agents) if asks else ()))
        if address.startswith(("http://", "https://"))
    ]


def _evolve_once(evolution: Evolution, asked: threading.Event) -> bool:
    """One run of the flow; whether it came to its end, or lost its server. No stage is running any more then."""
    from flows.evolve import evolve

    try:
        try:
            state: Any = evolve(str(evolution.run.path), return_state=True)
        finally:
            _send_what_is_left()
        if state.is_cancelled() or asked.is_set():  # a fault stops the stages too, but is no request to stop
            raise Cancelled("stopped")
        state.result()
    except Exception as error:
        if asked.is_set() or not _is_lost_server(error):
            raise
        return False
    return True


def _is_lost_server(error: BaseException | None) -> bool:
    """Whether a request that the server did not take, or could not, is behind the error; Prefect reports it in many forms.

    A busy one with SQLite answers 503 when its database is locked for too long. One that asks for another secret than before is
    lost, too: whoever waits for it then says so.
    """
    import httpx
    from prefect.exceptions import CrashedRun

    if isinstance(error, InfrastructureError | Cancelled):
        return False  # of a stage: what it could not reach was something else
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
        if status >= 500 or status in (401, 403) or isinstance(error, httpx.TransportError | CrashedRun):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _stopped_by_signals(evolution: Evolution, say: Callable[[str], None]) -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM ends the stages in order, the second one ends everything at once.

    Yields:
        An event that the first signal sets.
    """
    asked = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        evolution.stop()
        say("stopping: ending child processes, what is finished is kept")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send_what_is_left() -> None:
    """Wait until logs and events, which go to the server in the background, are sent; the server must still be there."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
    EventsWorker.drain_all(timeout=5)
