"""The Prefect server of a run: the one that is configured, or a private one that lives no longer than this process.

Prefect can start a private server by itself. That one is in the terminal's process group, so a Ctrl-C ends it before the
flow can report that it was stopped, and a killed flow leaves it running. This one outlives Ctrl-C, ends when its flow is killed,
and is started again at the same address when it dies before its flow: Prefect's client repeats an unanswered request for a minute.
Whoever can use the API can run code as its owner, so a private server asks for a secret that lives no longer than it does.
Import this module, and enter ``prefect_server``, before ``prefect`` is imported: it reads its settings then.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from poise_core.escaping import without_credentials
from poise_core.failures import Cancelled, InfrastructureError

START_SECONDS = 600.0

SECRET = "PREFECT_API_AUTH_STRING"
"""The setting from which Prefect's clients take what a server asks for, as ``user:password``."""

ANSWER_SECONDS = 20.0
"""How long a server that the user has named in PREFECT_API_URL is waited for."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

MOST_STARTS = 20
"""How often one private server is started; one that dies that often has a lasting fault, which its log shows."""


def never_proxy_loopback() -> None:
    """Except this machine from the proxies of the environment, for this process and its children.

    Raises:
        InfrastructureError: a proxy is of a kind that the HTTP client here cannot use; it would fail for every address.
    """
    proxies = {
        name: os.environ[name] for name in os.environ if name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    }
    for name, proxy in proxies.items():
        if proxy.lower().startswith("socks") and importlib.util.find_spec("socksio") is None:
            raise InfrastructureError(
                f"{name} names a SOCKS proxy, which needs a package: pip install 'httpx[socks]', or unset {name}"
            )
    for name in ("NO_PROXY", "no_proxy"):
        given = [
            part.strip() for part in os.environ.get(name, os.environ.get("no_proxy", "")).split(",") if part.strip()
        ]
        if "*" not in given:
            os.environ[name] = ",".join(dict.fromkeys((*given, *_LOOPBACK)))


def _without_settings() -> dict[str, str]:
    """This environment without the user's settings for a Prefect server of theirs, its database included."""
    kept = ("PREFECT_HOME", "PREFECT_SERVER_ANALYTICS_ENABLED")
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or not name.startswith(("PREFECT_", "PREFECT__"))
    }


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """The URL of the API, also set as ``PREFECT_API_URL`` with ``PREFECT_API_AUTH_STRING``, for the length of the block.

    Args:
        home: where a private server keeps its database, unless ``PREFECT_HOME`` is set.

    Raises:
        InfrastructureError: the private server does not start; the message says where its log is.
    """
    if url := os.environ.get("PREFECT_API_URL"):
        yield url
        return
    assert "prefect" not in sys.modules, "prefect has read its settings already"
    folder = Path(os.environ.setdefault("PREFECT_HOME", str(home)))
    folder.mkdir(parents=True, exist_ok=True)
    port, secret = _free_port(), f"poise:{secrets.token_hex(24)}"
    url = f"http://127.0.0.1:{port}/api"
    before = os.environ.get(SECRET)
    os.environ.update({"PREFECT_API_URL": url, SECRET: secret})
    server = _PrivateServer(folder / "server.log", port, secret)
    try:
        yield url
    finally:
        server.close()
        del os.environ["PREFECT_API_URL"], os.environ[SECRET]
        if before is not None:
            os.environ[SECRET] = before


class _PrivateServer:
    """The server's process, and a thread that starts it again when it dies."""

    def __init__(self, log: Path, port: int, secret: str) -> None:
        self._log, self._port = log, port
        self._environment = {
            **_without_settings(),
            "PREFECT_PROFILES_PATH": str(log.parent / "no-profiles.toml"),
            "PREFECT_SERVER_API_AUTH_STRING": secret,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",  # no page in a browser calls it
        }
        self._closing = threading.Event()
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """End the server: it shuts down when its input closes, and is killed where that takes longer than ten seconds."""
        self._closing.set()
        self._keeper.join()
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.server_process", str(self._port)],
                env=self._environment,
                stdin=subprocess.PIPE,  # its end tells the server that this process is gone
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _keep(self) -> None:
        starts = 1
        while not self._closing.wait(0.2):
            if self._process.poll() is not None and starts < MOST_STARTS:
                starts += 1
                self._process = self._start()


def _not_answering(url: str, what: str) -> InfrastructureError:
    return InfrastructureError(f"PREFECT_API_URL: the server at {without_credentials(url)} {what}")


def wait_until_healthy(url: str, should_stop: Callable[[], bool] = lambda: False, *, named: bool = False) -> None:
    """Return when the API answers, and lets this process use it.

    Args:
        url: of the API.
        should_stop: asked many times a second.
        named: whether the user has named this server, which is then up already and gets ``ANSWER_SECONDS``.

    Raises:
        Cancelled: ``should_stop`` returned true.
        InfrastructureError: it does not within ten minutes (on a machine that is busy it has taken two), or it asks for a secret
            that this process does not have.
    """
    deadline = time.monotonic() + (ANSWER_SECONDS if named else START_SECONDS)
    while time.monotonic() < deadline:
        if should_stop():
            raise Cancelled("stopped while waiting for the Prefect server")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                break
        except urllib.error.HTTPError as error:
            if named and error.code in (400, 404):
                raise _not_answering(
                    url, f"answers {error.code}: is it the address of its API, which ends in /api?"
                ) from None
            time.sleep(0.1)
        except ValueError:
            raise _not_answering(url, "is no address: it begins with http:// or https:// and ends in /api") from None
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    else:
        if named:
            raise _not_answering(url, f"does not answer within {ANSWER_SECONDS:.0f} s; start it, or unset the variable")
        place = without_credentials(url)
        raise InfrastructureError(
            f"the Prefect server at {place} does not answer; its log is server.log in PREFECT_HOME"
        )
    _require_access(url)


def _require_access(url: str) -> None:
    """Ask for what the server tells only to those who may use it; its health it tells to everybody.

    Prefect's own client asks, because a profile may have the secret, too.
    """
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except httpx.HTTPStatusError as error:
        if error.response.status_code in (401, 403):
            what = "another secret than that of" if os.environ.get(SECRET) else "a secret:"
            raise InfrastructureError(
                f"the Prefect server at {without_credentials(url)} asks for {what} PREFECT_API_AUTH_STRING; "
                "set it to the server's (infra/local-stack.sh env prints how)"
            ) from None
    except httpx.TransportError:
        pass  # it has just gone away again, which the first request of the flow will find, too


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
