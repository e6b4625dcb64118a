"""The deployments as an operator uses them: triggered, cancelled, suspended and retried through the API of a real server."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from laboratory import contents, with_problems_of
from operations_stack import Operations

from poise_core.archive import TABLES, Archive
from poise_core.run_directory import RunDirectory

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(3000), pytest.mark.xdist_group("operations")]

CANCEL_SECONDS = 10.0


def tiny(folder: Path) -> str:
    """The path of a preset: one parent, one seed, trainings that are just long enough to be stopped."""
    document = {
        "name": "tiny",
        "protocol": {
            "policy": "arithmetic-a",
            "environment": {"name": "arithmetic", "mixture": {"add2": 0.5, "mul1": 0.5}, "train_problems": 64},
            "training": {
                "steps": 40,
                "prompts_per_step": 2,
                "group_size": 4,
                "minibatches": 2,
                "learning_rate": 1e-4,
                "max_completion_length": 16,
            },
            "benchmarks": [{"name": "sums", "kinds": ["add2"], "problems": 4, "metric": "accuracy", "weight": 1.0}],
            "seeds": [0, 1],
        },
        "search": {"generations": 1, "parents": 1, "proposals": 2, "seeds_per_candidate": 1},
        "resources": {
            "train_timeout_seconds": 1200,
            "evaluate_timeout_seconds": 600,
            "verify_timeout_seconds": 600,
            "checkpoint_steps": 5,
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_deployments_are_complete(operations: Operations) -> None:
    found = {one["name"]: one for one in operations.call("POST", "/deployments/filter", {})}
    names = ("nightly-generation", "evolve", "evaluate-candidate", "replicate-champion", "ablate-candidate")
    assert found.keys() == set(names)
    nightly = found["nightly-generation"]
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert nightly["global_concurrency_limit"]["limit"] == 1
    assert nightly["schedules"][0]["schedule"]["timezone"]
    for one in found.values():
        assert one["description"]
        assert one["tags"]
        assert one["enforce_parameter_schema"]
        for name, field in one["parameter_openapi_schema"]["properties"].items():
            assert field.get("description"), f"{one['name']}: the form says nothing of {name}"
        (step,) = one["pull_steps"]
        assert step["prefect.deployments.steps.set_working_directory"]["directory"] == str(operations.clone)


def test_nobody_uses_the_api_without_the_secret(operations: Operations) -> None:
    """Whoever can make a flow run or a deployment runs code as the worker's owner."""
    made = "00000000-0000-0000-0000-000000000000"
    requests = [
        ("GET", "/admin/version"),
        ("POST", "/deployments/filter"),
        ("POST", "/flow_runs/"),
        ("POST", f"/deployments/{made}/create_flow_run"),
        ("DELETE", f"/deployments/{made}"),
        ("GET", "/health/../admin/settings"),
    ]
    wrong = [None, ("poise", "wrong"), ("poise", ""), ("", operations.secret)]
    for auth in wrong:
        with httpx.Client(base_url=operations.url, auth=auth, timeout=60) as stranger:
            assert {stranger.request(*request, json=None).status_code for request in requests} == {401}
            assert stranger.get("/health").status_code == 200  # tells nothing but that
    asked = httpx.get(f"{operations.url[:-4]}/ui-settings", timeout=60).json()
    assert asked["auth"] == "BASIC", "the UI asks for it"
    for origin, allowed in (("http://evil.example", None), (operations.url[:-4], operations.url[:-4])):
        told = httpx.get(f"{operations.url}/health", headers={"Origin": origin}, timeout=60)
        assert told.headers.get("access-control-allow-origin") == allowed


