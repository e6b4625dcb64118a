"""Running a confined command to its end, with a time limit, a way to stop it, and an end of its whole process tree."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from poise_core.failures import Cancelled, InfrastructureError
from poise_core.sandbox import warm
from poise_core.sandbox.allowlist import ALLOCATOR
from poise_core.sandbox.command import GRANTED, NETWORK_NEEDED, Limits, confined_command

POLL_SECONDS = 0.1

ALLOW_SHARED_NETWORK = "POISE_ALLOW_SHARED_NETWORK"
"""An environment variable: with ``1``, whoever runs this machine allows that candidate code shares its network."""


class TimeLimitReached(Exception):
    """The process was ended because its time was up."""


def run_confined(
    command: Sequence[str],
    *,
    log: Path,
    writable: Sequence[Path],
    readable: Sequence[Path] = (),
    limits: Limits,
    env: dict[str, str],
    network: bool = False,
    on_start: Callable[[Mapping[str, str]], None] | None = None,
    on_poll: Callable[[], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> int:
    """Run a command confined until it ends, and return its exit status; its output goes to ``log``.

    With ``network`` it keeps the machine's, which a training over several nodes needs.

    ``on_start`` is called before the start with the measures of confinement: measure -> "granted" or why it is missing.
    Whatever ends the wait (the limit, ``should_stop``, Ctrl-C, an exception of ``on_poll``), the whole process tree is ended
    before this function returns.

    Raises:
        TimeLimitReached: ``limits.wall_seconds`` passed.
        Cancelled: ``should_stop`` returned True.
        InfrastructureError: the process could not be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    confined = confined_command(command, writable=writable, readable=readable, env=env, limits=limits, network=network)
    if on_start is not None:
        on_start(confined.granted)
    deadline = time.monotonic() + (limits.wall_seconds if limits.wall_seconds is not None else float("inf"))
    with log.open("ab") as stream, open(os.devnull, "rb") as nothing:
        output = stream.fileno()
        try:
            process = warm.start(
                confined,
                stdin=nothing.fileno(),
                stdout=output,
                stderr=output,
                should_stop=should_stop or (lambda: False),
            )
        except OSError as error:
            raise InfrastructureError(f"cannot start {command[0]}: {error}") from error
        try:
            while True:
                try:
                    return process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    pass
                if should_stop is not None and should_stop():
                    raise Cancelled("stopped; its processes have ended, and what is finished is kept")
                if time.monotonic() > deadline:
                    raise TimeLimitReached(f"the limit of {limits.wall_seconds:g} s was reached")
                if on_poll is not None:
                    on_poll()
        finally:
            warm.end(process)


def require_own_network(granted: Mapping[str, str], work: str, *, allowed: bool = False) -> dict[str, str]:
    """Return the measures for the record, where candidate code has no network or may share the machine's.

    On a shared network it could reach every server of the machine that listens on loopback, and whatever the machine reaches.

    Args:
        granted: of a confined command: measure -> "granted" or why it is missing.
        work: what would run, for the message: training, or the gate.
        allowed: whether the run allows it; the variable ``POISE_ALLOW_SHARED_NETWORK=1`` of the machine does too.

    Raises:
        InfrastructureError: the network would be shared, and nobody has allowed it.
    """
    if granted["network"] == GRANTED:
        return dict(granted)
    allowed = allowed or os.environ.get(ALLOW_SHARED_NETWORK) == "1"
    if not allowed and granted["network"] == NETWORK_NEEDED:
        raise InfrastructureError(
            f"{work} over several nodes is refused, because candidate code would share the network between them: accept it with "
            f"--allow-shared-network or {ALLOW_SHARED_NETWORK}=1 (SECURITY.md)"
        )
    if not allowed:
        raise InfrastructureError(
            f"{work} is refused, because on this machine candidate code would share the network ({granted['network']}): "
            f"permit user namespaces, or accept it with --allow-shared-network or {ALLOW_SHARED_NETWORK}=1 (SECURITY.md)"
        )
    return {**granted, "network": f"{granted['network']}; sharing the machine's was allowed"}


def log_tail(log: Path, characters: int = 2000) -> str:
    """Return the end of a log file, for error messages; empty where the file does not exist."""
    return log.read_text(errors="replace")[-characters:] if log.exists() else ""


def quiet_environment(threads: int) -> dict[str, str]:
    """Return variables that keep libraries offline and silent, and limit their threads."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "true",
        **ALLOCATOR,
    }
