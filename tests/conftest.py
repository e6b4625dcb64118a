"""Settings of every test: no telemetry, no look-ups, no servers or stores from outside, one thread."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ.update(
    DO_NOT_TRACK="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL",
    MLFLOW_DISABLE_TELEMETRY="true",
    HF_HUB_OFFLINE="1",
    LANGSMITH_TRACING="false",
    OMP_NUM_THREADS="1",
    POISE_ALLOW_SHARED_NETWORK="1",  # so that every test runs on machines without network namespaces, too
)
# no test cuts the power, and a flush takes the disk as long as the rest of an append; a handle that is none is still told
os.fsync = lambda handle: os.fstat(handle) and None
for name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI", "PREFECT_API_AUTH_STRING"):
    os.environ.pop(name, None)


collect_ignore = (
    [] if importlib.util.find_spec("trl") else ["test_export_trl.py"]
)  # test_export.py runs it where TRL is


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, so that at the end no worker waits for another one's long test."""

    def shortness(item: pytest.Item) -> float:
        if not (item.get_closest_marker("slow") or item.get_closest_marker("exhaustive")):
            return 1.0
        limit = item.get_closest_marker("timeout")
        return -float(limit.args[0]) if limit else 0.0

    items.sort(key=shortness)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables: making them takes seconds, copying them none."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    import mlflow

    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
