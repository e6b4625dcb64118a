"""Starting confined processes: forked from a process that has imported the libraries, or, where that cannot be, as programs.

A fork starts in a tenth of a second what takes a fresh interpreter several. Every process that calls ``start`` gets a fork
server of its own (``poise_core.sandbox.forkserver``) at its first call, with no variable but those that confined processes
get as well; the server ends when this process ends, however that happens, and all that it has forked ends with it.

A program is started instead where a command is none of ``ENTRIES``, where confinement needs one (bubblewrap) or lets processes
see each other's memory, where the command may use an accelerator, whose state does not survive a fork, and where the
variable ``POISE_WARM`` is ``0``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from poise_core.failures import Cancelled, InfrastructureError
from poise_core.sandbox import allowlist
from poise_core.sandbox.command import ConfinedCommand, end_process_tree
from poise_core.sandbox.forkserver import ENTRIES, PADDING

START_SECONDS = (
    300.0  # within which a server answers; its imports take seconds, on a machine that is overloaded a minute
)
POLL_SECONDS = 0.1
_SERVER_VARIABLES = {
    # a library that made its threads on import would leave them behind in a fork; the entries set their own number
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow has two allocators, and uses the other one
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

logger = logging.getLogger("poise.confinement")


class Process(Protocol):
    """What a started process is asked for; ``subprocess.Popen`` has it."""

    pid: int

    def poll(self) -> int | None:
        """Its status, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its status, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not within ``timeout`` seconds.
        """


def start(
    confined: ConfinedCommand,
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Process:
    """Start a confined command with these descriptors as its streams; they stay the caller's to close.

    Raises:
        OSError: the program cannot be started.
        InfrastructureError: the fork server died twice, or does not answer.
        Cancelled: ``should_stop`` said so before the process was there.
    """
    if entry := _entry_of(confined):
        for attempt in (1, 2):
            try:
                server = _own_server()
                return ForkedProcess(server, entry, confined, (stdin, stdout, stderr), should_stop)
            except _RefusedError as error:
                _refusals[entry] = str(error)
                logger.warning("%s is started as a program of its own: %s", entry, error)
                break
            except _ServerDiedError as error:
                if attempt == 2:
                    raise InfrastructureError(
                        f"the process that forks candidates' processes has died: {error}"
                    ) from None
    return subprocess.Popen(
        confined.argv, env=confined.env, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
    )


def end(process: Process, grace_seconds: float = 2.0) -> None:
    """End a started process with all its descendants, and let its id go."""
    end_process_tree(process.pid, grace_seconds)
    with contextlib.suppress(InfrastructureError):  # the server has died, and takes what it has forked along
        process.wait()
    if isinstance(process, ForkedProcess):
        process.close()


def server_pid() -> int | None:
    """Process id of this process's fork server, if it has one."""
    return _server.process.pid if _server is not None else None


def _entry_of(confined: ConfinedCommand) -> str | None:
    """The entry that does what the command does; None where it has to be a program."""
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
    """Judged by its device files: asking a library would start it in this process."""
    return any(re.fullmatch(r"nvidia\d+|kfd|dxg", name) for name in os.listdir("/dev"))


# ---- the server, as this process sees it


class _RefusedError(Exception):
    """The server cannot fork this entry."""


class _ServerDiedError(Exception):
    """The server has ended."""


class _Server:
    def __init__(self) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(START_SECONDS)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  read by whoever is told last that it died
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-m", "poise_core.sandbox.forkserver", str(theirs.fileno()), PADDING],
                env=allowlist.kept_environment() | _SERVER_VARIABLES,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def why_it_died(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        text = os.pread(self._errors.fileno(), 1 << 16, 0)
        lines = text.decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"status {self.process.returncode}"

    def close(self) -> None:
        """Let it end, and what it has forked with it."""
        self.control.close()
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def leave_to_parent(self) -> None:
        """In a fork of this process: the server is not this one's, and must not outlive its owner."""
        self.control.close()
        self.process.returncode = 0  # nothing for this process to wait for


_lock = threading.Lock()
_server: _Server | None = None
_refusals: dict[str, str] = {}  # entry -> why it has to be a program on this machine


def _own_server() -> _Server:
    global _server
    with _lock:
        if _server is not None and _server.process.poll() is not None:
            logger.warning("the process that forks candidates' processes has died: %s", _server.why_it_died())
            _server.close()
            _server = None
        if _server is None:
            _server = _Server()
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


class ForkedProcess:
    """A process that the server has forked, with the shape of ``subprocess.Popen``.

    It is the server's child and stays a zombie until this object is closed or collected, so that nobody else gets its id.
    """

    def __init__(
        self,
        server: _Server,
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
            raise _ServerDiedError(self._server.why_it_died()) from None

    def _forked(self, should_stop: Callable[[], bool]) -> int:
        """Wait for the server to fork, which takes seconds where it has libraries to import."""
        deadline = time.monotonic() + START_SECONDS
        while not self._readable(POLL_SECONDS):
            if should_stop():
                raise Cancelled("stopped before the process was there")
            if self._server.process.poll() is not None:  # what it forked last may hold the other end open
                raise _ServerDiedError(self._server.why_it_died())
            if time.monotonic() > deadline:
                self._give_up()
        answer = self._message()
        if answer is None:
            raise _ServerDiedError(self._server.why_it_died())
        if "refused" in answer:
            raise _RefusedError(answer["refused"])
        return int(answer["pid"])

    def _give_up(self) -> None:
        self._server.process.kill()  # the next one who asks gets a new one
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
            raise _ServerDiedError(self._server.why_it_died()) from None
        finally:
            os.close(handle)

    def poll(self) -> int | None:
        """Its status, negative for a signal; None while it runs.

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
        """Its status, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not within ``timeout`` seconds.
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
        """Let the server collect the process, and wait until it has."""
        with contextlib.suppress(OSError), self._connection as connection:
            connection.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + 1.0
            while (remaining := deadline - time.monotonic()) > 0 and self._readable(remaining):
                if self._message() is None:
                    break

    def _readable(self, seconds: float | None) -> bool:
        poll = select.poll()  # select would not take numbers above 1023
        poll.register(self._connection.fileno(), select.POLLIN)
        return bool(poll.poll(None if seconds is None else 1000 * seconds))

    def _message(self) -> Mapping[str, Any] | None:
        try:
            text = self._connection.recv(65536)
        except ConnectionError:
            return None
        return json.loads(text) if text else None


def _umask() -> int:
    """Read without setting it, which other threads would notice."""
    (text,) = re.findall(r"^Umask:\s+(\d+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(text, 8)
