"""Finding a policy: the folder for a name, the files in it, the digest of its weights, and why a hub does not give it.

A policy is a folder that transformers can load (``config.json``, ``model.safetensors``, tokenizer files), the name of a
shipped base policy, or a hub name. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from poise_core.failures import InfrastructureError

_TOKENIZER_FILES = (
    "chat_template.jinja", "generation_config.json", "merges.txt", "special_tokens_map.json", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "vocab.json",
)  # fmt: skip


HUB_FILES: dict[str, Any] = {
    "allow_patterns": [
        "*.json",
        "*.safetensors",
        "*.model",
        "*.jinja",
        "merges.txt",
        "vocab.txt",
        "LICENSE*",
        "README.md",
    ],
    "ignore_patterns": ["*/*"],  # weights in other formats lie in folders of their own
}
"""Which files of a hub's repository make a policy."""


class PolicyNotFoundError(ValueError):
    """There is no such policy; the message tells which names and places are possible."""


Reason = Literal["gated", "missing", "revision"]


class FetchError(ValueError):
    """What is asked for cannot be had; the message is one line."""


def shipped_policies() -> list[str]:
    """Return the names of the base policies that come with the package."""
    folder = Path(str(resources.files("poise_core") / "policies"))
    return (
        sorted(entry.name for entry in folder.iterdir() if (entry / "config.json").is_file()) if folder.is_dir() else []
    )


def resolve_policy(name: str | Path) -> Path:
    """Return the folder of a policy, given a shipped name, a folder, or ``OWNER/NAME`` or ``OWNER/NAME@REVISION`` of a hub model
    that has been fetched.

    Raises:
        PolicyNotFoundError: there is no such policy; hub models must be fetched beforehand with ``poise fetch``.
    """
    if str(name) in shipped_policies():
        return Path(str(resources.files("poise_core") / "policies" / str(name)))
    folder = Path(name)
    if (folder / "config.json").is_file():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        repository, revision = split_revision(str(name))
        return Path(snapshot_download(repository, revision=revision, local_files_only=True, **HUB_FILES))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise PolicyNotFoundError(
            f"no policy {str(name)!r}; shipped: {', '.join(shipped_policies())}; or give a folder with config.json, "
            "or fetch a hub model first with 'poise fetch PRESET'"
        ) from error


def split_revision(name: str) -> tuple[str, str | None]:
    """Return repository and revision of ``OWNER/NAME@REVISION``; without a revision None, the newest."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def policy_files(folder: Path) -> list[Path]:
    """Return the folder of a policy and, where its files are links as in the hub's cache, the targets of the links."""
    return [folder, *sorted(path.resolve() for path in folder.iterdir() if path.is_symlink())]


def require_loadable(folder: Path, name: str) -> None:
    """Refuse a policy that cannot be loaded here, before anything else is done with it.

    Raises:
        PolicyNotFoundError: it has no weights as safetensors, or it is a model with code of its own, which is never run.
    """
    if not any(folder.glob("*.safetensors")):
        raise PolicyNotFoundError(f"policy {name!r} has no *.safetensors file; other formats are not loaded")
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = str(document.get("model_type"))
    if document.get("auto_map") and not _is_of_transformers(kind):
        raise PolicyNotFoundError(
            f"policy {name!r} is a {kind} model with code of its own, which is never run; take a model whose architecture is part "
            "of transformers"
        )


def _is_of_transformers(kind: str) -> bool:
    """Whether transformers has code for this type of model, found without importing it."""
    found = find_spec("transformers")
    places = found.submodule_search_locations if found else None
    return any((Path(place) / "models" / kind.replace("-", "_")).is_dir() for place in places or ())


def policy_digest(name: str | Path) -> str:
    """Compute SHA-256 over the safetensors files of a policy, in the order of their names.

    Raises:
        PolicyNotFoundError: there is no such policy, it has no safetensors file, or it needs code of its own.
    """
    folder = resolve_policy(name)
    require_loadable(folder, str(name))
    return _digest(sorted(folder.glob("*.safetensors")))


def tokenizer_digest(name: str | Path) -> str:
    """Compute SHA-256 over the files of a policy that make tokens of a chat: tokenizer, its settings and the chat template.

    Raises:
        PolicyNotFoundError: there is no such policy.
    """
    folder = resolve_policy(name)
    return _digest([folder / file for file in _TOKENIZER_FILES if (folder / file).exists()])


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def explained(name: str, kind: str) -> Iterator[None]:
    """Turn the errors of the hub into one line.

    Args:
        name: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.
        kind: ``model`` or ``dataset``.

    Raises:
        FetchError: there is no such repository or revision, it asks for an agreement, or it is not here and no network may be used.
        InfrastructureError: the hub cannot be reached.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import httpx  # the client that it uses, by whatever name

    repository, _ = split_revision(name)
    try:
        yield
    except HFValidationError as error:
        raise FetchError(f"{repository!r} is no name of a {kind}; names have the form OWNER/NAME") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        reasons: dict[type[BaseException], Reason] = {
            GatedRepoError: "gated", RepositoryNotFoundError: "missing", RevisionNotFoundError: "revision",
        }  # fmt: skip
        # without a cached copy the hub's library wraps what the server said, and that of data sets wraps it again
        for cause in _chain(error):
            for known, reason in reasons.items():
                if isinstance(cause, known):
                    raise refused(name, kind, reason) from error
        if constants.HF_HUB_OFFLINE:
            raise FetchError(
                f"{kind} {name} is not here, and HF_HUB_OFFLINE is set; 'poise fetch' gets it where there is a network"
            ) from error
        said = " ".join(str(error.__cause__ or error).split())[:200]
        raise InfrastructureError(
            f"{kind} {repository} could not be downloaded ({said}); the same command goes on"
        ) from error


def refused(name: str, kind: str, reason: Reason) -> FetchError:
    """Why the hub does not give a repository, as an error of one line."""
    repository, revision = split_revision(name)
    return FetchError(
        {
            "gated": f"{kind} {repository} is gated: accept its terms on its page, then give your token in HF_TOKEN",
            "missing": f"there is no {kind} {repository}, or it is private and HF_TOKEN does not open it",
            "revision": f"{kind} {repository} has no revision {revision!r}",
        }[reason]
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those during whose handling it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
