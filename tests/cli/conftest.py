import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from poise_core.cli import app

# the loopback server and its script, and the laboratory

POISE = Path(sys.executable).parent / "poise"


@pytest.fixture
def poise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command in this process, in an empty working directory, on a wide terminal."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner(env={"COLUMNS": "140"}).invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def installed_poise(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
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
