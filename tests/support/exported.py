"""Exported files as modules, and the exported champion of the published run."""

from __future__ import annotations

import sys
import types
from pathlib import Path

from typer.testing import CliRunner

from poise_core.algorithms import algorithm_path
from poise_core.cli import app


def load(text: str, name: str = "exported_algorithm") -> types.ModuleType:
    """The exported file as a module; it is executed without this package at hand."""
    module = types.ModuleType(name)
    sys.modules[name] = module  # dataclasses look their module up
    hidden = {key: sys.modules.pop(key) for key in list(sys.modules) if key.partition(".")[0] == "poise_core"}
    blocked = dict.fromkeys(hidden)
    sys.modules.update(blocked)
    try:
        exec(compile(text, name, "exec"), module.__dict__)
    finally:
        for key in blocked:
            del sys.modules[key]
        sys.modules.update(hidden)
    return module


def source_of(name: str) -> str:
    return algorithm_path(name).read_text()


def champion(folder: Path) -> str:
    """The champion of the headline, exported by the command."""
    run, out = Path(__file__).parents[2] / "docs" / "results" / "headline", folder / "champion_trl.py"
    found = CliRunner().invoke(app, ["export", str(run), "NB-FX-HW", "--to", "trl", "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert "reward_funcs=[correct]" in found.output
    return out.read_text()
