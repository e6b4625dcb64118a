"""``poise rungs``, ``replicate``, ``ablate`` and ``credit`` as a user types them: what they print, and their exit status."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from laboratory import Laboratory, contents, evolved
from llm_server import LoopbackServer, asked_form, prompt_of
from script import good_answers
from typer.testing import CliRunner, Result

from poise_core.algorithms import algorithm_path
from poise_core.archive import Archive
from poise_core.candidate.switches import Switches
from poise_core.cli import app
from poise_core.config import load_preset, with_overrides
from poise_core.evidence.ablation import conclude_ablation
from poise_core.evolution import Evolution, Trials
from poise_core.evolution.records import ChildSlot
from poise_core.run_directory import RunDirectory


@pytest.fixture
def laboratory() -> Iterator[Laboratory]:
    with Laboratory() as made:
        yield made


@pytest.mark.exhaustive
def test_a_champion_candidate_is_replicated_and_shown(
    tmp_path: Path, poise: Callable[..., Result], laboratory: Laboratory
) -> None:
    evolution, (_, best, ordinary, *_) = evolved(tmp_path, laboratory)
    evolution.run.close()
    shown = poise("leaderboard", "run")
    assert "champion candidate" in shown.output
    assert "excludes zero (5 tried): 1" in " ".join(shown.output.split())

    result = poise("replicate", "run", best, "--json")
    assert result.exit_code == 0, result.output
    row = json.loads(result.stdout)
    assert (row["outcome"], row["seeds"]) == ("replicated", [2, 3, 4])
    assert "examination 1 of this run: 6 trainings (primary 6); so many take about 3 s" in result.stderr
    assert row["examination"]["standing"] == "champion"
    answers = {one["condition"]: one["verdict"] for one in row["examination"]["conditions"]}
    assert answers == {"primary": "holds", "pass@1": "holds", "greedy": "holds", "collapse": "not distinguishable"}
    again = poise("replicate", "run", best)
    assert again.exit_code == 0
    assert row["message"] in again.output
    assert "examination 1" not in again.stderr, "nothing is trained"
    assert row["examination"]["says"] in " ".join(again.output.split())
    assert f"Examination of {best}" in again.output
    assert "replicated" in poise("leaderboard", "run").output
    shown = poise("show", "run", best).output
    assert "report split" in shown
    assert "Worst seed" in shown
    assert RunDirectory.read("run").settings_changes == []
    from mlflow import MlflowClient  # takes seconds, which the other tests here need not pay

    client = MlflowClient(RunDirectory.read("run").tracking_uri)
    (model,) = client.search_registered_models()
    version = client.get_model_version(model.name, model.aliases["champion"])
    assert version.tags["candidate"] == row["candidate_id"], "the alias moves with the replication, not a night later"
    assert version.tags["examined"] == "champion"
    assert "| pass@1 |" in Path(client.download_artifacts(version.run_id, "examination.md")).read_text()

    refused = poise("replicate", "run", ordinary)
    assert refused.exit_code == 2
    (line,) = refused.stderr.strip().splitlines()
    assert "no champion candidate" in line


@pytest.mark.exhaustive
def test_what_is_refuted_has_its_own_exit_status(
    tmp_path: Path, poise: Callable[..., Result], laboratory: Laboratory
) -> None:
    evolution, (_, best, *_) = evolved(tmp_path, laboratory)
    evolution.run.close()
    laboratory.skills[best] = 0.3
    result = poise("replicate", "run", best)
    assert (result.exit_code, "refuted" in result.output) == (1, True)


@pytest.mark.slow
def test_what_cannot_be_replicated_is_one_line(
    tmp_path: Path, poise: Callable[..., Result], laboratory: Laboratory
) -> None:
    assert poise("replicate", "nowhere", "x").exit_code == 2
    evolution, (_, best, *_) = evolved(tmp_path, laboratory)
    busy = poise("replicate", "run", best)
    assert (busy.exit_code, "in use by" in busy.stderr) == (2, True)
    evolution.run.close()
    for arguments, part in (
        (["nobody"], "no candidate 'nobody'"),
        ([best, "--conditions", "luck"], "no condition 'luck'"),
    ):
        result = poise("replicate", "run", *arguments)
        assert result.exit_code == 2
        (line,) = result.stderr.strip().splitlines()
        assert part in line


@pytest.mark.slow
def test_rungs_of_a_run_without_a_ladder(tmp_path: Path, poise: Callable[..., Result], laboratory: Laboratory) -> None:
    evolved(tmp_path, laboratory)[0].run.close()
    result = poise("rungs", "run")
    assert result.exit_code == 0, result.output
    assert "No candidate was measured on the rungs here" in " ".join(result.output.split())
    document = json.loads(poise("rungs", "run", "--json").stdout)
    assert set(document["correlations"]) == {
        f"{rung} -> {of}" for rung in ("proxy", "forecast") for of in ("first", "others")
    } | {"first -> others", "parent -> others", "forecast -> Overall at the stop"}


# ---- an ablation for real: trained, killed, gone on with, told


def measured(folder: Path) -> str:
    """A run of GRPO and four algorithms that were really trained, with two seeds; the id of CAG, which has three mechanisms."""
    training = ["protocol.training.steps=8", "protocol.training.learning_rate=1e-3"]  # enough to tell versions apart
    with RunDirectory.open(folder, load_preset("smoke", ["resources.parallel_candidates=1", *training])) as run:
        trials = Trials(run)
        made = [trials.register("GRPO", algorithm_path("grpo").read_text(), written_by="human")]
        for name in ("cag", "dr_grpo", "rloo", "cispo"):
            columns: dict[str, Any] = {"generation": 1, "parent_ids": [made[0].candidate_id]}
            source = algorithm_path(name).read_text()
            made.append(trials.register(name.upper(), source, written_by="human", **columns))
        for candidate in made:
            trials.measure(candidate, (0, 1))
    return made[1].candidate_id


def ablate(folder: Path, log: Path) -> "subprocess.Popen[str]":
    command = [
        str(Path(sys.executable).parent / "poise"),
        "ablate",
        str(folder),
        "CAG",
        "--budget",
        "4",
        "--seeds",
        "1",
    ]
    stream = log.open("w")
    return subprocess.Popen(
        command, stdout=stream, stderr=subprocess.STDOUT, text=True, env={**os.environ, "COLUMNS": "140"}
    )


def killed_within_the_second_training(folder: Path, log: Path) -> tuple[Path, list[str]]:
    """Kill the command when one version is scored and the next has made four steps; that training's folder, and these steps."""
    process = ablate(folder, log)
    while True:
        assert process.poll() is None, log.read_text()
        trained = sorted(folder.glob("candidates/*/ablate/*/train/seed-0/trajectory.jsonl"))
        ended = [path for path in trained if (path.parent / "result.json").exists()]
        going = [path for path in trained if path not in ended]
        if ended and going and len(steps := going[0].read_text().splitlines(keepends=True)) >= 4:
            break
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, [one.cmdline() for one in alive]
    assert not (going[0].parent / "result.json").exists(), "it was killed in the middle of a training"
    return going[0].parent, steps


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_an_ablation_that_was_killed_goes_on_and_is_told_everywhere(tmp_path: Path) -> None:
    calm, run_dir = tmp_path / "calm", tmp_path / "run"
    candidate = measured(calm)
    shutil.copytree(calm, run_dir)
    undisturbed = ablate(calm, tmp_path / "calm.log")
    assert undisturbed.wait() == 0, (tmp_path / "calm.log").read_text()

    cut, steps = killed_within_the_second_training(run_dir, tmp_path / "first.log")
    scored = {path: path.stat().st_mtime_ns for path in run_dir.glob("candidates/*/ablate/*/train/seed-0/result.json")}
    assert len(scored) == 1
    again = ablate(run_dir, tmp_path / "second.log")
    assert again.wait() == 0, (tmp_path / "second.log").read_text()

    archive = Archive(run_dir / "archive")
    assert contents(archive) == contents(Archive(calm / "archive"))
    assert archive.check() == []
    assert {path: path.stat().st_mtime_ns for path in scored} == scored, "what was scored is not trained again"
    whole = (cut / "trajectory.jsonl").read_text().splitlines(keepends=True)
    assert whole[:2] == steps[:2], "with the times they took, so the two steps before the checkpoint were made once"
    trained = sorted(run_dir.glob("candidates/*/ablate/*/train/seed-0/trajectory.jsonl"))
    for path in trained:
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(8))
    rows = {row["version"]: row for row in archive.rows("ablations", candidate_id=candidate)}
    switches = Switches.of(algorithm_path("cag").read_text())
    assert {f"without:{name}" for name in switches.mechanisms} < rows.keys()
    assert {row["outcome"] for row in rows.values()} == {"measured"}
    own = {row["measured"] for row in rows.values()} - {one["candidate_id"] for one in archive.rows("candidates")}
    assert len(trained) == len(own) <= 4, "what trains like a candidate has its scores"

    printed, stamps = (tmp_path / "second.log").read_text(), {path: path.stat().st_mtime_ns for path in trained}
    report = printed[printed.index("Ablation of CAG") :]
    assert (tmp_path / "calm.log").read_text().endswith(report.replace(str(run_dir), str(calm)))
    for name in switches.mechanisms:
        assert re.search(rf"{name}\s.*(helps|harms|not distinguishable)", report)
    third = ablate(run_dir, tmp_path / "third.log")
    assert (third.wait(), (tmp_path / "third.log").read_text()) == (0, report), "asked again, the record is shown"
    assert {path: path.stat().st_mtime_ns for path in trained} == stamps

    simplified = run_dir / "candidates" / candidate / "ablate" / "simplified.py"
    assert f"The simplified candidate: {simplified}" in report
    (row,) = [row for row in rows.values() if row["source"] == simplified.read_text()]
    assert Switches.of(row["source"]).mechanisms.keys() == switches.mechanisms.keys() - set(row["dropped"])
    told_by_mlflow(RunDirectory.read(run_dir), rows.values())
    told_to_the_proposer(run_dir, candidate)


