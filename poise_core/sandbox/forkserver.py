"""The fork server: a process that has imported the libraries, and forks one process for every request.

``poise_core.sandbox.warm`` starts one for each process that asks, as ``python -I -m poise_core.sandbox.forkserver FD``, with a
scrubbed environment, so that nothing which a candidate must not see was ever in the server's memory. The server has one thread.

A request arrives over the control socket FD: the name of an entry and one end of a socket. The server imports the libraries of
the entry, once, then forks, and reports on that socket the id of the new process and, later, its status. Only the forked process
reads the request itself, so that nothing of one request is in the memory of the next. The forked process confines itself through
``poise_core.sandbox.confine``, as a fresh process does, and then calls the entry instead of executing a program.

An entry is a module with ``warm_up()``, which imports its libraries and starts no thread, and ``run(arguments) -> status``.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import re
import select
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from poise_core.sandbox import confine, kernel

ENTRIES = (
    "poise_core.verification.worker",
    "poise_core.evaluation.worker",
    "poise_core.training.startup",
)
"""Modules that can be forked. The libraries of an entry are always imported after those of the entries before it."""

REQUEST_FDS = 4  # stdin, stdout, stderr, and a file with the request as JSON
PADDING = (
    " " * 4096
)  # the last argument reserves bytes of the command line, over which a forked process writes its own command


@dataclass
class _Forked:
    """A process that was forked for a request."""

    connection: socket.socket  # the server's end; the requester has the other
    pidfd: int
    ended: bool = False  # it has ended, and stays uncollected while the requester may use its id
    unwanted: bool = False  # the requester has closed its end


class Server:
    """The event loop, which waits for requests, for the end of forked processes, and for requesters that hang up."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.epoll()
        self._poll.register(control.fileno(), select.EPOLLIN)
        self._forked: dict[int, _Forked] = {}
        self._memory: dict[
            str, int
        ] = {}  # entry -> private bytes of this process after the entry's libraries were imported
        self._title = _title_area()

    def run(self) -> None:
        """Serve until the process that started this one has ended or closed the control socket."""
        while True:
            for handle, _ in self._poll.poll():
                if handle == self._control.fileno():
                    name, handles, _, _ = socket.recv_fds(self._control, 256, 1)
                    if not name:
                        return
                    self._serve(name.decode(), socket.socket(fileno=handles[0]))
                else:
                    self._look_at(handle)

    def _serve(self, entry: str, connection: socket.socket) -> None:
        try:
            self._warm_up(entry)
            threads = len(os.listdir("/proc/self/task"))
            if threads > 1:
                raise RuntimeError(f"its libraries have started {threads - 1} threads, which a fork would lose")
        except Exception as error:
            _say(connection, {"refused": f"{type(error).__name__}: {error}"})
            connection.close()
            return
        more_memory = _private_memory() - self._memory[entry]
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_request(connection, server, more_memory)
        forked = _Forked(connection, os.pidfd_open(pid))
        self._forked[pid] = forked
        self._poll.register(forked.pidfd, select.EPOLLIN)
        self._poll.register(
            connection.fileno(), select.EPOLLRDHUP
        )  # only the hang-up: the forked process reads the data
        _say(connection, {"pid": pid})

    def _warm_up(self, entry: str) -> None:
        for name in ENTRIES[: ENTRIES.index(entry) + 1]:
            if name not in self._memory:
                importlib.import_module(name).warm_up()
                gc.collect()
                gc.freeze()  # a collection in a fork would touch, and so copy, the shared pages
                self._memory[name] = _private_memory()

    def _look_at(self, handle: int) -> None:
        for pid, forked in list(self._forked.items()):
            if handle == forked.pidfd:
                end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
                if end is None:
                    return
                forked.ended = True
                self._poll.unregister(forked.pidfd)
                status = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                _say(forked.connection, {"status": status})
            elif handle == forked.connection.fileno():
                forked.unwanted = True
                self._poll.unregister(handle)
                if not forked.ended:  # no process waits for it any more
                    signal.pidfd_send_signal(forked.pidfd, signal.SIGTERM)
            if forked.ended and forked.unwanted:
                os.waitpid(pid, 0)
                os.close(forked.pidfd)
                forked.connection.close()
                del self._forked[pid]

    # ---- in the forked process

    def _become_request(self, connection: socket.socket, server: int, more_memory: int) -> NoReturn:
        """Read the request and carry it out; no exception leads back into the server's loop."""
        status = confine.SETUP_FAILED
        try:
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)  # until the launcher replaces it by SIGTERM
            self._close_all_but(connection)
            request = _receive(connection)
            if request is not None:
                specification = request["specification"] | {"parent": server}
                limits = specification["limits"]
                if limits["memory_bytes"] is not None:
                    limits["memory_bytes"] += max(0, more_memory)
                self._retitle(
                    [specification["command"][0], "-m", "poise_core.sandbox.confine", *specification["command"]]
                )
                status = confine.confine(specification, self._call)
        except BaseException:
            traceback.print_exc()
        finally:
            _leave(status)

    def _close_all_but(self, connection: socket.socket) -> None:
        for forked in self._forked.values():
            forked.connection.close()
            os.close(forked.pidfd)
        self._poll.close()
        self._control.close()
        kept = connection.fileno()
        os.closerange(3, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))

    def _call(self, specification: confine.Specification) -> NoReturn:
        """Call the entry in this process, which is confined by now; a fresh launcher would execute a program here."""
        status = 1
        try:
            command = specification["command"]
            self._retitle(command)
            module = importlib.import_module(command[3])
            sys.argv = [str(module.__file__), *command[4:]]
            _forget()
            status = module.run(command[4:])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            _leave(status)

    def _retitle(self, command: Sequence[str]) -> None:
        """Overwrite the command line of this process, as ``ps`` shows it, with ``command``."""
        start, size = self._title
        text = b"\0".join(os.fsencode(part) for part in command)[: size - 1]
        if size:
            ctypes.memmove(start, text.ljust(size, b"\0"), size)


