"""The launcher, which confines itself as its specification says and then becomes the command.

``main`` runs in a fresh Python process whose argument is the specification that
``poise_core.sandbox.command.confined_command`` writes as JSON. ``confine`` does the same in a process that the fork server
(``poise_core.sandbox.forkserver``) has forked; that process calls a function instead of executing a program. This module needs
the standard library only and has done its work before any candidate code runs.
Where a step of the specification fails, the launcher exits with status 125 and one line on stderr; nothing runs half-confined.

Processes: the launcher (outside, leads its own session, enforces the wall time) -> init (process 1 of the namespace) ->
the command. The end of the launcher, of init, or of the process that started the launcher ends all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from poise_core.sandbox import kernel, seccomp

SETUP_FAILED = 125
WALL_TIME_OVER = 124
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_GRACE_SECONDS = 2.0  # between a request to end and SIGKILL
_XCPU_GRACE_SECONDS = 5  # between SIGXCPU, which names the reason, and SIGKILL
_BACKSTOP_SECONDS = 3.0  # beyond the wall time, at which the process that started the launcher normally ends it

Specification = dict[str, Any]
Run = Callable[[Specification], NoReturn]
"""The last step of a confined process: it executes the command, or calls it."""


def main() -> None:
    """Confine this process and run the command; exit with its status, 128 + the signal that killed it, 124 or 125."""
    if sys.argv[1] == "--probe":
        print(json.dumps(probe()))
        return
    specification = json.loads(sys.argv[2] if sys.argv[1] == "--inner" else sys.argv[1])
    if sys.argv[1] == "--inner":
        _become(specification, _execute)
    sys.exit(confine(specification, _execute))


def confine(specification: Specification, run: Run) -> int:
    """Make this process the launcher of a confined one, which calls ``run``; return the status with which ``main`` exits."""
    with contextlib.suppress(OSError):  # it already leads a session, where the caller asked for a new one
        os.setsid()
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)
    if _is_gone(specification["parent"]):
        # it died before the line above, so this process would wait for the death of another parent
        return SETUP_FAILED
    kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    if specification["namespaces"]:
        _or_exit(lambda: _enter_namespaces(specification))
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_FORWARDED, signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        if specification["namespaces"]:
            _init(specification, run)
        _become(specification, run)
    wall_seconds = specification["limits"]["wall_seconds"]
    return _supervise(child, None if wall_seconds is None else wall_seconds + _BACKSTOP_SECONDS)


def _is_gone(caller: int) -> bool:
    """Whether the process that asked for this one has ended; an orphan's new parent is not always process 1."""
    if os.getppid() == caller:
        return False
    try:
        state = Path(f"/proc/{caller}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in ("Z", "X")


def _or_exit(step: Callable[[], None]) -> None:
    try:
        step()
    except OSError as error:
        print(f"confine: {error.strerror or error}", file=sys.stderr, flush=True)
        os._exit(SETUP_FAILED)


# ---- the launcher's own process


def _supervise(child: int, wall_seconds: float | None) -> int:
    """Wait for the child, pass signals on to it, and end all descendants when the wall time is over."""
    deadline = None if wall_seconds is None else time.monotonic() + wall_seconds
    status, over = None, False
    while status is None:
        remaining = 3600.0 if deadline is None else deadline - time.monotonic()
        received = signal.sigtimedwait({*_FORWARDED, signal.SIGCHLD}, max(0.0, remaining)) if remaining > 0 else None
        if received is None and deadline is not None and time.monotonic() >= deadline:
            over = True
            break
        if received is not None and received.si_signo in _FORWARDED:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, received.si_signo)
            deadline = min(deadline or float("inf"), time.monotonic() + _GRACE_SECONDS)
        status = _reap(child)
    _kill_descendants()
    if status is None:
        return WALL_TIME_OVER if over else SETUP_FAILED
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _reap(child: int) -> int | None:
    """Collect ended children, and return the status of ``child`` once it has ended."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            found = status


def _kill_descendants() -> None:
    """Kill the children of this process, to which orphans are handed as its children, until none is left."""
    for _ in range(100):
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        try:
            alive = [int(pid) for pid in children.read_text().split()]
        except OSError:
            return
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap(-1)
        time.sleep(0.01)


# ---- namespaces


def _enter_namespaces(specification: Specification) -> None:
    uid, gid = os.geteuid(), os.getegid()
    flags = kernel.CLONE_NEWUSER
    if specification["view"]:
        flags |= kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    if not specification["network"]:
        flags |= kernel.CLONE_NEWNET
    kernel.unshare(flags)
    kernel.map_own_ids(uid, gid)
    if not specification["network"]:
        kernel.bring_loopback_up()


def _init(specification: Specification, run: Run) -> None:
    """Be process 1: build the file-system view, start the command, collect orphans, and end when the command ends."""
    if specification["view"]:
        _or_exit(lambda: _build_view(specification))
    child = os.fork()
    if child == 0:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        _become(specification, run)
    os._exit(_supervise(child, None))


def _build_view(specification: Specification) -> None:
    """Mount a new root that holds only the listed paths, read-only but for the writable folders and a private /tmp."""
    writable, devices = specification["writable"], specification["devices"]
    kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    # opened first, because the new root is mounted over /tmp and may hide some of them
    handles = {path: os.open(path, os.O_PATH) for path in [*specification["readable"], *writable, *devices]}
    cwd = os.getcwd()
    root = "/tmp"
    kernel.mount("tmpfs", root, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755,size=16m")
    scratch = f"mode=1777,size={int(specification['limits']['scratch_bytes'])}"
    for folder in ("/tmp", "/dev/shm"):
        os.makedirs(root + folder, exist_ok=True)
        kernel.mount("tmpfs", root + folder, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, scratch)
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{root}/dev/{name}")
    os.makedirs(f"{root}/proc", exist_ok=True)
    kernel.mount("proc", f"{root}/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
    if specification["namespace_processes"] is not None:
        kernel.limit_namespace_processes(f"{root}/proc", specification["namespace_processes"])
    kernel.set_mount_attributes(f"{root}/proc", kernel.ATTR_RDONLY)
    for path in sorted(handles, key=lambda path: path.count("/")):  # a folder before what lies in it
        attributes = kernel.ATTR_NOSUID
        if path not in devices:
            attributes |= kernel.ATTR_NODEV
            if path not in writable:
                attributes |= kernel.ATTR_RDONLY
        _bind(handles[path], root + path, attributes)
        os.close(handles[path])
    for link, target in specification["links"].items():
        if not os.path.lexists(root + link):
            os.makedirs(os.path.dirname(root + link), exist_ok=True)
            os.symlink(target, root + link)
    os.mkdir(f"{root}/.old")
    kernel.pivot_root(root, f"{root}/.old")
    os.chdir("/")
    kernel.umount("/.old", kernel.MNT_DETACH)
    os.rmdir("/.old")
    kernel.remount_read_only("/")
    os.chdir(next(folder for folder in (cwd, *writable, "/tmp") if os.path.isdir(folder)))


def _bind(handle: int, target: str, attributes: int) -> None:
    source = f"/proc/self/fd/{handle}"
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o600))
    kernel.mount(source, target, "", kernel.MS_BIND | kernel.MS_REC)
    kernel.set_mount_attributes(target, attributes)


# ---- the process that becomes the command


def _become(specification: Specification, run: Run) -> NoReturn:
    """Set the limits and filters for this process, then run the command in it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_FORWARDED, signal.SIGCHLD})
    _or_exit(lambda: _restrict(specification))
    run(specification)


