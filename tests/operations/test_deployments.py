"""The deployments as an operator uses them: triggered, cancelled, suspended and retried through the API of a real server."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from operations_stack import Operations

from poise_core.archive import TABLES, Archive
from poise_core.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000), pytest.mark.xdist_group("operations")]

CANCEL_SECONDS = 10.0


def tiny(folder: Path, steps: int = 2, **resources: Any) -> str:
    """The path of a preset: one parent, one seed, trainings of a few steps."""
    document = {
        "name": "tiny",
        "protocol": {
            "policy": "arithmetic-a",
            "environment": {"name": "arithmetic", "mixture": {"add2": 0.5, "mul1": 0.5}, "train_problems": 64},
            "training": {
                "steps": steps,
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
            **resources,
        },
    }
    path = folder / f"tiny-{steps}.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def contents(folder: Path) -> dict[str, dict[str, str]]:
    """Every row of every table: its key and the digest over what counts, times and durations aside."""
    archive, found = Archive(folder / "archive"), {}
    for table in TABLES:
        data = archive.read(table, ["row_key", "content_digest"], unsealed=True)
        found[table] = dict(zip(data["row_key"].to_pylist(), data["content_digest"].to_pylist(), strict=True))
    return found


def test_deployments_are_complete(operations: Operations) -> None:
    found = {one["name"]: one for one in operations.call("POST", "/deployments/filter", {})}
    assert found.keys() == {"nightly-generation", "evolve", "evaluate-candidate", "replicate-champion"}
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


def test_the_schedule_makes_runs(operations: Operations) -> None:
    """It did not with SQLAlchemy 2.1: the server logs an error every minute, and no night ever comes."""
    wanted = {
        "deployments": {"name": {"any_": ["nightly-generation"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    runs = operations.wait(lambda: operations.call("POST", "/flow_runs/filter", wanted), 300)
    assert all(one["auto_scheduled"] for one in runs)


def test_two_nights_and_their_dispatched_twin(operations: Operations, tmp_path: Path) -> None:
    """A night makes a generation, the next one goes on; and candidates that train elsewhere give the same archive."""
    operations.prefect("gcl", "create", "gpu", "--limit", "1")
    preset, inline, pool = tiny(tmp_path), tmp_path / "inline", tmp_path / "pool"
    for generation in (1, 2):
        night = operations.finished(
            operations.trigger("nightly-generation", run_dir=str(inline), preset=preset, hours=1, dollars=1)
        )
        assert night["state"]["type"] == "COMPLETED", night["state"]
        assert night["state"]["message"].startswith(f"gen-{generation:02d}: ")
    run = RunDirectory.read(inline)
    assert {row["generation"] for row in run.archive.rows("candidates", arm="evolution")} == {0, 1, 2}
    summaries = sorted((inline / "nights").glob("*.md"))
    assert len(summaries) == 2
    assert "## What was tried" in summaries[0].read_text()
    kinds = {(one["key"], one["type"]) for one in operations.artifacts()}
    assert {("morning-summary", "markdown"), ("leaderboard", "table"), ("lineage", "markdown")} <= kinds
    assert any(kind == "progress" for _, kind in kinds)

    dispatched = operations.finished(
        operations.trigger(
            "evolve",
            run_dir=str(pool),
            preset=preset,
            generations=2,
            changes=["resources.dispatch=pool", "resources.slots_limit=gpu"],
        )
    )
    assert dispatched["state"]["type"] == "COMPLETED", dispatched["state"]
    assert contents(pool) == contents(inline)
    children = operations.call(
        "POST", "/flow_runs/filter", {"flows": {"name": {"any_": ["evaluate-candidate"]}}, "sort": "START_TIME_ASC"}
    )
    names = [row["name"] for row in run.archive.rows("candidates", arm="evolution")]
    assert sorted(one["name"].split("/")[1] for one in children) == sorted(names)
    assert all(one["work_queue_name"] == "candidates" for one in children)


def test_cancel_suspend_and_retry(operations: Operations, tmp_path: Path) -> None:
    """Each ends the training at once; the run goes on from its checkpoint and comes to the end."""
    folder = tmp_path / "run"
    identity = operations.trigger("evolve", run_dir=str(folder), preset=tiny(tmp_path, steps=60))
    operations.wait(lambda: checkpoints(folder), 1200)
    operations.set_state(identity, type="CANCELLING")
    ends_within(operations, CANCEL_SECONDS)
    assert operations.finished(identity, 120)["state"]["type"] == "CANCELLED"

    before = checkpoints(folder)
    operations.set_state(identity, type="SCHEDULED", name="AwaitingRetry")
    operations.wait(lambda: checkpoints(folder) > before, 1200)
    details = {"pause_reschedule": True, "pause_timeout": "2099-01-01T00:00:00Z"}
    operations.set_state(identity, type="PAUSED", name="Suspended", state_details=details)
    ends_within(operations, 2 * CANCEL_SECONDS)  # noticed by polling
    time.sleep(5)
    assert operations.flow_run(identity)["state"]["type"] == "PAUSED"

    operations.call("POST", f"/flow_runs/{identity}/resume", {})
    done = operations.finished(identity)
    assert done["state"]["type"] == "COMPLETED", done["state"]
    assert done["run_count"] == 2  # the retry; what is resumed is the same run


def checkpoints(folder: Path) -> int:
    """Steps of the newest checkpoint or result of any training; 0 before there is one."""
    steps = 0
    for path in folder.glob("candidates/*/train/seed-*/checkpoints/*"):
        digits = "".join(character for character in path.name if character.isdigit())
        steps = max(steps, int(digits or 0))
    finished = len(list(folder.glob("candidates/*/train/seed-*/result.json")))
    return steps + 1000 * finished


def ends_within(operations: Operations, seconds: float) -> None:
    began = time.monotonic()
    operations.wait(lambda: not operations.trainings(), 120)
    took = time.monotonic() - began
    print(f"no process of the training after {took:.1f} s")
    assert took < seconds
