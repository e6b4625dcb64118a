from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import Laboratory, open_evolution

from poise_core.evolution import Evolution


@pytest.fixture
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as made:
        yield made


@pytest.fixture
def evolution(laboratory: Laboratory, tmp_path: Path) -> Iterator[Evolution]:
    opened = open_evolution(tmp_path / "run")
    yield opened
    opened.run.close()