def test_the_schedule_makes_runs(operations: Operations) -> None:
    """It did not with SQLAlchemy 2.1: the server logs an error every minute, and no night ever comes."""
    wanted = {
        "deployments": {"name": {"any_": ["nightly-generation"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    runs = operations.wait(lambda: operations.call("POST", "/flow_runs/filter", wanted), 300)
    assert all(one["auto_scheduled"] for one in runs)


@dataclass(frozen=True)
class FirstNight:
    """A run directory after its first night, and what its archive held then."""

    folder: Path
    preset: str
    flow_run: dict[str, Any]
    contents: dict[str, dict[str, str]]


@pytest.fixture(scope="session")
def first_night(operations: Operations, tmp_path_factory: pytest.TempPathFactory) -> FirstNight:
    place = tmp_path_factory.mktemp("nights")
    folder, preset = place / "run", tiny(place)
    flow_run = operations.finished(night(operations, folder, preset))
    return FirstNight(folder, preset, flow_run, contents(Archive(folder / "archive")))


def night(operations: Operations, folder: Path, preset: str) -> str:
    return operations.trigger("nightly-generation", run_dir=str(folder), preset=preset, hours=1, dollars=1)


def test_a_night_makes_a_generation_and_tells_of_it(operations: Operations, first_night: FirstNight) -> None:
    state = first_night.flow_run["state"]
    assert state["type"] == "COMPLETED", state
    assert state["message"].startswith("gen-01: ")
    archive = RunDirectory.read(first_night.folder).archive
    assert {row["generation"] for row in archive.rows("candidates", arm="evolution")} == {0, 1}
    (summary,) = (first_night.folder / "nights").glob("*.md")
    assert "## What was tried" in summary.read_text()
    (pushed,) = (first_night.folder / "mlartifacts").glob(f"*/artifacts/nights/{summary.name}")
    assert pushed.read_text() == summary.read_text()
    kinds = {(one["key"], one["type"]) for one in operations.artifacts()}
    assert {("morning-summary", "markdown"), ("leaderboard", "table"), ("lineage", "markdown")} <= kinds
    assert any(kind == "progress" for _, kind in kinds)


def test_the_secret_is_in_no_command_line_and_no_log(operations: Operations, first_night: FirstNight) -> None:
    assert first_night.flow_run["state"]["type"] == "COMPLETED"
    password = operations.secret.partition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        assert password not in " ".join(process.info["cmdline"] or ())
    logs = operations.call("POST", "/logs/filter", {"limit": 200})
    assert logs
    assert password not in str(logs) + str(operations.artifacts()) + str(first_night.flow_run)
    kept = [path for folder in (operations.folder, first_night.folder) for path in folder.rglob("*") if path.is_file()]
    assert [path for path in kept if password.encode() in path.read_bytes()] == []


def test_candidates_that_train_elsewhere_give_the_same_archive(
    operations: Operations, first_night: FirstNight, tmp_path: Path
) -> None:
    operations.prefect("gcl", "create", "gpu", "--limit", "1")
    folder = tmp_path / "run"
    with_problems_of(first_night.folder, folder)
    dispatched = operations.finished(
        operations.trigger(
            "evolve",
            run_dir=str(folder),
            preset=first_night.preset,
            changes=["resources.dispatch=pool", "resources.slots_limit=gpu"],
        )
    )
    assert dispatched["state"]["type"] == "COMPLETED", dispatched["state"]
    assert contents(Archive(folder / "archive")) == first_night.contents
    children = operations.call("POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["evaluate-candidate"]}}})
    names = [row["name"] for row in Archive(folder / "archive").rows("candidates", arm="evolution")]
    assert sorted(one["name"].split("/")[1] for one in children) == sorted(names)
    assert all(one["work_queue_name"] == "candidates" for one in children)


def test_cancel_retry_suspend_and_resume_in_the_second_night(operations: Operations, first_night: FirstNight) -> None:
    """Each stop ends the training at once; what was finished is not done again, and the night comes to its end."""
    folder = first_night.folder
    identity = night(operations, folder, first_night.preset)
    operations.wait(lambda: checkpoint(folder), 1200)
    operations.set_state(identity, type="CANCELLING")
    ends_within(operations, CANCEL_SECONDS)
    assert operations.finished(identity, 120)["state"]["type"] == "CANCELLED"
    reached, finished = checkpoint(folder), stages(folder)
    (child,) = Archive(folder / "archive").rows("candidates", generation=2)
    steps = trajectory(folder, child["candidate_id"])[:reached]

    operations.set_state(identity, type="SCHEDULED", name="AwaitingRetry")
    operations.wait(lambda: checkpoint(folder) > reached, 1200)
    details = {"pause_reschedule": True, "pause_timeout": "2099-01-01T00:00:00Z"}
    operations.set_state(identity, type="PAUSED", name="Suspended", state_details=details)
    ends_within(operations, 2 * CANCEL_SECONDS)  # noticed by polling
    operations.wait(operations.idle, 120)
    assert operations.flow_run(identity)["state"]["type"] == "PAUSED"

    operations.call("POST", f"/flow_runs/{identity}/resume", {})
    done = operations.finished(identity)
    assert done["state"]["type"] == "COMPLETED", done["state"]
    assert done["state"]["message"].startswith("gen-02: ")
    assert done["run_count"] == 2  # the retry; what is resumed is the same run
    assert stages(folder).items() >= finished.items(), "a stage that was finished has run again"
    assert trajectory(folder, child["candidate_id"])[:reached] == steps, "steps before the checkpoint were done again"


def checkpoint(folder: Path) -> int:
    """Steps of the newest checkpoint of the training in progress; 0 where there is none."""
    found = folder.glob("candidates/*/train/seed-*/checkpoints/step-*")
    return max((int(path.name.removeprefix("step-")) for path in found), default=0)


def stages(folder: Path) -> dict[str, Any]:
    """What stages have left when they finished, with the time: rows of the archive, reports of the gate and of evaluations."""
    archive = Archive(folder / "archive")
    rows = {f"{table}/{row['row_key']}": row["created_at"] for table in TABLES for row in archive.rows(table)}
    files = [*folder.glob("candidates/*/verification.json"), *folder.glob("candidates/*/evaluate/seed-*.json")]
    return rows | {str(path): path.stat().st_mtime_ns for path in files}


def trajectory(folder: Path, candidate: str) -> list[str]:
    """Steps of the candidate's only seed, with how many seconds each took."""
    return (folder / "candidates" / candidate / "train" / "seed-0" / "trajectory.jsonl").read_text().splitlines()


def ends_within(operations: Operations, seconds: float) -> None:
    began = time.monotonic()
    operations.wait(lambda: not operations.trainings(), 120)
    took = time.monotonic() - began
    print(f"no process of the training after {took:.1f} s")
    assert took < seconds
