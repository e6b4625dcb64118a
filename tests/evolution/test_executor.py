"""Who carries out the work of an evolution: the one that it is given, and which one it gets otherwise."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil
import pytest
from laboratory import Laboratory, evolve, make_preset, open_evolution

from poise_core.evolution import ChildProcesses
from poise_core.evolution.executor import default_executor, executed_by
from poise_core.run_directory import RunDirectory


@pytest.mark.slow
def test_an_evolution_asks_nobody_but_its_executor(tmp_path: Path) -> None:
    given, other = Laboratory(), Laboratory()
    before = psutil.Process().children()
    with (
        executed_by(other),
        (evolution := open_evolution(tmp_path / "run", make_preset(generations=1), executor=given)).run,
    ):
        evolve(evolution)
    scored = {row["candidate_id"] for row in evolution.run.archive.rows("evaluations")}
    assert len(scored) == 4  # the base policy, the baseline, two children
    assert {name for name, _, seed in (one.rpartition("/") for one in given.trained)} == {
        row["name"] for row in evolution.run.archive.rows("candidates") if row["arm"] == "evolution"
    }
    assert (other.trained, other.evaluated) == ([], [])
    assert psutil.Process().children() == before


def test_the_innermost_block_says_who_executes_in_every_thread() -> None:
    outer, inner = Laboratory(), Laboratory()
    found: list[object] = []
    with executed_by(outer):
        with executed_by(inner):
            thread = threading.Thread(target=lambda: found.append(default_executor()))
            thread.start()
            thread.join()
        found.append(default_executor())
    assert found == [inner, outer]
    assert isinstance(default_executor(), ChildProcesses)


@pytest.mark.parametrize(("dispatch", "hands_over"), [("inline", False), ("pool", True)])
def test_only_the_evolution_of_a_pool_hands_candidates_over_and_its_workers_do_not(
    tmp_path: Path, dispatch: str, hands_over: bool
) -> None:
    from tasks.session import candidate_session, evolution_session
    from tasks.work_pool import WorkPool

    folder = tmp_path / "run"
    with evolution_session(folder, make_preset({"dispatch": dispatch})) as evolution:
        assert isinstance(evolution.executor, WorkPool) is hands_over
    assert RunDirectory.exists(folder)
    with candidate_session(folder) as of_a_worker:
        assert type(of_a_worker.executor) is ChildProcesses
