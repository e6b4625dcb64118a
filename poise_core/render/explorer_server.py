"""``poise explore --serve``: the page of a running evolution on loopback, made anew when a browser asks and the run has changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from poise_core.archive import ArchiveError
from poise_core.run_directory import RunDirectoryError

HOST = "127.0.0.1"


def serve_pages(
    page: Callable[[], str], port: int, *, revision: Callable[[], Hashable], on_ready: Callable[[str], None]
) -> None:
    """Answer ``GET /`` until interrupted.

    Only requests that name a loopback address are answered, so that a page of another site, whose name was pointed here, reads
    nothing.

    Args:
        page: makes the page; one at a time.
        port: to listen on; 0 for a free one.
        revision: of what the page is made from. It is asked before the page is made, so what comes while that is done is in the
            next one.
        on_ready: called with the address once it answers.

    Raises:
        OSError: the port is taken.
    """
    making = Lock()
    made: dict[Hashable, bytes] = {}  # the last page alone

    def current() -> bytes:
        with making:
            key = revision()
            if key not in made:
                content = page().encode()
                made.clear()
                made[key] = content
            return made[key]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (HOST, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            if self.path.partition("?")[0] != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                content = current()
            except (ArchiveError, RunDirectoryError) as error:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            with suppress(ConnectionError):  # the reader has gone on meanwhile
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing; the terminal is the user's."""

    with ThreadingHTTPServer((HOST, port), Handler) as server:
        on_ready(f"http://{HOST}:{server.server_port}/")
        server.serve_forever()
