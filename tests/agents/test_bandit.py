"""Which model proposes: what arms have earned and cost, how they are drawn, and a run in which two models propose."""

import random
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from call_samples import place
from laboratory import Laboratory, evolve, open_evolution
from pydantic import ValidationError
from script import good_answers, preset_for

from poise_core.agents.briefing import Line
from poise_core.agents.llm.bandit import Bandit, Place, draws
from poise_core.agents.llm.prompts import load_prompt
from poise_core.agents.roles import Proposal
from poise_core.config.agents import AgentSettings
from poise_core.evidence.intervals import Interval

SETTINGS = AgentSettings.model_validate({"model": "openai:a", "choices": {"models": ["openai:b"]}})
LABEL = load_prompt("proposer").label
A, B = ("openai:a", LABEL), ("openai:b", LABEL)


class Rows:
    """An archive of these rows."""

    def __init__(self, **tables: list[dict[str, Any]]) -> None:
        self._tables = tables

    def rows(self, table: str) -> list[dict[str, Any]]:
        return self._tables.get(table, [])


def call(scope: str, model: str, dollars: float | None, **changes: Any) -> dict[str, Any]:
    generation = int(scope[4:6])
    given = {
        "call_id": f"{scope}/{model}", "scope": scope, "role": "proposer", "generation": generation, "model": model,
        "outcome": "ok", "input_tokens": 100, "output_tokens": 20, "dollars": dollars, "prompt": LABEL,
    }  # fmt: skip
    return {**given, **changes}


def proposal(number: int, call_id: str, parent: str, generation: int = 1) -> dict[str, Any]:
    content = Proposal(
        name=f"N{number}", hypothesis="h", mechanism_change="c", equations=(), addresses="a", expectations=(),
        parent_ids=(parent,), direction="clip", proposer="llm", call_id=call_id,
    )  # fmt: skip
    return {"proposal_id": f"p{number}", "generation": generation, "content": content.model_dump_json()}


def line(name: str, delta: float | None) -> Line:
    return Line(name, "c", "evaluated", None if delta is None else Interval(delta, delta - 1, delta + 1, 3))


ARCHIVE = Rows(
    calls=[
        call("gen-01/slot-0", "openai:a", 0.02),
        call("gen-01/slot-0", "openai:a", 0.01, call_id="complaint", outcome="invalid_answer"),
        call("gen-01/slot-1", "openai:b", 0.5, outcome="unavailable"),
        call("gen-01/slot-1", "openai:a", 0.04),  # it answered where the other one failed
        call("gen-01/slot-2", "openai:b", 0.3),
        call("gen-01/slot-3", "openai:b", 0.2, outcome="budget", call_id="never sent"),
        call("gen-02/slot-0", "openai:b", 0.7),
        call("gen-01/slot-2", "openai:b", 0.9, role="implementer", call_id="of another role"),
    ],
    proposals=[
        proposal(0, "gen-01/slot-0/openai:a", "root"),
        proposal(1, "gen-01/slot-1/openai:a", "c0"),
        proposal(2, "gen-01/slot-2/openai:b", "c0"),
        proposal(3, "gen-02/slot-0/openai:b", "root", generation=2),
    ],
    candidates=[
        {"candidate_id": "root", "name": "GRPO", "proposal_id": None},
        *({"candidate_id": f"c{n}", "name": f"N{n}", "proposal_id": f"p{n}"} for n in range(4)),
    ],
)
TABLE = (line("N0", 2.0), line("N1", 3.5), line("N2", 1.0), line("N3", 9.0))


def test_an_arm_has_earned_what_its_children_gained_over_their_parents() -> None:
    """By hand: N0 gains 2 over the baseline, N1 3.5 - 2 over N0, N2 loses 1 against N0, N3 is of this generation."""
    bandit = Bandit(ARCHIVE, SETTINGS, seed=0)  # type: ignore[arg-type]
    places = bandit.places(place(generation=2, table=TABLE))
    assert places[A] == [Place(2.0, pytest.approx(0.03)), Place(1.5, 0.04)]
    assert places[B] == [Place(0.0, 0.5), Place(0.0, 0.3)]


