"""What MLflow shows of an archive: generations, candidates and seeds with their curves, scores, pages, tags and colours."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import archive_samples as samples
import mlflow
import pytest
from archive_samples import artifact, points, runs

from poise_core.archive import Archive, evaluation_rows, trajectory_rows
from poise_core.config.protocol import Protocol
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.tracking.sync import SyncReport, Tracker
from poise_core.views import leaderboard


@dataclass(frozen=True)
class Synced:
    """A filled archive and the MLflow that it was pushed to, once for all tests that only look."""

    tracker: Tracker
    protocol: Protocol
    report: SyncReport


@pytest.fixture(scope="module")
def synced(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Synced:
    place = tmp_path_factory.mktemp("synced")
    archive, protocol = samples.filled_archive(place)
    tracker = samples.tracker_on(empty_store, place)
    return Synced(tracker, protocol, tracker.sync_archive(archive, protocol))


@pytest.mark.slow
def test_the_runs_mirror_generations_candidates_and_seeds(synced: Synced) -> None:
    tracker, protocol, report = synced.tracker, synced.protocol, synced.report
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


@pytest.mark.slow
def test_curves_scores_and_artifacts_are_those_of_the_archive(synced: Synced) -> None:
    tracker, protocol = synced.tracker, synced.protocol
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


@pytest.mark.slow
def test_points_that_are_not_finite_are_left_out_and_counted(synced: Synced) -> None:
    tracker = synced.tracker
    run = runs(tracker)[f"seed/{samples.SA}/0"]
    assert run.data.tags["non_finite_points"] == "2"  # the last step's entropy is NaN, its gradient norm infinite
    for metric in ("entropy", "grad_norm"):
        assert [step for step, _ in points(tracker, run.info.run_id, metric)] == list(range(19))
    assert all(math.isfinite(value) and value < 1e300 for value in run.data.metrics.values())


@pytest.mark.slow
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


@pytest.mark.slow
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
        for row in leaderboard(RunEvidence.load(archive, protocol)):
            assert row.overall
            metrics = found[f"candidate/{row.candidate_id}"].data.metrics
            expected = {"Overall_low": row.overall.low, "Overall_high": row.overall.high}
            if row.delta:
                expected |= {"delta_low": row.delta.low, "delta_high": row.delta.high}
            assert {key: metrics[key] for key in expected} == pytest.approx(expected), row.name
            if row.delta and row.candidate_id == samples.AV:
                lows.append(row.delta.low)
    assert any(after < before for before, after in itertools.pairwise(lows)), "no limit fell, so nothing was tested"


@pytest.mark.slow
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


@pytest.mark.slow
def test_pages_are_artifacts(synced: Synced) -> None:
    tracker = synced.tracker
    found = runs(tracker)
    page = artifact(tracker, found[f"candidate/{samples.VM_AV}"].info.run_id, "report.html")
    assert page.startswith("<!DOCTYPE html>")
    for part in ("VM-AV keeps the scale of advantages steady.", "KL ended at 0.38 nats", "chain", "admitted"):
        assert part in page
    page = artifact(tracker, found["generation/1"].info.run_id, "report.html")
    assert all(name in page for name in ("GRPO", "AV", "SA", "Leaderboard, protocol"))
    assert "VM-AV" not in page, "it is of another generation"


@pytest.mark.slow
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
def test_the_searches_of_the_guide(synced: Synced, query: str, names: set) -> None:
    tracker, protocol = synced.tracker, synced.protocol
    client = mlflow.MlflowClient(tracker.uri)
    ids = {name: getattr(samples, name) for name in ("GRPO", "VM_AV", "SA")}
    experiment = client.get_experiment_by_name(tracker.experiment)
    found = client.search_runs([experiment.experiment_id], query.format(protocol=protocol.digest, **ids))
    assert {run.info.run_name for run in found} == names


@pytest.mark.slow
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
