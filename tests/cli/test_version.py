import platform
import subprocess
import sys
from importlib import metadata

import pytest
from typer.testing import CliRunner

from poise_core.cli import app
from poise_core.cli.version import version_line


def test_the_version_is_one_line_with_all_that_a_report_of_a_fault_needs() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    (line,) = result.output.splitlines()
    parts = line.split(", ", 3)
    assert parts == [
        f"poise {metadata.version('poise-rl')}",
        f"Python {platform.python_version()}",
        f"torch {metadata.version('torch')}",
        platform.platform(),
    ]


@pytest.mark.slow
def test_asking_for_the_version_loads_neither_torch_nor_another_heavy_library() -> None:
    program = (
        "import sys; from poise_core.cli import app; app(['--version'], standalone_mode=False); "
        "print(sorted({'torch', 'pyarrow', 'transformers', 'prefect', 'mlflow', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_what_is_not_installed_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert version_line().startswith("poise not installed, Python ")
    assert ", torch not installed, " in version_line()
