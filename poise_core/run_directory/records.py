"""The records of a run: the frozen preset of its first start, and the settings that later starts changed."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from poise_core.config import Preset
from poise_core.config.protocol import TRAINER_REVISION, Protocol
from poise_core.evaluation.problems import ProblemSecret, SecretError
from poise_core.files import write_atomically

PRESET, SETTINGS, SEALED = "preset.yaml", "settings.json", "secret"
PROBLEMS = "problems"
"""Key of the secret's fingerprint beside the frozen preset, from which a run knows its secret again."""
HEADER = "# The preset of this run as resolved at its first start. The protocol is frozen: results depend on it.\n"


class RunDirectoryError(ValueError):
    """The folder cannot be used for this run; the message is one line, and nothing in the folder was changed."""


def accept(folder: Path, preset: Preset) -> None:
    """Check the given preset against the frozen one, and record the other settings that changed since the last start.

    Raises:
        RunDirectoryError: the protocol differs, or a file cannot be read or written.
    """
    frozen = frozen_preset(folder)
    if frozen.protocol.digest != preset.protocol.digest:
        differing = _differences(frozen.protocol.model_dump(mode="json"), preset.protocol.model_dump(mode="json"))
        key, (before, after) = next(iter(differing.items()))
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise RunDirectoryError(
            f"{folder}: made under protocol {frozen.protocol.digest}, this is {preset.protocol.digest} "
            f"(protocol.{key}: {before!r} there, {after!r} here{more}); take another directory"
        )
    if frozen.protocol.trainer_revision != TRAINER_REVISION:
        raise RunDirectoryError(
            f"{folder}: its numbers are of revision {frozen.protocol.trainer_revision} of the trainer, this program has revision "
            f"{TRAINER_REVISION}; reading it works, but take another directory to go on"
        )
    if secret_of(folder) is None:
        raise RunDirectoryError(
            f"{folder}: its problems are public, from before every run had a secret; reading it works, but take another "
            "directory to go on"
        )
    changes = settings_changes(folder)
    current = _flat(frozen.model_dump(mode="json", exclude={"protocol"}))
    for change in changes:
        current.update({key: after for key, (_, after) in change["changed"].items()})
    changed = _compare(current, _flat(preset.model_dump(mode="json", exclude={"protocol"})))
    if changed:
        entry = {"at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "changed": changed}
        write(folder / SETTINGS, json.dumps([*changes, entry], indent=1) + "\n")


def frozen_preset(folder: Path) -> Preset:
    """Read the preset of the run's first start.

    Raises:
        RunDirectoryError: the preset cannot be read, or its protocol was changed.
    """
    path = folder / PRESET
    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise RunDirectoryError(f"{path}: cannot be read (it is empty); restore it")
        document = yaml.safe_load(text)
        protocol = Protocol.stored(document["preset"]["protocol"])
        preset = Preset.model_validate({**document["preset"], "protocol": protocol})
        digest = document["protocol_digest"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise RunDirectoryError(f"{path}: cannot be read ({type(error).__name__}: {reason}); restore it") from error
    if preset.protocol.digest != digest:
        raise RunDirectoryError(
            f"{path}: the protocol in it has digest {preset.protocol.digest}, but the run was started with {digest}; "
            "undo the change, or use the version of this program that made the run"
        )
    return preset


def secret_of(folder: Path) -> ProblemSecret | None:
    """Read the secret from which the problems of the run's benchmarks are drawn; None where the run asks the public problems.

    Raises:
        RunDirectoryError: the secret is missing, is not the one that the run began with, or cannot be read.
    """
    fingerprint = yaml.safe_load((folder / PRESET).read_text(encoding="utf-8")).get(PROBLEMS)
    if fingerprint is None:
        return None
    try:
        secret = ProblemSecret.read(folder / SEALED)
    except SecretError as error:
        raise RunDirectoryError(f"{error}: without it no policy can be scored on the problems of this run") from None
    if secret.fingerprint != fingerprint:
        raise RunDirectoryError(
            f"{folder / SEALED}: is of another run (fingerprint {secret.fingerprint}, this one began with {fingerprint}); put "
            "this run's own back from a copy"
        )
    return secret


def settings_changes(folder: Path) -> list[dict[str, Any]]:
    """Read the changes of later starts, oldest first: ``{"at": ISO time, "changed": {key: [before, after]}}``.

    Raises:
        RunDirectoryError: the record cannot be read.
    """
    path = folder / SETTINGS
    if not path.exists():
        return []
    try:
        changes: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return changes
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error}); restore it or move it away") from error


def _flat(document: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into one mapping with dotted keys."""
    if not isinstance(document, dict):
        return {prefix: document}
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def _compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    keys = [*after, *(key for key in before if key not in after)]
    return {key: [before.get(key), after.get(key)] for key in keys if before.get(key) != after.get(key)}


def _differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    return _compare(_flat(before), _flat(after))


def differences(before: Preset, after: Preset) -> dict[str, list[Any]]:
    """Dotted keys of the settings beside the protocol that differ: ``{key: [before, after]}``."""
    return _differences(
        before.model_dump(mode="json", exclude={"protocol"}), after.model_dump(mode="json", exclude={"protocol"})
    )


def write(path: Path, text: str) -> None:
    """Replace the file atomically.

    Raises:
        RunDirectoryError: the file cannot be written; the old one stays.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        raise RunDirectoryError(f"{path}: not written: {error.strerror or error}") from error
