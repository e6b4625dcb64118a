"""Confinement of processes that run candidate code, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ENVIRONMENT_ALLOWLIST = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
)


@dataclass(frozen=True)
class Limits:
    """What a confined command may use."""

    wall_seconds: float | None = None
    cpu_seconds: float | None = None  # per process
    memory_bytes: int | None = None  # per process
    file_bytes: int | None = 1 << 30  # largest file that may be written
    processes: int | None = None
    scratch_bytes: int = 256 << 20  # private /tmp and /dev/shm


@dataclass(frozen=True)
class ConfinedCommand:
    """What to hand to ``subprocess.Popen(argv, env=env, start_new_session=True)``."""

    argv: list[str]
    env: dict[str, str]
    granted: dict[str, str] = field(default_factory=dict)


def confined_command(
    command: Sequence[str],
    *,
    writable: Sequence[Path] = (),
    readable: Sequence[Path] = (),
    env: Mapping[str, str] = {},
    limits: Limits = Limits(),
    network: bool = False,
    loopback: bool = True,
) -> ConfinedCommand:
    """The command line and environment under which ``command`` runs confined."""
    kept = {key: os.environ[key] for key in ENVIRONMENT_ALLOWLIST if key in os.environ}
    return ConfinedCommand(list(command), {**kept, "PYTHONDONTWRITEBYTECODE": "1", **env})


def end_process_tree(pid: int, grace_seconds: float = 2.0) -> None:
    """End a process, its group and all its descendants, those in other sessions included, within five seconds."""
    tree = _descendants(pid)
    _signal_all(tree, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and any(_alive(process) for process in tree):
        time.sleep(0.02)
    for _ in range(20):
        tree = [process for process in {*tree, *_descendants(pid)} if _alive(process)]
        if not tree:
            return
        _signal_all(tree, signal.SIGKILL)
        time.sleep(0.05)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal_all(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
