"""Ending a process with all its descendants, whatever sessions and process groups they are in."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence

import psutil


def end_process_tree(pid: int, grace_seconds: float = 2.0) -> None:
    """End a process and all its descendants, also those in other sessions, within five seconds.

    They get SIGTERM and, after ``grace_seconds`` (at most 3), SIGKILL. Descendants are listed before any signal is sent,
    because a process whose parent has ended is no longer found below it; process groups are signalled too. The process itself
    stays a zombie until its parent, usually the caller's ``Popen``, waits for it.
    """
    tree = _descendants(pid)
    if not tree:
        return
    _signal_tree(tree, signal.SIGTERM)
    deadline = time.monotonic() + min(grace_seconds, 3.0)
    while time.monotonic() < deadline and any(_alive(process) for process in tree):
        time.sleep(0.02)
        tree = list(dict.fromkeys([*tree, *_descendants(pid)]))
    deadline = time.monotonic() + 2.0
    while time.monotonic() < deadline:
        tree = [process for process in dict.fromkeys([*tree, *_descendants(pid)]) if _alive(process)]
        if not tree:
            return
        _signal_tree(tree, signal.SIGKILL)
        time.sleep(0.02)


def cpu_seconds_of_tree(pid: int) -> float:
    """Return the CPU time that a process and its living descendants have used."""
    total = 0.0
    for process in _descendants(pid):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _descendants(pid: int) -> list[psutil.Process]:
    """Return the process and its descendants, the deepest first."""
    try:
        root = psutil.Process(pid)
        return [*reversed(root.children(recursive=True)), root]
    except psutil.NoSuchProcess:
        return []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal_tree(tree: Sequence[psutil.Process], number: signal.Signals) -> None:
    own = os.getpgid(0)
    for process in tree:
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getpgid(process.pid) == process.pid != own:  # the leader of a group: all its members are signalled
                os.killpg(process.pid, number)
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
