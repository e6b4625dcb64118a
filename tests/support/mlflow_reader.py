"""Reading runs, metrics and tags back from MLflow, for tests."""

from __future__ import annotations

from pathlib import Path

import mlflow

from poise_core.tracking.runs import KEY_TAG
from poise_core.tracking.sync import Tracker


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
