"""The services from packages: PostgreSQL behind a real Prefect and a real MLflow server, and a generation through them.

MLflow keeps its artifacts on an S3-compatible server, which moto is here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import archive_samples as samples
import httpx
import psutil
import pytest
from loopback import free_port

from poise_core.archive import Archive
from poise_core.run_directory import RunDirectory
from poise_core.tracking.sync import Tracker

SCRIPT = Path(__file__).parents[2] / "infra" / "local-stack.sh"
BIN = Path(sys.executable).parent
SERVICES = {"postgresql", "prefect", "mlflow", "worker"}
KEYS = {"access_key_id": "testing", "secret_access_key": "testing"}

found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
needs_postgresql = pytest.mark.skipif(not found, reason="PostgreSQL is not installed: apt-get install postgresql")


class Stack:
    """One stack in a folder of its own, on free ports."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.postgres, self.prefect, self.mlflow = (free_port() for _ in range(3))
        self.environment = {
            **os.environ,
            "POISE_STACK_DIR": str(folder),
            "POISE_BIN": str(BIN),
            "POISE_POSTGRES_PORT": str(self.postgres),
            "POISE_PREFECT_PORT": str(self.prefect),
            "POISE_MLFLOW_PORT": str(self.mlflow),
            "POISE_START_SECONDS": "400",
            "PATH": f"{recorders(folder.parent)}:{os.environ['PATH']}",
            **settings,
        }

    def __call__(self, command: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, **settings}
        with (
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):  # servers must not hold a pipe open
            done = subprocess.run([SCRIPT, command], env=environment, stdout=out, stderr=err, timeout=1200, check=False)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())

    def up(self) -> None:
        done = self("up")
        assert done.returncode == 0, done.stderr

    def pids(self) -> dict[str, str]:
        found = {path.stem: path.read_text() for path in self.folder.glob("*.pid")}
        found["postgresql"] = (self.folder / "postgres" / "postmaster.pid").read_text().split("\n")[0]
        return found

    def query(self, database: str, statement: str) -> str:
        command = [*map(str, (found[-1].with_name("psql"), "-h", "127.0.0.1", "-p", self.postgres, "-U", "poise"))]
        environment = {**os.environ, "PGPASSWORD": (self.folder / "password").read_text().strip()}
        done = subprocess.run(
            [*command, "-d", database, "-Atqc", statement], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    @property
    def addresses(self) -> dict[str, str]:
        return {
            "PREFECT_API_URL": f"http://127.0.0.1:{self.prefect}/api",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.mlflow}",
            "PREFECT_API_AUTH_STRING": self.secret("prefect-secret"),
        }

    def secret(self, name: str) -> str:
        return (self.folder / name).read_text().strip()


def recorders(folder: Path) -> Path:
    """A folder of programs that write down their arguments, in `arguments` beside it, before they become what they stand for.

    Arguments of a moment are visible to everybody, too, and no look at the running processes finds them all.
    """
    made = folder / "recorders"
    made.mkdir(parents=True, exist_ok=True)
    for name in ("env", "setsid", "setpriv", "install"):
        script = f"#!/bin/bash\nprintf '%s ' {name} \"$@\" >>'{folder}/arguments'\nexec {shutil.which(name)} \"$@\"\n"
        (made / name).write_text(script)
        (made / name).chmod(0o755)
    return made


