"""MLflow, drawn from the archive: ``Tracker.sync_archive`` pushes whatever MLflow does not have yet.

The archive comes first and is complete without MLflow. A sync after each stage keeps the UI current; if MLflow is down,
the sync says so in a warning and the next one catches up. Every run carries a key and a digest of what was pushed, so a
sync that is repeated, resumed or run from several threads makes nothing twice.

One experiment per protocol, ``poise/<preset>/<protocol digest>``. In it a run per generation, below it one per candidate
(mean curves over seeds, Overall with its limits, source, reflection, verification and a page as artifacts), below that one
per seed (step curves, scores). Calls of language models are traces of the experiment; champion candidates are versions of a
registered model (``poise_core.tracking.registry``).
Scores on the sealed report split are not pushed; what a replication and an examination concluded from them is, as tags and as the
examination's table.
What MLflow refuses of one run, or a page that cannot be drawn, is left out and noted at that run (tag ``poise.refused``).
MLflow takes two seconds to import and is imported by the first sync, not before.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from poise_core.archive import Archive, ArchiveError
from poise_core.config.protocol import Protocol
from poise_core.escaping import one_line, without_credentials
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.tracking.plan import plan_runs
from poise_core.tracking.registry import plan_versions, push_versions
from poise_core.tracking.runs import (
    CURVES_TAG,
    STATE_TAG,
    TAG_LENGTH,
    create_run,
    fill_run,
    is_refusal,
    known_runs,
    mark_refused,
)
from poise_core.tracking.traces import push_calls

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from poise_core.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_KIND = {"mlflow.experimentKind": "custom_model_development"}  # opens on the runs, although there are traces too


@dataclass(frozen=True)
class SyncReport:
    """What one sync did."""

    created: int = 0  # runs made
    updated: int = 0  # runs that were there and got more
    unchanged: int = 0  # runs that were complete
    error: str = ""  # why it stopped; what was not pushed is pushed by the next sync
    refused: tuple[
        str, ...
    ] = ()  # one line per run that MLflow does not take; it is not pushed again while it is the same
    deferred: bool = False  # another thread's sync is running and will push this one's too

    @property
    def complete(self) -> bool:
        """Whether MLflow now holds everything that the archive held."""
        return not self.error and not self.deferred


class MovedRunError(RuntimeError):
    """A run's own MLflow database keeps artifacts where the run was before it was moved, which may still exist."""


_shared: dict[tuple[str, str], Tracker] = {}
_sharing = threading.Lock()


