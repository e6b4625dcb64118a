"""A Prefect server that asks for a secret, a process worker and the deployments of prefect.yaml, all real, on loopback."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
from loopback import free_port

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_SECONDS = 900.0


class Operations:
    """The deployments of this tree on a server of their own, and a worker that serves them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clone = folder, REPOSITORY
        self.port = free_port()
        self.url, self.secret = f"http://127.0.0.1:{self.port}/api", f"poise:{secrets.token_hex(24)}"
        self.env = {
            **os.environ,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_API_AUTH_STRING": self.secret,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        self.client = httpx.Client(base_url=self.url, auth=tuple(self.secret.split(":")), timeout=120)

    def start(self, *command: str, **settings: str) -> subprocess.Popen[bytes]:
        """A process of the set-up; its output goes to a file named after it."""
        with (self.folder / f"{command[0]}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / "prefect", *command],
                env={**self.env, **settings},
                cwd=self.clone,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def prefect(self, *arguments: str) -> str:
        """What a command of Prefect prints; it must succeed."""
        done = subprocess.run(
            [BIN / "prefect", "--no-prompt", *arguments],
            env=self.env,
            cwd=self.clone,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def up(self) -> None:
        """Server, deployments, worker, in that order."""
        asks = {"PREFECT_SERVER_API_AUTH_STRING": self.secret, "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.url[:-4]}
        self.start("server", "start", "--port", str(self.port), **asks)
        self.wait(self.healthy, START_SECONDS)
        self.prefect("work-pool", "create", "poise", "--type", "process")
        self.prefect("deploy", "--all")
        self.postpone()
        self.worker = self.start("worker", "start", "--pool", "poise")

    def postpone(self) -> None:
        """Let the nightly schedule come due in twelve hours: at its own time a night of the tree's own run would begin beside."""
        name = "nightly-generation"
        nightly = self.call("GET", f"/deployments/name/{name}/{name}")
        for one in nightly["schedules"]:
            at = datetime.now(UTC) + timedelta(hours=12)
            cron = {"cron": f"{at.minute} {at.hour} * * *", "timezone": "UTC"}
            self.call("PATCH", f"/deployments/{nightly['id']}/schedules/{one['id']}", {"schedule": cron})

    def healthy(self) -> bool:
        try:
            return self.client.get("/health", timeout=5).is_success
        except httpx.TransportError:
            return False

    def down(self) -> None:
        self.client.close()
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process in self.trainings():
            process.kill()

    @staticmethod
    def wait(happened: Callable[[], Any], seconds: float) -> Any:
        """What ``happened`` returns once it is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if result := happened():
                return result
            time.sleep(0.25)
        raise AssertionError(f"{happened} was not true within {seconds:g} s")

    # through the API, as the UI does it

    def call(self, method: str, path: str, document: Any = None) -> Any:
        for _ in range(10):  # SQLite behind the server answers "locked" now and then, as 503
            reply = self.client.request(method, path, json=document)
            if reply.status_code != 503:
                break
            time.sleep(1)
        reply.raise_for_status()
        return reply.json() if reply.content else None

    def trigger(self, deployment: str, **parameters: Any) -> str:
        """Id of a new flow run."""
        found = self.call("GET", f"/deployments/name/{deployment}/{deployment}")
        made = self.call(
            "POST",
            f"/deployments/{found['id']}/create_flow_run",
            {"parameters": parameters, "state": {"type": "SCHEDULED"}},
        )
        return str(made["id"])

    def flow_run(self, identity: str) -> dict[str, Any]:
        return dict(self.call("GET", f"/flow_runs/{identity}"))

    def finished(self, identity: str, seconds: float = 1200.0) -> dict[str, Any]:
        """The flow run when it has come to a final state."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        self.wait(lambda: self.flow_run(identity)["state"]["type"] in final, seconds)
        return self.flow_run(identity)

    def set_state(self, identity: str, **state: Any) -> None:
        self.call("POST", f"/flow_runs/{identity}/set_state", {"state": state})

    def artifacts(self, **filters: Any) -> list[dict[str, Any]]:
        return list(self.call("POST", "/artifacts/filter", {"artifacts": filters} if filters else {}))

    def idle(self) -> bool:
        """Whether the worker has no flow run's process."""
        return not psutil.Process(self.worker.pid).children()

    def trainings(self) -> list[psutil.Process]:
        """Processes of trainings and evaluations in the folders of this session."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            if str(self.folder.parent) in line and "poise_core" in line:
                found.append(process)
        return found
