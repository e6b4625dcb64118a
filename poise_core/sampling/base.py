"""The interface of a sampler.

A sampler draws completions from the version of a policy that it has loaded last. Three exist: ``LocalSampler`` decodes in this
process and is exact, ``VllmSampler`` has an engine in an environment of its own, and ``ScriptedSampler`` is the local one with
faults on demand, for tests of the rendezvous. Whatever goes wrong in one is a ``SamplerFault`` (``poise_core/failures.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from poise_core.policies.model import StopTexts
    from poise_core.sampling.local import Completions


@dataclass(frozen=True)
class Requests:
    """Prompts of which the same number of completions is asked; rows come out grouped by prompt, in order."""

    prompts: tuple[tuple[int, ...], ...]  # token ids
    samples: int  # completions per prompt
    max_length: int  # tokens of the longest completion, its end-of-sequence token included
    eos_ids: tuple[int, ...]  # any of them ends a completion
    pad_id: int
    key: tuple[int, ...]  # of the random numbers: equal keys give equal numbers
    temperature: float = 1.0  # 0: the most probable token
    stops: StopTexts | None = None  # texts that end a completion, too

    @property
    def rows(self) -> int:
        """Completions that are asked for."""
        return len(self.prompts) * self.samples


@dataclass(frozen=True)
class Sampled:
    """What a sampler answers."""

    version: str  # of the policy that has sampled, as the engine knows it
    completions: Completions


class Sampler(Protocol):
    """Draws completions from a policy, whose weights are replaced as training goes on."""

    def load(self, version: str, folder: Path) -> None:
        """Take the policy in this folder (configuration, tokenizer, safetensors) as ``version``.

        Raises:
            SamplerFault: the engine could not load it.
        """

    def sample(self, requests: Requests) -> Sampled:
        """Draw the completions.

        Raises:
            SamplerFault: the engine failed.
        """

    def score(self, ids: Sequence[int]) -> list[float]:
        """Return the log-probability of every token but the first, given those before it, at temperature 1."""

    def identity(self) -> Mapping[str, str]:
        """Name, version and settings of the engine that change its numbers."""

    def close(self) -> None:
        """End the engine; a closed sampler takes no further call."""
