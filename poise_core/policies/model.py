"""Policies: finding, loading, hashing and saving the language models that are trained.

A policy is a folder that transformers can load (``config.json``, ``model.safetensors``, tokenizer files), the name of a
shipped base policy, or a hub name. Weights are read from safetensors only, never unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# without the latter, transformers asks on the terminal whether to run a policy's own code
_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class PolicyNotFoundError(ValueError):
    """No such policy; the message says where it was looked for."""


def shipped_policies() -> list[str]:
    """Names of the base policies that come with the package."""
    folder = Path(str(resources.files("poise_core") / "policies"))
    return (
        sorted(entry.name for entry in folder.iterdir() if (entry / "config.json").is_file()) if folder.is_dir() else []
    )


def resolve_policy(name: str | Path) -> Path:
    """Folder of a policy, given a shipped name, a folder, or the name of a hub model that is already downloaded.

    Raises:
        PolicyNotFoundError: nothing of that name; hub models are fetched beforehand with ``hf download NAME``.
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
    """The folder of a policy and, where its files are links as in the hub's cache, the files that they lead to."""
    return [folder, *sorted(path.resolve() for path in folder.iterdir() if path.is_symlink())]


def policy_digest(name: str | Path) -> str:
    """SHA-256 over the safetensors files of a policy, in order of their names.

    Raises:
        PolicyNotFoundError: nothing of that name, or a folder without safetensors.
    """
    files = sorted(resolve_policy(name).glob("*.safetensors"))
    if not files:
        raise PolicyNotFoundError(f"policy {str(name)!r} has no *.safetensors file; other formats are not loaded")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load_model(folder: Path, dtype: torch.dtype = torch.float32, *, configuration: Path | None = None) -> Any:
    """The causal language model of a policy folder, in evaluation mode (dropout off).

    Args:
        folder: weights, as safetensors.
        dtype: of the weights in memory.
        configuration: folder from which the architecture is taken; ``folder`` itself by default.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(configuration or folder, **_OFFLINE)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, use_safetensors=True, **_OFFLINE)
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a policy folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **_OFFLINE)


@dataclass(frozen=True)
class PromptCodec:
    """Text to ids and back, with the two special ids that sampling needs."""

    tokenizer: Any
    eos_id: int
    pad_id: int

    @classmethod
    def load(cls, folder: Path) -> PromptCodec:
        """The codec of a policy folder; the pad id falls back on the end-of-sequence id."""
        tokenizer = load_tokenizer(folder)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return cls(tokenizer=tokenizer, eos_id=int(tokenizer.eos_token_id), pad_id=int(pad))

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Left-padded ids and mask, both (N, P): int64 and bool."""
        rows = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
            mask[i, width - len(row) :] = True
        return ids, mask

    def decode(self, ids: Tensor, mask: Tensor) -> list[str]:
        """Texts of completions, (B, T) ids and mask; the end-of-sequence token is left out."""
        kept = (mask & (ids != self.eos_id)).tolist()
        rows = [tuple(compress(row, keep)) for row, keep in zip(ids.tolist(), kept, strict=True)]
        # short completions of one prompt are often the same
        texts = {row: self.tokenizer.decode(list(row), clean_up_tokenization_spaces=False) for row in set(rows)}
        return [texts[row] for row in rows]


def save_policy(model: PreTrainedModel, codec: PromptCodec, folder: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer to ``folder``."""
    model.save_pretrained(folder, safe_serialization=True)
    codec.tokenizer.save_pretrained(folder)
