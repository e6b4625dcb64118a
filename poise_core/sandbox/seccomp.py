"""Filters that refuse system calls which confined processes, or processes with candidate code, never need.

A filter cannot be removed, is inherited by children, and needs no privilege (seccomp mode 2 with ``no_new_privs``).
"""

from __future__ import annotations

import ctypes
import errno
import platform
import socket
import struct

from poise_core.sandbox import kernel

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CALLS: dict[str, tuple[int, int]] = {  # x86-64, arm64; -1 where it does not exist
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "sethostname": (170, 161), "setdomainname": (171, 162), "syslog": (103, 116), "personality": (135, 92), "vhangup": (153, 58),
    "iopl": (172, -1), "ioperm": (173, -1), "modify_ldt": (154, -1),
}  # fmt: skip
_SOCKET, _CLONE, _CLONE3 = (41, 198), (56, 220), (435, 435)
_NEW_PROCESS = ((57, -1), (58, -1), (59, 221), (322, 281))  # fork, vfork, execve, execveat

_LOAD, _EQUAL, _GREATER_OR_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def forbid_dangerous_calls(*, internet: bool) -> None:
    """Refuse system calls that no training needs: mounts, namespaces, tracing, kernel modules, io_uring, and others.

    Args:
        internet: whether IPv4 and IPv6 sockets may be made; local (Unix) sockets always may.
    """
    index = _machine()
    program = _prologue()
    for numbers in _CALLS.values():
        program += _refuse(numbers[index], errno.EPERM)
    program += _refuse(_CLONE3[index], errno.ENOSYS)  # its flags lie in memory; libc falls back to clone
    program += _when(_CLONE[index], [(_ANY_BIT, 0, 1, kernel.CLONE_NAMESPACES), _return(_ERRNO | errno.EPERM)])
    families = [socket.AF_UNIX] + ([socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK] if internet else [])
    checks = [(_EQUAL, len(families) - position, 0, int(family)) for position, family in enumerate(families)]
    program += _when(_SOCKET[index], [*checks, _return(_ERRNO | errno.EACCES)])
    _install([*program, _return(_ALLOW)])


def forbid_new_processes() -> None:
    """Refuse from now on to start programs and to fork processes, in all threads; new threads stay allowed.

    A process calls this before it loads candidate code, which then can start no shell, no fork bomb, and no process that
    outlives it.

    Raises:
        OSError: the kernel grants no filter.
    """
    index = _machine()
    program = _prologue()
    for numbers in _NEW_PROCESS:
        program += _refuse(numbers[index], errno.EPERM)
    program += _refuse(_CLONE3[index], errno.ENOSYS)
    program += _when(_CLONE[index], [(_ANY_BIT, 1, 0, kernel.CLONE_THREAD), _return(_ERRNO | errno.EPERM)])
    _install([*program, _return(_ALLOW)])


def _machine() -> int:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system-call filter for {machine}")
    return list(_ARCHITECTURES).index(machine)


def _prologue() -> list[Instruction]:
    """Kill a call of another architecture; refuse the x32 variants of calls, which have other numbers."""
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()]),
        _return(_KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if platform.machine() == "x86_64":
        program += [(_GREATER_OR_EQUAL, 0, 1, 0x40000000), _return(_ERRNO | errno.ENOSYS)]
    return program


def _return(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _refuse(number: int, error: int) -> list[Instruction]:
    return [] if number < 0 else [(_EQUAL, 0, 1, number), _return(_ERRNO | error)]


def _when(number: int, body: list[Instruction]) -> list[Instruction]:
    """For the call ``number``, run ``body`` on its first argument; after the body, load the number again and go on."""
    inner = [(_LOAD, 0, 0, _FIRST_ARGUMENT), *body, (_LOAD, 0, 0, _NUMBER)]
    return [(_EQUAL, 0, len(inner), number), *inner]


def _install(program: list[Instruction]) -> None:
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HxxxxxxQ", len(program), ctypes.addressof(buffer))
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    result = kernel.syscall("seccomp", 1, 1, header)  # SECCOMP_SET_MODE_FILTER, for all threads
    if result:
        raise OSError(errno.EBUSY, f"seccomp: thread {result} cannot take the filter")
