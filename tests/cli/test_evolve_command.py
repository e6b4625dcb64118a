"""``poise evolve`` as a user runs it: real training, real server, real MLflow, killed and stopped and resumed."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from laboratory import contents, with_problems_of
from typer.testing import CliRunner

from poise_core.algorithms import algorithm_path
from poise_core.archive import TABLES, Archive
from poise_core.cli import app
from poise_core.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("evolve")]

POISE = Path(sys.executable).parent / "poise"
SMOKE = ("--preset", "smoke")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """A whole evolution, and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subprocess.run(
        [POISE, "evolve", *SMOKE, "--run-dir", folder],
        env={**os.environ, "COLUMNS": "140"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


Undisturbed = tuple[Path, "subprocess.CompletedProcess[str]"]


def test_a_whole_evolution(undisturbed: Undisturbed) -> None:
    folder, done = undisturbed
    run = RunDirectory.read(folder)
    assert run.archive.check() == []
    empty = {
        "failures",
        "calls",
        "rungs",
        "replications",
        "examinations",
        "ablations",
    }  # no failure, no language model, no ladder, no champion, no ablation
    assert {table for table in TABLES if run.archive.read(table).num_rows} == set(TABLES) - empty
    for shown in (
        "Leaderboard",
        "Lineage",
        "GRPO",
        "base policy",
        str(folder / "archive"),
        "mlflow ui",
        "prefect server",
    ):
        assert shown in done.stdout
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    for stage in ("verify", "train", "evaluate", "reflect", "propose", "screen", "implement"):
        assert f"  {stage}" in done.stderr
    untuned = "The baseline grpo was never tuned under this protocol; 'poise tune --preset smoke' does that."
    assert f"poise: {untuned}\n" in done.stderr
    assert untuned in " ".join(done.stdout.split())
    described = query(folder / "prefect" / "prefect.db", "select description from artifact where key = 'leaderboard'")
    assert described
    assert all(untuned in text for (text,) in described)

    states = query(folder / "prefect" / "prefect.db", "select name, state_name from flow_run")
    assert states == [(f"evolve {folder}", "Completed"), ("gen-01", "Completed")]
    assert set(query(folder / "prefect" / "prefect.db", "select state_name from task_run")) == {("Completed",)}
    artifacts = {key for (key,) in query(folder / "prefect" / "prefect.db", "select key from artifact")}
    assert {"leaderboard", "lineage"} < artifacts
    assert len([key for key in artifacts if key.startswith("reflection-")]) == 3

    # below the experiment's generations a run per candidate, below it one per seed
    names = [name for (name,) in query(folder / "mlflow.db", "select name from runs")]
    assert any("GRPO" in name for name in names)
    curves = query(folder / "mlflow.db", "select count(*) from metrics where key = 'reward_mean'")
    assert curves[0][0] >= 3 * 2 * 4  # candidates, seeds, steps


def query(database: Path, statement: str) -> list[Any]:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        return connection.execute(statement).fetchall()


@pytest.mark.exhaustive
def test_a_finished_run_is_only_read(
    undisturbed: Undisturbed, installed_poise: Callable[..., Any], poise: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[0], folder)
    before = contents(Archive(folder / "archive"))
    trained = {path: path.stat().st_mtime_ns for path in folder.rglob("trajectory.jsonl")}
    again = installed_poise("evolve", *SMOKE, "--run-dir", folder)
    assert again.returncode == 0, again.stderr
    assert "Leaderboard" in again.stdout
    assert contents(Archive(folder / "archive")) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("trajectory.jsonl")} == trained

    rows = json.loads(poise("leaderboard", folder, "--json").stdout)
    assert {row["name"] for row in rows} >= {"GRPO", "base policy"}
    (root,) = json.loads(poise("lineage", folder, "--json").stdout)
    assert (root["name"], len(root["children"])) == ("GRPO", 2)
    shown = json.loads(poise("show", folder, "GRPO", "--json").stdout)
    assert len(shown["curves"]["reward_mean"]) == 4

    # the baseline's own file has its scores already; another one is compared with them
    own = json.loads(poise("evaluate", algorithm_path("grpo"), *SMOKE, "--run-dir", folder, "--json").stdout)
    assert (own["candidate_id"], own["baseline"]) == (root["candidate_id"], None)
    assert own["overall"]["estimate"] == root["overall"]["estimate"]
    other = installed_poise("evaluate", algorithm_path("rloo"), *SMOKE, "--run-dir", folder, "--seeds", "1", "--json")
    result = json.loads(other.stdout)
    assert (result["name"], result["baseline"]["name"]) == ("rloo", "GRPO")
    assert result["baseline"]["delta"]["estimate"] == pytest.approx(result["seeds"]["0"] - shown["seeds"]["0"])


class Running:
    """A ``poise evolve`` in the background, with what it prints."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [POISE, "evolve", *SMOKE, "--run-dir", folder],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "140"},
                start_new_session=True,
            )

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 400
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def end(self, number: int, seconds: float) -> int:
        """Send a signal; the exit status, after all its descendants have ended within these seconds."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        status = self.process.wait(seconds)
        _, alive = psutil.wait_procs(family, timeout=seconds)
        assert not alive, [process.cmdline() for process in alive]
        return status


def test_a_dry_run_says_what_is_there_and_writes_nothing(undisturbed: Undisturbed) -> None:
    folder, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    shown = CliRunner().invoke(app, ["evolve", *SMOKE, "--run-dir", str(folder), "--dry-run"])
    assert shown.exit_code == 0, shown.output
    rows = len(RunDirectory.read(folder).archive.rows("candidates"))
    assert f"There       {rows} candidates, the newest of generation" in shown.output
    assert "Resumed" not in shown.output
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    other = CliRunner().invoke(
        app, ["evolve", *SMOKE, "--run-dir", str(folder), "--dry-run", "--set", "protocol.seeds=[7,8,9]"]
    )
    assert (other.exit_code, "give another --run-dir" in other.output) == (2, True)


@pytest.mark.exhaustive
def test_killed_and_stopped_it_ends_as_if_undisturbed(undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder, moments = tmp_path / "run", random.Random()
    delays = [moments.uniform(0, 3) for _ in range(2)]  # a whole generation of the preset smoke takes six seconds
    print(f"signals {delays} seconds after the events")  # shown when the test fails
    with_problems_of(undisturbed[0], folder)

    running = Running(folder, tmp_path / "first.log")
    running.wait_for("verify    GRPO")  # training and the evaluation of the base policy are under way
    time.sleep(delays[0])
    assert running.end(signal.SIGKILL, 20) == -signal.SIGKILL

    running = Running(folder, tmp_path / "second.log")
    running.wait_for("propose   gen-01/slot-0")
    time.sleep(delays[1])
    assert running.end(signal.SIGINT, 30) == 130
    assert "go on with: poise evolve --preset smoke" in (tmp_path / "second.log").read_text()

    running = Running(folder, tmp_path / "third.log")
    assert running.process.wait(600) == 0, running.log.read_text()
    assert contents(Archive(folder / "archive")) == contents(Archive(undisturbed[0] / "archive"))
    assert RunDirectory.read(folder).archive.check() == []
