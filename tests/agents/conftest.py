from collections.abc import Callable, Iterator

import pytest
from laboratory import Laboratory
from llm_server import LoopbackServer, Script


@pytest.fixture(scope="session")
def shared_server() -> Iterator[LoopbackServer]:
    """One address for all tests: the client of a new address takes longer to make than an answer."""
    with LoopbackServer(lambda body: {}) as server:
        yield server


@pytest.fixture
def serve(shared_server: LoopbackServer) -> Iterator[Callable[[Script], LoopbackServer]]:
    """Give the server its script; whoever is still being kept waiting by it is let go with the test."""

    def start(script: Script) -> LoopbackServer:
        shared_server.reset(script)
        return shared_server

    yield start
    shared_server.reset(lambda body: {})


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on, or sends, a key of the machine it runs on."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as made:
        yield made
