import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "evolution"))  # laboratory
sys.path.insert(0, str(Path(__file__).parents[1] / "archive"))  # archive_samples

from laboratory import Laboratory


@pytest.fixture
def laboratory(monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    return Laboratory().install(monkeypatch)
