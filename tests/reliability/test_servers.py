"""Servers that go away while an evolution runs: Prefect's, killed and restarted; MLflow's, down for a while."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import archive_samples as samples
import psutil
import pytest
from laboratory import contents
from llm_server import LoopbackServer
from loopback import free_port
from training_jobs import command_of

from flows import server
from poise_core.archive import Archive
from poise_core.failures import Cancelled, InfrastructureError
from poise_core.run_directory import RunDirectory
from poise_core.tracking.sync import Tracker

pytestmark = pytest.mark.timeout(1200)

SCRIPT = Path(__file__).parents[1] / "support" / "made_up.py"


class MadeUp:
    """The script in the background, with what it prints."""

    def __init__(self, folder: Path, log: Path, seconds: float, patience: float = 600.0, **environment: str) -> None:
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), str(folder), str(seconds), str(patience)],
                stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 600
        while text not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def servers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "flows.server_process" in command_of(child)]

    def end(self) -> int:
        return self.process.wait(600)


@pytest.fixture
def expected(one_generation: Path) -> dict[str, dict[str, str]]:
    """What an evolution without any server records."""
    return contents(RunDirectory.read(one_generation).archive)


def refused(url: str) -> None:
    """Without the secret the API tells nothing but that it is there: another user of the machine could run code with it."""
    assert urllib.request.urlopen(f"{url}/health", timeout=30).status == 200
    for request in (f"{url}/admin/version", urllib.request.Request(f"{url}/deployments/filter", data=b"{}")):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=30)


@pytest.mark.exhaustive
def test_a_private_prefect_server_that_dies_is_started_again(
    tmp_path: Path, expected: dict[str, dict[str, str]]
) -> None:
    running = MadeUp(tmp_path / "run", tmp_path / "log", 4.0)
    running.wait_for("training GRPO")
    (first,) = running.servers()
    refused(f"http://127.0.0.1:{first.cmdline()[-1]}/api")
    first.send_signal(signal.SIGKILL)
    assert running.end() == 0, running.log.read_text()
    assert "Traceback" not in running.log.read_text()
    assert contents(RunDirectory.read(tmp_path / "run").archive) == expected
    assert not first.is_running()


def wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.2)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[tuple[dict[str, str], Callable[..., None], Callable[[], None]]]:
    """Settings that name a Prefect server which is not the command's, and functions that start and kill it."""
    port, servers = free_port(), []
    url = f"http://127.0.0.1:{port}/api"
    settings = {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": url,
        "PREFECT_API_AUTH_STRING": "poise:secret",
        "PREFECT_CLIENT_MAX_RETRIES": "1",
    }

    def start(secret: str = "poise:secret") -> None:
        command = [sys.executable, "-m", "flows.server_process", str(port)]
        environment = {**os.environ, **settings, "PREFECT_SERVER_API_AUTH_STRING": secret}
        servers.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True))
        wait_until_it_answers(f"{url}/health")

    def kill() -> None:
        server = servers.pop()
        server.kill()
        server.wait()

    start()
    yield settings, start, kill
    while servers:
        kill()


@pytest.fixture(scope="module")
def another_server() -> Iterator[str]:
    """The address of a server that is no Prefect server."""
    with LoopbackServer(lambda body: {}) as other:
        yield other.url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("127.0.0.1:4200", "is no address: it begins with http://"),
        ("prefect.example/api", "is no address"),
        ("http://a b/api", "is no address"),
        ("http://[::1/api", "is no address"),
        ("{url}/v1", r"answers 501: is it the address of its API, which ends in /api\?"),
        ("http://anna:pass@127.0.0.1:9/api", r"http://\*\*\*@127.0.0.1:9/api does not answer within 0 s \(.*refused\)"),
    ],
)
def test_an_address_that_is_not_that_of_a_prefect_server_is_one_line(
    monkeypatch: pytest.MonkeyPatch, another_server: str, url: str, said: str
) -> None:
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.3)
    monkeypatch.setenv("PREFECT_API_URL", url.format(url=another_server) + "/")
    with (
        server.prefect_server(Path("nowhere")) as named,
        pytest.raises(InfrastructureError, match=f"PREFECT_API_URL: the server at .*{said}"),
    ):
        server.wait_until_healthy(named)


