"""``poise explore --serve``: the page of a running evolution on loopback, made anew whenever a browser asks for it."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from poise_core.archive import ArchiveError

HOST = "127.0.0.1"


def serve_pages(page: Callable[[], str], port: int, *, on_ready: Callable[[str], None]) -> None:
    """Answer ``GET /`` until interrupted.

    Only requests that name a loopback address are answered, so that a page of another site, whose name was pointed here, reads
    nothing.

    Args:
        page: makes the page; one at a time.
        port: to listen on; 0 for a free one.
        on_ready: called with the address once it answers.

    Raises:
        OSError: the port is taken.
    """
    making = Lock()

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
                with making:
                    content = page().encode()
            except ArchiveError as error:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE, explain=str(error))
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing; the terminal is the user's."""

    with ThreadingHTTPServer((HOST, port), Handler) as server:
        on_ready(f"http://{HOST}:{server.server_port}/")
        server.serve_forever()
