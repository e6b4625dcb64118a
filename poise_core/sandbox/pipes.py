"""Feeding a process, reading what it writes up to a limit, and ending it and all its descendants at a deadline."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO

from poise_core.failures import Cancelled
from poise_core.sandbox import warm
from poise_core.sandbox.command import ConfinedCommand, cpu_seconds_of_tree


@dataclass(frozen=True)
class Finished:
    """The output and the status of a process that has ended."""

    output: bytes  # stdout up to the limit; the rest is dropped
    errors: bytes  # stderr, in the same way
    status: int | None  # None where it was ended at the deadline
    cpu_seconds: float = 0.0  # of its whole tree, measured when it was ended at the deadline


POLL_SECONDS = 0.1


def run_until(
    confined: ConfinedCommand,
    given: bytes,
    deadline: float,
    output_limit: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Finished:
    """Run a confined command in its own session; however this function ends, no process of the command's tree is left.

    Args:
        confined: the command.
        given: the bytes that the command reads on stdin.
        deadline: on the clock of ``time.monotonic``.
        output_limit: bytes kept of each of stdout and stderr.
        should_stop: polled while the command runs.

    Raises:
        OSError: the command does not start.
        Cancelled: ``should_stop`` returned True.
        InfrastructureError: the fork server has died.
    """
    with contextlib.ExitStack() as streams:
        theirs, ours = _pipes(streams)
        process = warm.start(confined, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2], should_stop=should_stop)
        output, errors, cpu_seconds = bytearray(), bytearray(), 0.0
        status: int | None = None
        try:
            _close(theirs)
            clock = _Clock(deadline, should_stop)
            if _exchange(ours[0], given, {ours[1]: output, ours[2]: errors}, clock, output_limit):
                status = _wait(process, clock)
        finally:
            cpu_seconds = cpu_seconds_of_tree(process.pid)
            warm.end(process, grace_seconds=0.0)
    return Finished(bytes(output), bytes(errors), status, cpu_seconds)


def _pipes(streams: contextlib.ExitStack) -> tuple[list[int], list[IO[bytes]]]:
    """Return the child's and this process's ends of pipes for stdin, stdout and stderr; ``streams`` closes all of them."""
    theirs: list[int] = []
    ours: list[IO[bytes]] = []
    streams.callback(lambda: _close(theirs))
    for number in range(3):
        reading, writing = os.pipe()
        mine, other, mode = (writing, reading, "wb") if number == 0 else (reading, writing, "rb")
        theirs.append(other)
        ours.append(streams.enter_context(os.fdopen(mine, mode, 0)))
    return theirs, ours


def _close(handles: list[int]) -> None:
    while handles:
        os.close(handles.pop())


@dataclass(frozen=True)
class _Clock:
    deadline: float
    should_stop: Callable[[], bool]

    def wait(self) -> float | None:
        """Return for how many seconds to wait for the next event; None when the deadline has come."""
        if self.should_stop():
            raise Cancelled("stopped while a candidate was verified")
        remaining = self.deadline - time.monotonic()
        return min(remaining, POLL_SECONDS) if remaining > 0 else None


def _wait(process: warm.Process, clock: _Clock) -> int | None:
    """Wait for the status of a process that has closed its pipes; None when the deadline comes first."""
    while (seconds := clock.wait()) is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
    return None


def _exchange(
    writer: IO[bytes], given: bytes, readers: Mapping[IO[bytes], bytearray], clock: _Clock, limit: int
) -> bool:
    """Write ``given`` and read until every pipe is closed; False when the deadline comes first."""
    pending = memoryview(given)
    with selectors.DefaultSelector() as selector:
        os.set_blocking(writer.fileno(), False)
        selector.register(writer, selectors.EVENT_WRITE)
        for reader, stored in readers.items():
            selector.register(reader, selectors.EVENT_READ, stored)
        while selector.get_map():
            seconds = clock.wait()
            if seconds is None:
                return False
            for key, _ in selector.select(seconds):
                if key.fileobj is writer:
                    try:
                        pending = pending[os.write(key.fd, pending[:65536]) :]
                    except BrokenPipeError:
                        pending = pending[:0]
                    if not pending:
                        selector.unregister(writer)
                        writer.close()
                    continue
                chunk = os.read(key.fd, 65536)
                key.data.extend(chunk[: max(0, limit - len(key.data))])
                if not chunk:
                    selector.unregister(key.fileobj)
    return True