def test_a_stop_ends_the_wait_for_a_server_that_takes_requests_and_answers_none() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        waited = server.PrefectServer(f"http://127.0.0.1:{silent.getsockname()[1]}/api")
        began = time.monotonic()
        with pytest.raises(Cancelled):
            server.wait_until_healthy(waited, lambda: time.monotonic() - began > 0.3)
        assert time.monotonic() - began < 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("damage", ["another version", "no database"])
def test_a_private_server_takes_no_setting_of_the_users_and_says_why_it_does_not_start(
    tmp_path: Path, damage: str
) -> None:
    """A process of its own: Prefect reads its settings once."""
    home, elsewhere = tmp_path / "r" / "prefect", tmp_path / "elsewhere"
    home.mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / ".env").write_text("PREFECT_SERVER_API_AUTH_STRING=a:b\nPREFECT_API_KEY=pnu_x\n")
    (elsewhere / "prefect.toml").write_text('[server.database]\nconnection_url = "sqlite+aiosqlite:///theirs.db"\n')
    (elsewhere / "profiles.toml").write_text('active = "x"\n[profiles.x]\nPREFECT_API_KEY = "pnu_y"\n')
    if damage == "no database":
        (home / "prefect.db").write_text("this is something else" * 100)
    script = """
import sqlite3, sys, time
from pathlib import Path
from flows.server import prefect_server, wait_until_healthy
from poise_core.failures import InfrastructureError
home = Path(sys.argv[1])
try:
    with prefect_server(home) as server:
        wait_until_healthy(server)
        import prefect.settings as settings
        current = settings.get_current_settings()
        print("settings:", current.api.url == server.url, current.api.key, current.home == home, current.client.max_retries)
        print("theirs:", [path.name for path in Path.cwd().glob("*.db")], (home / "prefect.db").exists())
except InfrastructureError as error:
    print("fault:", error)
"""
    theirs = {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{elsewhere}/mine.db", "PREFECT_HOME": str(elsewhere),
        "PREFECT_SERVER_API_AUTH_STRING": "admin:pass", "PREFECT_PROFILES_PATH": str(elsewhere / "profiles.toml"),
        "PREFECT_CLIENT_MAX_RETRIES": "77", "PREFECT_LOGGING_LEVEL": "NONSENSE", "PREFECT_API_KEY": "pnu_z",
    }  # fmt: skip
    command = [sys.executable, "-c", script, str(home)]

    def run() -> str:
        environment = {**os.environ, **theirs}
        done = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    if damage == "another version":
        said = run()
        assert "settings: True None True 5" in said
        assert "theirs: [] True" in said
        with sqlite3.connect(home / "prefect.db") as database:
            database.execute("update alembic_version set version_num = '0123456789ab'")
    reason = "Can't locate revision" if damage == "another version" else "file is not a database"
    said = run()
    assert f"fault: the private Prefect server does not start: {reason}" in said.replace("(sqlite3.DatabaseError) ", "")
    assert f"move {home} away" in said


OwnServer = tuple[dict[str, str], Callable[..., None], Callable[[], None]]


@pytest.mark.exhaustive
def test_a_prefect_server_that_is_restarted_is_waited_for(
    tmp_path: Path, own_server: OwnServer, expected: dict[str, dict[str, str]]
) -> None:
    settings, start, kill = own_server
    running = MadeUp(tmp_path / "run", tmp_path / "log", 3.0, **settings)
    running.wait_for("training GRPO")
    kill()
    running.wait_for("the Prefect server does not answer")
    start()
    assert running.end() == 0, running.log.read_text()
    assert contents(RunDirectory.read(tmp_path / "run").archive) == expected


