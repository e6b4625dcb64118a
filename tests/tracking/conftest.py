"""A real MLflow on SQLite for every test."""

from __future__ import annotations

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
    return samples.tracker_on(empty_store, tmp_path)