def processes_of(stack: Stack) -> list[psutil.Process]:
    """Those that were started from the stack's folder, by what their command or their environment says."""
    mark, mine = str(stack.folder), []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and mark in " ".join([*process.cmdline(), *process.environ().values()]):
                mine.append(process)
        except psutil.Error:
            continue
    return mine


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """PostgreSQL runs as another user than root, so every folder above must let that user in; pytest's own do not."""
    made = Path(tempfile.mkdtemp(prefix="poise-stack-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """The bucket `mlflow` on a server that speaks S3; those who are given its address and keys may use it."""
    pytest.importorskip("moto.server")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3", endpoint_url=f"http://{host}:{port}", **{f"aws_{key}": value for key, value in KEYS.items()}
    )
    client.create_bucket(Bucket="mlflow")
    yield client
    server.stop()


@pytest.fixture(scope="module")
def stack(folder: Path, bucket: Any) -> Iterator[Stack]:
    stack = Stack(
        folder / "stack",
        POISE_ARTIFACTS="s3://mlflow/artifacts",
        MLFLOW_S3_ENDPOINT_URL=bucket.meta.endpoint_url,
        **{f"AWS_{key.upper()}": value for key, value in KEYS.items()},
        OPENAI_API_KEY="sk-of-a-person",
        HF_TOKEN="hf-of-a-person",
        AWS_SESSION_TOKEN="of the store for artifacts",
    )
    try:
        stack.up()
        yield stack
    finally:
        stack("down")
        for process in processes_of(stack):
            process.kill()


def test_without_postgresql_one_line_says_how_to_install_it(tmp_path: Path) -> None:
    done = Stack(tmp_path)("up", POISE_POSTGRES_BIN=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "local-stack: PostgreSQL is not installed; install it with: apt-get install postgresql\n"


def test_an_unknown_command_explains_itself_and_does_nothing(tmp_path: Path) -> None:
    done = Stack(tmp_path / "stack")("restart")
    assert done.returncode == 2
    assert "infra/local-stack.sh up" in done.stderr
    assert not (tmp_path / "stack").exists()


@needs_postgresql
def test_a_port_that_is_taken_is_named_with_its_setting(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", stack.postgres))
        other.listen()
        done = stack("up")
    assert done.returncode == 1
    assert f"port {stack.postgres} for PostgreSQL is taken" in done.stderr
    assert "POISE_POSTGRES_PORT" in done.stderr


@needs_postgresql
@pytest.mark.exhaustive
@pytest.mark.timeout(2400)
@pytest.mark.xdist_group("local-stack")
class TestStack:
    """In this order, on one stack: the last test ends it."""

    def test_up_again_starts_nothing_anew(self, stack: Stack) -> None:
        before = stack.pids()
        assert before.keys() == SERVICES
        stack.up()
        assert stack.pids() == before
        status = stack("status")
        assert status.returncode == 0
        assert {line.split()[0] for line in status.stdout.splitlines() if " running " in line} == SERVICES
        shown = stack("env").stdout
        assert stack.secret("prefect-secret") not in shown, "a terminal is no place for it"
        script = f'{shown}\nfor name in {" ".join(stack.addresses)}; do echo "$name=${{!name}}"; done'
        done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
        assert dict(line.split("=", 1) for line in done.stdout.splitlines()) == stack.addresses

    def test_only_the_loopback_interface_and_only_with_the_password(self, stack: Stack) -> None:
        listening, commands = set(), []
        for process in processes_of(stack):
            with suppress(psutil.NoSuchProcess):  # PostgreSQL's own come and go
                commands.append(" ".join(process.cmdline()))
                connections = process.net_connections("inet")
                listening |= {one.laddr for one in connections if one.status == psutil.CONN_LISTEN}
        assert {address.ip for address in listening} == {"127.0.0.1"}
        assert {address.port for address in listening} == {stack.postgres, stack.prefect, stack.mlflow}
        at_start = (stack.folder.parent / "arguments").read_text()
        assert "setsid" in at_start
        for name in ("password", "prefect-secret"):
            secret = stack.secret(name).rpartition(":")[2]
            assert len(secret) == 48
            assert (stack.folder / name).stat().st_mode & 0o777 == 0o600
            assert not any(secret in command for command in commands), "anybody can read it"
            assert secret not in at_start
            held = [path for path in stack.folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
            assert held == [stack.folder / name], "no log and no other file has it"
        assert stack.folder.stat().st_mode & 0o066 == 0
        assert all(path.stat().st_mode & 0o077 == 0 for path in (stack.folder / "logs").iterdir())
        command = [found[-1].with_name("psql"), "-h", "127.0.0.1", "-p", str(stack.postgres), "-U", "poise", "-l", "-w"]
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0

    def test_a_stranger_is_refused_by_prefect_and_other_names_and_origins_by_mlflow(self, stack: Stack) -> None:
        prefect, mlflow = stack.addresses["PREFECT_API_URL"], stack.addresses["MLFLOW_TRACKING_URI"]
        user = tuple(stack.secret("prefect-secret").split(":"))
        assert httpx.post(f"{prefect}/deployments/filter", json={}).status_code == 401
        assert httpx.post(f"{prefect}/deployments/filter", json={}, auth=user).status_code == 200
        for origin, allowed in (("http://evil.example", None), (prefect[:-4], prefect[:-4])):
            told = httpx.get(f"{prefect}/health", headers={"Origin": origin})
            assert told.headers.get("access-control-allow-origin") == allowed
        search = f"{mlflow}/api/2.0/mlflow/experiments/search"
        assert httpx.post(search, json={"max_results": 1}).status_code == 200
        for header in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            assert httpx.post(search, json={"max_results": 1}, headers=header).status_code == 403

    def test_servers_hold_no_key_of_a_language_model(self, stack: Stack) -> None:
        for name in ("prefect", "mlflow"):
            process = psutil.Process(int(stack.pids()[name].split()[0]))
            assert not {"OPENAI_API_KEY", "HF_TOKEN"} & process.environ().keys()
            assert process.environ()["AWS_SESSION_TOKEN"] == "of the store for artifacts"  # keys of a role need it
        assert psutil.Process(int(stack.pids()["worker"].split()[0])).environ()["OPENAI_API_KEY"] == "sk-of-a-person"

    def test_a_command_without_the_secret_is_one_line(self, stack: Stack, tmp_path: Path) -> None:
        environment = {**os.environ, **stack.addresses, "PREFECT_API_AUTH_STRING": "poise:wrong"}
        command = [BIN / "poise", "evolve", "--preset", "smoke", "--run-dir", tmp_path / "run"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 3
        assert done.stderr.splitlines()[-1].startswith(
            f"poise: the Prefect server at {stack.addresses['PREFECT_API_URL']} asks for"
        )
        assert "Traceback" not in done.stderr

    def test_a_generation_with_postgresql_behind_both_servers(self, stack: Stack, tmp_path: Path) -> None:
        environment = {**os.environ, **stack.addresses, "COLUMNS": "140"}
        command = [
            BIN / "poise",
            "evolve",
            "--preset",
            "smoke",
            "--set",
            "search.parents=1",
            "--run-dir",
            tmp_path / "run",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
        assert done.returncode == 0, done.stderr
        assert "behind" not in done.stderr
        run = RunDirectory.read(tmp_path / "run")
        assert run.archive.check() == []
        assert not (run.path / "mlflow.db").exists()
        assert not (run.path / "prefect").exists()
        for name, address in stack.addresses.items():
            shown = address in done.stdout + done.stderr
            assert shown == (name != "PREFECT_API_AUTH_STRING"), "the summary says where to look, and no secret"
        assert "View run" not in done.stdout, "MLflow prints the address as it is, a password in it included"

        flows = stack.query("prefect", "select name || ':' || state_type from flow_run order by name")
        assert flows.split() == [*f"evolve {run.path}:COMPLETED".split(), "gen-01:COMPLETED"]
        assert stack.query("prefect", "select distinct state_type from task_run") == "COMPLETED"

        candidates = run.archive.rows("candidates")
        names = {row["name"] for row in candidates}
        levels = "select value from tags where key = 'level' and run_uuid = runs.run_uuid"
        shown = stack.query("mlflow", f"select name from runs where ({levels}) = 'candidate'").splitlines()
        assert sorted(shown) == sorted(names)
        assert len(names) == 1 + 1 + 1  # base policy, baseline, a child of it
        points = stack.query("mlflow", "select count(distinct step) from metrics where key = 'reward_mean'")
        assert int(points) == run.preset.protocol.training.steps

    def test_artifacts_are_read_through_the_server_and_lie_in_the_bucket(self, stack: Stack, bucket: Any) -> None:
        one = stack.query("mlflow", "select run_uuid from runs where name = 'GRPO'")
        for name, part in (("candidate.py", "LOSS_AGGREGATION"), ("reflection.md", "GRPO"), ("report.html", "<html")):
            url = f"{stack.addresses['MLFLOW_TRACKING_URI']}/get-artifact?run_id={one}&path={name}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                assert part in answer.read().decode()
        held = [found["Key"] for found in bucket.list_objects_v2(Bucket="mlflow")["Contents"]]
        assert any(key.startswith("artifacts/") and key.endswith(f"/{one}/artifacts/candidate.py") for key in held), (
            held
        )
        assert not (stack.folder / "mlartifacts").exists()

    def test_a_champion_is_registered_on_the_server_once(self, stack: Stack, tmp_path: Path) -> None:
        protocol = samples.make_protocol()
        archive = Archive(tmp_path / "archive").initialise()
        samples.add_candidate(archive, protocol, samples.GRPO, "GRPO", 0, (), 0.3)
        samples.add_candidate(archive, protocol, samples.AV, "AV", 1, (samples.GRPO,), 0.6)
        tracker = Tracker(stack.addresses["MLFLOW_TRACKING_URI"], "poise/made-up/server")
        for _ in range(2):
            assert not tracker.sync_archive(archive, protocol, force=True).error
        aliases = "select count(*) from registered_model_aliases where name = 'poise-made-up-server'"
        assert stack.query("mlflow", aliases) == "0"
        archive.append("replications", [samples.replication(protocol, samples.AV, "replicated")])
        assert not tracker.sync_archive(archive, protocol, force=True).error
        assert Tracker(tracker.uri, tracker.experiment).sync_archive(archive, protocol).unchanged == 2 + 2 + 6
        url = f"{tracker.uri}/api/2.0/mlflow/registered-models/alias?name=poise-made-up-server&alias=champion"
        with urllib.request.urlopen(url, timeout=60) as answer:
            version: dict[str, Any] = json.load(answer)["model_version"]
        assert version["version"] == "1"
        assert {tag["key"]: tag["value"] for tag in version["tags"]}["candidate"] == samples.AV
        code = f"import mlflow; print(mlflow.artifacts.download_artifacts('models:/{version['name']}@champion'))"
        environment = {**os.environ, **stack.addresses}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert (Path(done.stdout.strip()) / "candidate.py").read_text() == samples.SOURCE.format(name="AV")

    def test_what_was_killed_is_started_again_alone(self, stack: Stack) -> None:
        before = stack.pids()
        victim = psutil.Process(int(before["mlflow"].split()[0]))
        family = [victim, *victim.children(recursive=True)]
        for process in family:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=30)
        status = stack("status")
        assert status.returncode == 1
        assert [line.split()[0] for line in status.stdout.splitlines() if "not running" in line] == ["mlflow"]
        stack.up()
        after = stack.pids()
        assert {name for name in SERVICES if after[name] != before[name]} == {"mlflow"}

    def test_down_leaves_no_process_and_up_finds_the_data_again(self, stack: Stack) -> None:
        runs = stack.query("mlflow", "select count(*) from runs")
        for _ in range(2):  # the second one has nothing to do
            done = stack("down")
            assert done.returncode == 0, done.stderr
            assert processes_of(stack) == []
        assert stack("status").returncode == 1
        stack.up()
        assert stack.query("mlflow", "select count(*) from runs") == runs
        assert stack.query("prefect", "select count(*) from flow_run") == "2"
        assert stack("down").returncode == 0
        assert processes_of(stack) == []
