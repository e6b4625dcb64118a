from collections.abc import Iterator

import pytest
from laboratory import Laboratory


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real server with an empty database."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=600):
        yield


@pytest.fixture
def laboratory(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Laboratory]:
    """Real flows, tasks, server and search; training, evaluation, gate and MLflow are made up."""
    from poise_core.tracking.sync import SyncReport, Tracker

    monkeypatch.setattr(Tracker, "sync_archive", lambda *_, **__: SyncReport())
    with Laboratory() as made:
        yield made
