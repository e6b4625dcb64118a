"""A real MLflow on SQLite for every test."""

from __future__ import annotations

import shutil
from pathlib import Path

import archive_samples as samples
import pytest

from poise_core.archive import Archive
from poise_core.config.protocol import Protocol
from poise_core.tracking.sync import Tracker


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Archive, Protocol]:
    return samples.filled_archive(tmp_path)


@pytest.fixture
def tracker(tmp_path: Path, empty_store: Path) -> Tracker:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return Tracker(uri, "poise/made-up/x", artifact_folder=tmp_path / "mlartifacts", retry_seconds=60.0)
