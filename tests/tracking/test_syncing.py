"""When and how often tracking pushes: everything once, whatever happens in between, and never in the way."""

from __future__ import annotations

import datetime as dt
import logging
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import archive_samples as samples
import mlflow
import pytest
from archive_samples import artifact, points, runs
from laboratory import LADDER, Laboratory, admit, make_preset, open_evolution
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from poise_core.archive import Archive, evaluation_rows, trajectory_rows
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.generation import establish_baseline
from poise_core.run_directory import RunDirectory
from poise_core.tracking import runs as tracking_runs
from poise_core.tracking.plan import plan_runs
from poise_core.tracking.sync import Tracker
from poise_core.views.nightly import NightlyRun, report_file


@pytest.mark.slow
def test_a_second_sync_pushes_nothing_and_a_new_tracker_resumes(tracker: Tracker, filled: tuple) -> None:
    archive, protocol = filled
    tracker.sync_archive(archive, protocol)
    before = {key: run.info.run_id for key, run in runs(tracker).items()}
    again = Tracker(tracker.uri, tracker.experiment).sync_archive(Archive(archive.root), protocol)
    assert (again.created, again.updated, again.unchanged) == (0, 0, 21)
    assert {key: run.info.run_id for key, run in runs(tracker).items()} == before


@pytest.mark.slow
def test_nightly_reports_are_artifacts_of_their_generation(
    tracker: Tracker, filled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that MLflow has missed; and none of them twice."""
    archive, protocol = filled
    tracker.sync_archive(archive, protocol, run_dir=tmp_path)
    texts = {}
    for day in (23, 24):  # two nightly runs on one generation
        began = dt.datetime(2026, 11, day, 22, 30, tzinfo=dt.UTC)
        path = report_file(tmp_path, NightlyRun(2, began, began, finished=day == 24))
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# Night {day}: Überraschung\n", encoding="utf-8")
        texts[path.name] = path.read_text(encoding="utf-8")
    report = tracker.sync_archive(archive, protocol, run_dir=tmp_path)
    assert (report.created, report.updated, report.error) == (0, 1, "")
    run = runs(tracker)["generation/2"].info.run_id
    listed = mlflow.MlflowClient(tracker.uri).list_artifacts(run, "nights")
    assert [one.path for one in listed] == [f"nights/{name}" for name in sorted(texts)]
    assert {name: artifact(tracker, run, f"nights/{name}") for name in texts} == texts
    monkeypatch.setattr(mlflow.MlflowClient, "log_text", lambda *_: pytest.fail("pushed again"))
    assert tracker.sync_archive(archive, protocol, run_dir=tmp_path).unchanged == 21


@pytest.mark.exhaustive
@pytest.mark.parametrize("moment", ["before the tags", "before the state"])
def test_a_sync_that_was_killed_half_way_leaves_no_double_run_and_no_double_point(
    tracker: Tracker, filled: tuple, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    archive, protocol = filled
    call = {"before the tags": "log_batch", "before the state": "set_tag"}[moment]
    real = getattr(mlflow.MlflowClient, call)
    done: list[str] = []

    def die(self: object, run_id: str, *rest: object, **more: object) -> None:
        if call == "set_tag" or "tags" in more:  # once per run
            if len(done) == 4:
                raise KeyboardInterrupt
            done.append(run_id)
        real(self, run_id, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, call, die)
        with pytest.raises(KeyboardInterrupt):
            tracker.sync_archive(archive, protocol)
    report = tracker.sync_archive(archive, protocol)
    assert (report.created, report.updated, report.unchanged) == (21 - 5, 1, 4)
    for key, run in runs(tracker).items():
        if key.startswith("seed/"):
            assert len(points(tracker, run.info.run_id, "kl")) == 20


@pytest.mark.slow
def test_what_comes_later_is_added_to_the_same_runs(tracker: Tracker, tmp_path: Path) -> None:
    protocol = samples.make_protocol()
    archive = Archive(tmp_path / "archive").initialise()
    samples.add_candidate(archive, protocol, samples.GRPO, "GRPO", 0)
    assert tracker.sync_archive(archive, protocol).created == 2
    first = runs(tracker)[f"candidate/{samples.GRPO}"]
    assert first.info.status == "RUNNING"
    for seed in samples.SEEDS:
        steps = samples.make_steps(20, seed)
        archive.append("trajectories", trajectory_rows(samples.GRPO, protocol.digest, seed, steps))
        tracker.sync_archive(archive, protocol)
    assert "kl" not in runs(tracker)[f"candidate/{samples.GRPO}"].data.metrics, "seeds are still being measured"
    for seed in samples.SEEDS:
        evaluation = samples.make_evaluation(protocol, 0.45, seed)
        archive.append("evaluations", evaluation_rows(samples.GRPO, protocol.digest, evaluation))
        tracker.sync_archive(archive, protocol)
    last = runs(tracker)[f"candidate/{samples.GRPO}"]
    assert last.info.run_id == first.info.run_id
    assert last.info.status == "FINISHED"
    assert last.data.tags["verdict"] == "baseline"
    assert len(points(tracker, last.info.run_id, "kl")) == 20
    # one value of Overall per number of seeds, the newest last
    assert [step for step, _ in points(tracker, last.info.run_id, "Overall")] == [1, 2, 3]
    assert last.data.metrics["seeds"] == 3
    assert len(runs(tracker)) == 1 + 1 + 3
    archive.append("trajectories", trajectory_rows(samples.GRPO, protocol.digest, 7, samples.make_steps(20, 7)))
    archive.append(
        "evaluations", evaluation_rows(samples.GRPO, protocol.digest, samples.make_evaluation(protocol, 0.5, 7))
    )
    tracker.sync_archive(archive, protocol)
    assert runs(tracker)[f"candidate/{samples.GRPO}"].data.metrics["seeds"] == 4
    assert len(points(tracker, last.info.run_id, "reward_mean")) == 20, "a mean is not drawn over another mean"


@pytest.mark.exhaustive
def test_threads_that_sync_at_once_make_nothing_twice(tracker: Tracker, filled: tuple) -> None:
    archive, protocol = filled
    reports = []
    threads = [
        threading.Thread(target=lambda: reports.append(tracker.sync_archive(archive, protocol))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs(tracker)) == 21
    assert not [report.error for report in reports if report.error]
    assert tracker.sync_archive(archive, protocol).unchanged == 21


@pytest.mark.slow
def test_a_row_written_during_a_sync_is_pushed_by_that_sync(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second caller returns at once; the first one must not stop before it has done the second one's work too."""
    protocol = samples.make_protocol()
    archive = Archive(tmp_path / "archive").initialise()
    samples.add_candidate(archive, protocol, samples.GRPO, "GRPO", 0)
    real = Tracker._push
    inner = []

    def push(self: Tracker, *args: object) -> object:
        if not inner:
            samples.add_candidate(archive, protocol, samples.AV, "AV", 1, (samples.GRPO,))
            inner.append(None)
            inner.append(tracker.sync_archive(archive, protocol))
        return real(self, *args)

    monkeypatch.setattr(Tracker, "_push", push)
    tracker.sync_archive(archive, protocol)
    assert inner[1].deferred
    assert f"candidate/{samples.AV}" in runs(tracker)


@pytest.mark.slow
def test_plans_name_parents_before_children_and_follow_content(filled: tuple) -> None:
    archive, protocol = filled
    plans = plan_runs(RunEvidence.load(archive, protocol))
    seen: set[str] = set()
    for plan in plans:
        assert plan.parent_key is None or plan.parent_key in seen
        seen.add(plan.key)
    states = {plan.key: plan.state for plan in plans}
    assert {plan.key: plan.state for plan in plan_runs(RunEvidence.load(Archive(archive.root), protocol))} == states
    extra = samples.make_evaluation(protocol, 0.45, 7)
    archive.append("evaluations", evaluation_rows(samples.GRPO, protocol.digest, extra))
    changed = {
        plan.key for plan in plan_runs(RunEvidence.load(archive, protocol)) if states.get(plan.key) != plan.state
    }
    # GRPO gains a seed: its own run, the new seed's, and the best of its generation change, others do not
    assert changed == {"generation/0", f"candidate/{samples.GRPO}", f"seed/{samples.GRPO}/7"}


@pytest.mark.slow
def test_the_mean_curve_of_a_child_waits_for_its_last_rung(tmp_path: Path) -> None:
    """A push between two rungs would draw one seed's curve as the mean of all, for good."""
    with Laboratory():
        evolution = open_evolution(tmp_path / "run", make_preset(ladder=LADDER, generations=1, parents=1))
        with evolution.run as run:
            establish_baseline(evolution)
            (child,) = admit(evolution, 1)
            drawn = {}
            for rung in evolution.rungs:
                evolution.train(child, rung)
                evolution.evaluate(child, rung)
                (plan,) = [one for one in plan_runs(run.evidence()) if one.key == f"candidate/{child.candidate_id}"]
                drawn[rung] = plan.curves
    assert drawn == {"proxy": None, "first": None, "all": (child.candidate_id, None)}


@pytest.mark.slow
def test_a_store_that_is_down_is_a_warning_and_is_caught_up_later(
    tmp_path: Path, empty_store: Path, filled: tuple, caplog: pytest.LogCaptureFixture
) -> None:
    archive, protocol = filled
    folder = tmp_path / "later"
    tracker = Tracker(f"sqlite:///{folder / 'mlflow.db'}", "poise/x/y", artifact_folder=folder, retry_seconds=60.0)
    (tmp_path / "later").write_text("not a folder: the database cannot be made here")
    with caplog.at_level(logging.WARNING, "poise_core.tracking.sync"):
        report = tracker.sync_archive(archive, protocol)
    assert report.error
    assert not report.complete
    warnings = [r.getMessage() for r in caplog.records if r.name == "poise_core.tracking.sync"]
    assert len(warnings) == 1
    assert "the archive is not affected" in warnings[0]
    assert "\n" not in warnings[0]
    folder.unlink()
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    assert tracker.sync_archive(archive, protocol).error == report.error, "within retry_seconds nothing is tried"
    assert tracker.sync_archive(archive, protocol, force=True).created == 21


@pytest.mark.slow
def test_a_server_that_does_not_answer_costs_seconds(filled: tuple) -> None:
    archive, protocol = filled
    code = (
        "import sys, time\n"
        "from poise_core.archive import Archive\n"
        "from poise_core.config.protocol import Protocol\n"
        "from poise_core.tracking.sync import Tracker\n"
        "import mlflow\n"
        "start = time.monotonic()\n"
        "protocol = Protocol.model_validate_json(sys.argv[2])\n"
        "report = Tracker('http://127.0.0.1:9', 'x').sync_archive(Archive(sys.argv[1]), protocol)\n"
        "assert report.error, report\n"
        "print(time.monotonic() - start)\n"
    )
    arguments = [sys.executable, "-c", code, archive.root, protocol.model_dump_json()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20


def test_the_run_directory_decides_where_to_track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with RunDirectory.open(tmp_path / "run", samples.make_preset()) as run:
        tracker = Tracker.for_run(run)
        assert tracker.uri == f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}"
        assert tracker.experiment == f"poise/made-up/{run.preset.protocol.digest}"
        assert Tracker.for_run(run) is tracker, "two trackers of one experiment could each make the same run"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
        assert Tracker.for_run(run).uri == "http://tracking:5000"


@pytest.mark.slow
def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = "import sys, poise_core.tracking.sync; print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.exhaustive
def test_the_copy_of_a_run_leaves_the_artifacts_of_the_original_alone(
    tracker: Tracker, tmp_path: Path, filled: tuple
) -> None:
    """MLflow's database has the path of the original in it: a sync of the copy once wrote its artifacts there."""
    archive, protocol = filled
    tracker.sync_archive(archive, protocol)
    original = sorted((tmp_path / "mlartifacts").rglob("*"))
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy, ignore=shutil.ignore_patterns("copy"))
    samples.add_candidate(archive, protocol, "x-6666666666", "X", 1, (samples.GRPO,), 0.5)
    of_copy = Tracker(f"sqlite:///{copy / 'mlflow.db'}", tracker.experiment, artifact_folder=copy / "mlartifacts")
    report = of_copy.sync_archive(archive, protocol)
    assert f"artifacts would go to {tmp_path / 'mlartifacts'}" in report.error
    assert "remove mlflow.db and mlartifacts" in report.error
    assert sorted((tmp_path / "mlartifacts").rglob("*")) == original
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    same = Tracker(f"sqlite:///{link / 'mlflow.db'}", tracker.experiment, artifact_folder=link / "mlartifacts")
    assert same.sync_archive(archive, protocol).complete, "another name for the same place"


