"""Confinement: what a confined process can and cannot do at each level, and how process trees end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
from confinement_levels import LEVELS

from poise_core.sandbox import command as sandbox
from poise_core.sandbox.command import GRANTED, Limits, confined_command, end_process_tree
from poise_core.sandbox.confine import SETUP_FAILED, WALL_TIME_OVER
from poise_core.sandbox.kernel import memory_bytes

PYTHON = [sys.executable, "-I", "-S", "-c"]

BATTERY = """
import ctypes, json, os, socket, sys

writable, secret, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)


def attempt(action):
    try:
        return action()
    except BaseException as error:
        return type(error).__name__


def refused(result):
    return "refused" if result != 0 else "done"


print(json.dumps({
    "write here": attempt(lambda: open(writable + "/x", "w").write("x")),
    "write in the package": attempt(lambda: open(sys.argv[4] + "/x", "w").write("x")),
    "write /usr": attempt(lambda: open("/usr/x", "w").write("x")),
    "write /": attempt(lambda: open("/x", "w").write("x")),
    "write kernel settings": attempt(lambda: open("/proc/sys/kernel/core_pattern", "r+").close()),
    "read a secret": attempt(lambda: open(secret).read()),
    "read accounts": attempt(lambda: open("/etc/shadow").read()),
    "parent's environment": attempt(lambda: open(f"/proc/{os.getppid()}/environ").read().count("POISE_TEST_SECRET")),
    "connect to the machine": attempt(lambda: socket.create_connection(("127.0.0.1", port), timeout=2).close()),
    "make an internet socket": attempt(lambda: socket.socket().close()),
    "make a local socket": attempt(lambda: socket.socket(socket.AF_UNIX).close()),
    "make a namespace": refused(libc.unshare(0x10000000)),
    "mount": refused(libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None)),
    "trace the parent": refused(libc.ptrace(16, os.getppid(), 0, 0)),
    "capabilities": [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")][0].strip("0"),
    "memory": attempt(lambda: len(bytearray(1 << 30))),
    "file": attempt(lambda: open(writable + "/big", "wb").write(bytes(2 << 20))),
    "environment": sorted(os.environ),
    "processes": len([name for name in os.listdir("/proc") if name.isdigit()]) if os.path.isdir("/proc/1") else 0,
    "cwd": os.getcwd(),
}))
"""


@pytest.fixture(scope="module")
def listening_port() -> Iterator[int]:
    """A port of the machine that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def run_battery(tmp_path: Path, port: int, level: str, loopback: bool) -> dict:
    """What a process confined to ``level`` can do."""
    writable, hidden = tmp_path / "writable", tmp_path / "hidden"
    for folder in (writable, hidden):
        folder.mkdir()
    (hidden / "secret").write_text("secret")
    package = Path(sandbox.__file__).parents[1]
    confined = confined_command(
        [*PYTHON, BATTERY, str(writable), str(hidden / "secret"), str(port), str(package)],
        writable=[writable],
        limits=Limits(wall_seconds=60, memory_bytes=512 << 20, file_bytes=1 << 20),
        loopback=loopback,
        level=level,
    )
    done = subprocess.run(
        confined.argv, env=confined.env, capture_output=True, text=True, start_new_session=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not (package / "x").exists()
    return {**json.loads(done.stdout), "granted": confined.granted}


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_confined_process_can_do(
    level: str, tmp_path: Path, listening_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POISE_TEST_SECRET", "secret")
    found = run_battery(
        tmp_path, listening_port, level, loopback=level in ("namespaces", "bubblewrap", "network namespace")
    )
    assert found["write here"] == 1
    for action in ("write in the package", "write /usr", "write /", "write kernel settings"):
        assert found[action] in ("OSError", "PermissionError"), action
    for action in ("read a secret", "read accounts"):
        assert found[action] in ("FileNotFoundError", "PermissionError"), action
    assert found["parent's environment"] in ("PermissionError", "FileNotFoundError", 0)
    assert found["connect to the machine"] in ("ConnectionRefusedError", "PermissionError")
    assert found["make a local socket"] is None
    for action in ("make a namespace", "mount", "trace the parent"):
        assert found[action] == "refused", action
    assert found["capabilities"] == ""
    assert found["memory"] == "MemoryError"
    assert found["file"] == "OSError"
    assert "POISE_TEST_SECRET" not in found["environment"]
    assert found["granted"]["network"] == found["granted"]["file system"] == GRANTED
    if level in ("namespaces", "bubblewrap"):
        assert found["granted"]["process namespace"] == GRANTED
        assert found["processes"] <= 4
        assert found["make an internet socket"] is None


def test_without_loopback_no_internet_socket_can_be_made(tmp_path: Path, listening_port: int) -> None:
    found = run_battery(tmp_path, listening_port, sandbox.best_level(), loopback=False)
    assert found["make an internet socket"] == "PermissionError"
    assert found["make a local socket"] is None


def test_loopback_works_inside_the_network_namespace() -> None:
    code = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
    client.send(b"hello")
    print(server.accept()[0].recv(5).decode())
"""
    assert output_of(code) == "hello"


def test_only_listed_variables_and_given_ones_reach_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "OPENAI_API_KEY": "sk-1",
        "MLFLOW_TRACKING_URI": "http://x",
        "PREFECT_API_URL": "http://x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "NCCL_PROXY": "http://user:password@proxy",
        "PYTHONPATH": "/x",
        "LD_PRELOAD": "/x.so",
        "OMP_NUM_THREADS": "3",
        "TZ": "UTC",
    }.items():
        monkeypatch.setenv(name, value)
    env = confined_command(["true"], env={"POISE_GIVEN": "1", "OMP_NUM_THREADS": "1"}).env
    assert env["POISE_GIVEN"] == "1"
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["TZ"] == "UTC"
    refused = (
        "OPENAI_API_KEY",
        "MLFLOW_TRACKING_URI",
        "PREFECT_API_URL",
        "AWS_SECRET_ACCESS_KEY",
        "NCCL_PROXY",
        "PYTHONPATH",
    )
    assert not set(env) & {*refused, "LD_PRELOAD"}


def test_symbolic_links_to_listed_folders_work(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "data").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    code = f"print(open({str(tmp_path / 'link' / 'data')!r}).read())"
    assert output_of(code, readable=[tmp_path / "link"]) == "content"
    code = f"print(open({str(tmp_path / 'link' / 'new')!r}, 'w').write('x'))"
    assert output_of(code, writable=[tmp_path / "link"]) == "1"
    assert (tmp_path / "real" / "new").exists()


def test_a_writable_folder_inside_a_readable_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    code = f"""
import errno
open({str(tmp_path / "out" / "a")!r}, "w").close()
try:
    open({str(tmp_path / "b")!r}, "w")
except OSError as error:
    print(errno.errorcode[error.errno] in ("EROFS", "EACCES"))
"""
    assert output_of(code, readable=[tmp_path], writable=[tmp_path / "out"]) == "True"


def test_a_program_named_by_way_of_its_parents_is_found(tmp_path: Path) -> None:
    """As ``../.venv/bin/python`` names it; the folders on such a way are not there in a private view."""
    program = f"{tmp_path}/{'../' * len(tmp_path.parts)}{sys.executable}"
    confined = confined_command([program, "-I", "-S", "-c", "print('found')"])
    done = subprocess.run(confined.argv, env=confined.env, capture_output=True, text=True, start_new_session=True)
    assert (done.stdout, done.stderr) == ("found\n", "")


def output_of(code: str, **options: object) -> str:
    """What a confined Python program prints."""
    confined = confined_command([*PYTHON, code], **options)  # type: ignore[arg-type]
    done = subprocess.run(
        confined.argv, env=confined.env, capture_output=True, text=True, start_new_session=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ([*PYTHON, "raise SystemExit(7)"], 7),
        ([*PYTHON, "import os; os.kill(os.getpid(), 9)"], 128 + signal.SIGKILL),
        (["no-such-program"], SETUP_FAILED),
    ],
)
def test_the_status_of_the_command_is_passed_on(command: list[str], status: int) -> None:
    confined = confined_command(command)
    done = subprocess.run(
        confined.argv, env=confined.env, capture_output=True, text=True, start_new_session=True, timeout=60
    )
    assert done.returncode == status
    if status == SETUP_FAILED:
        assert "confine: no-such-program: No such file or directory" in done.stderr


def test_the_launcher_ends_what_outlives_its_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    confined = confined_command(["sleep", "1000"], limits=Limits(wall_seconds=-2.5))  # 0.5 s with the backstop of 3 s
    started = time.monotonic()
    done = subprocess.run(confined.argv, env=confined.env, start_new_session=True, timeout=60)
    assert done.returncode == WALL_TIME_OVER
    assert time.monotonic() - started < 30


def test_threads_may_start_after_processes_are_forbidden() -> None:
    root = str(Path(sandbox.__file__).parents[2])
    code = f"""
import os, subprocess, sys, threading
sys.path.insert(0, {root!r})
from poise_core.sandbox.seccomp import forbid_new_processes
forbid_new_processes()
thread = threading.Thread(target=print, args=("thread",))
thread.start()
thread.join()
for action in (os.fork, lambda: subprocess.run(["true"]), lambda: os.execvp("true", ["true"])):
    try:
        action()
    except PermissionError:
        print("refused")
"""
    assert output_of(code, readable=[Path(root) / "poise_core"]).split() == ["thread", "refused", "refused", "refused"]


@pytest.mark.skipif(bool(sandbox.probe_machine()["process limit"]), reason="needs Linux 6.14 and pid namespaces")
def test_a_fork_bomb_stays_within_its_limit_even_for_root() -> None:
    """Held at 301, the least that the kernel takes, or 8 for each core."""
    before = Path("/proc/sys/kernel/pid_max").read_text()
    code = """
import os, signal
count = 0
try:
    while count < 20000:
        if os.fork() == 0:
            signal.pause()
        count += 1
except OSError as error:
    print(count, type(error).__name__)
"""
    confined = confined_command([*PYTHON, code], limits=Limits(processes=100, wall_seconds=60), level="namespaces")
    done = subprocess.run(confined.argv, env=confined.env, capture_output=True, text=True, start_new_session=True)
    count, error = done.stdout.split()
    assert int(count) <= max(301, 8 * (os.cpu_count() or 1))
    assert error == "BlockingIOError"
    assert confined.granted["process limit"] == GRANTED
    assert Path("/proc/sys/kernel/pid_max").read_text() == before  # the machine's own limit is what it was


@pytest.mark.slow
def test_at_its_limit_of_processor_time_a_process_is_told_why() -> None:
    """With several threads the limit comes before the wall time does; SIGKILL would look like too much memory."""
    confined = confined_command([*PYTHON, "while True: pass"], limits=Limits(wall_seconds=120, cpu_seconds=1))
    done = subprocess.run(confined.argv, env=confined.env, capture_output=True, start_new_session=True, timeout=120)
    assert done.returncode == 128 + signal.SIGXCPU


# ---- the end

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
command = [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep({seconds})"]
grandchildren = [subprocess.Popen(command, start_new_session=new) for new in (True, True, False)]
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(sys.executable, command)
    os._exit(0)
time.sleep({seconds})
"""
"""Ignores SIGTERM; two grandchildren in sessions of their own as torchrun makes them, one in the group, and a daemon."""


def unique_seconds() -> int:
    """A number by which a sleeping process can be found."""
    return 86_400_000 + int.from_bytes(os.urandom(3), "big")


def still_there(seconds: int) -> list[int]:
    """Processes whose command line names the number."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE and str(seconds) in " ".join(process.info["cmdline"] or [])
    ]


def wait_for(count: int, seconds: int) -> None:
    """Until ``count`` processes name the number."""
    deadline = time.monotonic() + 60
    while len(still_there(seconds)) < count:
        assert time.monotonic() < deadline, "the processes did not start"
        time.sleep(0.05)


@contextlib.contextmanager
def started(argv: list[str], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """A process that is killed at the end of the test whatever happens."""
    process = subprocess.Popen(
        argv, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        end_process_tree(process.pid, grace_seconds=0.0)
        process.wait()


def test_ending_a_tree_takes_other_sessions_along() -> None:
    seconds = unique_seconds()
    code = STUBBORN.replace("{seconds}", str(seconds)).partition("if os.fork()")[0] + f"time.sleep({seconds})"
    with started([sys.executable, "-c", code]) as process:
        wait_for(4, seconds)
        begun = time.monotonic()
        end_process_tree(process.pid, grace_seconds=0.2)
        assert time.monotonic() - begun < 5
        assert still_there(seconds) == []


@pytest.mark.parametrize("level", LEVELS)
def test_ending_a_confined_tree_takes_daemons_along(level: str) -> None:
    seconds = unique_seconds()
    confined = confined_command([sys.executable, "-c", STUBBORN.replace("{seconds}", str(seconds))], level=level)
    with started(confined.argv, confined.env) as process:
        wait_for(5, seconds)
        begun = time.monotonic()
        end_process_tree(process.pid, grace_seconds=0.3)
        assert time.monotonic() - begun < 5
        assert still_there(seconds) == []


@pytest.mark.slow
def test_a_confined_tree_dies_with_whoever_started_it() -> None:
    seconds = unique_seconds()
    confined = confined_command([sys.executable, "-c", STUBBORN.replace("{seconds}", str(seconds))], level=LEVELS[0])
    code = "import subprocess, sys, json; subprocess.run(json.loads(sys.argv[1]), start_new_session=True)"
    with started([sys.executable, "-c", code, json.dumps(confined.argv)], confined.env) as process:
        wait_for(6, seconds)  # the five and the launcher's own command line
        process.kill()
        process.wait()
        deadline = time.monotonic() + 5
        while still_there(seconds) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert still_there(seconds) == []


def test_ending_a_process_that_is_gone_does_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    end_process_tree(process.pid)


# ---- what the machine refuses


def test_what_is_not_granted_is_said_once_and_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refused = dict.fromkeys(
        ("user and network namespaces", "process limit", "landlock", "seccomp", "capabilities"),
        "Operation not permitted",
    )
    sandbox.best_level.cache_clear()
    monkeypatch.setattr(sandbox, "probe_machine", lambda: refused)
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    try:
        first, second = (confined_command(["true"], limits=Limits(processes=8)) for _ in range(2))
    finally:
        sandbox.best_level.cache_clear()
    assert first.granted == second.granted
    for measure in ("network", "file system", "process namespace", "system calls", "capabilities"):
        assert first.granted[measure] == "not granted: Operation not permitted"
    assert first.granted["environment"] == first.granted["session"] == first.granted["limits"] == GRANTED
    (said,) = [record.getMessage() for record in caplog.records if "does not grant" in record.getMessage()]
    assert all(f"{measure} (not granted: " in said for measure, text in first.granted.items() if text != GRANTED)


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="level is 'none'; use one of namespaces"):
        confined_command(["true"], level="none")


def test_a_launcher_whose_caller_has_died_starts_nothing(tmp_path: Path) -> None:
    """Between the start of the launcher and its first instruction; where a foster parent takes orphans, it is not process 1."""
    made = tmp_path / "made"
    confined = confined_command(
        [sys.executable, "-c", f"open({str(made)!r}, 'w')"], writable=[tmp_path], level=LEVELS[0]
    )
    (place,) = [index for index, part in enumerate(confined.argv) if '"parent"' in part]
    specification = json.loads(confined.argv[place])
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    argv = [*confined.argv]
    argv[place] = json.dumps({**specification, "parent": gone.pid})
    assert subprocess.run(argv, env=confined.env, check=False).returncode == SETUP_FAILED
    assert not made.exists()
    assert subprocess.run(confined.argv, env=confined.env, check=False).returncode == 0
    assert made.exists()


# ---- the memory that there is

INSTALLED = 64 << 30
MOUNT = "36 32 0:32 {root} {place} rw,relatime shared:9 - {kind} {kind} {options}\n"


def memory_of(folder: Path, groups: str, mounts: str, limits: Mapping[str, str]) -> int:
    """What ``memory_bytes`` finds with these files of a process and these limits, on a machine of 64 GiB."""
    for name, content in {"cgroup": groups, "mountinfo": mounts, **limits}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return memory_bytes(folder, INSTALLED)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"v2/pod/c/memory.max": f"{4 << 30}\n", "v2/pod/memory.max": f"{8 << 30}\n"}, 4 << 30),
        ({"v2/pod/c/memory.max": "max\n", "v2/pod/memory.max": f"{8 << 30}\n"}, 8 << 30),
        ({"v2/pod/c/memory.max": f"{128 << 30}\n"}, INSTALLED),
        ({"v2/pod/c/memory.max": "max\n"}, INSTALLED),
        ({"v2/pod/other/memory.max": "1\n", "memory.max": "1\n", "v2/pod/c/memory.high": "1\n"}, INSTALLED),
    ],
)
def test_memory_is_the_least_limit_of_version_2_up_to_the_root(
    tmp_path: Path, limits: dict[str, str], expected: int
) -> None:
    mounts = MOUNT.format(root="/", place=tmp_path / "v2", kind="cgroup2", options="rw")
    assert memory_of(tmp_path, "0::/pod/c\n", mounts, limits) == expected


@pytest.mark.parametrize("root", ["/", "/docker/1a2b"])
def test_memory_of_version_1_with_and_without_a_namespace_of_control_groups(tmp_path: Path, root: str) -> None:
    """Without one, a container is told its path on the host, of which it sees the end only."""
    other = MOUNT.format(root=root, place=tmp_path / "cpu", kind="cgroup", options="rw,cpu")
    mounts = other + MOUNT.format(
        root=root, place=str(tmp_path / "v 1").replace(" ", "\\040"), kind="cgroup", options="rw,memory"
    )
    groups = f"5:cpu:/elsewhere\n4:memory:{root.rstrip('/')}/job\n0::/\n"
    unlimited = "9223372036854771712\n"  # 2^63 without the last page
    limits = {"v 1/job/memory.limit_in_bytes": unlimited, "v 1/memory.limit_in_bytes": unlimited}
    assert memory_of(tmp_path, groups, mounts, limits) == INSTALLED
    limits = {"v 1/memory.limit_in_bytes": f"{3 << 30}\n", "cpu/memory.limit_in_bytes": "1\n"}
    assert memory_of(tmp_path, groups, mounts, limits) == 3 << 30


def test_memory_where_the_own_group_is_not_below_the_mount(tmp_path: Path) -> None:
    """As after a move into another group than the namespace's root, or where nothing of it can be read."""
    mounts = MOUNT.format(root="/", place=tmp_path / "v2", kind="cgroup2", options="rw")
    assert memory_of(tmp_path, "0::/../other\n", mounts, {"v2/memory.max": f"{2 << 30}\n"}) == 2 << 30
    assert memory_bytes(tmp_path / "absent", INSTALLED) == INSTALLED
    assert memory_bytes() <= psutil.virtual_memory().total


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A control group of this machine, limited to 256 MiB, which a process joins by writing its id there."""
    lines = [line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = {**{name: path for _, names, path in lines for name in names.split(",")}, "": lines[-1][2]}
    base, name = Path("/sys/fs/cgroup" + own[""].rstrip("/")), "memory.max"
    if "memory" in own:
        base, name = Path("/sys/fs/cgroup/memory" + own["memory"].rstrip("/")), "memory.limit_in_bytes"
    group = base / f"poise-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"this user may make no control group: {error}")
    try:
        (group / name).write_text(str(256 << 20))
    except OSError as error:
        group.rmdir()
        pytest.skip(f"memory is not a controller here: {error}")
    yield group
    deadline = time.monotonic() + 10
    while group.exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # the kernel removes ended processes from it a moment later
            group.rmdir()


def test_memory_in_a_real_control_group(limited_group: Path) -> None:
    code = f"""
import os, pathlib, sys
sys.path.insert(0, {str(Path(sandbox.__file__).parents[2])!r})
pathlib.Path({str(limited_group)!r}, "cgroup.procs").write_text(str(os.getpid()))
from poise_core.sandbox.kernel import memory_bytes
print(memory_bytes())
"""
    done = subprocess.run([*PYTHON, code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 256 << 20
