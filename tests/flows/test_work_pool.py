"""Candidates that are handed to workers, on a real Prefect server: one is lost, one takes long, one is cut off late."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from laboratory import LADDER, Laboratory, admit, make_preset, open_evolution

from poise_core.evolution import CandidateRef, Evolution
from poise_core.evolution.generation import establish_baseline
from poise_core.failures import InfrastructureError
from tasks import work_pool
from tasks.work_pool import WorkPool, kept_alive

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("prefect")]


@pytest.fixture
def handed_out(
    tmp_path: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Evolution, CandidateRef]]:
    """An evolution with a child to hand out, whose preset names a deployment that no worker serves."""
    from prefect.client.orchestration import get_client

    monkeypatch.setattr(work_pool, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(work_pool, "LOST_SECONDS", 3.0)
    preset = make_preset({"dispatch_deployment": "by-hand/by-hand"}, LADDER, generations=1, parents=1)
    with get_client(sync_client=True) as client:
        client.create_deployment(client.create_flow_from_name("by-hand"), "by-hand", paused=True)
    evolution = open_evolution(tmp_path / "run", preset)
    with evolution.run:
        establish_baseline(evolution)
        (child,) = admit(evolution, 1)
        yield evolution, child


def begun() -> Any:
    """The id of the flow run that waits for a worker, as a worker that has it says."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Running

    waiting = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED]))
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while not (found := client.read_flow_runs(flow_run_filter=FlowRunFilter(state=waiting))):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        client.set_flow_run_state(found[0].id, Running(), force=True)
    return found[0].id


def state_of(run: Any, new: Any = None) -> Any:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        if new is not None:
            client.set_flow_run_state(run, new, force=True)
        return client.read_flow_run(run).state


def measured(evolution: Evolution, child: CandidateRef) -> None:
    for rung in evolution.rungs:
        evolution.train(child, rung)
        evolution.evaluate(child, rung)


def test_a_lost_worker_is_given_up_and_one_that_takes_long_is_not(
    handed_out: tuple[Evolution, CandidateRef],
) -> None:
    from prefect.states import Completed

    evolution, child = handed_out
    with ThreadPoolExecutor(1) as thread:
        lost: Future[None] = thread.submit(WorkPool().measure, evolution, child)
        first = begun()
        with pytest.raises(InfrastructureError, match="ended as Crashed: its worker gave no sign of life for 3 s"):
            lost.result(60)
        assert state_of(first).is_crashed()

        slow: Future[None] = thread.submit(WorkPool().measure, evolution, child)
        second = begun()
        assert second != first
        with kept_alive(evolution, child):
            time.sleep(6.0)
            assert not slow.done()
            measured(evolution, child)
        state_of(second, Completed())
        assert slow.result(60) is None
    assert WorkPool().measure(evolution, child) is None, "what is there is not handed out again"


def test_a_worker_that_was_killed_before_the_last_row_of_its_ladder_gets_the_candidate_again(
    handed_out: tuple[Evolution, CandidateRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All scores are there then, and the row that says so is not."""
    from prefect.states import Completed, Crashed

    evolution, child = handed_out
    archive, append = evolution.run.archive, type(evolution.run.archive).append
    dying = threading.Event()

    def die(self: Any, table: str, rows: Any, **options: Any) -> int:
        if table == "rungs" and rows[0]["decision"] == "finished" and not dying.is_set():
            dying.set()
            raise InfrastructureError("killed")
        return append(self, table, rows, **options)

    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(WorkPool().measure, evolution, child)
        run = begun()
        with monkeypatch.context() as patch:
            patch.setattr(type(archive), "append", die)
            with pytest.raises(InfrastructureError, match="killed"):
                measured(evolution, child)
        state_of(run, Crashed())
        with pytest.raises(InfrastructureError, match="ended as Crashed"):
            first.result(60)
        again = thread.submit(WorkPool().measure, evolution, child)
        run = begun()
        measured(evolution, child)
        state_of(run, Completed())
        again.result(60)
    rungs = [row["rung"] for row in archive.rows("rungs", candidate_id=child.candidate_id)]
    assert sorted(rungs) == ["all", "first", "proxy"]