@pytest.mark.slow
def test_what_mlflow_refuses_of_one_candidate_stays_that_candidates(
    tracker: Tracker, filled: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run is not taken, the page of another cannot be drawn; everything else is pushed, and nothing is tried again."""
    archive, protocol = filled
    log_text, page = mlflow.MlflowClient.log_text, tracking_runs.candidate_page

    def refuse(client: mlflow.MlflowClient, run_id: str, text: str, name: str) -> None:
        if client.get_run(run_id).info.run_name == "VM-AV":
            raise mlflow.exceptions.MlflowException("no such text", error_code=INVALID_PARAMETER_VALUE)
        log_text(client, run_id, text, name)

    def draw(evidence: RunEvidence, candidate: str) -> str:
        if candidate == samples.AV:
            raise ZeroDivisionError("nothing to show")
        return page(evidence, candidate)

    monkeypatch.setattr(mlflow.MlflowClient, "log_text", refuse)
    monkeypatch.setattr(tracking_runs, "candidate_page", draw)
    report = tracker.sync_archive(archive, protocol)
    assert (report.created, report.error, report.complete) == (21, "", True)
    assert report.refused == (f"candidate/{samples.VM_AV}: MlflowException: no such text",)
    found = runs(tracker)
    assert "no such text" in found[f"candidate/{samples.VM_AV}"].data.tags["poise.refused"]
    assert found[f"candidate/{samples.VM_AV}"].info.status == "FINISHED"
    assert found[f"seed/{samples.VM_AV}/1"].data.metrics["Overall"] > 0
    odd = found[f"candidate/{samples.AV}"]
    assert "no page: ZeroDivisionError: nothing to show" in artifact(tracker, odd.info.run_id, "report.html")
    assert "Overall" in odd.data.metrics
    again = tracker.sync_archive(archive, protocol)
    assert (again.unchanged, again.refused, again.error) == (21, (), "")


@pytest.mark.slow
def test_a_run_that_cannot_be_made_leaves_out_what_is_below_it(
    tracker: Tracker, filled: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, protocol = filled
    create = mlflow.MlflowClient.create_run

    def refuse(client: mlflow.MlflowClient, *given: object, run_name: str, **more: object) -> object:
        if run_name == "VM-AV":
            raise mlflow.exceptions.MlflowException("no such name", error_code=INVALID_PARAMETER_VALUE)
        return create(client, *given, run_name=run_name, **more)

    monkeypatch.setattr(mlflow.MlflowClient, "create_run", refuse)
    report = tracker.sync_archive(archive, protocol)
    assert (report.created, len(report.refused), report.error) == (21 - 4, 1, "")
