"""Starting confined processes, by a fork of a process that has imported the libraries, or else as a program.

A fork starts in a tenth of a second; a fresh interpreter takes several seconds. Every process that calls ``start`` gets its
own fork server (``poise_core.sandbox.forkserver``) at its first call. The server has only the environment variables that
confined processes may have. It ends, with every process that it has forked, when the process that started it ends.

``start`` starts a program instead

- where the command is not one of ``ENTRIES``,
- where the confinement needs a program (bubblewrap) or lets processes read each other's memory,
- where the command may use an accelerator, whose state does not survive a fork,
- where the variable ``POISE_WARM`` is ``0``.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from poise_core.failures import InfrastructureError
from poise_core.sandbox.command import ConfinedCommand, end_process_tree
from poise_core.sandbox.forked_process import ForkedProcess, ForkServer, RefusedError, ServerDiedError
from poise_core.sandbox.forkserver import ENTRIES

logger = logging.getLogger("poise.confinement")


class Process(Protocol):
    """The part of ``subprocess.Popen`` that callers of ``start`` use."""

    pid: int

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while the process runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process ends, and return its status.

        Raises:
            subprocess.TimeoutExpired: the process has not ended within ``timeout`` seconds.
        """


def start(
    confined: ConfinedCommand,
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Process:
    """Start a confined command with these descriptors as its streams; the caller closes them.

    Raises:
        OSError: the program cannot be started.
        InfrastructureError: the fork server died twice, or does not answer.
        Cancelled: ``should_stop`` returned True before the process was started.
    """
    if entry := _entry_of(confined):
        for attempt in (1, 2):
            try:
                server = _own_server()
                return ForkedProcess(server, entry, confined, (stdin, stdout, stderr), should_stop)
            except RefusedError as error:
                _refusals[entry] = str(error)
                logger.warning("%s is started as a program of its own: %s", entry, error)
                break
            except ServerDiedError as error:
                if attempt == 2:
                    raise InfrastructureError(
                        f"the process that forks candidates' processes has died: {error}"
                    ) from None
    return subprocess.Popen(
        confined.argv, env=confined.env, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
    )


def end(process: Process, grace_seconds: float = 2.0) -> None:
    """End a started process with all its descendants, and release its process id."""
    end_process_tree(process.pid, grace_seconds)
    with contextlib.suppress(InfrastructureError):  # the server has died, and the processes that it forked with it
        process.wait()
    if isinstance(process, ForkedProcess):
        process.close()


def server_pid() -> int | None:
    """Return the process id of this process's fork server, if it has one."""
    return _server.process.pid if _server is not None else None


def _entry_of(confined: ConfinedCommand) -> str | None:
    """Return the module in ``ENTRIES`` that the command runs, or None where the command must be started as a program."""
    specification = confined.specification
    if specification is None or os.environ.get("POISE_WARM") == "0" or not hasattr(os, "pidfd_open"):
        return None
    command = specification["command"]
    if command[1:3] != ["-I", "-m"] or command[3:4] == [] or command[0] != os.path.normpath(sys.executable):
        return None
    apart = specification["view"] or specification["landlock"]
    devices = confined.env.get("CUDA_VISIBLE_DEVICES") == "" or not _has_accelerator()
    known = command[3] in ENTRIES and command[3] not in _refusals
    return command[3] if known and apart and devices else None


def _has_accelerator() -> bool:
    """Look for the device files of an accelerator; asking a library would initialize the accelerator in this process."""
    return any(re.fullmatch(r"nvidia\d+|kfd|dxg", name) for name in os.listdir("/dev"))


# ---- the fork server of this process


_lock = threading.Lock()
_server: ForkServer | None = None
_refusals: dict[str, str] = {}  # entry -> why it must be started as a program on this machine


def _own_server() -> ForkServer:
    global _server
    with _lock:
        if _server is not None and _server.process.poll() is not None:
            logger.warning("the process that forks candidates' processes has died: %s", _server.why_it_died())
            _server.close()
            _server = None
        if _server is None:
            _server = ForkServer()
        return _server


def _close_server() -> None:
    global _server
    with _lock:
        if _server is not None:
            _server.close()
            _server = None


def _forget_server() -> None:
    global _server, _lock
    _lock = threading.Lock()  # another thread may have held it
    if _server is not None:
        _server.leave_to_parent()
        _server = None


atexit.register(_close_server)
os.register_at_fork(after_in_child=_forget_server)
