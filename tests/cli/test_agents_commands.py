"""The command with a language model behind a loopback server: really evolved, then read back."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from laboratory import contents
from llm_server import LoopbackServer, asked_form, prompt_of
from script import CLIPPED, good_answers
from typer.testing import CliRunner, Result

from poise_core.archive import Archive
from poise_core.cli import app

Poise = Callable[..., Any]


def look(*arguments: object) -> Result:
    """A command that only reads, in this process."""
    return CliRunner(env={"COLUMNS": "140"}).invoke(app, [str(argument) for argument in arguments])


LOSS = "return LossOutputs(token_loss="
FILES = (
    CLIPPED.format(bound=1.0).replace(LOSS, f"for _ in (lambda: [1])():\n        pass\n    {LOSS}"),  # no lambda
    CLIPPED.format(bound=1.25).replace(
        "centred = batch.correctness", "centred = batch.correctness.mul_(1.0)"
    ),  # nothing in place
    CLIPPED.format(bound=1.5).replace(
        "clipped * inputs.advantages))",
        'clipped * inputs.advantages), metrics={"clip_fraction": torch.ones_like(ratio)})',
    ),  # the gate takes it; in training every token counts as clipped
    CLIPPED.format(bound=1.75),
)
"""What the model writes, one after the other: refused twice, then admitted and stopped at its first step, then sound."""


def stumbling(body: dict[str, Any]) -> Any:
    """Good answers, and the next of the files for every report in the question."""
    answer = good_answers()(body)
    if asked_form(body) == "ImplementationForm":
        tries = len(re.findall(r'<data name="try_\d+_(?:verify|train)_report">', prompt_of(body)))
        return {**answer, "source": FILES[tries]}
    return answer


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_an_evolution_with_a_model_its_replay_its_cost_and_its_context(poise: Poise, tmp_path: Path) -> None:
    """Real gate, training, evaluation, Prefect and MLflow; a file refused twice by the gate and once by its training."""
    watch = ("--set", "health.grace_steps=0", "--set", "health.patience=1")
    steps = ("--parents", 1, "--set", "search.seeds_per_candidate=1", *watch)
    with LoopbackServer(stumbling) as server:
        model = ("--llm", "openai:test", "--base-url", server.base_url)
        command = ("evolve", "--preset", "smoke", *steps, *model, "--directive", "shorter")
        done = poise(*command, timeout=800)
        assert done.returncode == 0, done.stderr
        assert "forecast of 1 generation: 5 to " in done.stderr
        assert "no price known for openai:test" in done.stderr
    run = tmp_path / "runs" / "smoke"
    archive = Archive(run / "archive")
    files = {row["source"]: row for row in archive.rows("candidates", generation=1)}
    written = [files[source] for source in FILES]
    assert [row["revises"] for row in written] == [None, *(row["candidate_id"] for row in written[:-1])]
    failures = {row["candidate_id"]: (row["stage"], row["kind"]) for row in archive.rows("failures")}
    assert [failures.get(row["candidate_id"]) for row in written] == [
        ("verify", "rejected"), ("verify", "rejected"), ("train", "clip_saturation"), None,
    ]  # fmt: skip
    assert archive.rows("evaluations", candidate_id=written[-1]["candidate_id"])
    assert archive.check() == []

    # again elsewhere, without a server: the same archive, whatever the gate and the training took this time
    again = poise(*command, "--replay", run, "--run-dir", tmp_path / "again", timeout=800)
    assert again.returncode == 0, again.stderr
    assert contents(Archive(tmp_path / "again" / "archive")) == contents(archive)

    cost = json.loads(look("cost", run, "--json").stdout)
    assert {line["role"] for line in cost["calls"]} == {"proposer", "screener", "implementer", "reflector"}
    assert cost["total"]["calls"] == len(server.requests)
    assert "no price" in look("cost", run).stdout
    shown = json.loads(look("leaderboard", run, "--json").stdout)
    assert any(row["generation"] == 1 and row["overall"] for row in shown)
    told = look("context", run, "GRPO", "--tokens", 6000)
    assert '<data name="directive">\nshorter' in told.stdout
    assert "of 6000 tokens" in told.stderr
    assert look("context", run, "nobody").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--base-url", "http://127.0.0.1:1/v1"), "no model is"),
        (("--llm", "gpt"), "must be provider:name"),
        (("--llm", "openai:x", "--base-url", "http://u:p@host/v1"), "put the key into an environment variable"),
        (("--llm", "openai:x", "--set", "agents.caps.run.dollars=1"), "has no price; give one in agents.prices"),
        (("--llm", "openai:x", "--replay", "nowhere"), "not a run directory"),
    ],
)
def test_what_cannot_work_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = look("evolve", "--preset", "smoke", *arguments)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())
