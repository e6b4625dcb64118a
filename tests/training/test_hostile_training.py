"""Hostile code in the training process itself, without the gate: what it can reach, and what it leaves for its launcher."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_jobs import LONG, job_of, nothing_stays
from training_samples import REINFORCE, protocol_of

import poise_core.training.launcher as launcher
import poise_core.training.results as results
import poise_core.training.startup as startup
from poise_core.config import ResourceSpec
from poise_core.failures import CandidateFailure, FailureKind, InfrastructureError
from poise_core.sandbox import command as sandbox
from poise_core.sandbox import run
from poise_core.sandbox.command import GRANTED
from poise_core.sandbox.kernel import memory_bytes
from poise_core.training.launcher import TrainingJob, train_candidate

SECRET = "sk-of-the-person-who-runs-it"


def _refused(level: str) -> str:
    """Why this machine does not have a level of confinement, or ""."""
    machine = sandbox.probe_machine()
    return machine["landlock"] or (machine["user and network namespaces"] if level == "network namespace" else "")


LEVELS = dict.fromkeys(
    (sandbox.best_level(), *(level for level in ("network namespace", "landlock") if not _refused(level)))
)

BATTERY = """

__builtins__ = torch.__builtins__  # what got past the language check finds the whole of Python behind any module


def _attempts():
    import json, os, resource, socket, sys
    from pathlib import Path

    def attempt(action):
        try:
            return action()
        except BaseException as error:
            return type(error).__name__

    def looped():
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()

    def contents(place):
        return sorted(str(path) for path in Path(place).rglob("*"))

    def write(path):
        with open(path, "a") as stream:
            stream.write("forged")

    given = json.loads(Path(sys.argv[2]).read_text())
    train = Path(given["folder"])
    own = train / f"seed-{given['seeds'][0]}"
    return {
        "job": sorted(given),
        "environment": dict(os.environ),
        "sys.path": sys.path,
        "loopback": attempt(looped),
        "machine": attempt(lambda: socket.create_connection(("127.0.0.1", @PORT@), timeout=2).close()),
        "internet": attempt(lambda: socket.create_connection(("192.0.2.1", 80), timeout=2).close()),
        "run folder": attempt(lambda: contents("@RUN@")),
        "read": {path: attempt(lambda path=path: open(path).read()) for path in @READ@},
        "write": {path: attempt(lambda path=path: write(path)) for path in @WRITE@},
        "write here": attempt(lambda: write(own / "note")),
        "processes": len([name for name in os.listdir("/proc") if name.isdigit()]),
        "limits": {name: resource.getrlimit(getattr(resource, name))[0] for name in @LIMITS@},
        "memory": attempt(lambda: bytearray(64 << 30)),
        "file": attempt(lambda: os.truncate(own / "note", 1 << 40)),
    }


def _report():
    import json, sys
    from pathlib import Path

    found = json.dumps(_attempts())
    given = json.loads(Path(sys.argv[2]).read_text())
    (Path(given["folder"]) / f"seed-{given['seeds'][0]}" / "found.json").write_text(found)
    raise ValueError("the report is written")


_report()
"""
LIMITS = ("RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_CORE")


@pytest.fixture
def port() -> Iterator[int]:
    """A port of the machine that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize(("level", "warm"), [*((level, "1") for level in LEVELS), (next(iter(LEVELS)), "0")])