@pytest.mark.exhaustive
def test_a_prefect_server_that_stays_away_is_one_line_and_the_run_goes_on_later(
    tmp_path: Path, own_server: OwnServer, expected: dict[str, dict[str, str]]
) -> None:
    settings, start, kill = own_server
    running = MadeUp(tmp_path / "run", tmp_path / "first.log", 3.0, patience=25.0, **settings)
    running.wait_for("training GRPO")
    kill()
    assert running.end() == 3, running.log.read_text()
    assert f"fault: the Prefect server at {settings['PREFECT_API_URL']} does not answer" in running.log.read_text()
    start()
    again = MadeUp(tmp_path / "run", tmp_path / "second.log", 0.0, **settings)
    assert again.end() == 0, again.log.read_text()
    assert contents(RunDirectory.read(tmp_path / "run").archive) == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("given", "said"), [({}, "a secret:"), ({"PREFECT_API_AUTH_STRING": "poise:x"}, "another secret than")]
)
def test_a_prefect_server_whose_secret_is_not_known_is_one_line(
    tmp_path: Path, own_server: OwnServer, given: dict[str, str], said: str
) -> None:
    settings = {name: value for name, value in own_server[0].items() if name != "PREFECT_API_AUTH_STRING"}
    refused(settings["PREFECT_API_URL"])
    running = MadeUp(tmp_path / "run", tmp_path / "log", 0.0, **settings, **given)
    assert running.end() == 3
    assert f"fault: the Prefect server at {settings['PREFECT_API_URL']} asks for {said}" in running.log.read_text()
    assert "Traceback" not in running.log.read_text()


@pytest.mark.exhaustive
def test_a_prefect_server_that_returns_with_another_secret_is_one_line(tmp_path: Path, own_server: OwnServer) -> None:
    settings, start, kill = own_server
    running = MadeUp(tmp_path / "run", tmp_path / "log", 3.0, **settings)
    running.wait_for("training GRPO")
    kill()
    start("poise:other")
    assert running.end() == 3, running.log.read_text()
    assert (
        f"fault: the Prefect server at {settings['PREFECT_API_URL']} asks for another secret" in running.log.read_text()
    )
    assert "Traceback" not in running.log.read_text()


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Its address, and a list that holds its process while it is up; ``restart`` with the same database."""
    processes: list[subprocess.Popen[bytes]] = []
    yield f"http://127.0.0.1:{free_port()}", processes
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start_mlflow(uri: str, folder: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    port = uri.rpartition(":")[2]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
    wait_until_it_answers(f"{uri}/health")


def stop_mlflow(processes: list[subprocess.Popen[bytes]]) -> None:
    process = processes.pop()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.exhaustive
def test_mlflow_that_was_down_for_a_while_catches_up(
    tmp_path: Path, mlflow_server: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    uri, processes = mlflow_server
    protocol = samples.make_protocol()
    archive = Archive(tmp_path / "archive").initialise()
    tracker = Tracker(uri, "poise/down")
    samples.add_candidate(archive, protocol, samples.GRPO, "GRPO", 0, (), 0.45, writer="human")
    start_mlflow(uri, tmp_path, processes)
    first = tracker.sync_archive(archive, protocol)
    assert first.complete, first.error

    stop_mlflow(processes)
    samples.add_candidate(archive, protocol, samples.AV, "AV", 1, (samples.GRPO,), 0.55)
    began = time.monotonic()
    down = tracker.sync_archive(archive, protocol)
    assert down.error
    assert "\n" not in down.error
    assert time.monotonic() - began < 120, "a run does not wait long for a server that is away"

    start_mlflow(uri, tmp_path, processes)
    later = tracker.sync_archive(archive, protocol, force=True)  # without waiting for the pause after a failure
    assert later.complete, later.error
    assert later.created > 0
    again = tracker.sync_archive(archive, protocol)
    assert (again.created, again.updated, again.error) == (0, 0, ""), "nothing was pushed twice"
