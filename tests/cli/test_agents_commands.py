"""The command with a language model behind a loopback server: really evolved, then read back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llm_server import LoopbackServer
from script import good_answers

Poise = Callable[..., Any]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("evolve")
def test_an_evolution_with_a_model_its_cost_and_its_context(poise: Poise, tmp_path: Path) -> None:
    """Real gate, training, evaluation, Prefect and MLflow; the model's candidates are admitted and scored."""
    with LoopbackServer(good_answers()) as server:
        model = ("--llm", "openai:test", "--base-url", server.base_url)
        steps = ("--parents", 1, "--set", "search.seeds_per_candidate=1")
        done = poise("evolve", "--preset", "smoke", *steps, *model, "--directive", "shorter", timeout=800)
        assert done.returncode == 0, done.stderr
        assert "forecast of 1 generations: 5 to " in done.stderr
        assert "no price known for openai:test" in done.stderr
    run = tmp_path / "runs" / "smoke"
    cost = json.loads(poise("cost", run, "--json").stdout)
    assert {line["role"] for line in cost["calls"]} == {"proposer", "screener", "implementer", "reflector"}
    assert cost["total"]["calls"] == len(server.requests)
    assert "no price" in poise("cost", run).stdout
    shown = json.loads(poise("leaderboard", run, "--json").stdout)
    assert any(row["generation"] == 1 and row["overall"] for row in shown)
    told = poise("context", run, "GRPO", "--tokens", 6000)
    assert '<data name="directive">\nshorter' in told.stdout
    assert "of 6000 tokens" in told.stderr
    assert poise("context", run, "nobody").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--base-url", "http://127.0.0.1:1/v1"), "no model is"),
        (("--llm", "gpt"), "must be provider:name"),
        (("--llm", "anthropic:some"), "pip install langchain-anthropic"),
        (("--llm", "openai:x", "--base-url", "http://u:p@host/v1"), "put the key into an environment variable"),
        (("--llm", "openai:x", "--set", "agents.caps.run.dollars=1"), "has no price; give one in agents.prices"),
        (("--llm", "openai:x", "--replay", "nowhere"), "not a run directory"),
    ],
)
@pytest.mark.slow
def test_what_cannot_work_is_one_line_and_nothing_is_written(
    poise: Poise, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = poise("evolve", "--preset", "smoke", *arguments)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
