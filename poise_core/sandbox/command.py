"""The command line and environment under which a command with candidate code runs confined.

``confined_command`` wraps a command in every measure that the machine grants: a scrubbed environment, a session that
dies with its parent, limits, no network but loopback, a file system in which only the listed folders exist and
only the writable ones can be written, no capabilities, and no system calls that training does not need. Each measure is
tried once per process; what the machine refuses is logged once, and returned for the record.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from poise_core.sandbox import allowlist
from poise_core.sandbox.process_tree import cpu_seconds_of_tree, end_process_tree

__all__ = [
    "GRANTED",
    "LEVELS",
    "NETWORK_NEEDED",
    "ConfinedCommand",
    "Limits",
    "confined_command",
    "cpu_seconds_of_tree",
    "end_process_tree",
]

GRANTED = "granted"
NETWORK_NEEDED = "not asked for: the command needs the network"

logger = logging.getLogger("poise.confinement")


@dataclass(frozen=True)
class Limits:
    """The resources that a confined command may use; None means no limit."""

    wall_seconds: float | None = None  # of the whole tree; the caller ends it, and 3 s later the launcher does
    cpu_seconds: float | None = None  # per process
    memory_bytes: int | None = None  # per process, private writable memory
    address_bytes: int | None = None  # per process, address space; CUDA needs far more than it uses
    file_bytes: int | None = None  # largest file that may be written
    processes: int | None = None  # processes and threads at one time
    scratch_bytes: int = 256 << 20  # private /tmp and /dev/shm, each


@dataclass(frozen=True)
class ConfinedCommand:
    """The argument of ``poise_core.sandbox.warm.start``, or of ``subprocess.Popen(argv, env=env, start_new_session=True)``.

    ``granted`` maps each measure to "granted" or to the reason why it is missing; store it with the row. The launcher exits
    with 124 when the wall time is over, with 125 and one line on stderr when it could not confine, else with the command's status.
    """

    argv: list[str]
    env: dict[str, str]
    granted: dict[str, str] = field(default_factory=dict)
    specification: Mapping[str, Any] | None = None  # the launcher's argument; None where bubblewrap is the launcher


def confined_command(
    command: Sequence[str],
    *,
    writable: Sequence[Path] = (),
    readable: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    network: bool = False,
    loopback: bool = True,
    level: str | None = None,
) -> ConfinedCommand:
    """Return the command line and environment under which ``command`` runs confined.

    Args:
        command: program and arguments; the program is found through PATH.
        writable: existing folders that the command may write; everything else is read-only or absent.
        readable: files and folders that the command needs beside the Python environment and the system's libraries.
        env: variables set on top of the allowlist of inherited ones; there is no other way to pass a value.
        limits: no limits by default.
        network: True leaves the machine's network reachable, for training over several nodes.
        loopback: whether the command uses 127.0.0.1, as torchrun and gloo do. With False, internet sockets are forbidden
            even where no network namespace is granted.
        level: one of ``LEVELS``, for tests; None takes the best that works on this machine.

    Raises:
        ValueError: there is no such level.
    """
    limits = limits or Limits()
    level = level or best_level()
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}; use one of {', '.join(LEVELS)}")
    machine = probe_machine()
    namespaces = level in ("namespaces", "network namespace")
    files, links = allowlist.files(writable, readable, network)
    specification: dict[str, Any] = {
        "command": [_normal(command[0]), *command[1:]] if command else [],
        "parent": os.getpid(),
        "namespaces": namespaces,
        "view": level == "namespaces",
        "network": network,
        "internet": network or loopback,
        "landlock": level != "namespaces" and level != "bubblewrap" and not machine["landlock"],
        "seccomp": not machine["seccomp"],
        "capabilities": not machine["capabilities"],
        "readable": files,
        "writable": [os.path.realpath(folder) for folder in writable],
        "devices": allowlist.devices(),
        "links": links,
        "limits": {**asdict(limits), "user_processes": allowlist.process_limit(limits.processes)},
        "namespace_processes": limits.processes if level == "namespaces" and not machine["process limit"] else None,
    }
    argv = _launcher(json.dumps(specification)) if level != "bubblewrap" else _bubblewrap(specification)
    scratch = "/tmp" if level in _PRIVATE_SCRATCH else next(iter(specification["writable"]), "/nonexistent")
    environment = {
        **allowlist.kept_environment(),
        "HOME": scratch,
        "TMPDIR": scratch,
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if level not in ("plain", "landlock") and not network:
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    granted = _granted(specification, level)
    kept = specification if level != "bubblewrap" else None
    return ConfinedCommand(argv, environment | dict(env or {}), granted, kept)


# ---- what goes into the specification


def _normal(program: str) -> str:
    """Remove ``..`` from an absolute path: the folders that it passes through do not exist in a private view."""
    return os.path.normpath(program) if os.path.isabs(program) else program


def _launcher(*arguments: str) -> list[str]:
    """Return the launcher's command, without site-packages, whose set-up would take a fifth of a second."""
    root = str(Path(__file__).parents[2])
    start = f"import sys; sys.path.insert(0, {root!r}); from poise_core.sandbox.confine import main; main()"
    return [_normal(sys.executable), "-I", "-S", "-c", start, *arguments]


