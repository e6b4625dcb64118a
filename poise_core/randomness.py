"""Random numbers that are determined by integers, such as (seed, step, purpose).

All random numbers of a training and of an evaluation come from here, so that a resumed training goes on exactly, and results
depend neither on the number of processes nor on the device.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

ROLLOUT = 1
"""The purpose, in a key of (seed, step, purpose), of the numbers with which a training's completions are drawn."""


def uniforms(rows: int, length: int, *key: int) -> Tensor:
    """Return (rows, length) float64 numbers in [0, 1) determined by ``key``, equal on every process and device."""
    generator = torch.Generator().manual_seed(hash_key(*key))
    return torch.rand((rows, length), generator=generator, dtype=torch.float64)


def hash_key(*key: int) -> int:
    """Return a 63-bit seed from several integers (seed, step, purpose), which do not collide as their sums would."""
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
