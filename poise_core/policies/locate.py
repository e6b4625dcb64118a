"""Finding a policy: the folder for a name, the files in it, and the digest of its weights.

A policy is a folder that transformers can load (``config.json``, ``model.safetensors``, tokenizer files), the name of a
shipped base policy, or a hub name. Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

_TOKENIZER_FILES = (
    "chat_template.jinja", "generation_config.json", "merges.txt", "special_tokens_map.json", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "vocab.json",
)  # fmt: skip


class PolicyNotFoundError(ValueError):
    """There is no such policy; the message tells which names and places are possible."""


def shipped_policies() -> list[str]:
    """Return the names of the base policies that come with the package."""
    folder = Path(str(resources.files("poise_core") / "policies"))
    return (
        sorted(entry.name for entry in folder.iterdir() if (entry / "config.json").is_file()) if folder.is_dir() else []
    )


def resolve_policy(name: str | Path) -> Path:
    """Return the folder of a policy, given a shipped name, a folder, or the name of a hub model that is already downloaded.

    Raises:
        PolicyNotFoundError: there is no such policy; hub models must be fetched beforehand with ``hf download NAME``.
    """
    if str(name) in shipped_policies():
        return Path(str(resources.files("poise_core") / "policies" / str(name)))
    folder = Path(name)
    if (folder / "config.json").is_file():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise PolicyNotFoundError(
            f"no policy {str(name)!r}; shipped: {', '.join(shipped_policies())}; or give a folder with config.json, "
            f"or fetch a hub model first with 'hf download {name}'"
        ) from error


def policy_files(folder: Path) -> list[Path]:
    """Return the folder of a policy and, where its files are links as in the hub's cache, the targets of the links."""
    return [folder, *sorted(path.resolve() for path in folder.iterdir() if path.is_symlink())]


def policy_digest(name: str | Path) -> str:
    """Compute SHA-256 over the safetensors files of a policy, in the order of their names.

    Raises:
        PolicyNotFoundError: there is no such policy, or its folder has no safetensors file.
    """
    files = sorted(resolve_policy(name).glob("*.safetensors"))
    if not files:
        raise PolicyNotFoundError(f"policy {str(name)!r} has no *.safetensors file; other formats are not loaded")
    return _digest(files)


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