def test_what_candidate_code_can_reach_in_training(
    level: str, warm: str, tiny_policy: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run directory as it is in an evolution: another candidate, the archive, a finished seed and one to be trained."""
    monkeypatch.setenv("POISE_WARM", warm)
    monkeypatch.setattr(sandbox, "best_level", lambda: level)
    own_world = level in ("namespaces", "bubblewrap")
    for name in ("OPENAI_API_KEY", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    own, finished = tmp_path / "candidates" / "own", tmp_path / "candidates" / "own" / "train" / "seed-0"
    secrets = [
        tmp_path / "preset.yaml",
        tmp_path / "secret",
        tmp_path / "archive" / "evaluations" / "part.parquet",
        tmp_path / "candidates" / "other" / "candidate.py",
        tmp_path / "candidates" / "own" / "evaluate" / "job-search.json",
        finished / "result.json",
    ]
    for path in secrets:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET)
    written = [*secrets, *(own / name for name in ("candidate.py", "train/job.json", "train/train.log"))]
    written += [tiny_policy / "model.safetensors", Path(launcher.__file__)]
    replacements = {
        "@PORT@": str(port),
        "@RUN@": str(tmp_path),
        "@READ@": repr([str(path) for path in [*secrets, Path("/etc/shadow"), Path.home() / ".netrc"]]),
        "@WRITE@": repr([*map(str, written)]),
        "@LIMITS@": repr(LIMITS),
    }
    battery = BATTERY
    for old, new in replacements.items():
        battery = battery.replace(old, new)
    job = job_of(tiny_policy, own, REINFORCE + battery, seeds=(0, 1), memory_gib=8.0)
    with nothing_stays(str(job.folder)), pytest.raises(CandidateFailure) as failure:
        train_candidate(job)
    assert failure.value.kind is FailureKind.CRASHED
    found = json.loads((job.folder / "seed-1" / "found.json").read_text())

    assert "benchmarks" not in found["job"]
    assert SECRET not in json.dumps(found)
    assert str(job.folder) not in " ".join(found["sys.path"])
    assert found["loopback"] is None  # torchrun and gloo need it
    confinement = json.loads((job.folder / "confinement.json").read_text())
    assert (confinement["network"] == GRANTED) == (level != "landlock")
    if confinement["network"] != GRANTED:
        assert confinement["network"].endswith("; sharing the machine's was allowed")
    else:
        assert found["machine"] in ("ConnectionRefusedError", "PermissionError")
        assert found["internet"] in ("OSError", "PermissionError")
    for path, result in found["read"].items():
        assert result in ("FileNotFoundError", "PermissionError"), path
    for path, result in found["write"].items():
        in_private_scratch = own_world and path.startswith("/tmp/")
        assert result in ("FileNotFoundError", "PermissionError", "OSError", None if in_private_scratch else ""), path
    assert [path for path in written if path.suffix != ".py" and b"forged" in path.read_bytes()] == []
    assert found["write here"] is None
    assert found["memory"] == "MemoryError"
    assert found["file"] == "OSError"
    assert found["limits"]["RLIMIT_CPU"] == 280 * 4
    assert found["limits"]["RLIMIT_DATA"] == 8 << 30
    assert found["limits"]["RLIMIT_CORE"] == 0
    if own_world:
        train = str(own / "train")
        inside = {str(Path(path).relative_to(train)) for path in found["run folder"] if path.startswith(train + "/")}
        assert inside <= {"job.json", "outcome", "seed-1", "seed-1/note"}
        assert found["processes"] <= 4
    assert confinement["environment"] == confinement["limits"] == GRANTED
    assert set(confinement) == set(sandbox.confined_command([]).granted)


@pytest.mark.parametrize("level", ["landlock", "plain"])
@pytest.mark.parametrize(("key", "variable"), [(False, None), (False, "0"), (True, None), (False, "1")])
def test_without_a_network_namespace_nothing_trains_unless_that_is_allowed(
    level: str, key: bool, variable: str | None, untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The levels are chosen here and not the machine's, so that no machine leaves this out."""
    monkeypatch.setattr(sandbox, "best_level", lambda: level)
    monkeypatch.delenv("POISE_ALLOW_SHARED_NETWORK")
    if variable is not None:
        monkeypatch.setenv("POISE_ALLOW_SHARED_NETWORK", variable)
    started: list[object] = []
    monkeypatch.setattr(run.warm, "start", lambda confined, **_: started.append(confined) or subprocess.Popen(["true"]))
    job = job_of(untrained, tmp_path, REINFORCE, allow_shared_network=key)
    with pytest.raises(InfrastructureError) as error:
        train_candidate(job)
    record = job.folder / "confinement.json"
    if key or variable == "1":
        assert len(started) == 1
        assert "no result" in str(error.value)  # of `true`, which trains nothing
        assert json.loads(record.read_text())["network"].endswith("; sharing the machine's was allowed")
        return
    assert not started
    assert not record.exists()
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(
        "training is refused, because on this machine candidate code would share the network (not granted"
    )
    assert "--allow-shared-network or POISE_ALLOW_SHARED_NETWORK=1" in message


# ---- what a hostile training leaves, read by its launcher


@pytest.fixture
def untrained(tmp_path: Path) -> Path:
    """A folder that passes for a policy where nothing is trained."""
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def finished_job(policy: Path, folder: Path) -> tuple[TrainingJob, Path]:
    """A job whose only seed looks finished, and the folder of that seed."""
    seed = folder / "train" / "seed-0"
    (seed / "policy").mkdir(parents=True)
    (seed / "policy" / "model.safetensors").write_text("weights")
    (seed / "trajectory.jsonl").write_text('{"step": 0.0}\n')
    (seed / "result.json").write_text('{"seed": 0, "seconds": 1.0, "tokens": 5}')
    job = TrainingJob(folder / "c.py", "tested", folder / "train", protocol_of(policy, LONG), ResourceSpec(), (0,))
    return job, seed


def test_the_files_of_an_honest_training_are_read(untrained: Path, tmp_path: Path) -> None:
    job, _ = finished_job(untrained, tmp_path)
    (trained,) = train_candidate(job)
    assert trained.trajectory() == [{"step": 0.0}]
    assert (trained.seconds, trained.tokens) == (1.0, 5)


@pytest.mark.parametrize("name", ["result.json", "trajectory.jsonl", "policy", "policy/model.safetensors"])
@pytest.mark.parametrize("how", ["link", "pipe", "nonsense"])
def test_a_forged_file_is_the_candidates_failure(how: str, name: str, untrained: Path, tmp_path: Path) -> None:
    """A link could hand in somebody else's policy or show a secret; a pipe would block its reader for ever."""
    job, seed = finished_job(untrained, tmp_path)
    forged = seed / name
    elsewhere = tmp_path / "elsewhere"
    forged.rename(elsewhere)
    if how == "link":
        forged.symlink_to(elsewhere)
    elif how == "pipe":
        os.mkfifo(forged)
    elif name == "policy/model.safetensors":
        forged.mkdir()
    else:
        forged.write_text('{"step"')
    with pytest.raises(CandidateFailure, match="the training left files that the trainer does not write") as failure:
        train_candidate(job)[0].trajectory()
    assert failure.value.kind is FailureKind.CRASHED


@pytest.mark.parametrize("text", ["[]", "{}", '{"kind": "bored", "message": "", "detail": ""}', "\0", '{"kind'])
def test_an_outcome_that_makes_no_sense(text: str, untrained: Path, tmp_path: Path, monkeypatch) -> None:
    job = job_of(untrained, tmp_path, REINFORCE)

    def hostile_process(command: list[str], **_: object) -> int:
        (job.folder / "outcome" / "outcome.json").write_text(text)
        return 1

    monkeypatch.setattr(launcher, "run_confined", hostile_process)
    with pytest.raises(CandidateFailure, match="the training left files that the trainer does not write"):
        train_candidate(job)


@pytest.mark.parametrize("line", ["3", "{}", '{"step": NaN}', '{"step": 2.0, "kl": [1]}', '{"step": 2.0, "kl": "x"}'])
def test_a_line_that_is_no_step(line: str, untrained: Path, tmp_path: Path) -> None:
    job, seed = finished_job(untrained, tmp_path)
    (seed / "trajectory.jsonl").write_text(f'{{"step": 1.0}}\n{line}\n')
    with pytest.raises(CandidateFailure, match="the training left files that the trainer does not write"):
        train_candidate(job)[0].trajectory()
    (seed / "result.json").unlink()
    assert launcher.unfinished_trajectory(job, 0) == ([{"step": 1.0}], {})


def test_a_trajectory_without_ends_of_lines_does_not_fill_the_launchers_memory(tmp_path: Path) -> None:
    path = tmp_path / "seed-0" / "trajectory.jsonl"
    path.parent.mkdir()
    path.write_text("1" * (results.LINE_CHARACTERS + 1))
    with pytest.raises(CandidateFailure, match="more than 1048576 characters"):
        results.Follower(tmp_path, [0], lambda seed, row: None).poll()


def test_links_where_the_launcher_writes_lead_nowhere(untrained: Path, tmp_path: Path, monkeypatch) -> None:
    """The places that the launcher writes, opened again at every start, are none that the process may write."""
    job = job_of(untrained, tmp_path, REINFORCE, seeds=(3, 4))
    seen: dict[str, list[Path]] = {}

    def watched(command: list[str], *, writable: list[Path], log: Path, **_: object) -> int:
        seen.update(writable=writable, written=[log, Path(command[-1]), job.folder / "confinement.json"])
        return 1

    monkeypatch.setattr(launcher, "run_confined", watched)
    with pytest.raises(launcher.InfrastructureError):
        train_candidate(job)
    assert seen["writable"] == [job.folder / name for name in ("outcome", "seed-3", "seed-4")]
    assert not [path for path in seen["written"] for folder in seen["writable"] if path.is_relative_to(folder)]


def test_what_any_start_lacked_stays_on_record(tmp_path: Path) -> None:
    """A training may go on on another machine: it was confined as badly as at its worst."""
    for granted in ({"network": GRANTED, "files": GRANTED}, {"network": "no", "files": GRANTED}, {"network": GRANTED}):
        results.record_confinement(tmp_path, granted)
    assert results.recorded_confinement(tmp_path)["network"] == "no"


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 1.0, "candidate/\\ud800": 1.0}', '{"step": 1.0, "controller/a b": 1.0}', '{"step": 1.0, "elsewhere/x": 1.0}',
        '{"step": 1.0, "candidate/' + "x" * 61 + '": 1.0}', '{"step": Infinity}', "[" * 10**5,
        '{"step": 1.0, "kl": 1' + "0" * 400 + "}",
        "{" + ", ".join(f'"candidate/m{i}": 1.0' for i in range(65)) + ', "step": 1.0}',
    ],
    ids=range(8),
)  # fmt: skip
def test_a_line_that_nothing_else_could_store(line: str, untrained: Path, tmp_path: Path) -> None:
    """Names become columns and keys; the process that writes them runs candidate code."""
    job, seed = finished_job(untrained, tmp_path)
    (seed / "trajectory.jsonl").write_text(f"{line}\n")
    with pytest.raises(CandidateFailure, match="the training left files that the trainer does not write") as failure:
        train_candidate(job)[0].trajectory()
    assert failure.value.kind is FailureKind.CRASHED
    (seed / "result.json").unlink()
    assert launcher.unfinished_trajectory(job, 0) == ([], {})


