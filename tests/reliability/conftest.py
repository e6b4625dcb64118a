from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import Laboratory, evolve, make_preset, open_evolution


@pytest.fixture
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as made:
        yield made


@pytest.fixture(scope="session")
def one_generation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of an evolution that nothing disturbed; to read and to copy."""
    return _evolved(tmp_path_factory.mktemp("undisturbed") / "run", 1)


@pytest.fixture(scope="session")
def two_generations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with a generation more."""
    return _evolved(tmp_path_factory.mktemp("undisturbed") / "run", 2)


def _evolved(folder: Path, generations: int) -> Path:
    with Laboratory():
        evolution = open_evolution(folder, make_preset(generations=generations))
        with evolution.run:
            evolve(evolution)
    return folder
