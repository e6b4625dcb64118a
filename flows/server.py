"""The Prefect server of a run: the one that is configured, or a private one that lives no longer than this process.

Prefect can start a private server by itself. That one is in the terminal's process group, so a Ctrl-C ends it before the
flow can report that it was stopped, and a killed flow leaves it running. This one outlives Ctrl-C, ends when its flow is killed,
and is started again at the same address when it dies before its flow: Prefect's client repeats an unanswered request for a minute.
Whoever can use the API can run code as its owner, so a private server asks for a secret that lives no longer than it does.
Import this module, and enter ``prefect_server``, before ``prefect`` is imported: it reads its settings then.
"""

from __future__ import annotations

import base64
import contextvars
import http.client
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from poise_core.escaping import one_line, without_credentials
from poise_core.failures import Cancelled, InfrastructureError

START_SECONDS = 600.0

SECRET = "PREFECT_API_AUTH_STRING"
"""The setting from which Prefect's clients take what a server asks for, as ``user:password``."""

ANSWER_SECONDS = 10.0
"""How long a server that the user has named in PREFECT_API_URL is waited for."""

MOST_STARTS = 20
"""How often one private server is started; one that dies that often has a lasting fault, which its log shows."""


FAILED_STARTS = 2
"""How often a private server may end before it has answered once, until its fault counts as a lasting one."""


class PrefectServer:
    """Where the API is, and what is known against it."""

    def __init__(self, url: str, private: _PrivateServer | None = None) -> None:
        self.url, self._private = url, private

    @property
    def named(self) -> bool:
        """Whether the user has named it in PREFECT_API_URL."""
        return self._private is None

    def fault(self) -> str:
        """Why it will never answer, in one line; "" while it may."""
        return self._private.fault() if self._private else ""

    def has_answered(self) -> None:
        """Remember that it can be started: when it dies it is started again."""
        if self._private:
            self._private.answered = True


