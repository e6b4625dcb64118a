"""Random numbers determined by integers, such as (seed, step, purpose).

All randomness of a training and of an evaluation comes from here, so that a resumed training goes on exactly, and neither the
number of processes nor the device matters.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def uniforms(rows: int, length: int, *key: int) -> Tensor:
    """(rows, length) float64 numbers in [0, 1) determined by ``key``; the same on every process and device."""
    generator = torch.Generator().manual_seed(hash_key(*key))
    return torch.rand((rows, length), generator=generator, dtype=torch.float64)


def hash_key(*key: int) -> int:
    """A 63-bit seed from several integers (seed, step, purpose), without the collisions of adding them up."""
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
