"""Forked processes are confined as fresh ones are, share no data, and end with the process that requested them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from gate_fixtures import BASE, FOREVER, written

from poise_core.failures import Cancelled, InfrastructureError
from poise_core.sandbox import command as sandbox
from poise_core.sandbox import forked_process, warm
from poise_core.sandbox.command import confined_command
from poise_core.verification import verify_file

SECRET = "sk-of-the-person-who-runs-it-" + os.urandom(8).hex()

LOOK = '''

def _look():
    import hashlib, mmap, os, re, resource, sys

    def most_memory():
        """MiB that this process can still have."""
        low, high = 0, 1 << 16
        while high - low > 1:
            middle = (low + high) // 2
            try:
                mmap.mmap(-1, middle << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
                low = middle
            except OSError:
                high = middle
        return low

    def in_memory(half, digest):
        """Whether this text, of which only the first half and a hash are told, is anywhere in this process."""
        found = 0
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
            for line in maps:
                place, rights = line.split()[:2]
                begin, end = (int(number, 16) for number in place.split("-"))
                if rights[0] != "r" or "[v" in line or end - begin > 1 << 30:
                    continue
                try:
                    memory.seek(begin)
                    content = memory.read(end - begin)
                except (OSError, OverflowError, ValueError):
                    continue
                at = content.find(half)
                while at >= 0:
                    found += hashlib.sha256(content[at:at + @LENGTH@]).hexdigest() == digest
                    at = content.find(half, at + 1)
        return found

    status = dict(line.rstrip().split(":", 1) for line in open("/proc/self/status"))
    handles = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            handles[number] = re.sub("[0-9]+", "", os.readlink("/proc/self/fd/" + number))
        except OSError:
            pass
    return {
        "variables": dict(os.environ),
        "first variables": open("/proc/self/environ").read(),
        "handles": handles,
        "folder": os.getcwd(),
        "umask": status["Umask"],
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")},
        "status": {name: status[name].strip() for name in
                   ("SigBlk", "SigIgn", "SigCgt", "CapEff", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp", "NSpid", "Threads")},
        "filters": status.get("Seccomp_filters"),
        "ids": [os.getresuid(), os.getresgid(), os.getppid()],
        "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line],
        "processes": [name for name in os.listdir("/proc") if name.isdigit()],
        "root": sorted(os.listdir("/")),
        "mounts": sorted(" ".join(line.split()[3:6]) for line in open("/proc/self/mountinfo")),
        "arguments": sys.argv,
        "path": sys.path,
        "command": open("/proc/self/cmdline").read().rstrip("\\0").split("\\0"),
        "memory": most_memory(),
        "secret": in_memory(b"@SECRET@", "@HASH@"),
    }

import json as _json
raise ValueError("FOUND " + _json.dumps(_look()) + " END")
'''


def look(folder: Path, *, secret: str = SECRET) -> dict[str, Any]:
    """What a candidate sees in the gate's process."""
    code = LOOK.replace("@SECRET@", secret[: len(secret) // 2]).replace("@LENGTH@", str(len(secret)))
    code = code.replace("@HASH@", hashlib.sha256(secret.encode()).hexdigest())
    folder.mkdir(exist_ok=True)
    report = verify_file(written(folder, BASE + code), static=False)
    assert "FOUND" in report.message, report.message
    found: dict[str, Any] = json.loads(report.message.partition("FOUND ")[2].rpartition(" END")[0])
    return found


def without_server() -> None:
    """Let the next request start a server of its own."""
    warm._close_server()


def server() -> psutil.Process:
    """The server of this process; started where there is none."""
    pid = warm.server_pid()
    assert pid is not None
    return psutil.Process(pid)


@pytest.mark.slow
def test_a_forked_process_is_confined_exactly_as_a_fresh_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("POISE_WARM", "1")
    without_server()
    forked = look(tmp_path)
    assert warm.server_pid() is not None
    monkeypatch.setenv("POISE_WARM", "0")
    fresh = look(tmp_path)
    memory = forked.pop("memory"), fresh.pop("memory")
    assert 1024 < memory[1] < 2048  # MiB, of the 2 GiB that the gate grants
    assert abs(memory[0] - memory[1]) < 64
    assert fresh["secret"] == forked["secret"] == 0
    for found in (forked, fresh):
        assert SECRET not in json.dumps(found)
        assert found["command"][1:4] == ["-I", "-m", "poise_core.verification.worker"]
        # beside the streams: what the worker writes its results to, and the folder that is being listed
        assert sorted(found.pop("handles").items())[:3] == [("0", "pipe:[]"), ("1", "pipe:[]"), ("2", "pipe:[]")]
    variables = forked.pop("first variables"), fresh.pop("first variables")
    assert not {name.partition("=")[0] for name in variables[0].split("\0")} - {
        *forked_process.SERVER_VARIABLES,
        *(name.partition("=")[0] for name in variables[1].split("\0")),
    }
    assert forked == fresh


@pytest.mark.slow
def test_no_handle_of_this_process_or_the_server_is_in_a_fork(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:  # others are asked for at the same time
        seen = list(pool.map(look, [tmp_path / str(number) for number in range(3)]))
    for found in seen:
        assert set(found["handles"].values()) <= {"pipe:[]", "/proc//fd"}
        assert len(found["handles"]) <= 5


@pytest.mark.slow
def test_nothing_of_a_request_is_in_the_next(tmp_path: Path) -> None:
    """Neither what was asked nor what it did is in the memory that the next one gets from the server."""
    mark = "only-in-the-first-" + os.urandom(8).hex()
    first = BASE + f"\nimport builtins, os\nbuiltins.left = os.environ['LEFT'] = {mark!r}\n"
    verify_file(written(tmp_path, first), name=mark, known_fingerprints={mark: mark}, static=False)
    before = warm.server_pid()
    found = look(tmp_path, secret=mark)
    assert warm.server_pid() == before
    assert found["secret"] == 0
    assert "LEFT" not in found["variables"]


@pytest.mark.slow
def test_the_memory_of_a_process_would_show_a_text_that_is_in_it(tmp_path: Path) -> None:
    """What the two tests above do not find would be found: here it stands in the source."""
    mark = "in-this-very-source-" + os.urandom(8).hex()
    code = LOOK.replace("@SECRET@", mark[: len(mark) // 2]).replace("@LENGTH@", str(len(mark)))
    code = code.replace("@HASH@", hashlib.sha256(mark.encode()).hexdigest())
    report = verify_file(written(tmp_path, BASE + f"\nKEPT = {mark!r}\n" + code), static=False)
    assert json.loads(report.message.partition("FOUND ")[2].rpartition(" END")[0])["secret"] > 0


@pytest.mark.exhaustive
def test_threads_ask_at_the_same_time(tmp_path: Path) -> None:
    def verified(number: int) -> str:
        folder = tmp_path / str(number)
        folder.mkdir()
        report = verify_file(written(folder, BASE), name=f"child-{number}")
        assert report.admitted, report.message
        return report.candidate_name

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(verified, range(12))) == [f"child-{number}" for number in range(12)]
    assert server().children() == []  # all were collected


# ---- ends


@contextlib.contextmanager
def endless(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that verifies a candidate which never ends; yielded when that is running."""
    code = (
        "import sys; from pathlib import Path; from poise_core.verification import verify_file\n"
        "verify_file(Path(sys.argv[1]), static=False, timeout_seconds=250)"
    )
    path = written(folder, FOREVER)
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 120
            while not busy(process.pid):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield process
        finally:
            process.kill()


def busy(pid: int) -> list[psutil.Process]:
    """Descendants that run candidate code."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "poise_core.verification.worker" in " ".join(process.cmdline()) and process.cpu_times().user > 0.5:
                found.append(process)
    return found


@pytest.mark.slow
def test_nothing_outlives_whoever_asked(tmp_path: Path) -> None:
    with endless(tmp_path) as process:
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 4  # server, launcher, init, worker
        process.kill()
        _, alive = psutil.wait_procs(family, timeout=8)
        assert alive == []


def test_a_process_that_nobody_watches_any_more_is_ended(tmp_path: Path) -> None:
    """As when the thread that asked was interrupted before it could end what it had started."""
    reading, writing = os.pipe()
    gate = [sys.executable, "-I", "-m", "poise_core.verification.worker"]
    process = warm.start(confined_command(gate), stdin=reading, stdout=writing, stderr=writing)
    assert isinstance(process, forked_process.ForkedProcess)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.close()
    _, alive = psutil.wait_procs(family, timeout=8)
    assert alive == []
    os.close(reading)
    os.close(writing)


@pytest.mark.exhaustive
def test_a_server_that_is_killed_is_the_machines_fault_and_replaced(tmp_path: Path) -> None:
    """Nothing of it is left; whoever was waiting is told, and whoever asks next gets another."""
    killed: list[psutil.Process] = []

    def kill() -> bool:
        if not killed and busy(os.getpid()):
            killed.extend([server(), *server().children(recursive=True)])
            killed[0].kill()
        return False

    with pytest.raises(InfrastructureError, match="the process that forks candidates' processes has died: status -9"):
        verify_file(written(tmp_path, FOREVER), static=False, timeout_seconds=200, should_stop=kill)
    _, alive = psutil.wait_procs(killed[1:], timeout=8)
    assert alive == []
    assert verify_file(written(tmp_path, BASE)).admitted
    assert server() != killed[0]


@pytest.mark.exhaustive
def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, BASE)
    assert verify_file(path).admitted
    hung = server()
    hung.suspend()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        verify_file(path, should_stop=lambda: time.monotonic() - began > 0.5)
    hung.resume()
    assert verify_file(path).admitted  # the process of the cancelled request has ended by itself
    assert server() == hung
    deadline = time.monotonic() + 10
    while hung.children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert hung.children() == []
    hung.suspend()
    monkeypatch.setattr(forked_process, "START_SECONDS", 0.5)
    with pytest.raises(InfrastructureError, match=r"has not answered for 0\.5 s; try again, or set POISE_WARM=0"):
        verify_file(path)
    monkeypatch.undo()
    assert verify_file(path).admitted
    assert server() != hung


@pytest.mark.exhaustive
def test_a_fork_of_this_process_gets_a_server_of_its_own(tmp_path: Path) -> None:
    assert verify_file(written(tmp_path, BASE)).admitted
    own = warm.server_pid()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            admitted = verify_file(written(tmp_path, BASE)).admitted
            os.write(writing, json.dumps([admitted, warm.server_pid()]).encode())
            without_server()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        admitted, other = json.load(stream)
    os.waitpid(child, 0)
    assert admitted
    assert other not in (None, own)
    assert warm.server_pid() == own
    assert verify_file(written(tmp_path, BASE)).admitted


# ---- where a program is started


def test_what_is_started_as_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    module = [sys.executable, "-I", "-m", "poise_core.training.startup", "1", "job.json"]
    monkeypatch.setattr(warm, "_has_accelerator", lambda: False)
    monkeypatch.delenv("POISE_WARM", raising=False)
    assert warm._entry_of(confined_command(module)) == "poise_core.training.startup"
    assert warm._entry_of(confined_command([*module[:3], "poise_core.cli"])) is None
    assert warm._entry_of(confined_command(["true"])) is None
    assert warm._entry_of(confined_command([])) is None
    monkeypatch.setattr(warm, "_has_accelerator", lambda: True)
    assert warm._entry_of(confined_command(module)) is None
    gate = confined_command([*module[:3], "poise_core.verification.worker"], env={"CUDA_VISIBLE_DEVICES": ""})
    assert warm._entry_of(gate) == "poise_core.verification.worker"  # sees no device
    monkeypatch.setenv("POISE_WARM", "0")
    assert warm._entry_of(gate) is None


def test_no_memory_is_shared_where_a_process_could_reach_into_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    module = [sys.executable, "-I", "-m", "poise_core.verification.worker"]
    machine = {**sandbox.probe_machine(), "landlock": "Operation not permitted"}
    monkeypatch.setattr(sandbox, "probe_machine", lambda: machine)
    assert warm._entry_of(confined_command(module, level="plain")) is None
    assert warm._entry_of(confined_command(module, level="network namespace")) is None


@pytest.mark.exhaustive
def test_an_entry_that_the_server_refuses_is_started_as_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a library starts a thread on import."""

    def refused(self: forked_process.ForkedProcess, should_stop: object) -> int:
        raise forked_process.RefusedError("its libraries have started 1 threads")

    monkeypatch.setattr(forked_process.ForkedProcess, "_forked", refused)
    monkeypatch.setattr(warm, "_refusals", {})
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        assert verify_file(written(tmp_path, BASE)).admitted
    (said,) = [record.getMessage() for record in caplog.records if "program of its own" in record.getMessage()]
    assert said.endswith("its libraries have started 1 threads")


@pytest.mark.slow
def test_without_it_no_server_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_server()
    monkeypatch.setenv("POISE_WARM", "0")
    assert verify_file(written(tmp_path, BASE)).admitted
    assert warm.server_pid() is None


@pytest.mark.slow
def test_the_server_has_no_variable_but_the_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_server()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert verify_file(written(tmp_path, BASE)).admitted
    assert "AWS_SECRET_ACCESS_KEY" not in server().environ()
    assert SECRET not in " ".join(server().environ().values())
    assert server().num_threads() == 1
    assert os.getsid(server().pid) == server().pid
    server().send_signal(signal.SIGTERM)  # leaves no trace for the tests that come after
