"""Settings of every test: no telemetry, no look-ups, no servers or stores from outside, one thread."""

import os

os.environ.update(
    DO_NOT_TRACK="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL",
    MLFLOW_DISABLE_TELEMETRY="true",
    HF_HUB_OFFLINE="1",
    LANGSMITH_TRACING="false",
    OMP_NUM_THREADS="1",
)
for name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)
