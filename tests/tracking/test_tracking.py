"""Tracking is a projection of the archive: complete, without doubles, and never in the way. Real MLflow on SQLite."""

from __future__ import annotations

import datetime as dt
import itertools
import logging
import math
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import archive_samples as samples
import pytest

from poise_core.archive import Archive, evaluation_rows, trajectory_rows
from poise_core.evaluation.protocol import Protocol
from poise_core.run_directory import RunDirectory
from poise_core.tracking import KEY_TAG, Tracker
from poise_core.tracking_plan import plan_runs
from poise_core.views import leaderboard
from poise_core.views.morning import Night, summary_file

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making them takes seconds, copying them none."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Archive, Protocol]:
    return samples.filled_archive(tmp_path)


@pytest.fixture
def tracker(tmp_path: Path, empty_store: Path) -> Tracker:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return Tracker(uri, "poise/made-up/x", artifact_folder=tmp_path / "mlartifacts", retry_seconds=60.0)


def runs(tracker: Tracker) -> dict:
    client = mlflow.MlflowClient(tracker.uri)
    experiment = client.get_experiment_by_name(tracker.experiment)
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    keys = [run.data.tags[KEY_TAG] for run in found]
    assert len(set(keys)) == len(keys), "a run exists twice"
    return dict(zip(keys, found, strict=True))


def points(tracker: Tracker, run_id: str, metric: str) -> list[tuple[int, float]]:
    history = mlflow.MlflowClient(tracker.uri).get_metric_history(run_id, metric)
    return [(point.step, point.value) for point in history]


def artifact(tracker: Tracker, run_id: str, name: str) -> str:
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=tracker.uri)
    return Path(path).read_text(encoding="utf-8")


def test_the_runs_mirror_generations_candidates_and_seeds(tracker: Tracker, filled: tuple) -> None:
    archive, protocol = filled
    report = tracker.sync_archive(archive, protocol)
    # 3 generations, 6 candidates, 4 of them with 3 seeds each
    assert (report.created, report.updated, report.unchanged, report.error) == (3 + 6 + 12, 0, 0, "")
    found = runs(tracker)
    seed = found[f"seed/{samples.VM_AV}/1"]
    candidate = found[f"candidate/{samples.VM_AV}"]
    generation = found["generation/2"]
    assert seed.data.tags["mlflow.parentRunId"] == candidate.info.run_id
    assert candidate.data.tags["mlflow.parentRunId"] == generation.info.run_id
    assert "mlflow.parentRunId" not in generation.data.tags
    assert [seed.info.run_name, candidate.info.run_name, generation.info.run_name] == [
        "VM-AV/seed-1",
        "VM-AV",
        "gen-02",
    ]
    for run in (seed, candidate):
        assert run.data.tags["candidate"] == samples.VM_AV
        assert run.data.tags["parent"] == f"{samples.AV},{samples.SA}"
        assert run.data.tags["generation"] == "2"
        assert run.data.tags["protocol"] == protocol.digest
        assert run.data.tags["arm"] == "evolution"
        assert run.data.tags["mechanisms"] == '{"level": "token", "scale": "analytic"}'
        assert run.data.params == {"mechanism.level": "token", "mechanism.scale": "analytic"}
    assert seed.data.tags["seed"] == "1"
    assert generation.data.metrics == {"candidates": 3, "evaluated": 1, "failed": 1, "stopped": 0,
                                       "best_overall": candidate.data.metrics["Overall"]}  # fmt: skip
    statuses = {key: run.info.status for key, run in found.items()}
    assert statuses[f"candidate/{samples.BROKEN}"] == "FAILED"
    assert statuses[f"candidate/{samples.WAITING}"] == "RUNNING"
    assert statuses["generation/2"] == "RUNNING"
    assert statuses[f"seed/{samples.GRPO}/0"] == statuses["generation/0"] == "FINISHED"
    assert found[f"candidate/{samples.BROKEN}"].data.tags["failure"] == "diverged"