def _title_area() -> tuple[int, int]:
    """Return address and size in bytes of this process's command line in its memory; the size is 0 where it is unknown."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    return start, (end - start if start else 0)


def _private_memory() -> int:
    """Return the bytes of private writable memory, which the memory limit counts."""
    (kilobytes,) = re.findall(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kilobytes) << 10


def _say(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the requester is gone
        connection.send(json.dumps(message).encode())


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """Read the request and take over its streams, variables, folder and umask; None where the requester is gone."""
    message, handles, _, _ = socket.recv_fds(connection, 16, REQUEST_FDS)
    connection.close()
    if not message:
        return None
    with open(handles[3], "rb") as stream:
        request: dict[str, Any] = json.load(stream)
    # moved above 2 first, so that no stream overwrites one that is still to be placed
    streams = [handle if handle > 2 else os.dup(handle) for handle in handles[:3]]
    for number, handle in enumerate(streams):
        os.dup2(handle, number)
        os.close(handle)
    encoding = sys.stdout.encoding
    sys.stdin = os.fdopen(0, encoding=encoding, errors=sys.stdin.errors, closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=encoding, errors=sys.stdout.errors, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=encoding, errors=sys.stderr.errors, closefd=False)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    os.umask(request["umask"])
    return request


def _forget() -> None:
    """Reset the random state and the temporary folder, which all forks would otherwise share with the server."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    tempfile.tempdir = None


def _leave(status: int) -> NoReturn:
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
    with contextlib.suppress(BaseException):
        sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Serve on the socket whose number is the first argument."""
    Server(socket.socket(fileno=int(sys.argv[1]))).run()
    os._exit(0)


if __name__ == "__main__":
    main()
