from pathlib import Path

import pytest
from laboratory import Laboratory, evolve, make_preset, open_evolution


@pytest.fixture
def laboratory(monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    return Laboratory().install(monkeypatch)


@pytest.fixture(scope="session")
def one_generation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an evolution that nothing disturbed; to read and to copy."""
    return _evolved(tmp_path_factory.mktemp("undisturbed") / "run", 1)


@pytest.fixture(scope="session")
def two_generations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with a generation more."""
    return _evolved(tmp_path_factory.mktemp("undisturbed") / "run", 2)


def _evolved(folder: Path, generations: int) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        Laboratory().install(patch)
        evolution = open_evolution(folder, make_preset(generations=generations))
        with evolution.run:
            evolve(evolution)
    return folder