def told_by_mlflow(run: RunDirectory, rows: Any) -> None:
    """The run of the candidate in the store that the command has filled."""
    from mlflow import MlflowClient

    client = MlflowClient(run.tracking_uri)
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    (own,) = [one for one in found if one.info.run_name == "CAG"]
    concluded = conclude_ablation(run.evidence(), own.data.tags["candidate"])
    assert concluded is not None
    assert own.data.tags["ablation"] == concluded.sentence
    assert own.data.metrics["Overall"] == pytest.approx(run.evidence().overall(own.data.tags["candidate"]).estimate)
    page = Path(client.download_artifacts(own.info.run_id, "ablation.md")).read_text()
    assert all(one in page for row in rows for one in row["dropped"])


def told_to_the_proposer(run_dir: Path, candidate: str) -> None:
    """What the commands print is what a language model is asked to propose the next generation from."""
    shown = CliRunner(env={"COLUMNS": "140"}).invoke(app, ["credit", str(run_dir)])
    assert shown.exit_code == 0, shown.output
    found = json.loads(CliRunner().invoke(app, ["credit", str(run_dir), "--json"]).stdout)
    assert found["candidates"] == 4
    assert "Credit of mechanisms over 4 scored candidates" in shown.output
    for one in found["mechanisms"]:
        worth = re.escape(f"{one['credit']:+.1f}")
        assert re.search(rf"{one['name']}.*{worth}.*{one['verdict']}", shown.output)
    with LoopbackServer(good_answers()) as server:
        models = ["agents.model=openai:test-model", f"agents.base_url={server.base_url}"]
        preset = with_overrides(RunDirectory.read(run_dir).current_preset, models)
        with RunDirectory.open(run_dir, preset) as run:
            Evolution(run).propose(ChildSlot(2, 0, candidate, "CAG"))
        (prompt,) = [prompt_of(body) for body in server.requests if asked_form(body) == "ProposalsForm"]
    assert "worth, by a regression over 4 candidates:" in prompt
    told = prompt.split('<data name="ablations">')[1].split("</data>")[0]
    assert told.strip().startswith("CAG, each version trained with the same 1 seed; Overall to CAG's:")
    assert told.count("\n- without ") == len(RunDirectory.read(run_dir).archive.rows("ablations"))
