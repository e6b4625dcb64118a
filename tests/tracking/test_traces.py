"""Calls of language models as MLflow traces: each once, in the run's own store, whatever store came before."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from poise_core.archive import Archive
from poise_core.tracking.sync import Tracker

pytestmark = pytest.mark.slow


def call(number: int, outcome: str = "ok") -> dict[str, Any]:
    return {
        "call_id": f"gen-01/slot-0/proposer-abc-{number}", "scope": "gen-01/slot-0", "role": "proposer", "generation": 1,
        "model": "openai:x", "method": "json_schema", "attempt": number, "outcome": outcome, "message": "the fault",
        "input_tokens": 10, "output_tokens": 5, "estimated": False, "dollars": 0.5, "seconds": 2.0, "prompt": "p",
        "request_digest": "abc", "request": '{"messages": [["system", "be brief"]]}',
        "answer": '{"text": "done"}' if outcome == "ok" else None, "replayed": False, "written_by": "llm",
    }  # fmt: skip


def test_each_call_is_one_trace_in_its_own_store(tmp_path: Path, empty_store: Path) -> None:
    from laboratory import make_preset
    from mlflow import MlflowClient

    protocol = make_preset().protocol
    for name in ("first", "second"):
        archive = Archive(tmp_path / name).initialise()
        archive.append("calls", [call(0), call(1, "timed_out")])
        shutil.copy(empty_store, tmp_path / f"{name}.db")
        uri = f"sqlite:///{tmp_path / name}.db"
        tracker = Tracker(uri, "poise/test", artifact_folder=tmp_path / f"{name}-artifacts")
        assert tracker.sync_archive(archive, protocol).complete
        assert tracker.sync_archive(archive, protocol).complete
        archive.append("calls", [call(2)])
        assert tracker.sync_archive(archive, protocol).complete
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("poise/test")
        assert experiment is not None
        traces = list(client.search_traces(locations=[experiment.experiment_id]))
        assert sorted(trace.info.tags["poise.call_id"][-1] for trace in traces) == ["0", "1", "2"]
        by_call = {trace.info.tags["poise.call_id"][-1]: trace for trace in traces}
        (span,) = by_call["0"].data.spans
        assert span.inputs == {"messages": [["system", "be brief"]]}
        assert span.outputs == {"text": "done"}
        assert (span.attributes["model"], span.attributes["dollars"]) == ("openai:x", "0.5")
        assert by_call["0"].info.execution_duration == 2000
        assert str(by_call["1"].info.state).endswith("ERROR")
        assert "MLFLOW_TRACKING_URI" not in os.environ
