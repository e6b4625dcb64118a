"""A sampler for tests of the rendezvous: the local one, with faults where a script says so.

The script is a JSON file, named by the environment variable ``POISE_SAMPLER_SCRIPT``: a list of objects with ``fault``, the
``version`` of the policy at which it strikes, and ``times``, how often, over all processes (by default always).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from poise_core.failures import FaultKind, SamplerFault
from poise_core.policies.model import load_model
from poise_core.policies.prompt import ModelSpec
from poise_core.sampling.base import Requests, Sampled
from poise_core.sampling.local import LocalSampler

SCRIPT = "POISE_SAMPLER_SCRIPT"


class ScriptedSampler:
    """Deterministic: it draws what ``LocalSampler`` draws, but for the faults of its script."""

    def __init__(self, *, memory_gib: float = 4.0, dtype: str = "float32") -> None:
        self._local = LocalSampler(memory_gib=memory_gib)
        self._spec = ModelSpec(dtype=dtype)
        self._version = ""
        self._path = Path(os.environ[SCRIPT]) if SCRIPT in os.environ else None
        self._script: list[dict[str, Any]] = json.loads(self._path.read_text()) if self._path else []

    def load(self, version: str, folder: Path) -> None:
        """See ``Sampler.load``."""
        self._version = version
        model = load_model(folder, self._spec)
        if self._strikes("garbage"):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.neg_()
        self._local.adopt(version, model)

    def sample(self, requests: Requests) -> Sampled:
        """See ``Sampler.sample``."""
        if self._strikes("die"):
            os._exit(9)
        if self._strikes("hang"):
            time.sleep(3600)
        if self._strikes("out of memory"):
            raise SamplerFault(FaultKind.OUT_OF_MEMORY, "the script says so")
        if self._strikes("endless"):
            requests = replace(requests, eos_ids=(), stops=None)
        sampled = self._local.sample(requests)
        if self._strikes("stale"):
            return replace(sampled, version="an older one")
        if self._strikes("empty"):
            found = sampled.completions
            nothing = replace(found, mask=torch.zeros_like(found.mask), truncated=torch.zeros_like(found.truncated))
            return replace(sampled, completions=nothing)
        return sampled

    def score(self, ids: Sequence[int]) -> list[float]:
        """See ``Sampler.score``."""
        return self._local.score(ids)

    def identity(self) -> dict[str, str]:
        """See ``Sampler.identity``."""
        version = next((line["version"] for line in self._script if line["fault"] == "other engine"), "1")
        return {"engine": "scripted", "version": version, "dtype": self._spec.dtype}

    def close(self) -> None:
        """See ``Sampler.close``."""
        self._local.close()

    def _strikes(self, fault: str) -> bool:
        for number, line in enumerate(self._script):
            if line["fault"] == fault and line["version"] == self._version and self._counted(number, line.get("times")):
                return True
        return False

    def _counted(self, number: int, times: int | None) -> bool:
        """Whether a line has struck less often than ``times``, counted in a file beside the script."""
        if times is None or self._path is None:
            return True
        counter = self._path.with_name(f"{self._path.name}.{number}")
        done = len(counter.read_bytes()) if counter.exists() else 0
        counter.write_bytes(b"." * (done + 1))
        return done < times
