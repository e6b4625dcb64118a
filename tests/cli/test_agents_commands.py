"""The command with a language model behind a loopback server: really evolved, then read back."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archive_samples as samples
import pytest
from laboratory import contents
from llm_server import LoopbackServer, asked_form, prompt_of
from script import CLIPPED, good_answers

from poise_core.archive import UNTRAINED_ARM, Archive, candidate_row, evaluation_rows
from poise_core.config import Preset
from poise_core.run_directory import RunDirectory
from poise_core.tracking.plan import plan_runs
from poise_core.tracking.sync import Tracker

Poise = Callable[..., Any]


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
def test_an_evolution_with_a_model_its_replay_its_cost_and_its_context(
    installed_poise: Poise, poise: Poise, tmp_path: Path
) -> None:
    """Real gate, training, evaluation, Prefect and MLflow; a file refused twice by the gate and once by its training."""
    watch = ("--set", "health.grace_steps=0", "--set", "health.patience=1")
    steps = ("--parents", 1, "--set", "search.seeds_per_candidate=1", *watch)
    with LoopbackServer(stumbling) as server:
        model = ("--llm", "openai:test", "--base-url", server.base_url)
        command = ("evolve", "--preset", "smoke", *steps, *model, "--directive", "shorter")
        done = installed_poise(*command, timeout=800)
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
    again = installed_poise(*command, "--replay", run, "--run-dir", tmp_path / "again", timeout=800)
    assert again.returncode == 0, again.stderr
    assert contents(Archive(tmp_path / "again" / "archive")) == contents(archive)

    cost = json.loads(poise("cost", run, "--json").stdout)
    assert {line["role"] for line in cost["calls"]} == {"proposer", "screener", "implementer", "reflector"}
    assert cost["total"]["calls"] == len(server.requests)
    assert "no price" in poise("cost", run).stdout
    shown = json.loads(poise("leaderboard", run, "--json").stdout)
    assert any(row["generation"] == 1 and row["overall"] for row in shown)
    told = poise("context", run, "GRPO", "--tokens", 6000)
    assert '<data name="directive">\nshorter' in told.stdout
    assert "of 6000 tokens" in told.stderr
    assert poise("context", run, "nobody").exit_code == 2


def call(number: int, role: str, dollars: float | None, outcome: str = "ok") -> dict[str, Any]:
    """A row of ``calls``: 1,000 tokens in, 200 out, 2.5 seconds."""
    texts = {"scope": "g1-s0", "message": None, "prompt": "p/1", "request_digest": "d", "request": "{}", "answer": None}
    numbers = {"generation": 1, "attempt": number, "input_tokens": 1000, "output_tokens": 200, "seconds": 2.5}
    kinds = {"model": "openai:priced", "method": "json_schema", "estimated": False, "replayed": False}
    row = {"call_id": f"g1-s0/{role}-d-{number}", "role": role, "outcome": outcome, "dollars": dollars}
    return {**texts, **numbers, **kinds, **row, "written_by": "llm"}


@pytest.mark.slow
def test_the_cost_of_a_run_is_tokens_dollars_and_gpu_hours(poise: Poise, tmp_path: Path) -> None:
    document = samples.make_preset().model_dump() | {"resources": {"processes_per_training": 2}}
    with RunDirectory.open(tmp_path / "run", Preset.model_validate(document)) as run:
        protocol = run.preset.protocol
        nothing = poise("cost", run.path)
        assert (nothing.exit_code, nothing.stdout) == (0, "no calls: the catalogue and the rules did the work\n")
        assert json.loads(poise("cost", run.path, "--json").stdout)["candidates"] == []
        samples.add_candidate(run.archive, protocol, samples.GRPO, "GRPO", 0, (), 0.45)
        source = candidate_row(candidate_id="base", name="base policy", source="#", source_digest="0", written_by="poise",
                               arm=UNTRAINED_ARM)  # fmt: skip
        run.archive.append("candidates", [source])
        for seed in samples.SEEDS:  # one evaluation, which is kept under every seed
            rows = evaluation_rows("base", protocol.digest, samples.make_evaluation(protocol, 0.3, seed))
            run.archive.append("evaluations", rows)
        for number, (role, dollars, outcome) in enumerate(
            [("proposer", 0.25, "ok"), ("proposer", 0.5, "timeout"), ("reflector", 0.125, "ok")]
        ):
            run.archive.append("calls", [call(number, role, dollars, outcome)])
        evidence = run.evidence()
    cost = json.loads(poise("cost", tmp_path / "run", "--json").stdout)
    assert [(line["role"], line["calls"], line["failed"], line["dollars"]) for line in cost["calls"]] == [
        ("proposer", 2, 1, 0.75),
        ("reflector", 1, 0, 0.125),
    ]
    total = {"calls": 3, "failed": 1, "input_tokens": 3000, "output_tokens": 600, "seconds": 7.5, "dollars": 0.875}
    assert cost["total"] == {**total, "unpriced_calls": 0}
    # GRPO: 3 seeds x 20 steps x 1,000 tokens in 0.4 s, and 3 evaluations of 3.25 s; both processes are held: 2 x 33.75 s
    base, grpo = sorted(cost["candidates"], key=lambda one: one["tokens"])
    assert (grpo["tokens"], grpo["train_seconds"], grpo["evaluate_seconds"]) == (60_000, pytest.approx(24.0), 9.75)
    assert grpo["gpu_hours"] == pytest.approx(67.5 / 3600)
    assert (base["name"], base["tokens"], base["evaluate_seconds"]) == ("base policy", 0, 3.25)
    shown = poise("cost", tmp_path / "run").stdout
    assert re.search(r"total .* 3 .* 1 .* 3000 .* 600 .* 0\.8750", shown)
    assert re.search(r"GRPO .* 60,000 .* 24 .* 10 .* 0\.0187", shown)  # 0.01875
    assert "Measured with 0.06 million training tokens in 0.0206 GPU-hours" in shown  # with the base policy's 6.5 s
    plans = {plan.name: {name: value for name, value, _ in plan.metrics} for plan in plan_runs(evidence, gpus=2)}
    assert plans["GRPO"]["compute/gpu_hours"] == pytest.approx(67.5 / 3600)
    assert plans["GRPO"]["compute/tokens"] == 60_000
    assert Tracker.for_run(run).gpus == 2, "MLflow counts the GPUs of the preset, as the command does"


def test_the_cost_of_what_is_no_run_is_one_line(poise: Poise, tmp_path: Path) -> None:
    done = poise("cost", tmp_path / "nowhere")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("poise: ")
    assert done.stderr.count("\n") == 1
    assert "nowhere" in done.stderr


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
    poise: Poise, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    done = poise("evolve", "--preset", "smoke", *arguments)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())
