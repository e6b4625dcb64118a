"""The registered model: a version per champion candidate, and an alias that only a confirmed one gets. Real MLflow on SQLite."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import archive_samples as samples
import mlflow
import pytest

from poise_core.archive import Archive, failure_row
from poise_core.config.protocol import Protocol
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.tracking.registry import NO_LONGER, champion_of, plan_versions
from poise_core.tracking.sync import Tracker

MODEL = "poise-made-up-x"


@pytest.fixture
def run(tmp_path: Path) -> tuple[Archive, Protocol]:
    """GRPO and two children that are far better: both are champion candidates."""
    protocol = samples.make_protocol()
    archive = Archive(tmp_path / "archive").initialise()
    samples.add_candidate(archive, protocol, samples.GRPO, "GRPO", 0, (), 0.3)
    samples.add_candidate(archive, protocol, samples.AV, "AV", 1, (samples.GRPO,), 0.6)
    samples.add_candidate(archive, protocol, samples.VM_AV, "VM-AV", 2, (samples.AV,), 0.8)
    declared = {name for name, one in RunEvidence.load(archive, protocol).declarations.items() if one.champion}
    assert declared == {samples.AV, samples.VM_AV}
    return archive, protocol


def registered(tracker: Tracker) -> tuple[dict[str, Any], str | None]:
    """Versions by candidate, and the candidate under the alias."""
    client = mlflow.MlflowClient(tracker.uri)
    versions = client.search_model_versions(f"name = '{MODEL}'")
    by_candidate = {version.tags["candidate"]: version for version in versions}
    assert len(by_candidate) == len(versions), "a candidate has two versions"
    alias = client.get_registered_model(MODEL).aliases.get("champion")
    holders = [name for name, version in by_candidate.items() if str(version.version) == str(alias)]
    return by_candidate, holders[0] if holders else None


def sync(tracker: Tracker, archive: Archive, protocol: Protocol) -> None:
    report = tracker.sync_archive(archive, protocol, force=True)
    assert not report.error, report.error


@pytest.mark.slow
def test_a_champion_candidate_is_a_version_with_its_algorithm_file(
    tracker: Tracker, run: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(tracker, *run)
    versions, champion = registered(tracker)
    assert versions.keys() == {samples.AV, samples.VM_AV}
    assert champion is None, "no replication has confirmed anything yet"
    version = versions[samples.VM_AV]
    assert version.tags["standing"] == "champion candidate"
    assert version.tags["protocol"] == run[1].digest
    assert (version.tags["generation"], version.tags["parent"]) == ("2", samples.AV)
    assert "Overall" in version.description
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)  # as a user does
    folder = mlflow.artifacts.download_artifacts(f"models:/{MODEL}/{version.version}", dst_path=str(tmp_path / "got"))
    assert (Path(folder) / "candidate.py").read_text() == samples.SOURCE.format(name="VM-AV")
    assert "KL ended at" in (Path(folder) / "reflection.md").read_text()


@pytest.mark.slow
def test_the_alias_moves_after_a_replication_and_only_then(tracker: Tracker, run: tuple) -> None:
    archive, protocol = run
    sync(tracker, archive, protocol)
    archive.append("replications", [samples.replication(protocol, samples.VM_AV, "refuted")])
    sync(tracker, archive, protocol)
    versions, champion = registered(tracker)
    assert champion is None, "it was refuted"
    assert versions[samples.VM_AV].tags["standing"] == "refuted"
    assert "Report split: refuted: +5.0 points" in versions[samples.VM_AV].description
    archive.append("replications", [samples.replication(protocol, samples.AV, "replicated")])
    sync(tracker, archive, protocol)
    versions, champion = registered(tracker)
    assert champion == samples.AV
    assert versions[samples.AV].tags["standing"] == "replicated"


@pytest.mark.slow
def test_of_two_that_were_confirmed_the_search_decides(tracker: Tracker, run: tuple) -> None:
    archive, protocol = run
    for candidate in (samples.AV, samples.VM_AV):
        archive.append("replications", [samples.replication(protocol, candidate, "replicated")])
        sync(tracker, archive, protocol)
    _, champion = registered(tracker)
    assert champion == samples.VM_AV
    better = [plan for plan in plan_versions(RunEvidence.load(archive, protocol)) if plan.candidate_id == samples.VM_AV]
    assert champion_of(plan_versions(RunEvidence.load(archive, protocol))) == better[0].candidate_id
    assert better[0].overall == max(plan.overall for plan in plan_versions(RunEvidence.load(archive, protocol)))


@pytest.mark.exhaustive
def test_an_undeclared_candidate_gets_no_alias_even_when_it_replicates(tracker: Tracker, run: tuple) -> None:
    archive, protocol = run
    samples.add_candidate(archive, protocol, samples.SA, "SA", 2, (samples.GRPO,), 0.31)
    archive.append("replications", [samples.replication(protocol, samples.SA, "replicated", declared=False)])
    sync(tracker, archive, protocol)
    versions, champion = registered(tracker)
    assert samples.SA not in versions
    assert champion is None


@pytest.mark.slow
def test_syncs_that_are_repeated_or_cut_short_leave_one_version_each(
    tracker: Tracker, run: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, protocol = run
    archive.append("replications", [samples.replication(protocol, samples.VM_AV, "replicated")])
    real, calls = mlflow.MlflowClient.create_model_version, []

    def die_after_the_first(self: Any, *args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "create_model_version", die_after_the_first)
        with pytest.raises(KeyboardInterrupt):
            tracker.sync_archive(archive, protocol)
    first, _ = registered(tracker)
    assert len(first) == 1
    sync(tracker, archive, protocol)
    sync(Tracker(tracker.uri, tracker.experiment), archive, protocol)
    versions, champion = registered(tracker)
    assert {name: version.version for name, version in versions.items()}.items() >= {
        (name, version.version) for name, version in first.items()
    }
    assert (len(versions), champion) == (2, samples.VM_AV)
    before = {name: version.last_updated_timestamp for name, version in versions.items()}
    sync(tracker, archive, protocol)
    assert {name: version.last_updated_timestamp for name, version in registered(tracker)[0].items()} == before


@pytest.mark.slow
def test_a_version_that_is_declared_no_longer_says_so(tracker: Tracker, run: tuple) -> None:
    archive, protocol = run
    sync(tracker, archive, protocol)
    failure = CandidateFailure(FailureKind.DIVERGED, "train", "NaN", "")
    row = failure_row(
        failure, candidate_id=samples.AV, protocol=protocol.digest, name="AV", generation=1, parent_id=samples.GRPO
    )
    archive.append("failures", [row])  # a failure in training takes its scores out of the comparison
    sync(tracker, archive, protocol)
    versions, _ = registered(tracker)
    assert versions[samples.AV].tags["standing"] == NO_LONGER
    assert versions[samples.VM_AV].tags["standing"] == "champion candidate"


@pytest.mark.slow
def test_a_run_without_champion_candidates_registers_nothing(tracker: Tracker, tmp_path: Path) -> None:
    protocol = samples.make_protocol()
    archive = Archive(tmp_path / "archive").initialise()
    samples.add_candidate(archive, protocol, samples.GRPO, "GRPO", 0, (), 0.45)
    sync(tracker, archive, protocol)
    assert mlflow.MlflowClient(tracker.uri).search_registered_models() == []


@pytest.mark.slow
def test_settings_of_the_process_do_not_move_the_registry(
    tracker: Tracker, run: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs and versions belong together, whatever registry the environment names."""
    monkeypatch.setitem(os.environ, "MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    sync(tracker, *run)
    assert len(mlflow.MlflowClient(tracker.uri, tracker.uri).search_model_versions(f"name = '{MODEL}'")) == 2
