"""Code that imports the package sees its types: the marker is shipped, and mypy reads it."""

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

import poise_core

ROOT = Path(__file__).parents[1]


def test_the_marker_is_shipped() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["poise_core"]
    assert (Path(poise_core.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
def test_mypy_finds_a_wrong_type_in_the_code_of_a_user(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "poise.pth").write_text(f"{ROOT}\n")  # among site-packages mypy reads only packages with the marker
    (tmp_path / "user.py").write_text(
        "from poise_core.archive.lineage import Lineage\n"
        "\n"
        "def right(lineage: Lineage) -> list[str]:\n"
        "    return lineage.roots()\n"
        "\n"
        "def wrong(lineage: Lineage) -> int:\n"
        "    return lineage.roots()\n"
    )
    interpreter = tmp_path / "venv" / "bin" / "python"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--python-executable={interpreter}", "user.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        'user.py:7: error: Incompatible return value type (got "list[str]", expected "int")  [return-value]',
        "Found 1 error in 1 file (checked 1 source file)",
    ]