def test_where_a_call_has_no_price_tokens_are_the_cost() -> None:
    archive = Rows(calls=[call("gen-01/slot-0", "openai:a", 0.02), call("gen-01/slot-1", "openai:b", None)])
    places = Bandit(archive, SETTINGS, 0).places(place(generation=2, table=TABLE))  # type: ignore[arg-type]
    assert places == {A: [Place(0.0, 120)], B: [Place(0.0, 120)]}


class Ones(random.Random):
    """Every place weighs the same."""

    def expovariate(self, lambd: float = 1.0) -> float:
        return 1.0


def test_gain_per_cost_by_hand() -> None:
    """Three places, on average 2 points for 2 dollars, which is also the imagined place of each arm."""
    worth = draws({"a": [Place(6.0, 1.0), Place(0.0, 1.0)], "b": [Place(0.0, 4.0)], "new": []}, Ones())  # type: ignore[dict-item]
    assert worth == {"a": (2 + 6 + 0) / (2 + 1 + 1), "b": 2 / (2 + 4), "new": 2 / 2}
    nothing = draws({"dear": [Place(0.0, 9.0)], "cheap": [Place(0.0, 1.0)]}, Ones())  # type: ignore[dict-item]
    assert 0 < nothing["dear"] < nothing["cheap"]  # type: ignore[index]
    assert draws({"free": [Place(1.0, 0.0)]}, Ones()) == {"free": 2.0}  # type: ignore[dict-item]


def test_the_better_arm_is_asked_more_often_and_the_other_one_still() -> None:
    archive = Rows(
        calls=[call(f"gen-01/slot-{n}", "openai:a" if n % 2 else "openai:b", 1.0) for n in range(4)],
        proposals=[proposal(n, f"gen-01/slot-{n}/openai:a", "root") for n in (1, 3)],
        candidates=[{"candidate_id": f"c{n}", "name": f"N{n}", "proposal_id": f"p{n}"} for n in range(4)],
    )
    table = (line("N1", 4.0), line("N3", 0.0))
    bandit = Bandit(archive, SETTINGS, seed=3)  # type: ignore[arg-type]
    chosen = [bandit.choose(place(generation=2, slot=slot, table=table)).model for slot in range(200)]
    counts = Counter(chosen)
    assert counts["openai:a"] > 140
    assert counts["openai:b"] > 4
    assert chosen == [bandit.choose(place(generation=2, slot=slot, table=table)).model for slot in range(200)]


def test_choices_need_a_model_beside_which_they_are_made() -> None:
    with pytest.raises(ValidationError, match=r"give model, or roles\.proposer\.model"):
        AgentSettings.model_validate({"choices": {"models": ["openai:b"]}})
    with pytest.raises(ValidationError, match="must be provider:name"):
        AgentSettings.model_validate({"model": "openai:a", "choices": {"models": ["b"]}})


@pytest.mark.exhaustive
def test_two_models_and_two_prompts_propose_and_a_run_that_goes_on_chooses_again(
    tmp_path: Path, laboratory: Laboratory, serve: Any
) -> None:
    own = tmp_path / "prompts"
    own.mkdir()
    shipped = resources.files("poise_core") / "agents" / "llm" / "templates" / "proposer.md"
    (own / "proposer.md").write_text(shipped.read_text().replace("version: ", "version: 9"))
    choices = {"models": ["openai:other-model"], "prompts_folders": [str(own)]}
    search = {"generations": 2, "parents": 4, "proposals": 1, "seed": 1}  # its first draws differ
    server = serve(good_answers())
    evolution = open_evolution(tmp_path / "run", preset_for(server, search, choices=choices))
    evolve(evolution)
    rows = [row for row in evolution.run.archive.rows("calls") if row["role"] == "proposer"]
    arms = {(row["model"], row["prompt"]) for row in rows}
    labels = {load_prompt("proposer", folder).label for folder in (None, str(own))}
    assert {model for model, _ in arms} == {"openai:test-model", "openai:other-model"}
    assert {label for _, label in arms} == labels
    asked = len(server.requests)
    evolution.run.close()
    again = open_evolution(tmp_path / "run", preset_for(server, search, choices=choices))
    evolve(again)
    assert len(server.requests) == asked
