"""A process that the fork server has forked, and the connection to the server, as the process that asks sees them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from poise_core.failures import Cancelled, InfrastructureError
from poise_core.sandbox import allowlist
from poise_core.sandbox.command import ConfinedCommand
from poise_core.sandbox.forkserver import PADDING

START_SECONDS = 300.0  # limit for a server's answer; its imports take seconds, or a minute on an overloaded machine
POLL_SECONDS = 0.1
SERVER_VARIABLES = {
    # threads that a library starts on import are lost in a fork; each entry sets its own number of threads
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow has two allocators, and uses the other one
    **allowlist.ALLOCATOR,
    "CUDA_VISIBLE_DEVICES": "",
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "HOME": "/tmp",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TMPDIR": "/tmp",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


class RefusedError(Exception):
    """The server cannot fork this entry."""


class ServerDiedError(Exception):
    """The server has ended."""


class ForkServer:
    """The fork server of this process: its process, and the socket over which it takes requests."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(START_SECONDS)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  stays open, for ``why_it_died``
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-m", "poise_core.sandbox.forkserver", str(theirs.fileno()), PADDING],
                env=allowlist.kept_environment() | SERVER_VARIABLES,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def why_it_died(self) -> str:
        """Return the last line that the server wrote to stderr, or else its status."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        text = os.pread(self._errors.fileno(), 1 << 16, 0)
        lines = text.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"status {self.process.returncode}"

    def close(self) -> None:
        """End the server, and with it every process that it has forked."""
        self.control.close()
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def leave_to_parent(self) -> None:
        """Close the socket in a fork of this process, so that the fork does not keep the parent's server alive."""
        self.control.close()
        self.process.returncode = 0  # the server is not a child of this process, which cannot wait for it


class ForkedProcess:
    """A process that the server has forked, with the interface of ``subprocess.Popen``.

    The process is a child of the server. After its end it stays a zombie until this object is closed or collected, so that no
    other process gets its id.
    """

    def __init__(
        self,
        server: ForkServer,
        entry: str,
        confined: ConfinedCommand,
        streams: tuple[int, int, int],
        should_stop: Callable[[], bool],
    ) -> None:
        self.returncode: int | None = None
        self._server = server
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._ask(entry, theirs)
            self.pid = self._forked(should_stop)
            self._hand_over(confined, streams)
        except BaseException:
            self._connection.close()
            raise

    def _ask(self, entry: str, theirs: socket.socket) -> None:
        try:
            socket.send_fds(self._server.control, [entry.encode()], [theirs.fileno()])
        except TimeoutError:
            self._give_up()
        except OSError:
            raise ServerDiedError(self._server.why_it_died()) from None

    def _forked(self, should_stop: Callable[[], bool]) -> int:
        """Wait for the server to fork, which takes seconds where it has to import libraries, and return the process id."""
        deadline = time.monotonic() + START_SECONDS
        while not self._readable(POLL_SECONDS):
            if should_stop():
                raise Cancelled("stopped before the process was started")
            if self._server.process.poll() is not None:  # the socket alone does not tell: a fork may hold its other end
                raise ServerDiedError(self._server.why_it_died())
            if time.monotonic() > deadline:
                self._give_up()
        answer = self._message()
        if answer is None:
            raise ServerDiedError(self._server.why_it_died())
        if "refused" in answer:
            raise RefusedError(answer["refused"])
        return int(answer["pid"])

    def _give_up(self) -> None:
        self._server.process.kill()  # the next request starts a new server
        raise InfrastructureError(
            f"the process that forks candidates' processes has not answered for {START_SECONDS:g} s; try again, or set "
            "POISE_WARM=0"
        )

    def _hand_over(self, confined: ConfinedCommand, streams: tuple[int, int, int]) -> None:
        request = {
            "specification": confined.specification,
            "environment": confined.env,
            "folder": os.getcwd(),
            "umask": _umask(),
        }
        handle = os.memfd_create("request", os.MFD_CLOEXEC)
        try:
            with open(handle, "wb", closefd=False) as stream:
                stream.write(json.dumps(request).encode())
            os.lseek(handle, 0, os.SEEK_SET)
            socket.send_fds(self._connection, [b"request"], [*streams, handle])
        except OSError:
            raise ServerDiedError(self._server.why_it_died()) from None
        finally:
            os.close(handle)

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None while the process runs.

        Raises:
            InfrastructureError: the server has died, and the process with it.
        """
        if self.returncode is None and self._readable(0.0):
            answer = self._message()
            if answer is None:
                reason = self._server.why_it_died()
                raise InfrastructureError(f"the process that forks candidates' processes has died: {reason}")
            self.returncode = int(answer["status"])
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process ends, and return its status.

        Raises:
            subprocess.TimeoutExpired: the process has not ended within ``timeout`` seconds.
            InfrastructureError: the server has died, and the process with it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise subprocess.TimeoutExpired([f"process {self.pid}"], timeout or 0.0)
            self._readable(remaining)
        return status

    def close(self) -> None:
        """Let the server collect the process, and wait up to a second until it has."""
        with contextlib.suppress(OSError), self._connection as connection:
            connection.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + 1.0
            while (remaining := deadline - time.monotonic()) > 0 and self._readable(remaining):
                if self._message() is None:
                    break

    def _readable(self, seconds: float | None) -> bool:
        poll = select.poll()  # select refuses descriptors above 1023
        poll.register(self._connection.fileno(), select.POLLIN)
        return bool(poll.poll(None if seconds is None else 1000 * seconds))

    def _message(self) -> Mapping[str, Any] | None:
        try:
            text = self._connection.recv(65536)
        except ConnectionError:
            return None
        return json.loads(text) if text else None


def _umask() -> int:
    """Read the umask from /proc: ``os.umask`` would change it for other threads for a moment."""
    (text,) = re.findall(r"^Umask:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(text, 8)
