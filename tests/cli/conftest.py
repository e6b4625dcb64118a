import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# the loopback server and its script, and the laboratory

POISE = Path(sys.executable).parent / "poise"


@pytest.fixture
def poise(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The command as a user runs it, in an empty working directory."""

    def run(*arguments: object, timeout: float = 280) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(POISE), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "140"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
