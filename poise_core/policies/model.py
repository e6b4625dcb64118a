"""Loading and saving the language models that are trained, and encoding and decoding their texts.

Weights are read from safetensors only, never unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# without trust_remote_code=False, transformers asks on the terminal whether to run a policy's own code
_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def load_model(folder: Path, dtype: torch.dtype = torch.float32, *, configuration: Path | None = None) -> Any:
    """Load the causal language model of a policy folder, in evaluation mode (dropout off).

    Args:
        folder: the folder with the weights, as safetensors.
        dtype: type of the weights in memory.
        configuration: folder with the architecture; by default ``folder`` itself.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(configuration or folder, **_OFFLINE)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, use_safetensors=True, **_OFFLINE)
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a policy folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **_OFFLINE)


@dataclass(frozen=True)
class PromptCodec:
    """A tokenizer with the two special ids that sampling needs."""

    tokenizer: Any
    eos_id: int
    pad_id: int

    @classmethod
    def load(cls, folder: Path) -> PromptCodec:
        """Load the codec of a policy folder; without a pad token, the end-of-sequence id is the pad id."""
        tokenizer = load_tokenizer(folder)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        return cls(tokenizer=tokenizer, eos_id=int(tokenizer.eos_token_id), pad_id=int(pad))

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return left-padded ids and their mask, both (N, P), int64 and bool."""
        rows = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
            mask[i, width - len(row) :] = True
        return ids, mask

    def decode(self, ids: Tensor, mask: Tensor) -> list[str]:
        """Return the texts of completions, given (B, T) ids and mask; the end-of-sequence token is left out."""
        kept = (mask & (ids != self.eos_id)).tolist()
        rows = [tuple(compress(row, keep)) for row, keep in zip(ids.tolist(), kept, strict=True)]
        # short completions of one prompt are often equal, so each text is decoded once
        texts = {row: self.tokenizer.decode(list(row), clean_up_tokenization_spaces=False) for row in set(rows)}
        return [texts[row] for row in rows]


def save_policy(model: PreTrainedModel, codec: PromptCodec, folder: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer to ``folder``."""
    model.save_pretrained(folder, safe_serialization=True)
    codec.tokenizer.save_pretrained(folder)
