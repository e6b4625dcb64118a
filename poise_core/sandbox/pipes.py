"""Feeding a process, reading what it writes up to a limit, and ending it and all its descendants at a deadline."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from poise_core.failures import Cancelled
from poise_core.sandbox.command import cpu_seconds_of_tree, end_process_tree


@dataclass(frozen=True)
class Finished:
    """What is left of a process."""

    output: bytes  # at most the limit, the rest is dropped
    errors: bytes
    status: int | None  # None: it was ended at the deadline
    cpu_seconds: float = 0.0  # of its whole tree, measured when it was ended at the deadline


POLL_SECONDS = 0.1


def run_until(
    argv: Sequence[str],
    env: Mapping[str, str],
    given: bytes,
    deadline: float,
    output_limit: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Finished:
    """Run a process in a session of its own; whatever ends this function, no process of its tree is left.

    Args:
        argv: the command line.
        env: its whole environment.
        given: what it reads on stdin.
        deadline: on the clock of :func:`time.monotonic`.
        output_limit: bytes kept of each of stdout and stderr.
        should_stop: polled while it runs.

    Raises:
        OSError: it does not start.
        Cancelled: ``should_stop`` said so.
    """
    process = subprocess.Popen(
        argv,
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors, cpu_seconds = bytearray(), bytearray(), 0.0
    status: int | None = None
    try:
        readers = {process.stdout: output, process.stderr: errors}
        clock = _Clock(deadline, should_stop)
        if _exchange(process.stdin, given, readers, clock, output_limit):
            status = _wait(process, clock)
    finally:
        cpu_seconds = cpu_seconds_of_tree(process.pid)
        end_process_tree(process.pid, grace_seconds=0.0)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
    return Finished(bytes(output), bytes(errors), status, cpu_seconds)


@dataclass(frozen=True)
class _Clock:
    deadline: float
    should_stop: Callable[[], bool]

    def wait(self) -> float | None:
        """How long to wait for something to happen; None when the deadline has come."""
        if self.should_stop():
            raise Cancelled("stopped while a candidate was verified")
        remaining = self.deadline - time.monotonic()
        return min(remaining, POLL_SECONDS) if remaining > 0 else None


def _wait(process: subprocess.Popen[bytes], clock: _Clock) -> int | None:
    """The status of a process that has closed its pipes; None when the deadline comes first."""
    while (seconds := clock.wait()) is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
    return None


def _exchange(
    writer: IO[bytes], given: bytes, readers: Mapping[IO[bytes], bytearray], clock: _Clock, limit: int
) -> bool:
    """Write ``given`` and read until every reader ends; False when the deadline comes first."""
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
