"""A whole evolution whose roles are carried by a model behind a real socket, through the real LangChain client."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from laboratory import Laboratory, evolve, make_preset, open_evolution
from llm_server import LoopbackServer
from script import good_answers

from poise_core.config import Preset

Serve = Callable[..., LoopbackServer]


def preset_for(server: LoopbackServer, **agents: Any) -> Preset:
    given = {"model": "openai:test-model", "base_url": server.base_url, "timeout_seconds": 20, **agents}
    document = make_preset().model_dump(mode="json")
    return Preset.model_validate({**document, "agents": given})


def test_every_role_is_carried_by_the_model_and_the_archive_says_so(
    tmp_path: Path, laboratory: Laboratory, serve: Serve
) -> None:
    server = serve(good_answers())
    evolution = open_evolution(tmp_path / "run", preset_for(server))
    evolve(evolution)
    rows = evolution.run.archive.rows
    assert {row["written_by"] for row in rows("proposals")} == {"llm"}
    assert {row["screened_by"] for row in rows("proposals")} == {"llm"}
    assert {row["written_by"] for row in rows("candidates", generation=1)} == {"llm"}
    assert {row["written_by"] for row in rows("reflections")} == {"llm"}
    assert {row["role"] for row in rows("calls")} == {"proposer", "screener", "implementer", "reflector"}
    assert {row["outcome"] for row in rows("calls")} == {"ok"}
    assert len(rows("calls")) == len(server.requests)
    assert evolution.run.archive.check() == []
