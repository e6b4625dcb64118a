"""A small ladder, and trajectories with a given reward, for the laboratory's `step`."""

from __future__ import annotations

import hashlib
from typing import Any

from laboratory import Laboratory

PROXY = 6


LADDER = {"enabled": True, "proxy_steps": PROXY, "proxy_window": 3, "proxy_stop_below": 0.05}


def rewards(level: dict[str, float]) -> Any:
    """Trajectories whose reward is ``level`` of the candidate's name, by default the baseline's 0.6."""

    def step(name: str, digest: str, seed: int, step: int) -> dict[str, float]:
        row = Laboratory._noise_step(name, digest, seed, step)
        return {**row, "reward_mean": level.get(name, 0.6), "kl": 0.1, "entropy": 0.3, "clip_fraction": 0.0,
                "truncated": 0.0, "completion_length": 10.0}  # fmt: skip

    return step


def drops(every: int) -> Any:
    """One in ``every`` children has hardly any reward; which ones follows from their source."""

    def step(name: str, digest: str, seed: int, step: int) -> dict[str, float]:
        low = name != "GRPO" and int(hashlib.sha256(digest.encode()).hexdigest(), 16) % every == 0
        return rewards({name: 0.1} if low else {})(name, digest, seed, step)

    return step
