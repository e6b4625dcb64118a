"""Opening the folder of a run, and the paths in it."""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import yaml
from pydantic import ValidationError

from poise_core.archive import Archive, ArchiveLocationError, ArchiveOwnedError, check_location
from poise_core.candidate.identity import source_digest
from poise_core.config import Preset
from poise_core.evaluation.problems import ProblemSecret, SecretError
from poise_core.failures import InfrastructureError
from poise_core.files import expanded, fault_of_place
from poise_core.run_directory.lock import Lock, LockedError
from poise_core.run_directory.records import (
    HEADER,
    PRESET,
    PROBLEMS,
    SEALED,
    SETTINGS,
    RunDirectoryError,
    accept,
    frozen_preset,
    secret_of,
    settings_changes,
    write,
)

if TYPE_CHECKING:
    from poise_core.evidence.run_evidence import RunEvidence

_LOCK, _OWNER = ".lock", ".archive-owner"


def candidate_id(name: str, source: str) -> str:
    """Return ``<name-slug>-<10 hex digits>``; equal sources under one name have one id in every run."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "candidate"
    return f"{slug}-{source_digest(source)[:10]}"


def require_usable_place(folder: Path) -> None:
    """Refuse a folder in which no run can live, whatever is there.

    Raises:
        RunDirectoryError: its path holds a character that cannot stand there.
    """
    if fault := fault_of_place(folder):
        raise RunDirectoryError(f"{folder}: {fault}")


class RunDirectory:
    """An opened run; the evolution opens it with ``open``, which holds the lock, and readers with ``read``."""

    def __init__(self, path: Path, preset: Preset, lock: Lock | None = None) -> None:
        """Use ``open`` or ``read``."""
        self.path = path
        self.preset = preset
        self._lock = lock
        self.archive = Archive(preset.archive or path / "archive")

    @classmethod
    def open(cls, path: str | Path, preset: Preset, secret: ProblemSecret | None = None) -> Self:
        """Make the folder or open an existing one, and hold its lock until ``close`` or the end of the process.

        Args:
            path: the folder, which is made with its parents where it is missing.
            preset: a preset with a resolved ``protocol.policy_digest``.
            secret: for a new run, of another run whose problems it is to share; by default a fresh one, or the one in the file
                ``secret`` where the folder holds nothing else.

        Raises:
            RunDirectoryError: another process holds the lock, the run was made under another protocol, the folder is no run
                directory, or its files cannot be read.
            poise_core.archive.ArchiveError: the archive cannot be made or read.
        """
        folder = expanded(path).absolute()
        require_usable_place(folder)
        _refuse_foreign(folder)
        preset = _with_settled_archive(folder, preset)
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(
                mode=0o700, exist_ok=True
            )  # it holds answers, prompts and logs; what others may see is yours to say
            lock = Lock(folder / _LOCK)
        except OSError as error:
            raise RunDirectoryError(f"{folder}: cannot be used: {error.strerror or error}") from error
        try:
            if cls.exists(folder):
                accept(folder, preset)
            _claim_archive(folder, preset)
            if not cls.exists(folder):
                own = _made_secret(folder, secret)
                document = {
                    "protocol_digest": preset.protocol.digest,
                    PROBLEMS: own.fingerprint,
                    "preset": preset.model_dump(mode="json"),
                }
                write(folder / PRESET, HEADER + yaml.safe_dump(document, sort_keys=False))
            run = cls(folder, preset, lock)
            run.archive.initialise()
            _claim_archive(folder, preset)  # again, because another first start may have happened at the same time
            return run
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Whether a run was started in this folder."""
        return (expanded(path) / PRESET).exists()

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Open an existing run for reading, without a lock and without writing anything.

        Raises:
            RunDirectoryError: it is no run directory, or its preset cannot be read.
        """
        folder = expanded(path).absolute()
        if not (folder / PRESET).is_file():
            raise RunDirectoryError(f"{folder}: not a run directory, it has no {PRESET}")
        return cls(folder, frozen_preset(folder))

    @classmethod
    def join(cls, path: str | Path) -> Self:
        """Open a run that another process may be evolving, to work on single candidates of it.

        The archive allows several writers, and every candidate has its own lock; settings are only read.

        Raises:
            RunDirectoryError: it is no run directory, or its preset cannot be read.
        """
        run = cls.read(path)
        return cls(run.path, run.current_preset)

    @contextmanager
    def candidate_lock(self, candidate: str, wait: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of a candidate, so that no other process trains or evaluates it during the block.

        Args:
            candidate: the candidate's id.
            wait: called repeatedly while another process holds the lock; its exceptions are raised here.

        Raises:
            InfrastructureError: the lock cannot be made, as on a full disk; what was waited for may be there at the next try.
        """
        folder = self.candidate_folder(candidate)
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = Lock(folder / _LOCK)
                break
            except LockedError:
                wait()
            except RunDirectoryError as error:
                raise InfrastructureError(str(error)) from error
            except OSError as error:
                raise InfrastructureError(f"{folder}: cannot be used: {error.strerror or error}") from error
        try:
            yield
        finally:
            lock.release()

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def secret(self) -> ProblemSecret | None:
        """The secret from which the problems of the benchmarks are drawn; None in a run of before there were secrets.

        Raises:
            RunDirectoryError: it is missing, is another run's, or cannot be read.
        """
        return secret_of(self.path)

    def evidence(self) -> RunEvidence:
        """Read what the run may say of its candidates, as of now.

        Raises:
            poise_core.archive.ArchiveError: a file cannot be read.
        """
        from poise_core.evidence.run_evidence import RunEvidence

        planned = self.current_preset.search.planned
        return RunEvidence.load(self.archive, self.preset.protocol, planned=planned, untuned=self.preset.untuned)

    @property
    def settings_changes(self) -> list[dict[str, Any]]:
        """Return the changes of later starts, oldest first: ``{"at": ISO time, "changed": {key: [before, after]}}``."""
        return settings_changes(self.path)

    @property
    def current_preset(self) -> Preset:
        """The preset with the changes of later starts.

        Raises:
            RunDirectoryError: the record of changes does not fit this version of the program.
        """
        document = self.preset.model_dump(mode="json")
        for change in self.settings_changes:
            for key, (_, after) in change["changed"].items():
                *parents, leaf = key.split(".")
                place = document
                for parent in parents:
                    place = place.setdefault(parent, {})
                place[leaf] = after
        try:
            return Preset.model_validate(document)
        except ValidationError as error:
            raise RunDirectoryError(f"{self.path / SETTINGS}: {str(error).splitlines()[0]}") from error

    @property
    def tracking_uri(self) -> str:
        """MLflow's store: ``MLFLOW_TRACKING_URI``, or the SQLite file of this run."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self.own_tracking_uri

    @property
    def own_tracking_uri(self) -> str:
        """The SQLite file of this run, which MLflow makes where nothing else is set.

        Raises:
            RunDirectoryError: the folder's path cannot stand in the address of a database.
        """
        require_usable_place(self.path)
        return f"sqlite:///{self.path / 'mlflow.db'}"

    @property
    def artifact_folder(self) -> Path:
        """Where MLflow keeps artifacts when its store is this run's SQLite file."""
        return self.path / "mlartifacts"

    def candidate_folder(self, candidate: str) -> Path:
        """``candidates/<id>``; not made."""
        return self.path / "candidates" / candidate

    def train_folder(self, candidate: str) -> Path:
        """``candidates/<id>/train``, with ``seed-<s>/`` below it; not made."""
        return self.candidate_folder(candidate) / "train"

    def evaluate_folder(self, candidate: str) -> Path:
        """``candidates/<id>/evaluate``; not made."""
        return self.candidate_folder(candidate) / "evaluate"