def test_curves_scores_and_artifacts_are_those_of_the_archive(tracker: Tracker, filled: tuple) -> None:
    archive, protocol = filled
    tracker.sync_archive(archive, protocol)
    found = runs(tracker)
    evaluation = samples.make_evaluation(protocol, 0.65, 1)
    seed = found[f"seed/{samples.VM_AV}/1"]
    assert seed.data.metrics["Overall"] == pytest.approx(evaluation.overall)
    scores = {result.name: result.score for result in evaluation.benchmarks}
    assert seed.data.metrics["benchmark/chain"] == pytest.approx(scores["chain"])
    expected = [(row["step"], row["reward_mean"]) for row in samples.make_steps(20, 1)]
    assert points(tracker, seed.info.run_id, "reward_mean") == expected
    assert len(points(tracker, seed.info.run_id, "candidate/sigma")) == 20

    candidate = found[f"candidate/{samples.VM_AV}"]
    overalls = [samples.make_evaluation(protocol, 0.65, s).overall for s in samples.SEEDS]
    assert candidate.data.metrics["Overall"] == pytest.approx(sum(overalls) / 3)
    assert candidate.data.metrics["Overall_low"] < candidate.data.metrics["Overall"]
    mean = [sum(samples.make_steps(20, s)[5]["reward_mean"] for s in samples.SEEDS) / 3]
    assert [v for step, v in points(tracker, candidate.info.run_id, "reward_mean") if step == 5] == pytest.approx(mean)
    assert artifact(tracker, candidate.info.run_id, "candidate.py") == samples.SOURCE.format(name="VM-AV")
    assert "KL ended at 0.38 nats" in artifact(tracker, candidate.info.run_id, "reflection.md")
    assert '"signature"' in artifact(tracker, candidate.info.run_id, "verification.json")
    failed = found[f"candidate/{samples.BROKEN}"]
    assert "the loss is NaN at step 7" in artifact(tracker, failed.info.run_id, "failure.txt")


def test_points_that_are_not_finite_are_left_out_and_counted(tracker: Tracker, filled: tuple) -> None:
    archive, protocol = filled
    tracker.sync_archive(archive, protocol)
    run = runs(tracker)[f"seed/{samples.SA}/0"]
    assert run.data.tags["non_finite_points"] == "2"  # the last step's entropy is NaN, its gradient norm infinite
    for metric in ("entropy", "grad_norm"):
        assert [step for step, _ in points(tracker, run.info.run_id, metric)] == list(range(19))
    assert all(math.isfinite(value) and value < 1e300 for value in run.data.metrics.values())


def test_a_second_sync_pushes_nothing_and_a_new_tracker_resumes(tracker: Tracker, filled: tuple) -> None:
    archive, protocol = filled
    tracker.sync_archive(archive, protocol)
    before = {key: run.info.run_id for key, run in runs(tracker).items()}
    again = Tracker(tracker.uri, tracker.experiment).sync_archive(Archive(archive.root), protocol)
    assert (again.created, again.updated, again.unchanged) == (0, 0, 21)
    assert {key: run.info.run_id for key, run in runs(tracker).items()} == before


