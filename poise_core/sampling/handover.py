"""The folder in which a training hands its weights to a sampler in another process, and gets completions back.

A training runs confined with a candidate's code, and the sampler does not: it knows the answers. They share a folder of two parts.
The training writes ``asked`` and reads ``answered``; the sampler reads ``asked`` as the files of a stranger. Tensors travel as
safetensors and everything else as JSON, nothing is unpickled. A file of tensors is written first and the JSON that names it, with
its checksum, is renamed into place last, so that who finds the JSON finds the whole. Every version has a path of its own.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from poise_core.failures import FaultKind, SamplerFault
from poise_core.files import write_atomically
from poise_core.policies.model import saved_tensors
from poise_core.randomness import hash_key

ASKED, ANSWERED = "asked", "answered"
HEADER_BYTES = 64 << 20
_BLOCK = 1 << 22

TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Types of weights by torch's names -> those of a safetensors header."""

CANARY_TOKENS = 24
CANARY_TOLERANCE = 0.05
"""Nats per token, and relative: bfloat16 on both sides differs by about 0.01, other weights by more than 1."""


class RefusedWeights(Exception):
    """A training handed over weights that are none of its policy; one line. ``finite`` is False where they are no numbers."""

    def __init__(self, message: str, *, finite: bool = True) -> None:
        super().__init__(message)
        self.finite = finite


class Asked(BaseModel):
    """The request for one rollout, as the training writes it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")

    seed: int
    step: int = Field(ge=0)
    weights: str = Field(pattern=r"^[a-z0-9-]+\.safetensors$", description="file beside this one")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of that file")
    canary: list[float] = Field(max_length=CANARY_TOKENS, description="log-probabilities of the canary's tokens")

    @property
    def version(self) -> str:
        """The name of this version of the policy."""
        return stem(self.seed, self.step)


def stem(seed: int, step: int) -> str:
    """Return the name of the files of one step."""
    return f"seed-{seed}-step-{step}"


def canary_ids(vocabulary: int) -> tuple[int, ...]:
    """Return the tokens by which a sampler shows that it has loaded what was handed over; the same for every training."""
    return tuple(hash_key(place, vocabulary) % vocabulary for place in range(CANARY_TOKENS))


@torch.no_grad()
def canary(model: Any) -> list[float]:
    """Return the log-probabilities of the canary's tokens but the first under a model in this process."""
    return sequence_logprobs(model, canary_ids(int(model.config.get_text_config().vocab_size)))


@torch.no_grad()
def sequence_logprobs(model: Any, ids: Sequence[int]) -> list[float]:
    """Return the log-probability of every token but the first, given those before it."""
    row = torch.tensor([list(ids)], device=next(model.parameters()).device)
    logits = model(input_ids=row, use_cache=False).logits[0, :-1].float()
    picked = torch.log_softmax(logits, dim=-1).gather(-1, row[0, 1:].unsqueeze(-1)).squeeze(-1)
    return [float(value) for value in picked]


def same_canary(found: Sequence[float], expected: Sequence[float]) -> bool:
    """Whether two lists of log-probabilities are of the same weights, up to rounding."""
    if len(found) != len(expected) or not expected:
        return False
    apart = sum(abs(one - other) for one, other in zip(found, expected, strict=True)) / len(expected)
    size = sum(abs(value) for value in expected) / len(expected)
    return apart <= CANARY_TOLERANCE * max(1.0, size)


# ---- the training's side


def hand_over(folder: Path, seed: int, step: int, tensors: Mapping[str, Tensor], own_canary: list[float]) -> None:
    """Write the weights of one step and then the request for its rollout.

    Raises:
        SamplerFault: the disk is full.
    """
    name = stem(seed, step)
    path = folder / ASKED / f"{name}.safetensors"
    with disk_space(path):
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        asked = Asked(seed=seed, step=step, weights=path.name, digest=file_digest(path), canary=own_canary)
        write_atomically(folder / ASKED / f"{name}.json", asked.model_dump_json())