def _execute(specification: Specification) -> NoReturn:
    command = specification["command"]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"confine: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(SETUP_FAILED)


def _restrict(specification: Specification) -> None:
    _set_limits(specification["limits"])
    if specification["capabilities"]:
        kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    if specification["landlock"]:
        kernel.landlock(
            [*specification["readable"], "/proc", "/sys"],
            [*specification["writable"], *specification["devices"], "/dev/shm"],
        )
    if specification["seccomp"]:
        seccomp.forbid_dangerous_calls(internet=specification["internet"])


def _set_limits(limits: dict[str, Any]) -> None:
    for name, kind in (
        ("cpu_seconds", resource.RLIMIT_CPU),
        ("memory_bytes", resource.RLIMIT_DATA),
        ("address_bytes", resource.RLIMIT_AS),
        ("file_bytes", resource.RLIMIT_FSIZE),
        ("user_processes", resource.RLIMIT_NPROC),
    ):
        value = limits.get(name)
        if value is None:
            continue
        _, hard = resource.getrlimit(kind)
        wanted = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        last = wanted if kind != resource.RLIMIT_CPU else wanted + _XCPU_GRACE_SECONDS
        resource.setrlimit(kind, (wanted, last if hard == resource.RLIM_INFINITY else min(last, hard)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# ---- what this machine grants


def probe() -> dict[str, str]:
    """Try each measure that the kernel may refuse in a separate child: measure -> "" or why it was refused."""
    return {
        "user and network namespaces": _attempt(_try_namespaces),
        "process limit": _attempt(_try_process_limit),
        "landlock": _attempt(lambda: kernel.landlock(["/"], [])),
        "seccomp": _attempt(lambda: seccomp.forbid_dangerous_calls(internet=False)),
        "capabilities": _attempt(kernel.drop_capabilities),
    }


def _try_namespaces() -> None:
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET)
    kernel.map_own_ids(uid, gid)
    kernel.bring_loopback_up()


def _try_process_limit() -> None:
    """Set the limit in a pid namespace, which the process that makes it enters with its next child."""
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID)
    kernel.map_own_ids(uid, gid)

    def inside() -> None:
        kernel.mount("", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        kernel.limit_namespace_processes("/proc", 4096)

    if reason := _attempt(inside):
        raise OSError(reason)


def _attempt(step: Callable[[], None]) -> str:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            step()
            reason = b""
        except OSError as error:
            reason = (error.strerror or str(error)).encode()
        os.write(writing, reason)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as handle:
        reason = handle.read()
    os.waitpid(child, 0)
    return reason.decode()