class Tracker:
    """Pushes one run's archive to one MLflow experiment. Safe to call from several threads of one process."""

    def __init__(
        self, uri: str, experiment: str, *, artifact_folder: str | Path | None = None, retry_seconds: float = 30.0
    ) -> None:
        """Name the experiment; nothing is imported or contacted yet.

        Args:
            uri: MLflow's tracking URI.
            experiment: its name; made where it is missing.
            artifact_folder: where the experiment keeps artifacts; MLflow's default where not given.
            retry_seconds: how long after a failure syncs are skipped, so that a server that is down costs one timeout
                and not one per stage; ``sync_archive(force=True)`` does not wait.
        """
        self.uri, self.experiment = uri, experiment
        self._artifact_folder = artifact_folder
        self._retry_seconds = retry_seconds
        self._not_before = 0.0
        self._last_error = ""
        self._guard = threading.Lock()
        self._busy = self._again = False
        self._client: MlflowClient | None = None
        self.planned, self.untuned = 0, ""  # of the run's preset, see RunEvidence.load
        self.gpus = 1  # that a candidate holds, likewise

    @classmethod
    def for_run(cls, run: RunDirectory, uri: str | None = None) -> Tracker:
        """The process's tracker of a run directory.

        Args:
            run: whose preset names the experiment.
            uri: where to track; by default ``MLFLOW_TRACKING_URI``, or the run's SQLite file where that is not set.
        """
        name = f"poise/{run.preset.name}/{run.preset.protocol.digest}"
        key = (uri or run.tracking_uri, name)
        own_store = key[0] == run.own_tracking_uri
        # one object per experiment: two of them in two threads could each make the same run
        with _sharing:
            if key not in _shared:
                _shared[key] = cls(*key, artifact_folder=run.artifact_folder if own_store else None)
            _shared[key].planned, _shared[key].untuned = run.current_preset.search.planned, run.preset.untuned
            _shared[key].gpus = run.current_preset.resources.gpus_held
            return _shared[key]

    @property
    def behind(self) -> str:
        """Why the last sync did not come to its end; "" where it did, or there was none."""
        return self._last_error

    def check(self) -> str:
        """Ask MLflow for the experiment, which need not be there; "" where it answers, else why not, which is also in the log."""
        try:
            self._connect().get_experiment_by_name(self.experiment)
        except Exception as failure:  # see _push
            self._say_behind(failure)
        return self._last_error

    def sync_archive(
        self,
        archive: Archive,
        protocol: Protocol,
        *,
        run_dir: Path | None = None,
        force: bool = False,
        evidence: RunEvidence | None = None,
    ) -> SyncReport:
        """Push what is missing. A fault of MLflow is not raised: it is a warning in the log and in the report.

        Args:
            archive: what to push.
            protocol: whose numbers; others in the archive are left out.
            run_dir: whose nightly reports go to the runs of their generations.
            force: also right after a failure.
            evidence: of this archive and protocol, where the caller has just read it; by default it is read.

        Raises:
            poise_core.archive.ArchiveError: the archive itself cannot be read.
        """
        with self._guard:
            if self._busy:
                self._again = True
                return SyncReport(deferred=True)
            if not force and time.monotonic() < self._not_before:
                return SyncReport(error=self._last_error)
            self._busy = True
        try:
            while True:
                loaded = evidence or RunEvidence.load(archive, protocol, planned=self.planned, untuned=self.untuned)
                report = self._push(loaded, run_dir)
                with self._guard:
                    if report.error or not self._again:
                        return report
                    self._again, evidence = False, None
        finally:
            with self._guard:
                self._busy = self._again = False

    def _push(self, evidence: RunEvidence, run_dir: Path | None) -> SyncReport:
        plans, versions = plan_runs(evidence, run_dir, gpus=self.gpus), plan_versions(evidence)
        protocol = evidence.protocol
        created = updated = unchanged = 0
        error, refused = "", list[str]()
        try:
            client = self._connect()
            experiment_id = self._experiment_id(client, protocol)
            known = known_runs(client, experiment_id)
            for plan in plans:
                run_id, tags = known.get(plan.key, ("", {}))
                if tags.get(STATE_TAG) == plan.state:
                    unchanged += 1
                    continue
                if plan.parent_key is not None and plan.parent_key not in known:
                    continue  # its parent was refused
                try:
                    if not run_id:
                        run_id, tags = create_run(client, experiment_id, plan, known), {}
                        known[plan.key] = (run_id, tags)
                        created += 1
                    else:
                        updated += 1
                    fill_run(client, run_id, plan, evidence, had_curves=CURVES_TAG in tags)
                except Exception as failure:
                    if not is_refusal(failure):
                        raise
                    refused.append(f"{plan.key}: {_one_line(failure)}")
                    if run_id:
                        mark_refused(client, run_id, plan, refused[-1])
            run_ids = {
                plan.tags["candidate"]: known[plan.key][0]
                for plan in plans
                if plan.tags["level"] == "candidate" and plan.key in known
            }
            taken = [version for version in versions if version.candidate_id in run_ids]
            push_versions(client, self.experiment, protocol, taken, run_ids)
            calls = evidence.archive.rows("calls")
            if calls:
                with _traces_to(self.uri):
                    push_calls(client, experiment_id, calls)
            self._not_before, self._last_error = 0.0, ""
        except Exception as failure:  # MLflow, its database driver and its HTTP client share no class of errors
            if isinstance(failure, ArchiveError):
                raise
            self._say_behind(failure)
            error = self._last_error
        for line in refused:
            logger.warning(
                "tracking at %s does not take one run, the others go on: %s", without_credentials(self.uri), line
            )
        return SyncReport(created, updated, unchanged, error, tuple(refused))

    def _say_behind(self, failure: Exception) -> None:
        self._client = None
        self._last_error = _one_line(failure)
        self._not_before = time.monotonic() + self._retry_seconds
        where = without_credentials(self.uri)
        logger.warning("tracking at %s is behind, the archive is not affected: %s", where, self._last_error)

    def _connect(self) -> MlflowClient:
        if self._client is None:
            # a server that is down must cost seconds, not minutes; the user's values stay
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it may have a password
            for noisy in ("alembic", "mlflow.store.db.utils"):
                logging.getLogger(noisy).setLevel(logging.WARNING)
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def _experiment_id(self, client: MlflowClient, protocol: Protocol) -> str:
        from mlflow.exceptions import MlflowException

        folder = Path(self._artifact_folder).absolute() if self._artifact_folder else None
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            location = folder.as_uri() if folder else None
            try:
                tags = {"protocol": protocol.model_dump_json()[:TAG_LENGTH], **_KIND}
                return str(client.create_experiment(self.experiment, artifact_location=location, tags=tags))
            except MlflowException:
                found = client.get_experiment_by_name(self.experiment)  # another process was faster
                if found is None:
                    raise
        if folder and found.artifact_location != folder.as_uri():
            before = Path(url2pathname(urlsplit(found.artifact_location).path))
            if before.resolve() != folder.resolve():
                raise MovedRunError(
                    f"artifacts would go to {before}, where the run was before it was copied or moved; "
                    f"remove mlflow.db and {folder.name} from it to have both made anew from the archive"
                )
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        for name, value in _KIND.items():
            if name not in found.tags:
                client.set_experiment_tag(found.experiment_id, name, value)
        return str(found.experiment_id)


def _one_line(failure: Exception) -> str:
    return f"{type(failure).__name__}: {without_credentials(one_line(failure))[:300]}"


@contextmanager
def _traces_to(uri: str) -> Iterator[None]:
    """Let traces go to this store: MLflow exports them to the process's tracking URI, whichever client began them."""
    import mlflow

    # exported at once, so that a failure leaves a trace missing, which the next sync makes up for
    os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
    given = os.environ.get("MLFLOW_TRACKING_URI")
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]
        if given is None:  # setting the URI sets the variable, by which run directories would then go
            os.environ.pop("MLFLOW_TRACKING_URI", None)
        else:
            os.environ["MLFLOW_TRACKING_URI"] = given
