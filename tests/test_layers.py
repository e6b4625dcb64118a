"""What an import costs: which parts of the package, and which libraries, a fresh process has loaded after it."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    "torch", "transformers", "tokenizers", "deepspeed", "datasets", "langchain", "langchain_core", "mlflow", "prefect",
    "sklearn", "huggingface_hub",
}  # fmt: skip
NUMERIC = {"numpy", "scipy", "pandas", "pyarrow"}


def loaded_after(module: str) -> tuple[set[str], set[str]]:
    """Top-level modules that a fresh process has loaded after one import, and the packages of poise_core among them."""
    code = (
        "import importlib, json, sys\n"
        "importlib.import_module(sys.argv[1])\n"
        "parts = [name.split('.') for name in sys.modules]\n"
        "print(json.dumps([[p[0] for p in parts], [p[1] for p in parts if p[0] == 'poise_core' and p[1:]]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, module], capture_output=True, text=True, check=True)
    libraries, rooms = json.loads(done.stdout)
    return set(libraries), set(rooms)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "rooms", "spared"),
    [
        ("poise_core.config", {"config", "failures", "files", "policies", "trajectory"}, HEAVY | NUMERIC),
        ("poise_core.archive", {"archive", "evaluation", "failures", "files"}, HEAVY | {"scipy"}),
        (
            "poise_core.cli",
            {"cli", "config", "failures", "files", "policies", "surroundings", "trajectory"},
            HEAVY | NUMERIC,
        ),
        ("poise_core.candidate.identity", {"candidate"}, HEAVY | NUMERIC | {"pydantic"}),
        ("poise_core.agents.llm.faults", {"agents", "failures"}, HEAVY | NUMERIC | {"pydantic"}),
    ],
)
def test_an_import_brings_in_no_more_than_it_needs(module: str, rooms: set[str], spared: set[str]) -> None:
    """Commands answer in well under a second, and a process that reads a run's records needs no GPU's libraries."""
    libraries, found = loaded_after(module)
    assert not libraries & spared
    assert found <= rooms | {"contract", "escaping"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "poise_core.training.launcher",
        "poise_core.evaluation.launcher",
        "poise_core.evolution",
        "poise_core.evolution.roles",
    ],
)
def test_who_starts_the_heavy_processes_stays_light(module: str) -> None:
    """An evolution runs for days beside the trainings: it holds none of their libraries in memory."""
    libraries, _ = loaded_after(module)
    assert not libraries & HEAVY


@pytest.mark.slow
def test_every_module_imports_where_prefect_is_not_installed() -> None:
    """An environment for evaluations alone does without it: the stages know nothing of flows."""
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.modules['prefect'] = None\n"
        "import poise_core\n"
        "names = [m.name for m in pkgutil.walk_packages(poise_core.__path__, 'poise_core.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) > 200
