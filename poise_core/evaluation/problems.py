"""Which problems a benchmark asks: drawn with the secret of a run, which no process with candidate code sees.

From the secret follows one key for every split and examination (HMAC-SHA256, RFC 2104), and from the key one seed for every
benchmark. A key tells neither the secret nor another key, so the job of an evaluation holds the key of its own split alone.
Without a secret the seeds are public: they follow from the benchmark's name, as anybody can compute.

Scores on different problems are comparable as two samples of one distribution, and not as pairs. A fingerprint, which stands
with every score, tells which problems they were without telling the key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from poise_core.environments import Split
from poise_core.files import sync

SECRET_BYTES = 32
PROBE_SEED_BYTES = 6
_FINGERPRINT_DIGITS = 16


class SecretError(ValueError):
    """The file of a secret cannot be made or used; one line."""


@dataclass(frozen=True)
class ProblemSet:
    """The problems of one split, as seeds for the environment and keys for the random numbers of sampling."""

    split: Split
    key: bytes = field(default=b"", repr=False)  # b"" for the public problems

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits by which equal sets are known; "" for the public one."""
        return hashlib.sha256(b"problem set " + self.key).hexdigest()[:_FINGERPRINT_DIGITS] if self.key else ""

    def seed(self, benchmark: str) -> str:
        """Return the seed from which the environment draws the problems of a benchmark."""
        return _derived(self.key, f"problems/{benchmark}").hex() if self.key else f"benchmark/{benchmark}"

    def noise_key(self, benchmark: str) -> int:
        """Return the key of the random numbers with which completions of a benchmark are sampled."""
        if not self.key:
            return zlib.crc32(f"{benchmark}/{self.split}".encode())
        return int.from_bytes(_derived(self.key, f"noise/{benchmark}")[:8])


@dataclass(frozen=True)
class ProblemSecret:
    """The secret of a run."""

    value: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the secret in this file.

        Raises:
            SecretError: there is none, or it cannot be read.
        """
        try:
            value = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except FileNotFoundError:
            raise SecretError(
                f"{path}: missing; put it back from a copy of the folder. A published archive has none: it can be read, "
                "and nothing more be measured"
            ) from None
        except OSError as error:
            raise SecretError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ValueError:
            value = b""
        if len(value) != SECRET_BYTES:
            raise SecretError(f"{path}: does not hold {2 * SECRET_BYTES} hex digits; put it back from a copy")
        return cls(value)

    @classmethod
    def made(cls, path: Path, copy_of: Self | None = None) -> Self:
        """Read the secret in this file, after making the file where it is missing: readable for its owner, whole or absent.

        Args:
            path: the file; an existing one is never replaced.
            copy_of: the secret that a new file gets, by default a fresh one.

        Raises:
            SecretError: it cannot be made or read.
        """
        if not path.exists():
            value = copy_of.value if copy_of else secrets.token_bytes(SECRET_BYTES)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            try:
                temporary.unlink(missing_ok=True)
                handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(handle, "w", encoding="ascii") as stream:
                    stream.write(value.hex() + "\n")
                sync(temporary)
                os.link(temporary, path)
            except FileExistsError:
                pass  # another process was first
            except OSError as error:
                raise SecretError(f"{path}: cannot be made: {error.strerror or error}") from error
            finally:
                temporary.unlink(missing_ok=True)
            sync(path.parent)
        return cls.read(path)

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits by which a run knows its secret again."""
        return _derived(self.value, "fingerprint").hex()[:_FINGERPRINT_DIGITS]

    def problem_set(self, split: Split, examination: int = 0) -> ProblemSet:
        """Return the problems of a split.

        Args:
            split: ``search`` or ``report``.
            examination: every number gives other problems of the split; the search reads those of 0.

        Raises:
            ValueError: the split is ``train``, whose problems are public.
        """
        if split == "train":
            raise ValueError(
                "problems of the train split are public; they are those of poise_core.environments.prompts"
            )
        return ProblemSet(split, _derived(self.value, f"{split}/{examination}"))

    def probe_seed(self, candidate_id: str) -> int:
        """Return the seed of the probes with which the gate examines a candidate.

        No candidate can know it, and the same file gets the same verdict however often it is handed in: with fresh probes each
        time, a file that fails on some of them could be handed in until it passes.
        """
        return int.from_bytes(_derived(self.value, f"probes/{candidate_id}")[:PROBE_SEED_BYTES])


def problem_set(secret: ProblemSecret | None, split: Split, examination: int = 0) -> ProblemSet:
    """Return the problems of a split by a run's secret, or the public ones without a secret, of which there is one set."""
    return secret.problem_set(split, examination) if secret else ProblemSet(split)


def _derived(key: bytes, purpose: str) -> bytes:
    return hmac.digest(key, f"poise/{purpose}".encode(), "sha256")
