"""Downloading policies and data sets from a model hub into its cache, the only work of the program that needs a network.

Files that are whole in the cache are not read again. A connection that breaks is taken up where it broke off; a file at which the
command itself ended is begun anew, since the hub's library keeps no part of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from poise_core.failures import InfrastructureError
from poise_core.policies.locate import (
    HUB_FILES,
    FetchError,
    PolicyNotFoundError,
    explained,
    require_loadable,
    split_revision,
)

_SPARE = 1 << 28  # bytes that stay free


@dataclass(frozen=True)
class Fetched:
    """A repository in the cache."""

    commit: str
    folder: Path


def fetch(name: str, kind: Literal["model", "dataset"], say: Callable[[str], None]) -> Fetched:
    """Download a repository.

    Args:
        name: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.
        kind: of the repository.
        say: is told the size before the download begins.

    Raises:
        FetchError: there is no such repository or revision, it asks for an agreement, or it is no model that can be loaded.
        InfrastructureError: the hub cannot be reached, or the disk has not enough space.
    """
    from huggingface_hub import constants, snapshot_download

    repository, revision = split_revision(name)
    wanted: dict[str, Any] = {"repo_id": repository, "repo_type": kind, "revision": revision}
    if kind == "model":
        wanted.update(**HUB_FILES)
    if constants.HF_HUB_OFFLINE:
        raise InfrastructureError("HF_HUB_OFFLINE is set, and fetching needs the network; unset it for this command")
    with explained(name, kind):
        planned: Any = snapshot_download(**wanted, dry_run=True)
    size = sum(file.file_size for file in planned)
    missing = sum(file.file_size for file in planned if file.will_download)
    commit = str(planned[0].commit_hash) if planned else ""
    if kind == "model" and not any(file.filename.endswith(".safetensors") for file in planned):
        raise FetchError(f"{name} has no *.safetensors file; other formats are not loaded")
    if kind == "model":  # before gigabytes are read
        with explained(name, kind):
            snapshot_download(**{**wanted, "revision": commit, "allow_patterns": ["config.json"]})
    say(f"{kind} {name}, commit {commit[:12]}: {len(planned)} files, {in_words(size)}, {in_words(missing)} to download")
    _require_space(missing, Path(constants.HF_HUB_CACHE))
    with explained(name, kind):
        folder = Path(snapshot_download(**wanted))
    if kind == "model":
        try:
            require_loadable(folder, name)
        except PolicyNotFoundError as error:
            raise FetchError(str(error)) from error
    return Fetched(commit, folder)


def remark(policy: Path) -> str:
    """Return what is worth knowing about a policy's tokenizer, or nothing.

    Raises:
        FetchError: no token ends a completion.
    """
    from poise_core.policies.model import PromptCodec

    try:
        codec = PromptCodec.load(policy)
    except (ValueError, OSError) as error:
        raise FetchError(str(error)) from error
    if codec.tokenizer.pad_token_id is None:
        return f"the tokenizer has no pad token; token {codec.pad_id}, which ends a completion, fills what is masked"
    return ""


def in_words(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _require_space(needed: int, cache: Path) -> None:
    place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed and needed + _SPARE > free:
        raise InfrastructureError(
            f"{in_words(needed)} are to be downloaded and {in_words(free)} are free at {place}; make space, or set HF_HOME to "
            "a folder on another disk"
        )
