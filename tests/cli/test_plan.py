"""``poise plan``: memory, tokens and hours against numbers computed by hand, and against what a small run takes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from poise_core.algorithms import algorithm_path
from poise_core.cli import app
from poise_core.config import Preset, load_preset, read_preset, shipped_presets
from poise_core.environments.sources import CACHE
from poise_core.evolution import Trials
from poise_core.experiments.plan import Plan, plan_run
from poise_core.experiments.rates import Rates, Shape, completions_of, measured_rates, memory_parts, shape_of
from poise_core.policies.locate import resolve_policy
from poise_core.run_directory import RunDirectory

QWEN_MATH = {
    "model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12, "num_hidden_layers": 28,
    "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
WEIGHTS = 1_543_656_960  # 28 x (1,536 x 128 x 28 + 3 x 1,536 x 8,960 + 2 x 1,536) + 1,536 + 151,936 x 1,536


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with nothing but a configuration, and no data set."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text(json.dumps(QWEN_MATH))
    return str(tmp_path / "policy")


def preset_of(name: str, policy: str, *overrides: str) -> Preset:
    return read_preset(name, [f"protocol.policy={policy}", *overrides])


def test_weights_and_cache_of_a_shape() -> None:
    shape = Shape.of(QWEN_MATH)
    assert shape.parameters == WEIGHTS
    assert shape.cache_bytes(2) == 28_672  # 2 x 28 layers x 2 heads x 128 x 2 bytes
    assert Shape.of({**QWEN_MATH, "tie_word_embeddings": False}).parameters == WEIGHTS + 151_936 * 1_536
    assert Shape.of({**QWEN_MATH, "head_dim": 64}).head_size == 64
    assert Shape.of({"text_config": QWEN_MATH}) == shape
    with pytest.raises(ValueError, match=r"config.json of the policy has no vocab_size"):
        Shape.of({key: value for key, value in QWEN_MATH.items() if key != "vocab_size"})


def test_memory_by_part_is_that_of_the_table(policy: str) -> None:
    one = preset_of("math-1x80", policy)
    parts, sampling = memory_parts(one, Shape.of(QWEN_MATH), 80e9)
    units = {name: parts[name] / WEIGHTS for name in ("weights", "gradients", "optimizer", "reference")}
    assert units == pytest.approx({"weights": 2, "gradients": 6, "optimizer": 12, "reference": 2})
    assert parts["KV cache"] == pytest.approx(32e9)  # the engine's share of 0.4
    assert parts["logits tile"] == 4096 * 32768 * 4
    # 16,384 tokens: 28 x 1,536 x 2 bytes kept, and one layer's 14 x 1,536 + 3 x 8,960 numbers of 2 bytes
    assert parts["activations"] == 16_384 * (28 * 1536 * 2 + (14 * 1536 + 3 * 8960) * 2)
    assert sampling == pytest.approx((22 - 8) * WEIGHTS + 32e9)  # the moments are in main memory
    spread = preset_of("paper", policy, "resources.zero_stage=3")
    parts, sampling = memory_parts(spread, Shape.of(QWEN_MATH), 80e9)
    units = {name: parts[name] / WEIGHTS for name in ("weights", "gradients", "optimizer", "reference")}
    assert units == pytest.approx({"weights": 2 / 8, "gradients": 6 / 8, "optimizer": 12 / 8, "reference": 2})
    assert sampling == pytest.approx((2 + 6 / 8 + 2 + 4 / 8) * WEIGHTS + 32e9 + 2e9)
    assert parts["gradient bucket"] == 2e9
    for stage, expected in ((0, 20), (1, 12 + 12 / 4), (2, 8 + 16 / 4)):
        plain = preset_of(
            "laptop", "arithmetic-a", "resources.processes_per_training=4", f"resources.zero_stage={stage}"
        )
        parts, _ = memory_parts(plain, Shape.of(QWEN_MATH), None)
        assert sum(parts[name] for name in units) == pytest.approx(expected * WEIGHTS)
        assert parts["gradient bucket"] == (2e9 if stage else 0)
    single = preset_of("laptop", "arithmetic-a")
    parts, _ = memory_parts(single, Shape.of(QWEN_MATH), None)
    assert sum(parts[name] for name in ("weights", "gradients", "optimizer", "reference")) == pytest.approx(
        20 * WEIGHTS
    )


def test_tokens_hours_and_the_ladders_savings(policy: str) -> None:
    rates = Rates(start=0.0, step=90.0, evaluation=900.0, gate=0.0, how="by hand", length=1000.0)
    paper = plan_run(preset_of("paper", policy), "h100", 2.0, rates)
    assert paper.evaluated == 4_646  # (30 + 30 + 40) x 32 + 500 + 272 + 674
    candidate, run = paper.prices["candidate"], paper.prices["run"]
    assert candidate.tokens == pytest.approx(160 * 2048 * 1000 + 4_646 * 1_024)  # 3,072 / 3,000 as long
    assert candidate.hours == pytest.approx((160 * 90 + 900) / 3600)
    assert (candidate.gpu_hours, candidate.dollars) == pytest.approx((8 * candidate.hours, 16 * candidate.hours))
    assert run.hours == pytest.approx(64 * candidate.hours + 900 / 3600)  # and the untrained policy's evaluation
    assert paper.saved == 0
    ladder = plan_run(preset_of("math-1x80", policy), "h100", 2.0, rates)
    # of 117 children 18 end after a quarter of the first training, 31 of the other 99 after the first; 68 have both seeds
    trainings = (18 * 0.25 + 99 + 68) / 117
    evaluations = (117 + 68) / 117  # the stopped ones are scored once, too
    assert ladder.prices["child"].hours == pytest.approx((trainings * 160 * 90 + evaluations * 900) / 3600)
    # the baseline with two seeds, and the untrained policy, which is scored once whatever the seeds
    whole, generations = ladder.prices["run"], preset_of("math-1x80", policy).search.generations
    baseline = whole.gpu_hours - generations * ladder.prices["generation"].gpu_hours
    assert baseline == pytest.approx((2 * 160 * 90 + 3 * 900) / 3600)
    assert ladder.saved == pytest.approx(1 - (trainings * 14400 + evaluations * 900) / (2 * 15300))
    two = preset_of("math-1x80", policy, "resources.parallel_candidates=2")
    side_by_side = plan_run(two, "h100", 2.0, rates).prices["generation"]
    assert side_by_side.hours == pytest.approx(2 * ladder.prices["child"].hours)  # three children in two rounds
    assert side_by_side.gpu_hours == pytest.approx(ladder.prices["generation"].gpu_hours)


def test_the_examination_is_priced_by_its_own_plan(policy: str, tmp_path: Path) -> None:
    rates = Rates(start=0.0, step=90.0, evaluation=900.0, gate=0.0, how="by hand", length=1000.0)

    def planned(*overrides: str) -> Plan:
        return plan_run(preset_of("math-1x80", policy, "examination.procedural=[]", *overrides), "h100", 2.0, rates)

    found = planned("examination.choice_seeds=3")
    # 4 seeds of both sides; 3 rates x 3 seeds of both to choose, then 4 of both at the best ones: 8 + 18 + 8
    assert (found.examined.trainings, found.examined.evaluations) == (34, 34)
    assert found.examined.conditions == ("primary", "pass@1", "pass@8", "pass@32", "greedy", "collapse", "rates")
    price = found.prices["examination"]
    assert price.hours == pytest.approx(34 * (160 * 90 + 900) / 3600)
    assert (price.gpu_hours, price.dollars) == pytest.approx((price.hours, 2 * price.hours))
    completions = (15 + 15 + 20) * 32 + 250 + 136 + 337 + 256
    assert price.tokens == pytest.approx(34 * (160 * 512 * 1000 + completions * 1500))  # limits of 3,072 and 2,048
    assert planned("resources.parallel_candidates=4").prices["examination"].hours == pytest.approx(
        22 * (160 * 90 + 900) / 3600 / 2  # one seed chooses by default; there are two sides
    )
    alone = planned("examination.rates=[]", "examination.seeds=5")
    assert alone.examined.trainings == 10
    # another policy: here and of the same shape, here with twice the layers, and not here
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text(json.dumps({**QWEN_MATH, "num_hidden_layers": 56}))
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin" / "config.json").write_text(json.dumps(QWEN_MATH))
    of = {
        name: planned("examination.rates=[]", f'examination.policies=["{tmp_path / name}"]')
        for name in ("twin", "deep", "gone")
    }
    assert [one.examined.trainings for one in of.values()] == [16, 16, 16]
    assert [one.examined.as_own for one in of.values()] == [(), (), (str(tmp_path / "gone"),)]
    hours = {name: one.prices["examination"].hours for name, one in of.items()}
    assert hours["twin"] == hours["gone"] == pytest.approx(16 * (160 * 90 + 900) / 3600)
    assert 1.2 * hours["twin"] < hours["deep"] < 1.6 * hours["twin"]  # half of the work, with 1.9 times the weights


def test_problems_drawn_for_the_examination_cost_an_evaluation_alone(policy: str) -> None:
    drawn = {"metric": "accuracy", "weight": 1.0, "source": {"reasoning_gym": {"gsm_symbolic": {}}}}
    changes = [
        f"protocol.benchmarks={json.dumps([{'name': 'fresh', 'problems': 256, **drawn}])}",
        f"examination.procedural={json.dumps([{'name': 'drawn', 'problems': 512, **drawn}])}",
        "examination.rates=[]",
    ]
    rates = Rates(start=0.0, step=90.0, evaluation=900.0, gate=0.0, how="by hand", length=1000.0)
    found = plan_run(preset_of("math-1x80", policy, *changes), "h100", 2.0, rates)
    assert (found.examined.trainings, found.examined.evaluations) == (8, 16)
    price = found.prices["examination"]
    assert price.tokens == pytest.approx(8 * (160 * 512 * 1000 + 256 * 1500) + 8 * 512 * 1500)
    # 256 at once of a mean of 1,024 tokens behind 160 of the prompt: 1,024 decoding steps for 256 of them, 2,048 for 512
    reading = 2 * (WEIGHTS + 256 * (160 + 512) * 28_672 / 2) / (3.35e12 * 0.5)
    computing = 256 * (2 * WEIGHTS + 2 * 28 * 12 * 128 * (160 + 512)) / (989e12 * 0.4)
    step = 0.012 + reading + computing
    drawn_seconds = 900 * (60 + 2048 * step) / (60 + 1024 * step)
    assert price.hours == pytest.approx((8 * (160 * 90 + 900) + 8 * drawn_seconds) / 3600)


def test_the_command_needs_a_configuration_only_and_says_what_does_not_fit(policy: str) -> None:
    def ran(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["plan", *arguments])
        return result.exit_code, result.output

    status, output = ran("paper", "--gpu", "a100", "--hourly", "1", "--set", f"protocol.policy={policy}", "--json")
    assert status == 0
    plain = json.loads(output)
    assert plain["parameters"] == WEIGHTS
    assert plain["examined"]["trainings"] == 22
    assert plain["prices"]["examination"]["dollars"] == pytest.approx(plain["prices"]["examination"]["gpu_hours"])
    status, output = ran("paper", "--set", f"protocol.policy={policy}")
    assert status == 0
    assert "Not sealed: the search reads the report's problems of aime24" in output
    assert re.search(r"^examination, 22 trainings at most +\d", output, re.MULTILINE)
    assert "4 seeds and 1 to choose rates x0.333, x1, x3" in output
    status, output = ran("math-1x80", "--gpu", "rtx4090", "--set", f"protocol.policy={policy}")
    assert status == 1
    assert "do not fit into 24 GB" in output
    for arguments, told in (
        (["paper"], "a folder with its config.json is enough"),
        (["smoke", "--gpu", "tpu"], "known are h100"),
    ):
        status, output = ran(*arguments)
        assert (status, told in output) == (2, True), output


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_a_plan_with_measured_rates_is_what_a_small_run_takes(tmp_path: Path) -> None:
    changes = ["protocol.training.steps=40", "protocol.training.prompts_per_step=16", "search.seeds_per_candidate=1"]
    preset = load_preset("smoke", changes)
    rates = measured_rates(preset, tmp_path / "measured", completions_of(preset.protocol))
    planned = plan_run(preset, "cpu", 0.0, rates)
    began = time.perf_counter()
    with RunDirectory.open(tmp_path / "run", preset) as run:
        trials = Trials(run)
        candidate = trials.adopt(algorithm_path("grpo"))
        trials.measure(candidate, preset.protocol.seeds[:1])
        tokens = run.evidence().training_tokens[candidate.candidate_id]
    hours = (time.perf_counter() - began) / 3600
    print(f"planned {3600 * planned.prices['candidate'].hours:.1f} s, took {3600 * hours:.1f} s, {rates}")
    # a seventh off where little else ran (docs/real-models.md); here other tests may share the cores for one half of it only
    assert 0.5 < planned.prices["candidate"].hours / hours < 2.0
    assert 40 * preset.protocol.training.batch_size * rates.length == pytest.approx(tokens, rel=0.25)


# --- make gpu-check


BENCH = Path(__file__).parents[1] / "benchmarks" / "bench_gpu.py"


def test_the_numbers_of_the_gpu_check() -> None:
    """Two steps of 2 x 4 completions; medians of seconds, means of tokens."""
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCH)
    assert spec is not None
    assert spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    sys.modules["bench_gpu"] = bench  # dataclasses look there for their module
    spec.loader.exec_module(bench)
    options = argparse.Namespace(model="arithmetic-a", prompts=2, group=4, dtype="float32")
    steps = [bench.Step(2.0, 1.0, 40_000.0, 16_000.0), bench.Step(4.0, 3.0, 80_000.0, 16_000.0)]
    row = bench.row_of("poise", steps, 3 * 2**29, options)
    _, operations = bench.peak_operations("float32")
    forward = shape_of("arithmetic-a").forward(
        76_000 / 8 / 2
    )  # 60,000 completion and 16,000 prompt tokens in 8 sequences
    assert row[:2] == ["poise", "20,000"]  # 60,000 in 3 s
    assert row[2] == f"{20_000 * forward / operations:.1%}"
    assert row[3] == "38,000"  # 76,000 in 2 s
    assert row[4] == f"{3 * 38_000 * forward / operations:.1%}"
    assert row[5:] == ["1.5 GiB", "5.00", "7500"]


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_the_gpu_check_measures_a_tiny_model_on_a_processor(tmp_path: Path) -> None:
    makefile = (BENCH.parents[2] / "Makefile").read_text()
    assert 'tests/benchmarks/bench_gpu.py --model "$(MODEL)"' in makefile
    out = tmp_path / "table.md"
    words = [
        "--model",
        "arithmetic-a",
        "--prompts",
        "2",
        "--group",
        "4",
        "--length",
        "8",
        "--steps",
        "1",
        "--out",
        str(out),
    ]
    done = subprocess.run([sys.executable, BENCH, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = out.read_text().splitlines()
    assert lines[0].startswith("arithmetic-a, 0.162 M parameters, float32, on ")
    (row,) = [line.strip("| ").split(" | ") for line in lines if line.startswith("| poise |")]
    numbers = [float(re.sub(r"[^0-9.]", "", one)) for one in row[1:]]
    assert len(row) == len(lines[2].strip("| ").split(" | "))
    assert all(numbers[i] > 0 for i in (0, 2, 4, 5, 6))
    for other in ("poise+vllm", "trl"):
        assert any(line.startswith((f"| {other} |", f"- {other}: ")) for line in lines), (
            "a side that is not there says why"
        )


# --- every preset


def with_local_data(name: str, folder: Path, *changes: str) -> list[str]:
    """Options that put a shipped policy, and rows of one's own, in the place of what a preset names of the hub."""
    protocol = read_preset(name).protocol
    options = list(changes)
    if "/" in protocol.policy and not any(one.startswith("protocol.policy=") for one in changes):
        options.append("protocol.policy=arithmetic-a")
    owners = {"environment": protocol.environment, **{f"benchmarks.{one.name}": one for one in protocol.benchmarks}}
    for place, owner in owners.items():
        if owner.source is not None and owner.source.dataset is not None:
            file = folder / ("train.jsonl" if place == "environment" else "benchmark.jsonl")
            keys = {"dataset": str(file), "revision": "null", "subset": "null"}
            options += [f"protocol.{place}.source.{key}={value}" for key, value in keys.items()]
    return [part for option in options for part in ("--set", option)]


