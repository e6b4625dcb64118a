"""The Linux system calls that confinement needs and Python's standard library lacks, through ctypes; the memory that there is.

Every function raises ``OSError`` with the call's name where the kernel refuses. The numbers are those of the kernel's
headers for x86-64 and arm64; on any other machine the calls raise ``OSError(ENOSYS)``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag
CLONE_THREAD = 0x00010000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 1, 24, 38, 36
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "seccomp": 317, "capset": 126},
    "aarch64": {"pivot_root": 41, "seccomp": 277, "capset": 91},
}
_COMMON = {
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}

_libc = ctypes.CDLL(None, use_errno=True)


def syscall(name: str, *arguments: object) -> int:
    """Make a system call by its name."""
    number = {**_COMMON, **_NUMBERS.get(platform.machine(), {})}.get(name)
    if number is None or platform.machine() not in _NUMBERS:
        raise OSError(errno.ENOSYS, f"{name}: unknown on {platform.machine()}")
    return _checked(name, _libc.syscall(ctypes.c_long(number), *(_argument(value) for value in arguments)))


def prctl(option: int, *arguments: int) -> None:
    """``prctl(2)``."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    _checked(f"prctl({option})", _libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(value) for value in padded)))


def unshare(flags: int) -> None:
    """``unshare(2)``."""
    _checked("unshare", _libc.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """``mount(2)``."""
    texts = (value.encode() for value in (source, target, kind))
    result = _libc.mount(*texts, ctypes.c_ulong(flags), data.encode() or None)
    _checked(f"mount {source or kind} on {target}", result)


def umount(target: str, flags: int) -> None:
    """``umount2(2)``."""
    _checked(f"umount {target}", _libc.umount2(target.encode(), ctypes.c_int(flags)))


def pivot_root(new: str, old: str) -> None:
    """``pivot_root(2)``."""
    syscall("pivot_root", new.encode(), old.encode())


def set_mount_attributes(target: str, attributes: int) -> None:
    """Set attributes on a mount and everything mounted below it (``mount_setattr(2)``, Linux 5.12)."""
    settings = struct.pack("=QQQQ", attributes, 0, 0, 0)
    syscall("mount_setattr", _AT_FDCWD, target.encode(), _AT_RECURSIVE, settings, len(settings))


def remount_read_only(target: str) -> None:
    """Make one mount read-only, without what is mounted below it."""
    mount("", target, "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def map_own_ids(uid: int, gid: int) -> None:
    """In a new user namespace, map the caller's ids to themselves, and no others."""
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def limit_namespace_processes(proc: str, count: int) -> None:
    """Limit this process's pid namespace to ``count`` processes and threads, root's included.

    Args:
        proc: where the proc file system of this namespace is mounted, writable.
        count: the kernel accepts no less than 301, or 8 for each core.
    """
    version = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    if version < (6, 14):  # there the number holds for the whole machine, and a confined root could lower it
        raise OSError(errno.ENOSYS, "pid namespaces have no limit of their own before Linux 6.14")
    least = max(301, 8 * (os.cpu_count() or 1))
    Path(proc, "sys/kernel/pid_max").write_text(str(max(least, count)))


def bring_loopback_up() -> None:
    """Bring up loopback, which is down in a new network namespace; gloo and torchrun need it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sh14x", b"lo", 1 | 64)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(handle, 0x8914, request)  # SIOCSIFFLAGS


def drop_capabilities() -> None:
    """Give up every capability of this process, root's included, now and for programs that it executes."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # an ordinary user has none to drop and may not drop them either
            break
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", 0x20080522, 0)
    syscall("capset", header, bytes(24))


# ---- Landlock: file-system rules for a process without any privilege (Linux 5.13)

_READ = (1 << 0) | (1 << 2) | (1 << 3)  # execute, read a file, read a directory
_FILE_ONLY = (1 << 0) | (1 << 1) | (1 << 2) | (1 << 14) | (1 << 15)


def landlock_version() -> int:
    """Return the version of the kernel's Landlock ABI.

    Raises:
        OSError: the kernel has no Landlock.
    """
    return syscall("landlock_create_ruleset", None, 0, 1)


def landlock(readable: Sequence[str], writable: Sequence[str]) -> None:
    """From now on, let this process read only below ``readable`` and ``writable``, and write only below ``writable``."""
    version = landlock_version()
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    scoped = 3 if version >= 6 else 0  # abstract sockets and signals stay inside
    attributes = struct.pack("=QQQ", handled, 0, scoped)[: 24 if version >= 6 else 8]
    ruleset = syscall("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        for paths, access in ((readable, _READ), (writable, handled)):
            for path in paths:
                _landlock_allow(ruleset, path, access & handled)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _landlock_allow(ruleset: int, path: str, access: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            access &= _FILE_ONLY
        syscall("landlock_add_rule", ruleset, 1, struct.pack("=Qi", access, handle), 0)
    finally:
        os.close(handle)


def _argument(value: object) -> object:
    return ctypes.c_long(value) if isinstance(value, int) else value


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return int(result)


# ---- the memory that there is


def memory_bytes(process: Path = Path("/proc/self"), installed: int | None = None) -> int:
    """Return the main memory, in bytes, that this process and its children may use together.

    That is the machine's, or less where a control group of this process or one above it has a limit, as in a container, a pod or
    a job of a scheduler: ``memory.max`` in version 2, ``memory.limit_in_bytes`` in version 1. What a container cannot see of
    the groups above its own cannot be read, and need not be: its own group has the limit.

    Args:
        process: its folder below /proc, for tests.
        installed: the machine's memory, for tests.
    """
    found = [installed or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for group, top, name in _memory_groups(process):
        for folder in (group, *group.parents):
            try:
                text = (folder / name).read_text().strip()
            except OSError:  # the root of the hierarchy has no limit, a group of a hybrid set-up no such controller
                text = ""
            if text.isdecimal():  # version 2 writes "max" where there is none
                found.append(int(text))
            if folder == top:
                break
    return min(found)


def _memory_groups(process: Path) -> list[tuple[Path, Path, str]]:
    """This process's groups that may limit memory: folder, the topmost visible folder above it, name of the limit's file."""
    try:
        mounts = (process / "mountinfo").read_text().splitlines()
        groups = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
    except OSError:
        return []
    paths, found = {}, []
    for number, controllers, path in groups:
        if number == "0":
            paths["memory.max"] = path
        elif "memory" in controllers.split(","):
            paths["memory.limit_in_bytes"] = path
    for fields in (line.split(" ") for line in mounts):
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        name = "memory.max" if kind == "cgroup2" else "memory.limit_in_bytes"
        if name in paths and (kind == "cgroup2" or (kind == "cgroup" and "memory" in options)):
            top = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4]))
            within = os.path.relpath(paths[name], fields[3])  # a mount may begin below the root of its hierarchy
            found.append((top if within.startswith("..") else top / within, top, name))
    return found
