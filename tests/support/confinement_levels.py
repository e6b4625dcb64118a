"""The levels of confinement that this machine has."""

import shutil

from poise_core.sandbox import command as sandbox

LEVELS = [
    level
    for level in sandbox.LEVELS
    if not sandbox.probe_machine().get(
        {"namespaces": "user and network namespaces", "network namespace": "user and network namespaces"}.get(
            level, level
        ),
        "",
    )
    and (level != "bubblewrap" or shutil.which("bwrap"))
]