def write_rows(folder: Path, training: int) -> None:
    """Rows with all columns that the presets read, of 60 problems for a benchmark and so many for the training."""
    for file, count, sign in (("train.jsonl", training, "+"), ("benchmark.jsonl", 60, "*")):
        rows = [
            {
                "problem": f"What is {n} {sign} 2?", "level": f"Level {n % 3 + 3}", "final_answer": [str(value)],
                "answer": str(value), "solution": f"It is \\boxed{{{value}}}.",
            }
            for n in range(count)
            for value in [n + 2 if sign == "+" else 2 * n]
        ]  # fmt: skip
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", shipped_presets())
def test_every_preset_is_planned_and_tried_dry_without_a_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    write_rows(tmp_path, 7000)
    options = with_local_data(name, tmp_path)
    protocol, search = read_preset(name).protocol, read_preset(name).search
    dry = CliRunner().invoke(
        app, ["evolve", "--preset", name, "--run-dir", str(tmp_path / "run"), "--dry-run", *options]
    )
    assert dry.exit_code == 0, dry.output
    trainings = search.seeds_per_candidate * (search.generations * search.parents + 1)
    assert f"{trainings:,} trainings, at most " in dry.output
    assert not (tmp_path / "run").exists()
    priced = CliRunner().invoke(app, ["plan", name, "--json", *options])
    assert priced.exit_code == 0, priced.output
    plain = json.loads(priced.output)
    sizes = {one.name: one.problems or 60 for one in protocol.benchmarks}
    if name != "paper":  # halves of 60; which is the larger depends on the hash
        assert 0 < plain["evaluated"] <= sum(sizes[one.name] * one.samples for one in protocol.benchmarks)
    else:
        assert plain["evaluated"] == 3 * 60 * 32 + 3 * 60
    assert {"candidate", "child", "generation", "run", "examination"} == plain["prices"].keys()


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [name for name in shipped_presets() if read_preset(name).protocol.has_sources])
def test_every_real_preset_validates_its_problems(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With few of its problems, and a chat template that the shipped policy lacks."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    write_rows(tmp_path, 80)
    shutil.copytree(resolve_policy("arithmetic-a"), tmp_path / "policy")
    tokenizer = tmp_path / "policy" / "tokenizer_config.json"
    chat = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.write_text(json.dumps({**json.loads(tokenizer.read_text()), "chat_template": chat}))
    preset = read_preset(name)
    source = preset.protocol.environment.source
    small = [f"protocol.policy={tmp_path / 'policy'}", "protocol.environment.train_problems=50"]
    small += ["protocol.environment.source.draw=50"] if source and source.draw else []
    small += [f"protocol.benchmarks.{one.name}.problems=8" for one in preset.protocol.benchmarks]
    drawn = [one.model_copy(update={"problems": 8}).model_dump(mode="json") for one in preset.examination.procedural]
    small.append(f"examination.procedural={json.dumps(drawn)}")
    found = CliRunner().invoke(
        app, ["env", "validate", name, "--json", *with_local_data(name, tmp_path, *small)], catch_exceptions=False
    )
    reports = json.loads(found.stdout) if found.exit_code < 2 else []
    assert [one["name"] for one in reports] == [
        "training", *(one.name for one in preset.protocol.benchmarks), *(one["name"] for one in drawn)
    ], found.output  # fmt: skip
    assert all(one["problems"] and not one["golds_failed"] for one in reports), found.output