def await_rollout(folder: Path, seed: int, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Wait for the rollout of one step; the launcher ends this process where the sampler fails.

    Returns:
        The tensors, and what is said of them: version, and the identity of the engine.

    Raises:
        SamplerFault: the file has another checksum than the sampler computed, or is of another version.
    """
    path = folder / ANSWERED / f"{stem(seed, step)}.json"
    pause = 0.002
    while not path.exists():
        time.sleep(pause)
        pause = min(0.05, 1.2 * pause)
    return read_rollout(path)


def read_rollout(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an answer; see ``await_rollout``."""
    about = json.loads(path.read_text())
    tensors = path.with_suffix(".safetensors")
    if file_digest(tensors) != about["digest"]:
        raise SamplerFault(FaultKind.CORRUPT, f"{tensors} has another checksum than the sampler computed")
    if about["version"] != path.stem:
        raise SamplerFault(FaultKind.STALE, f"version {about['version']} answered where {path.stem} was asked")
    return load_file(tensors), about


# ---- the sampler's side


def answer(folder: Path, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write the rollout of one step, and then the JSON that names it.

    Raises:
        SamplerFault: the disk is full.
    """
    path = folder / ANSWERED / f"{name}.safetensors"
    temporary = path.with_suffix(".tmp")
    with disk_space(temporary):
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)
        digest = file_digest(temporary)
        os.replace(temporary, path)
        write_atomically(path.with_suffix(".json"), json.dumps({**about, "digest": digest}))


class disk_space:
    """Turns the error of a full disk in the block into a ``SamplerFault``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Name the fault."""
        if error is not None and is_full(error):
            self._path.unlink(missing_ok=True)
            raise SamplerFault(
                FaultKind.DISK_FULL, f"no space for {self._path}; free some, the same command goes on"
            ) from error


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of space; safetensors tells it in words only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    return type(error).__name__ == "SafetensorError" and ("No space left" in text or "os error 28" in text)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def take_weights(source: Path, target: Path, digest: str, expected: Mapping[str, tuple[str, list[int]]]) -> None:
    """Copy a stranger's weights to a place where it cannot change them any more, and check the copy.

    Args:
        source: the file; no link is followed.
        target: the copy.
        digest: SHA-256 that the file should have.
        expected: names of tensors -> their type in a safetensors header, and shape.

    Raises:
        RefusedWeights: the file is none, or holds other tensors than those of the policy.
        SamplerFault: the disk is full, or the checksum differs.
    """
    sums = hashlib.sha256()
    size = sum(_bytes(kind, shape) for kind, shape in expected.values())
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise RefusedWeights(f"{source.name} cannot be read: {error.strerror}") from error
    with os.fdopen(handle, "rb") as stream, disk_space(target):
        if not _is_regular(stream.fileno()) or os.fstat(stream.fileno()).st_size > size + HEADER_BYTES:
            raise RefusedWeights(f"{source.name} is no file of {size} bytes of weights")
        with target.open("wb") as copy:
            while block := stream.read(_BLOCK):
                sums.update(block)
                copy.write(block)
    if sums.hexdigest() != digest:
        raise SamplerFault(FaultKind.CORRUPT, f"{source.name} has another checksum than the training computed")
    refuse_other_tensors(header(target), expected)


def _is_regular(handle: int) -> bool:
    import stat

    return stat.S_ISREG(os.fstat(handle).st_mode)


def _bytes(kind: str, shape: Sequence[int]) -> int:
    count = 4 if kind == "F32" else 2
    for size in shape:
        count *= size
    return count


def header(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Return the tensors of a safetensors file: name -> type and shape. Nothing of it is interpreted but this.

    Raises:
        RefusedWeights: the file has no such header.
    """
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        return {str(name): (str(entry["dtype"]), [int(n) for n in entry["shape"]]) for name, entry in entries.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedWeights(f"{path.name} is no safetensors file ({error})") from error


def file_tensors(files: Iterable[Path]) -> dict[str, tuple[str, list[int]]]:
    """Return the tensors of safetensors files: name -> type and shape.

    Raises:
        RefusedWeights: see ``header``.
    """
    found: dict[str, tuple[str, list[int]]] = {}
    for file in sorted(files):
        found.update(header(file))
    return found


def policy_tensors(folder: Path, dtype: str) -> dict[str, tuple[str, list[int]]]:
    """Return the tensors that are handed over of a policy: name -> type and shape.

    Raises:
        ValueError: see ``saved_tensors``.
    """
    return {name: (TYPES[dtype], shape) for name, shape in saved_tensors(folder).items()}


def refuse_other_tensors(
    found: Mapping[str, tuple[str, list[int]]], expected: Mapping[str, tuple[str, list[int]]]
) -> None:
    """Refuse tensors of other names, shapes or types than expected.

    Raises:
        RefusedWeights: there are such tensors; the message names the first.
    """
    for name in sorted(found.keys() ^ expected.keys()):
        raise RefusedWeights(f"tensor {name[:200]!r} is {'no part of the policy' if name in found else 'missing'}")
    for name, (kind, shape) in expected.items():
        if found[name] != (kind, shape):
            raise RefusedWeights(
                f"tensor {name!r} is {found[name][0][:20]} {found[name][1][:8]}; the policy's is {kind} {shape}"
            )


def asked_files(folder: Path) -> list[Path]:
    """Return the requests that lie in a folder, the oldest name first."""
    with os.scandir(folder / ASKED) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.name.endswith(".json") and entry.name[0] != ".")