@contextmanager
def prefect_server(home: Path) -> Iterator[PrefectServer]:
    """The server, set as ``PREFECT_API_URL`` with ``PREFECT_API_AUTH_STRING`` for the length of the block; imports ``prefect``.

    Where ``PREFECT_API_URL`` names one, all settings of the user's are for it and hold. Otherwise they are for another server than
    the private one: neither it nor this process reads any of them, from variables, profiles or files of the working directory.

    Args:
        home: where a private server keeps its database.

    Raises:
        InfrastructureError: the private server does not start; the message says where its log is.
    """
    if url := os.environ.get("PREFECT_API_URL", "").strip().rstrip("/"):
        os.environ["PREFECT_API_URL"] = url
        yield PrefectServer(url)
        return
    assert "prefect" not in sys.modules, "prefect has read its settings already"
    home.mkdir(parents=True, exist_ok=True)
    port, secret = _free_port(), f"poise:{secrets.token_hex(24)}"
    url = f"http://127.0.0.1:{port}/api"
    before = {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
    for name in before:
        del os.environ[name]
    os.environ.update(
        PREFECT_HOME=str(home),
        PREFECT_PROFILES_PATH=str(home / "no-profiles.toml"),
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL",  # the display tells what happens
    )
    server = _PrivateServer(home, port, secret)
    os.environ.update({"PREFECT_API_URL": url, SECRET: secret})
    try:
        with chdir(home):
            import prefect.main  # noqa: F401  (takes two seconds, in which the server starts)
        yield PrefectServer(url, server)
    finally:
        server.close()
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            del os.environ[name]
        os.environ.update(before)


class _PrivateServer:
    """The server's process, and a thread that starts it again when it dies."""

    def __init__(self, home: Path, port: int, secret: str) -> None:
        self._home, self._log, self._port = home, home / "server.log", port
        self._environment = {
            **os.environ,
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",  # why it does not start; its console is the log
            "PREFECT_SERVER_API_AUTH_STRING": secret,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",  # no page in a browser calls it
        }
        self.answered = False
        self._failed = 0  # starts that have ended before it answered
        self._closing = threading.Event()
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def fault(self) -> str:
        """Why it does not start; "" while it may."""
        if self.answered or self._failed < FAILED_STARTS:
            return ""
        with self._log.open("rb") as stream:
            stream.seek(max(0, self._log.stat().st_size - 65536))
            written = stream.read().decode("utf-8", "replace")
        said = re.findall(r"^[a-z]\w*(?:\.\w+)+: (.+)$", written, re.MULTILINE)  # last lines of tracebacks
        reason = said[-1] if said else "its process ends"
        return (
            f"the private Prefect server does not start: {reason} (log: {self._log}); where its database is damaged or comes from "
            f"another version of Prefect, move {self._home} away, and a new one is made"
        )

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
        root = str(Path(__file__).parents[1])
        program = (
            f"import sys; sys.path.insert(0, {root!r}); from flows.server_process import main; main(int(sys.argv[1]))"
        )
        with self._log.open("ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-I", "-c", program, str(self._port)],
                cwd=self._home,  # where no file holds settings of Prefect
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
                self._failed += not self.answered
                if not self.answered and self._failed >= FAILED_STARTS:
                    return
                starts += 1
                self._process = self._start()


def _not_answering(url: str, what: str) -> InfrastructureError:
    return InfrastructureError(f"PREFECT_API_URL: the server at {without_credentials(url)} {what}")


def wait_until_healthy(
    server: PrefectServer, should_stop: Callable[[], bool] = lambda: False, *, up: bool = True
) -> None:
    """Return when the API answers, and lets this process use it.

    Args:
        server: whose API it is.
        should_stop: asked many times a second.
        up: whether a server that the user has named should be up already; then it gets ``ANSWER_SECONDS``.

    Raises:
        Cancelled: ``should_stop`` returned true.
        InfrastructureError: it does not within ten minutes (on a machine that is busy it has taken two), it cannot, or it asks for
            a secret that this process does not have.
    """
    url, hurried, last = server.url, server.named and up, ""
    deadline = time.monotonic() + (ANSWER_SECONDS if hurried else START_SECONDS)
    while time.monotonic() < deadline:
        if fault := server.fault():
            raise InfrastructureError(fault)
        try:
            _stoppable(lambda: urllib.request.urlopen(_health_of(url), timeout=5).close(), should_stop)
            break
        except urllib.error.HTTPError as error:
            if server.named and error.code in (401, 403):
                break  # asks for its secret
            if server.named and error.code in (400, 404, 405, 501):
                what = f"answers {error.code}: is it the address of its API, which ends in /api?"
                raise _not_answering(url, what) from None
            last = f"status {error.code}"
        except (urllib.error.URLError, OSError) as error:
            last = str(getattr(error, "reason", error))
        except (ValueError, http.client.HTTPException) as error:
            if isinstance(error, ValueError | http.client.InvalidURL):
                what = "is no address: it begins with http:// or https:// and ends in /api"
                raise _not_answering(url, what) from None
            last = type(error).__name__
        _stoppable(lambda: time.sleep(0.1), should_stop)
    else:
        if hurried:
            why = f" ({one_line(last, 80)})" if last else ""
            what = f"does not answer within {ANSWER_SECONDS:.0f} s{why}; start it, or unset the variable"
            raise _not_answering(url, what)
        place = without_credentials(url)
        raise InfrastructureError(
            f"the Prefect server at {place} does not answer; its log is server.log in PREFECT_HOME"
        )
    server.has_answered()
    _stoppable(lambda: _require_access(server), should_stop)


def _health_of(url: str) -> urllib.request.Request:
    """The request for a server's health; user and password of the address go into a header, as Prefect's client does it.

    Raises:
        ValueError: it is no address.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(url)
    place, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(f"{parts._replace(netloc=host).geturl()}/health")
    if place:
        request.add_header("Authorization", f"Basic {base64.b64encode(urllib.parse.unquote(place).encode()).decode()}")
    return request


def _stoppable(work: Callable[[], None], should_stop: Callable[[], bool]) -> None:
    """Do the work in a thread that is no longer waited for once ``should_stop`` returns true.

    Raises:
        Cancelled: it returned true.
    """
    ends: list[BaseException | None] = []

    def do() -> None:
        try:
            work()
            ends.append(None)
        except BaseException as error:
            ends.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(do,), daemon=True)
    thread.start()
    while thread.is_alive():
        if should_stop():
            raise Cancelled("stopped while waiting for the Prefect server")
        thread.join(0.1)
    if ends and (end := ends[0]) is not None:
        raise end


def _require_access(server: PrefectServer) -> None:
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
                f"the Prefect server at {without_credentials(server.url)} asks for {what} PREFECT_API_AUTH_STRING; "
                "set it to the server's (infra/local-stack.sh env prints how)"
            ) from None
        if server.named and error.response.status_code == 404:
            raise _not_answering(server.url, "is no Prefect server, or one of another version") from None
    except httpx.TransportError:
        pass  # it has just gone away again, which the first request of the flow will find, too
    except ValueError:  # what answers speaks of something else
        raise _not_answering(server.url, "is no Prefect server, or one of another version") from None


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
