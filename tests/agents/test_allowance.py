"""What a night may spend: the call that could pass it is not made, and a later night goes on as if nothing had been."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laboratory import Laboratory, contents, evolve, make_preset, open_evolution
from llm_server import LoopbackServer
from script import good_answers

from poise_core.agents.llm.faults import AgentsUnusable
from poise_core.agents.llm.ledger import Allowance, Ledger
from poise_core.config import Preset
from poise_core.failures import Cancelled

Serve = Callable[..., LoopbackServer]
MODEL = "openai:test-model"


def preset_for(server: LoopbackServer, **agents: Any) -> Preset:
    given = {"model": MODEL, "base_url": server.base_url, "timeout_seconds": 20, "retries": 0, **agents}
    document = make_preset(generations=1, parents=1, proposals=2).model_dump(mode="json")
    return Preset.model_validate({**document, "agents": given})


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.mark.slow
def test_the_run_stops_before_the_call_and_goes_on_later(tmp_path: Path, laboratory: Laboratory, serve: Serve) -> None:
    preset = preset_for(serve(good_answers()), prices={MODEL: {"input": 1.0, "output": 1.0}})
    undisturbed = open_evolution(tmp_path / "undisturbed", preset)
    evolve(undisturbed)

    server = serve(good_answers())
    allowance = Allowance(0.001, now())  # the 8192 tokens of an answer alone may cost 0.0082
    evolution = open_evolution(tmp_path / "run", preset, allowance=allowance)
    with pytest.raises(Cancelled, match=r"the cost budget of 0\.001 dollars"):
        evolve(evolution)
    assert allowance.refused
    assert server.requests == []
    assert evolution.run.archive.rows("calls") == []

    evolution.run.close()
    later = open_evolution(tmp_path / "run", preset, allowance=Allowance(100.0, now()))
    evolve(later)
    assert contents(later.run.archive) == contents(undisturbed.run.archive)

    rows = later.run.archive.rows("calls")
    spent = sum(row["dollars"] for row in rows)
    assert spent > 0
    first = min(row["created_at"] for row in rows)
    for since, refused in ((first, True), (now(), False)):  # what was spent in this night counts, in nights before not
        ledger = Ledger(later.run.archive, preset.agents, Allowance(spent + 1e-6, since))
        if refused:
            with pytest.raises(Cancelled), ledger.reserved(MODEL, 1, 2, 0):
                pass
        else:
            with ledger.reserved(MODEL, 1, 2, 0):
                pass


def test_a_model_without_a_price_cannot_be_held_to_dollars(
    tmp_path: Path, laboratory: Laboratory, serve: Serve
) -> None:
    evolution = open_evolution(tmp_path / "run", preset_for(serve(good_answers())), allowance=Allowance(5.0, now()))
    with pytest.raises(AgentsUnusable, match="has no price"):
        evolve(evolution)