def test_the_text_of_a_failure_can_be_stored_and_shown(untrained: Path, tmp_path: Path, monkeypatch) -> None:
    job = job_of(untrained, tmp_path, REINFORCE)

    def hostile_process(command: list[str], **_: object) -> int:
        outcome = {
            "kind": "crashed",
            "message": "\ud800 \x1b[2J\u202e" + "m" * 9000,
            "detail": "x\0\n\ud800" + "d" * 900_000,
        }
        (job.folder / "outcome" / "outcome.json").write_text(json.dumps(outcome))
        return 1

    monkeypatch.setattr(launcher, "run_confined", hostile_process)
    with pytest.raises(CandidateFailure) as failure:
        train_candidate(job)
    assert failure.value.message.startswith("\ufffd \ufffd[2J\ufffdmmm")
    assert failure.value.message.encode().decode().isprintable()
    assert len(failure.value.message) == 2000
    assert len(failure.value.detail.encode()) <= 100_000


def test_a_failure_keeps_the_lines_of_its_detail() -> None:
    detail = 'Traceback:\n\tline\n{"message": "naïve π ✓"}'
    assert CandidateFailure(FailureKind.CRASHED, "train", "π\x07", detail).detail == detail


# ---- what a candidate does in training that the gate has not seen

LATER = {
    "values elsewhere": ("advantage, batch.completion_mask))", "advantage, batch.completion_mask).to('meta'))",
                         FailureKind.CRASHED, "on meta; it must be a float32 tensor"),
    "a name that is none": ("token_loss=", "metrics={'\\ud800': inputs.old_logprobs}, token_loss=",
                            FailureKind.CRASHED, r"the metric name '\\ud800' is not allowed"),
    "not a number": ("token_loss=", "metrics={'m': inputs.old_logprobs / 0.0}, token_loss=",
                     FailureKind.DIVERGED, "metric 'm' is -?(nan|inf) at completion"),
    "a bomb of memory": ("    advantage = hp", "    bomb = torch.zeros(2**33)\n    advantage = hp",
                         FailureKind.OUT_OF_MEMORY, "out of memory at step 0"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LATER)
def test_a_training_that_fails_has_a_typed_outcome(name: str, tiny_policy: Path, tmp_path: Path) -> None:
    old, new, kind, message = LATER[name]
    assert REINFORCE.count(old) == 1
    with pytest.raises(CandidateFailure, match=message) as failure:
        train_candidate(job_of(tiny_policy, tmp_path, REINFORCE.replace(old, new), memory_gib=3.0))
    assert failure.value.kind is kind


# ---- limits


@pytest.mark.slow
def test_a_candidate_that_needs_too_much_memory(tiny_policy: Path, tmp_path: Path) -> None:
    source = REINFORCE.replace("advantage = hp", "torch.ones(2**30 * (1 + dynamics.step))\n    advantage = hp")
    with pytest.raises(CandidateFailure, match="out of memory at step 0") as failure:
        train_candidate(job_of(tiny_policy, tmp_path, source, memory_gib=3.0))
    assert failure.value.kind is FailureKind.OUT_OF_MEMORY


def test_a_candidate_that_needs_too_much_processor_time(untrained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(launcher, "run_confined", lambda command, **_: 128 + signal.SIGXCPU)
    with pytest.raises(CandidateFailure, match="the limit of processor time was reached") as failure:
        train_candidate(job_of(untrained, tmp_path, REINFORCE))
    assert failure.value.kind is FailureKind.TIMED_OUT


@pytest.mark.parametrize(
    ("exitcode", "status"), [(-signal.SIGXCPU, 128 + signal.SIGXCPU), (-signal.SIGKILL, 1), (1, 1)]
)
def test_the_agent_passes_on_how_a_worker_ended(exitcode: int, status: int, monkeypatch) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher import api

    def launched(config: object, entry: object) -> object:
        def run(job_file: str) -> None:
            raise ChildFailedError("work", {0: ProcessFailure(0, 1, exitcode, "")})

        return run

    monkeypatch.setattr(startup, "load_libraries", lambda: None)
    monkeypatch.setattr(api, "elastic_launch", launched)
    assert startup.main(2, "job.json") == status


def test_every_limit_is_set_and_memory_is_shared(untrained: Path, tmp_path: Path) -> None:
    (untrained / "model.safetensors").write_bytes(bytes(1000))
    job = job_of(untrained, tmp_path, REINFORCE, parallel_candidates=2, processes_per_training=4, threads_per_process=2)
    limits = launcher._limits(job, [0, 1], untrained)
    assert limits.wall_seconds == 2 * 280
    assert limits.cpu_seconds == 2 * 280 * (2 + launcher.HELPER_THREADS)
    assert limits.memory_bytes == memory_bytes() // 8
    assert limits.file_bytes == 16 * 1000 + (256 << 20)
    assert limits.processes == launcher.PROCESSES
