"""Training as a child process: what is killed goes on where it stood, what fails is named, and nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from training_jobs import assert_same, command_of, job_of, nothing_stays
from training_samples import REINFORCE

import poise_core.training.launcher as launcher
from poise_core.algorithms import algorithm_path
from poise_core.config import ResourceSpec
from poise_core.failures import Cancelled, CandidateFailure, FailureKind, InfrastructureError
from poise_core.sandbox import gpus
from poise_core.sandbox.gpus import held_gpus
from poise_core.training.launcher import TrainingJob, kept_completions, train_candidate
from poise_core.training.results import Follower


def workers() -> list[psutil.Process]:
    """The processes that train: those without children in the tree of the launched process."""
    tree = psutil.Process().children(recursive=True)
    return [p for p in tree if "startup" in command_of(p) and not p.children()]


@pytest.mark.slow
def test_killed_and_cancelled_trainings_go_on_exactly(tiny_policy: Path, tmp_path: Path, monkeypatch) -> None:
    def whole_or_broken(folder: str) -> TrainingJob:
        """With steps long enough that whoever looks now and then sees the fourth of six before the last is done."""
        job = job_of(tiny_policy, tmp_path / folder, algorithm_path("vm_av"), seeds=(0, 1))  # it has a controller
        training = job.protocol.training.model_copy(update={"prompts_per_step": 64, "group_size": 8})
        return replace(job, protocol=job.protocol.model_copy(update={"training": training}))

    expected = train_candidate(whole_or_broken("whole"))
    assert [len(one.trajectory()) for one in expected] == [6, 6]
    job = whole_or_broken("broken")
    seen: list[tuple[int, float]] = []

    def kill_in_the_middle(seed: int, row: dict[str, float]) -> None:
        seen.append((seed, row["step"]))
        if (seed, row["step"]) == (0, 3.0):
            for worker in workers():
                worker.send_signal(signal.SIGKILL)

    with nothing_stays(str(job.folder)), pytest.raises(InfrastructureError):
        train_candidate(job, on_step=kill_in_the_middle)
    assert not (job.folder / "seed-0" / "result.json").exists()
    assert (job.folder / "seed-0" / "checkpoints" / "latest.json").exists()

    seen_again: list[tuple[int, float]] = []

    def should_stop() -> bool:  # in the middle of the second seed, ending the whole process group
        return (1, 3.0) in seen_again

    with nothing_stays(str(job.folder)), pytest.raises(Cancelled):
        train_candidate(job, on_step=lambda seed, row: seen_again.append((seed, row["step"])), should_stop=should_stop)
    assert len(seen_again) == len(set(seen_again))  # no step is reported twice
    first = job.folder / "seed-0"
    assert not (first / "checkpoints").exists()
    written = {path: path.stat().st_mtime_ns for path in first.rglob("*")}

    kept = kept_completions(expected[0].trajectory_path.parent)
    assert {one.step for one in kept} == {0, 1, 2, 4, 5}, "of six steps the ends and three between them"
    assert sorted(map(str, kept_completions(first))) == sorted(map(str, kept)), "and none twice, whatever was killed"

    assert_same(train_candidate(job), expected)
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == written  # what was finished is left alone
    monkeypatch.setattr(launcher, "run_confined", None)  # nothing is started any more
    assert_same(train_candidate(job), expected)


def test_kept_completions_of_a_stranger_are_bounded_and_fail_nothing(tmp_path: Path) -> None:
    path = tmp_path / "completions.jsonl"
    assert kept_completions(tmp_path) == []
    line = {
        "benchmark": "gsm",
        "step": 3,
        "kind": "right",
        "prompt": "1+1",
        "completion": "x" * 10**5,
        "correctness": 1.0,
    }
    line |= {"format_valid": True, "truncated": False, "tokens": 2}
    wrong = [{"step": -1}, {"kind": "secret"}, {"tokens": 10**30}, {"correctness": "NaN"}, {"step": "x"}]
    many = [{**line, "step": step} for step in range(500)]
    texts = [
        "",
        "no json",
        "[]",
        json.dumps(line)[:-9],
        *(json.dumps({**line, **one}) for one in wrong),
        json.dumps(line),
    ]
    path.write_text("\n".join(texts))
    (one,) = kept_completions(tmp_path)
    assert (one.benchmark, one.step, len(one.completion) < 2000) == ("training", 3, True)
    path.write_text(json.dumps({**line, "completion": "a\u2028b\x85c"}, ensure_ascii=False), encoding="utf-8")
    assert [one.completion for one in kept_completions(tmp_path)] == ["a\u2028b\x85c"]
    path.write_text("\n".join(json.dumps({**one, "completion": "x"}) for one in many))
    assert len(kept_completions(tmp_path)) == 64
    path.write_text("x" * (2 << 20))
    assert kept_completions(tmp_path) == []
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert kept_completions(tmp_path) == []


def test_a_trajectory_that_starts_again_is_followed(tmp_path: Path) -> None:
    """A reader was left beyond the end of the new file, or in the middle of a line of it."""
    path = tmp_path / "seed-0" / "trajectory.jsonl"
    path.parent.mkdir()
    rows = [json.dumps({"step": float(step), "reward_mean": 1 / (step + 3)}) + "\n" for step in range(6)]
    seen: list[tuple[int, float]] = []
    follower = Follower(tmp_path, [0, 1], lambda seed, row: seen.append((seed, row["step"])))
    follower.poll()
    assert seen == []
    path.write_text("".join(rows[:4]) + rows[4][:7])  # the last line is still being written
    follower.poll()
    follower.poll()
    assert seen == [(0, 0), (0, 1), (0, 2), (0, 3)]
    again = tmp_path / "again"
    again.write_text("".join(rows[:2]))
    os.replace(again, path)
    follower.poll()
    with path.open("a") as stream:
        stream.write("".join(rows[2:]))
    follower.poll()
    assert seen == [(0, step) for step in range(6)]


def failure_of(job: TrainingJob, on_step: Callable[[int, dict[str, float]], None] | None = None) -> CandidateFailure:
    with nothing_stays(str(job.folder)), pytest.raises(CandidateFailure) as failure:
        train_candidate(job, on_step=on_step)
    assert failure.value.stage == "train"
    return failure.value


@pytest.mark.slow
def test_a_candidate_that_raises(tiny_policy: Path, tmp_path: Path) -> None:
    source = REINFORCE.replace("advantage = hp", "1 / (2 - dynamics.step)\n    advantage = hp")
    failure = failure_of(job_of(tiny_policy, tmp_path, source))
    assert failure.kind == FailureKind.CRASHED
    assert "compute_advantages raises ZeroDivisionError" in failure.message
    assert "step 2" in failure.message
    assert "Traceback" in failure.detail
    assert len((tmp_path / "train" / "seed-0" / "trajectory.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_candidate_that_diverges_in_one_of_two_processes(tiny_policy: Path, tmp_path: Path) -> None:
    """The loss of one completion is not a number: only the process that has it notices."""
    spoiled = "torch.where((inputs.carry['first'] > 0).unsqueeze(-1), float('nan'), inputs.logprobs)"
    source = REINFORCE.replace("inputs.logprobs)", f"{spoiled})").replace(
        "batch.completion_mask))",
        "batch.completion_mask), carry={'first': (likely(batch) == likely(batch).max()).float()})",
    )
    source += "\n\ndef likely(batch):\n    return (batch.old_logprobs * batch.completion_mask).sum(-1)\n"
    failure = failure_of(job_of(tiny_policy, tmp_path, source, processes_per_training=2, micro_batch_size=2))
    assert failure.kind == FailureKind.DIVERGED
    assert failure.message == "the loss is not finite at step 0"


@pytest.mark.exhaustive
def test_a_candidate_that_hangs_and_starts_processes(tiny_policy: Path, tmp_path: Path) -> None:
    source = REINFORCE.replace("advantage = hp", "while dynamics.step > 0: pass\n    advantage = hp") + (
        "\n__builtins__ = torch.__builtins__  # past the wall of built-ins\n\n\n"
        "def _start():\n    import subprocess\n"
        "    subprocess.Popen(['sleep', '98765.4321'], start_new_session=True)\n\n\n_start()\n"
    )
    started = time.monotonic()
    with nothing_stays("98765.4321"):
        failure = failure_of(job_of(tiny_policy, tmp_path, source, train_timeout_seconds=10))
    assert failure.kind == FailureKind.TIMED_OUT
    assert time.monotonic() - started < 10 + 10


@pytest.mark.slow
def test_a_file_that_is_no_candidate_and_a_worker_that_leaves_nothing(tiny_policy: Path, tmp_path: Path) -> None:
    failure = failure_of(job_of(tiny_policy, tmp_path / "broken", "def compute_advantages(:"))
    assert (failure.kind, failure.message) == (FailureKind.CRASHED, "line 1: invalid syntax")
    elsewhere = job_of(tmp_path, tmp_path / "moved", REINFORCE)
    (tmp_path / "config.json").write_text("{}")  # a folder that looks like a policy and is none
    with nothing_stays(str(elsewhere.folder)), pytest.raises(InfrastructureError, match=r"train\.log"):
        train_candidate(elsewhere)


# --- GPUs of a candidate


@pytest.fixture
def three_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,GPU-a/b")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(gpus, "GPU_POLL_SECONDS", 0.005)


@pytest.mark.usefixtures("three_gpus")
def test_no_gpu_is_handed_out_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six candidates that want two of three GPUs, and one that wants one, in threads of one process and in another one."""
    held: list[str] = []
    most = 0
    guard = threading.Lock()

    def use(count: int) -> None:
        nonlocal most
        for _ in range(3):
            with held_gpus(count) as variables:
                own = variables["CUDA_VISIBLE_DEVICES"].split(",")
                with guard:
                    assert len(own) == count
                    assert not set(own) & set(held)
                    held.extend(own)
                    most = max(most, len(held))
                time.sleep(0.01)
                with guard:
                    held[:] = [one for one in held if one not in own]

    with ThreadPoolExecutor(7) as pool:
        for done in [pool.submit(use, count) for count in (2, 2, 2, 2, 2, 2, 1)]:
            done.result()
    assert most == 3
    with held_gpus(2) as first, held_gpus(1) as second:
        assert first == {"CUDA_VISIBLE_DEVICES": "3,5"}
        assert second == {"CUDA_VISIBLE_DEVICES": "GPU-a/b"}
        with pytest.raises(Cancelled), held_gpus(1, lambda: True):
            pass
        code = "from poise_core.sandbox.gpus import held_gpus\nwith held_gpus(1, lambda: True): pass"
        other = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "TMPDIR": tempfile.gettempdir()},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "stopped while GPUs are awaited" in other.stderr  # another command on this machine
    with held_gpus(None) as nothing:
        assert nothing == {}
    with (
        pytest.raises(InfrastructureError, match="gpus_per_candidate is 4 and this process may use 3 GPUs"),
        held_gpus(4),
    ):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpus.visible_gpus() == []


@pytest.mark.usefixtures("three_gpus")
def test_a_training_sees_the_gpus_of_its_candidate_alone(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def started(_: object, *, env: dict[str, str], **__: object) -> int:
        seen.append(env.get("CUDA_VISIBLE_DEVICES", "all"))
        return 1

    monkeypatch.setattr(launcher, "run_confined", started)
    for number, wanted in enumerate(({"gpus_per_candidate": 2}, {})):
        with pytest.raises(InfrastructureError), held_gpus(1):
            train_candidate(job_of(tiny_policy, tmp_path / str(number), REINFORCE, **wanted))
    assert seen == ["5,GPU-a/b", "all"]
    with pytest.raises(ValueError, match="it must be at least processes_per_training"):
        ResourceSpec(gpus_per_candidate=1, processes_per_training=2)
