"""The environment variables, files and devices that a confined process can see, each from an allowlist."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

_KEPT_NAMES = frozenset(
    {"PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"}
)
_KEPT_PREFIXES = ("LC_", "OMP_", "MKL_", "NCCL_", "GLOO_", "CUDA_DEVICE_", "NVIDIA_DRIVER_")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""For glibc's malloc, which reads them when a process starts: blocks below 32 MiB (the most that every version of it takes) come
from the heap, and up to 1 GiB of it is kept. Otherwise the system takes back what a step of training or sampling has freed, and
clears the same pages for the next one."""
_SYSTEM_FOLDERS = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/sys",
    "/opt/rocm",
    "/opt/nvidia",
    "/opt/hpcx",
)
_SYSTEM_FILES = tuple(
    f"/etc/{name}"
    for name in (
        "alternatives", "group", "host.conf", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "libibverbs.d", "localtime",
        "nccl.conf", "nsswitch.conf", "passwd", "protocols", "services",
    )
)  # fmt: skip
_NETWORK_FILES = ("/etc/resolv.conf", "/etc/ssl", "/etc/pki", "/etc/ca-certificates")
_DEVICES = ("null", "zero", "full", "random", "urandom", "kfd", "dri", "infiniband", "nvidia-caps")


def within(path: str, folders: Sequence[str]) -> bool:
    """Whether an absolute path is one of the folders or lies below one."""
    return any(os.path.commonpath([path, folder]) == folder for folder in folders)


def files(writable: Sequence[Path], readable: Sequence[Path], network: bool) -> tuple[list[str], dict[str, str]]:
    """Return the real paths that are bound read-only, and the symbolic links that lead to some of them."""
    package = Path(__file__).parents[1]
    wanted = [
        *_SYSTEM_FOLDERS, *_SYSTEM_FILES, *(_NETWORK_FILES if network else ()), sys.prefix, sys.base_prefix, sys.exec_prefix,
        os.path.dirname(sys.executable), str(package), *os.environ.get("LD_LIBRARY_PATH", "").split(":"),
        os.environ.get("CUDA_HOME", ""), *(str(path) for path in readable),
    ]  # fmt: skip
    links, real = {}, []
    for path in dict.fromkeys(os.path.abspath(path) for path in wanted if path):
        target = os.path.realpath(path)
        if not os.path.exists(target) or target == "/":
            continue
        if target != path:
            links[path] = target
        real.append(target)
    for folder in writable:
        if os.path.realpath(folder) != os.path.abspath(folder):
            links[os.path.abspath(folder)] = os.path.realpath(folder)
    kept = {os.path.realpath(folder) for folder in writable}
    return [path for path in dict.fromkeys(real) if path not in kept], links


def devices() -> list[str]:
    """Return the devices that computing needs and this machine has; no disks and no terminals."""
    nvidia = sorted(str(path) for path in Path("/dev").glob("nvidia*"))
    return [path for path in dict.fromkeys([*(f"/dev/{name}" for name in _DEVICES), *nvidia]) if os.path.exists(path)]


def kept_environment() -> dict[str, str]:
    """Return the inherited variables that are passed on; none of them has a URL as its value."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name in _KEPT_NAMES or name.startswith(_KEPT_PREFIXES)) and "://" not in value
    }


def process_limit(processes: int | None) -> int | None:
    """Return the value of RLIMIT_NPROC that leaves ``processes`` free; None for root, whom the kernel exempts.

    RLIMIT_NPROC counts all processes and threads of the user, so those that exist now are added.
    """
    if processes is None or os.geteuid() == 0:
        return None
    uid, now = os.getuid(), 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        uids = process.info["uids"]
        if uids is not None and uids.real == uid:
            now += process.info["num_threads"] or 1
    return now + processes