def _refuse_foreign(folder: Path) -> None:
    """Refuse a file, and a folder that holds other things than a run."""
    if not folder.exists() or RunDirectory.exists(folder):
        return
    if not folder.is_dir():
        raise RunDirectoryError(f"{folder}: not a directory")
    found = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if found == [SEALED]:
        return
    if "archive" in found:
        raise RunDirectoryError(
            f"{folder}: {PRESET} is missing beside an archive; restore it, or take another directory"
        )
    if found:
        raise RunDirectoryError(f"{folder}: not empty and not a run directory (it holds {found[0]}); take another one")


def _made_secret(folder: Path, given: ProblemSecret | None) -> ProblemSecret:
    try:
        secret = ProblemSecret.made(folder / SEALED, copy_of=given)
    except SecretError as error:
        raise RunDirectoryError(str(error)) from None
    if given is not None and secret != given:
        raise RunDirectoryError(
            f"{folder / SEALED}: is another secret than this run is to share; take another directory"
        )
    return secret


def _with_settled_archive(folder: Path, preset: Preset) -> Preset:
    """Return the preset with the archive's place from the first start, which a later start need not name again."""
    if preset.archive is not None:
        try:
            check_location(preset.archive)
        except ArchiveLocationError as error:
            raise RunDirectoryError(f"archive: {error}") from None
    if not RunDirectory.exists(folder):
        return preset
    settled = frozen_preset(folder).archive
    if preset.archive not in (None, settled):
        raise RunDirectoryError(
            f"{folder}: its archive is at {settled or folder / 'archive'}, not at {preset.archive}; take another directory"
        )
    return preset.model_copy(update={"archive": settled})


def _claim_archive(folder: Path, preset: Preset) -> None:
    """Claim an archive outside the run's folder, which the folder's lock does not protect from other runs."""
    if preset.archive is None:
        return
    name = folder / _OWNER
    if not name.exists():
        write(name, f"run {uuid.uuid4().hex[:12]}, begun in {folder} on {socket.gethostname()}\n")
    try:
        Archive(preset.archive).claim(name.read_text(encoding="utf-8"))
    except ArchiveOwnedError as error:
        raise RunDirectoryError(str(error)) from None