def _bubblewrap(specification: Mapping[str, Any]) -> list[str]:
    """Return a launcher that starts bubblewrap, which builds the namespaces and starts a second launcher inside them."""
    scratch = ["--size", str(specification["limits"]["scratch_bytes"]), "--tmpfs"]
    options = [
        "--unshare-user",
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--die-with-parent",
        "--cap-drop",
        "ALL",
    ]
    if not specification["network"]:
        options.append("--unshare-net")
    options += ["--proc", "/proc", "--dev", "/dev", *scratch, "/dev/shm", *scratch, "/tmp"]
    for path in sorted([*specification["readable"], *specification["writable"]], key=lambda path: path.count("/")):
        options += ["--bind" if path in specification["writable"] else "--ro-bind", path, path]
    for path in specification["devices"]:
        options += ["--dev-bind", path, path]
    for link, target in specification["links"].items():
        options += ["--symlink", target, link]
    options += ["--remount-ro", "/proc", "--remount-ro", "/"]  # root may write kernel settings below /proc/sys
    visible = [*specification["writable"], "/tmp"]
    options += ["--chdir", os.getcwd() if allowlist.within(os.getcwd(), specification["readable"]) else visible[0]]
    inner = {**specification, "landlock": False}
    command = [shutil.which("bwrap") or "bwrap", *options, "--", *_launcher("--inner", json.dumps(inner))]
    outer_limits = {"wall_seconds": specification["limits"]["wall_seconds"]}
    outer = {**specification, "command": command, "namespaces": False, "view": False, "limits": outer_limits}
    return _launcher(json.dumps(outer | dict.fromkeys(("landlock", "seccomp", "capabilities"), False)))


# ---- what this machine grants

LEVELS = ("namespaces", "bubblewrap", "network namespace", "landlock", "plain")
"""Ways to confine files and network, best first: namespaces with a private view of the file system; bubblewrap, which
may have rights that this process lacks; a network namespace with Landlock for files; Landlock alone; none of them."""


_PRIVATE_SCRATCH = ("namespaces", "bubblewrap")


def has_private_scratch() -> bool:
    """Whether a confined process gets a private /tmp; otherwise it needs a writable folder, for example for torch."""
    return best_level() in _PRIVATE_SCRATCH


@lru_cache(maxsize=1)
def probe_machine() -> Mapping[str, str]:
    """Try each measure in a child process; maps the measure to "" or to the reason why the kernel refuses it."""
    environment = {**allowlist.kept_environment(), "PYTHONDONTWRITEBYTECODE": "1"}
    refused = dict.fromkeys(
        ("user and network namespaces", "process limit", "landlock", "seccomp", "capabilities"),
        "the launcher does not start",
    )
    try:
        done = subprocess.run(_launcher("--probe"), env=environment, capture_output=True, timeout=60, check=True)
        refused = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        logger.warning("confinement cannot be probed: %s", error)
    return refused


@lru_cache(maxsize=1)
def best_level() -> str:
    """Return the first of ``LEVELS`` under which a Python process starts on this machine."""
    machine = probe_machine()
    why: list[str] = []
    for level in LEVELS:
        if level == "bubblewrap" and shutil.which("bwrap") is None:
            continue
        needed = {"namespaces": "user and network namespaces", "network namespace": "user and network namespaces"}.get(
            level, level
        )
        reason = machine.get(needed, "")
        if not reason and level in ("namespaces", "bubblewrap"):
            reason = _try_level(level)
        if not reason:
            granted = confined_command([], level=level, limits=Limits(processes=1)).granted
            missing = {name: text for name, text in granted.items() if text != GRANTED}
            if missing:
                logger.warning(
                    "this machine does not grant: %s", "; ".join(f"{name} ({text})" for name, text in missing.items())
                )
            return level
        why.append(f"{level}: {reason}")
    return LEVELS[-1]


def _try_level(level: str) -> str:
    confined = confined_command([sys.executable, "-I", "-S", "-c", ""], limits=Limits(wall_seconds=30), level=level)
    try:
        done = subprocess.run(confined.argv, env=confined.env, capture_output=True, timeout=60, start_new_session=True)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return (
        ""
        if done.returncode == 0
        else done.stderr.decode("utf-8", "replace").strip()[-200:] or f"status {done.returncode}"
    )


def _granted(specification: Mapping[str, Any], level: str) -> dict[str, str]:
    machine = probe_machine()
    refused = machine["user and network namespaces"] or "no private view of the file system can be mounted"
    isolated = level in ("namespaces", "bubblewrap")
    if specification["network"]:
        network = NETWORK_NEEDED
    elif isolated or level == "network namespace" or (specification["seccomp"] and not specification["internet"]):
        network = GRANTED
    else:
        network = f"not granted: {refused}"
    processes = GRANTED
    asked, by_user, by_namespace = (
        specification["limits"]["processes"],
        specification["limits"]["user_processes"],
        specification["namespace_processes"],
    )
    if asked is not None and by_user is None and by_namespace is None:
        processes = f"not granted: the kernel exempts root from its users' limit ({machine['process limit'] or level})"
    return {
        "environment": GRANTED,
        "session": GRANTED,
        "limits": GRANTED,
        "process limit": processes,
        "network": network,
        "file system": GRANTED
        if isolated or specification["landlock"]
        else f"not granted: {machine['landlock'] or refused}",
        "process namespace": GRANTED if isolated else f"not granted: {refused}",
        "system calls": GRANTED if specification["seccomp"] else f"not granted: {machine['seccomp']}",
        "capabilities": GRANTED if specification["capabilities"] else f"not granted: {machine['capabilities']}",
    }