def test_morning_summaries_are_artifacts_of_their_generation(
    tracker: Tracker, filled: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that MLflow has missed; and none of them twice."""
    archive, protocol = filled
    tracker.sync_archive(archive, protocol, run_dir=tmp_path)
    texts = {}
    for day in (23, 24):  # two nights on one generation
        began = dt.datetime(2026, 11, day, 22, 30, tzinfo=dt.UTC)
        path = summary_file(tmp_path, Night(2, began, began, finished=day == 24))
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


def test_another_protocol_and_the_sealed_split_stay_out(tracker: Tracker, filled: tuple) -> None:
    archive, protocol = filled
    other = samples.make_protocol(steps=21)
    archive.append("evaluations", evaluation_rows(samples.GRPO, other.digest, samples.make_evaluation(other, 0.9, 9)))
    report_split = samples.make_evaluation(protocol, 0.9, 0, "report")
    archive.append("evaluations", evaluation_rows(samples.GRPO, protocol.digest, report_split))
    tracker.sync_archive(archive, protocol)
    found = runs(tracker)
    assert f"seed/{samples.GRPO}/9" not in found
    search = samples.make_evaluation(protocol, 0.45, 0).overall
    assert found[f"seed/{samples.GRPO}/0"].data.metrics["Overall"] == pytest.approx(search)


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


def test_a_store_that_is_down_is_a_warning_and_is_caught_up_later(
    tmp_path: Path, empty_store: Path, filled: tuple, caplog: pytest.LogCaptureFixture
) -> None:
    archive, protocol = filled
    folder = tmp_path / "later"
    tracker = Tracker(f"sqlite:///{folder / 'mlflow.db'}", "poise/x/y", artifact_folder=folder, retry_seconds=60.0)
    (tmp_path / "later").write_text("not a folder: the database cannot be made here")
    with caplog.at_level(logging.WARNING, "poise_core.tracking"):
        report = tracker.sync_archive(archive, protocol)
    assert report.error
    assert not report.complete
    warnings = [r.getMessage() for r in caplog.records if r.name == "poise_core.tracking"]
    assert len(warnings) == 1
    assert "the archive is not affected" in warnings[0]
    assert "\n" not in warnings[0]
    folder.unlink()
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    assert tracker.sync_archive(archive, protocol).error == report.error, "within retry_seconds nothing is tried"
    assert tracker.sync_archive(archive, protocol, force=True).created == 21


def test_a_server_that_does_not_answer_costs_seconds(filled: tuple) -> None:
    archive, protocol = filled
    code = (
        "import sys, time\n"
        "from poise_core.archive import Archive\n"
        "from poise_core.evaluation.protocol import Protocol\n"
        "from poise_core.tracking import Tracker\n"
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


def test_plans_name_parents_before_children_and_follow_content(filled: tuple) -> None:
    archive, protocol = filled
    plans = plan_runs(archive, protocol)
    seen: set[str] = set()
    for plan in plans:
        assert plan.parent_key is None or plan.parent_key in seen
        seen.add(plan.key)
    states = {plan.key: plan.state for plan in plans}
    assert {plan.key: plan.state for plan in plan_runs(Archive(archive.root), protocol)} == states
    extra = samples.make_evaluation(protocol, 0.45, 7)
    archive.append("evaluations", evaluation_rows(samples.GRPO, protocol.digest, extra))
    changed = {plan.key for plan in plan_runs(archive, protocol) if states.get(plan.key) != plan.state}
    # GRPO gains a seed: its own run, the new seed's, and the best of its generation change, others do not
    assert changed == {"generation/0", f"candidate/{samples.GRPO}", f"seed/{samples.GRPO}/7"}


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = "import sys, poise_core.tracking; print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_limits_in_mlflow_are_those_of_the_leaderboard_after_every_new_measurement(
    tracker: Tracker, tmp_path: Path
) -> None:
    """Every measurement moves the noise floor and with it everybody's limits. Of two values at one step and one time MLflow
    shows the larger, not the newer: a candidate that had become worse than the baseline was shown as not distinguishable."""
    protocol = samples.make_protocol()
    archive = Archive(tmp_path / "archive").initialise()
    skills = {samples.GRPO: 0.45, samples.AV: 0.5, samples.SA: 0.4, samples.VM_AV: 0.55, samples.BROKEN: 0.48}
    lows = []
    for candidate, skill in skills.items():
        samples.add_candidate(archive, protocol, candidate, candidate, 0, (), skill)
        assert not tracker.sync_archive(archive, protocol).error
        found = runs(tracker)
        for row in leaderboard(archive, protocol):
            assert row.overall
            metrics = found[f"candidate/{row.candidate_id}"].data.metrics
            expected = {"Overall_low": row.overall.low, "Overall_high": row.overall.high}
            if row.delta:
                expected |= {"delta_low": row.delta.low, "delta_high": row.delta.high}
            assert {key: metrics[key] for key in expected} == pytest.approx(expected), row.name
            if row.delta and row.candidate_id == samples.AV:
                lows.append(row.delta.low)
    assert any(after < before for before, after in itertools.pairwise(lows)), "no limit fell, so nothing was tested"


def test_a_candidate_that_the_ladder_stopped_is_neither_failed_nor_running(tracker: Tracker, tmp_path: Path) -> None:
    protocol = samples.make_protocol()
    archive = Archive(tmp_path / "archive").initialise()
    samples.add_candidate(archive, protocol, samples.GRPO, "GRPO", 0, (), 0.45)
    samples.add_candidate(archive, protocol, samples.AV, "AV", 1, (samples.GRPO,))
    archive.append("trajectories", trajectory_rows(samples.AV, protocol.digest, 0, samples.make_steps(10, 0)))
    archive.append("rungs", [samples.rung(protocol, samples.AV, "proxy", "stopped", cause="race")])
    assert not tracker.sync_archive(archive, protocol).error
    found = runs(tracker)
    candidate = found[f"candidate/{samples.AV}"]
    assert candidate.info.status == "KILLED"
    assert candidate.data.tags["status"] == "stopped"
    assert candidate.data.tags["standing"] == "stopped at the proxy"
    assert candidate.data.tags["rung"] == "proxy, stopped: made up"
    assert len(points(tracker, candidate.info.run_id, "reward_mean")) == 10, "what there is of its curve is drawn"
    generation = found["generation/1"]
    assert generation.info.status == "FINISHED"
    assert generation.data.metrics == {"candidates": 1, "evaluated": 0, "failed": 0, "stopped": 1}


def test_pages_are_artifacts(tracker: Tracker, filled: tuple) -> None:
    archive, protocol = filled
    tracker.sync_archive(archive, protocol)
    found = runs(tracker)
    page = artifact(tracker, found[f"candidate/{samples.VM_AV}"].info.run_id, "report.html")
    assert page.startswith("<!DOCTYPE html>")
    for part in ("VM-AV keeps the scale of advantages steady.", "KL ended at 0.38 nats", "chain", "admitted"):
        assert part in page
    page = artifact(tracker, found["generation/1"].info.run_id, "report.html")
    assert all(name in page for name in ("GRPO", "AV", "SA", "Leaderboard, protocol"))
    assert "VM-AV" not in page, "it is of another generation"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("tags.candidate = '{VM_AV}' and tags.level = 'candidate'", {"VM-AV"}),
        ("tags.parent like '%{GRPO}%' and tags.level = 'candidate'", {"AV", "SA", "LATE"}),
        ("tags.generation = '1' and tags.level = 'candidate'", {"AV", "SA"}),
        ("tags.mechanisms like '%analytic%' and tags.level = 'candidate'", {"AV", "SA", "VM-AV", "HOT", "LATE"}),
        ("tags.arm = 'evolution' and tags.level = 'candidate' and metrics.delta > 0", {"AV", "VM-AV"}),
        ("tags.protocol = '{protocol}' and tags.level = 'generation'", {"gen-00", "gen-01", "gen-02"}),
        ("tags.seed = '0' and tags.candidate = '{SA}'", {"SA/seed-0"}),
        ("params.`mechanism.scale` = 'std' and tags.level = 'candidate'", {"GRPO"}),
    ],
)
def test_the_searches_of_the_guide(tracker: Tracker, filled: tuple, query: str, names: set) -> None:
    archive, protocol = filled
    tracker.sync_archive(archive, protocol)
    client = mlflow.MlflowClient(tracker.uri)
    ids = {name: getattr(samples, name) for name in ("GRPO", "VM_AV", "SA")}
    experiment = client.get_experiment_by_name(tracker.experiment)
    found = client.search_runs([experiment.experiment_id], query.format(protocol=protocol.digest, **ids))
    assert {run.info.run_name for run in found} == names


def test_runs_have_colours_that_differ_and_the_users_own_stays(tracker: Tracker, filled: tuple) -> None:
    archive, protocol = filled
    tracker.sync_archive(archive, protocol)
    found = runs(tracker)
    colours = {key: run.data.tags.get("mlflow.runColor") for key, run in found.items()}
    candidates = [key for key in colours if key.startswith("candidate/")]
    assert len({colours[key] for key in candidates}) == len(candidates)
    assert colours[f"seed/{samples.VM_AV}/1"] == colours[f"candidate/{samples.VM_AV}"]
    own = found[f"candidate/{samples.GRPO}"].info.run_id
    mlflow.MlflowClient(tracker.uri).set_tag(own, "mlflow.runColor", "#123456")
    samples.add_candidate(archive, protocol, "x-6666666666", "X", 1, (samples.GRPO,), 0.5)
    assert tracker.sync_archive(archive, protocol).updated
    assert runs(tracker)[f"candidate/{samples.GRPO}"].data.tags["mlflow.runColor"] == "#123456"
