"""The flows on a real Prefect server: what runs side by side, what a failure stops and what it does not."""

import itertools
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from laboratory import Faults, Laboratory, contents, make_preset, open_evolution, with_author
from laboratory import evolve as evolve_in_order

from poise_core.config import Preset
from poise_core.evolution import Event
from poise_core.failures import CandidateFailure, FailureKind, InfrastructureError
from poise_core.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("prefect")]


LAST_TASK = "update MLflow"


def run_flow(folder: Path, preset: Preset, observer: Any = lambda event: None, roles: Any = None) -> Any:
    """The final state of the evolution's flow run."""
    from flows.evolve import evolve
    from tasks.session import evolution_session

    with evolution_session(folder, preset, observer=observer, roles=roles):
        return evolve(str(folder), return_state=True)


def task_runs(flow_run_name: str) -> dict[str, Any]:
    """Task runs of the latest flow run of this name, which has come to its end, by name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    named = FlowRunFilter(name=FlowRunFilterName(any_=[flow_run_name]))
    with get_client(sync_client=True) as client:
        (run, *_) = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.START_TIME_DESC)
        only = FlowRunFilter(id={"any_": [run.id]})
        deadline = time.monotonic() + 120  # the server records task runs in their order, a moment after they end
        while True:
            found = {one.name: one for one in client.read_task_runs(flow_run_filter=only)}
            if LAST_TASK in found and all(_settled(one) for one in found.values()):
                return found
            assert time.monotonic() < deadline, found.keys()
            time.sleep(0.2)


def _settled(task_run: Any) -> bool:
    return task_run.state is not None and (task_run.state.is_final() or task_run.state.name == "NotReady")


def test_the_flow_records_what_the_stages_in_order_would(tmp_path: Path, laboratory: Laboratory) -> None:
    preset = make_preset()
    in_order = open_evolution(tmp_path / "in order", preset)
    evolve_in_order(in_order)
    state = run_flow(tmp_path / "flow", preset)
    assert state.is_completed(), state
    run = RunDirectory.read(tmp_path / "flow")
    assert contents(run.archive) == contents(in_order.run.archive)

    children = [row["name"] for row in run.archive.rows("candidates", generation=1)]
    runs = task_runs("gen-01")
    for child in children:
        stages = [runs[f"gen-01/{child}/{stage}"] for stage in ("implement", "verify", "train", "evaluate", "reflect")]
        for before, after in itertools.pairwise(stages):  # the graph shows the stages
            inputs = {source.id for given in after.task_inputs.values() for source in given}
            assert before.id in inputs, f"{after.name} does not take the result of {before.name}"
        assert runs[f"gen-01/{child}/evaluate"].state.message.startswith("Overall ")
    assert {"gen-01/select parents", "show leaderboard", "update MLflow"} <= runs.keys()


@pytest.mark.exhaustive
@pytest.mark.parametrize("workers", [1, 2])
def test_the_flow_climbs_the_ladder_as_the_stages_in_order_would(
    tmp_path: Path, laboratory: Laboratory, workers: int
) -> None:
    ladder = {"enabled": True, "first_stop_below": 0.3}
    preset = make_preset({"parallel_candidates": workers}, ladder)
    in_order = open_evolution(tmp_path / "in order", preset)
    evolve_in_order(in_order)
    assert run_flow(tmp_path / "flow", preset).is_completed()
    run = RunDirectory.read(tmp_path / "flow")
    assert contents(run.archive) == contents(in_order.run.archive)
    assert {row["decision"] for row in run.archive.rows("rungs")} >= {"promoted", "stopped"}

    child = run.archive.rows("candidates", generation=1)[0]["name"]
    runs = task_runs("gen-01")
    stages = [
        "gen-01/{}/train, proxy",
        "gen-01/{}/evaluate, proxy",
        "gen-01/{}/train, first",
        "gen-01/{}/evaluate, first",
        "gen-01/{}/train",
        "gen-01/{}/evaluate",
    ]
    for before, after in itertools.pairwise(runs[stage.format(child)] for stage in stages):
        assert before.id in {source.id for given in after.task_inputs.values() for source in given}


@pytest.mark.exhaustive
@pytest.mark.usefixtures("no_delays")
def test_a_lasting_fault_on_a_lower_rung_stops_the_run(tmp_path: Path, laboratory: Laboratory) -> None:
    """Once only the last rung was looked at, where nothing had happened any more."""

    def fail(name: str) -> None:
        if name != "GRPO":
            raise InfrastructureError("the disk is full")

    laboratory.before_training = fail
    preset = make_preset({"infrastructure_retries": 0}, {"enabled": True}, generations=1)
    state = run_flow(tmp_path / "run", preset)
    assert state.is_failed(), state
    assert "the disk is full" in str(state.message) + repr(state.result(raise_on_failure=False))
    laboratory.before_training = lambda name: None
    assert run_flow(tmp_path / "run", preset).is_completed()


@pytest.mark.exhaustive
@pytest.mark.parametrize("ladder", [{}, {"enabled": True, "proxy_stop_below": 0.0, "first_stop_below": 0.0}])
def test_an_early_fault_goes_through_the_stages_again_as_it_would_in_order(
    tmp_path: Path, laboratory: Laboratory, ladder: dict[str, Any]
) -> None:
    preset = make_preset({"parallel_candidates": 2}, ladder, generations=1, parents=2)
    Faults(laboratory).at[0, 0, 2] = FailureKind.DIVERGED
    in_order = open_evolution(tmp_path / "in order", preset, with_author(preset))
    evolve_in_order(in_order)
    assert run_flow(tmp_path / "flow", preset, roles=with_author(preset)).is_completed()
    run = RunDirectory.read(tmp_path / "flow")
    assert contents(run.archive) == contents(in_order.run.archive)
    assert len(run.archive.rows("failures", kind="diverged")) == 2
    repaired = [row for row in run.archive.rows("candidates", generation=1) if row["revises"]]
    assert {row["candidate_id"] for row in repaired} < {row["candidate_id"] for row in run.archive.rows("evaluations")}

    child, runs = repaired[0]["name"], task_runs("gen-01")
    last = f"gen-01/{child}/evaluate, proxy" if ladder else f"gen-01/{child}/evaluate"
    inputs = {source.id for given in runs[f"gen-01/{child}/repair"].task_inputs.values() for source in given}
    assert runs[f"gen-01/{child}/verify"].id in inputs
    assert runs[last].state.is_completed()
    assert runs[f"gen-01/{child}/reflect"].state.is_completed()


@pytest.mark.exhaustive
def test_children_train_side_by_side(tmp_path: Path, laboratory: Laboratory) -> None:
    together = threading.Barrier(2, timeout=60)

    def meet(name: str) -> None:
        if name != "GRPO":
            together.wait()

    laboratory.before_training = meet
    state = run_flow(tmp_path / "run", make_preset({"parallel_candidates": 2}, generations=1))
    assert state.is_completed(), state


@pytest.mark.exhaustive
def test_one_worker_gets_through(tmp_path: Path, laboratory: Laboratory) -> None:
    """With more threads than stages a circle of waiting tasks would not show."""
    state = run_flow(tmp_path / "run", make_preset({"parallel_candidates": 1}, generations=1, parents=3))
    assert state.is_completed(), state


def test_a_failing_candidate_is_a_named_state_and_the_generation_goes_on(
    tmp_path: Path, laboratory: Laboratory
) -> None:
    failed: list[str] = []

    def fail_the_first(name: str) -> None:
        if name != "GRPO" and not failed:
            failed.append(name)
            raise CandidateFailure(FailureKind.OUT_OF_MEMORY, "train", "more than 4 GB")

    laboratory.before_training = fail_the_first
    state = run_flow(tmp_path / "run", make_preset({"parallel_candidates": 1}, generations=1))
    assert state.is_completed(), state
    runs = task_runs("gen-01")
    trained = runs[f"gen-01/{failed[0]}/train"]
    assert (trained.state.name, trained.state.message) == ("OutOfMemory", "more than 4 GB")
    assert trained.run_count == 1
    assert runs[f"gen-01/{failed[0]}/reflect"].state.is_completed()
    archive = RunDirectory.read(tmp_path / "run").archive
    assert [row["kind"] for row in archive.rows("failures")] == ["out_of_memory"]
    protocol = make_preset().protocol.digest
    assert len(archive.evaluations(protocol=protocol)) == 3  # the base policy, GRPO, the other child


@pytest.fixture
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import stages

    monkeypatch.setattr(stages.train, "retry_delay_seconds", [0.0])


@pytest.mark.exhaustive
@pytest.mark.usefixtures("no_delays")
def test_faults_of_the_machine_are_retried(tmp_path: Path, laboratory: Laboratory) -> None:
    faults: dict[str, int] = {}

    def fail_twice(name: str) -> None:
        faults[name] = faults.get(name, 0) + 1
        if faults[name] <= 2:
            raise InfrastructureError("the node went away")

    laboratory.before_training = fail_twice
    preset = make_preset({"infrastructure_retries": 2}, generations=1)
    state = run_flow(tmp_path / "run", preset)
    assert state.is_completed(), state
    assert set(faults.values()) == {3}
    archive = RunDirectory.read(tmp_path / "run").archive
    assert archive.rows("failures") == []


@pytest.mark.exhaustive
@pytest.mark.usefixtures("no_delays")
def test_a_lasting_fault_stops_the_run_after_the_siblings_have_finished(tmp_path: Path, laboratory: Laboratory) -> None:
    preset = make_preset({"infrastructure_retries": 1, "parallel_candidates": 1}, generations=2)
    broken: list[str] = []

    def fail_the_first_child(name: str) -> None:
        if name != "GRPO" and (not broken or name in broken):
            broken.append(name)
            raise InfrastructureError("the disk is full")

    laboratory.before_training = fail_the_first_child
    state = run_flow(tmp_path / "run", preset)
    assert isinstance(state.result(raise_on_failure=False), InfrastructureError)
    assert "the disk is full" in state.message
    assert len(broken) == 2  # once and one retry
    archive = RunDirectory.read(tmp_path / "run").archive
    assert len(archive.evaluations(protocol=preset.protocol.digest)) == 3
    assert not archive.rows("selections", generation=2)

    laboratory.before_training = lambda name: None
    assert run_flow(tmp_path / "run", preset).is_completed()
    in_order = open_evolution(tmp_path / "in order", preset)
    evolve_in_order(in_order)
    assert contents(archive) == contents(in_order.run.archive)


@pytest.mark.exhaustive
def test_a_stop_before_a_child_is_drafted_cancels_the_run(tmp_path: Path, laboratory: Laboratory) -> None:
    """The stages after it are never started, and their states do not say that it was a stop."""
    from tasks.session import current_evolution

    def stop(event: Event) -> None:
        if (event.kind, event.stage, event.generation) == ("started", "screen", 1):
            current_evolution(tmp_path / "run").stop()

    preset = make_preset({"parallel_candidates": 2}, generations=1)
    state = run_flow(tmp_path / "run", preset, observer=stop)
    assert state.is_cancelled(), state
    assert run_flow(tmp_path / "run", preset).is_completed()


def test_a_stop_cancels_the_run_and_the_next_one_goes_on(tmp_path: Path, laboratory: Laboratory) -> None:
    from tasks.session import current_evolution

    preset = make_preset(generations=1)

    def stop_in_the_second_training(event: Event) -> None:
        if event.kind == "step" and event.subject != "GRPO":
            current_evolution(tmp_path / "run").stop()

    state = run_flow(tmp_path / "run", preset, observer=stop_in_the_second_training)
    assert state.is_cancelled(), state
    assert run_flow(tmp_path / "run", preset).is_completed()


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """Where pytest runs in the background of a shell, it inherits that they are ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_in_the_flow_ends_running_stages_first(
    tmp_path: Path, laboratory: Laboratory, heeds_interrupts: None
) -> None:
    """Without that the flow would wait for a training that nobody wants any more."""
    from tasks.session import current_evolution

    stopped = threading.Event()

    def train_until_stopped(name: str) -> None:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not current_evolution(tmp_path / "run").stopped:
            time.sleep(0.05)
        if current_evolution(tmp_path / "run").stopped:
            stopped.set()

    laboratory.before_training = train_until_stopped
    with pytest.raises(BaseException):  # noqa: B017, PT011  (KeyboardInterrupt must not end the test session)
        run_flow(tmp_path / "run", make_preset(generations=1))
    assert stopped.is_set()
