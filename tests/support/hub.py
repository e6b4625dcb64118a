"""A model hub on loopback that speaks the wire protocol of the real one, as far as ``huggingface_hub`` and ``datasets`` ask for it.

Repositories hold bytes. As on the real hub every file answers with its ETag and the commit, a large file (or one that ``moved``
names) sends the client elsewhere, ranges are honoured, and what cannot be had carries its ``X-Error-Code``.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "5f0c7d1e" * 5
TOKEN = "hf_of_somebody_who_has_accepted"
ELSEWHERE = "elsewhere"


@dataclass
class Hub:
    """Repositories by name, and what was asked for; a name that begins with ``gated/`` asks for ``TOKEN``."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)  # files that lie on another host, as large ones do
    sizes: dict[str, int] = field(default_factory=dict)  # of files, where another size than theirs is told
    break_after: dict[str, list[int]] = field(default_factory=dict)  # bytes after which its next answers break off
    served: list[tuple[str, int, int]] = field(default_factory=list)  # file, first byte, bytes
    address: str = ""

    def described(self, path: str, content: bytes) -> dict[str, Any]:
        """A file, as the routes ``tree`` and ``paths-info`` list it."""
        size = self.sizes.get(path, len(content))
        entry = {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(content).hexdigest()}
        if path in self.moved:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
        return entry

    def listed(self, files: dict[str, bytes], path: str, *, whole: bool) -> list[dict[str, Any]]:
        """What lies in a folder of a repository; with ``whole`` in those below it, too."""
        folder = f"{path}/" if path else ""
        inside = {one: content for one, content in files.items() if one.startswith(folder)}
        found = {one: self.described(one, content) for one, content in inside.items()}
        for one in inside:
            first, slash, _ = one.removeprefix(folder).partition("/")
            if slash and not whole:
                del found[one]
            if slash:
                found[folder + first] = {"type": "directory", "path": folder + first, "size": 0, "oid": "0" * 40}
        return list(found.values())

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """The class that answers requests."""
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def reply(self, status: int, document: Any = None, **headers: str) -> None:
        content = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.reply(status, {"error": message}, x_error_code=code, x_error_message=message)

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[0] == ELSEWHERE:
            return self.content("/".join(parts[3:]), self.hub.repositories["/".join(parts[1:3])], moved=True)
        api = parts[0] == "api"
        kind = parts.pop(1 if api else 0) if (parts[1 if api else 0] in ("models", "datasets")) else "models"
        if api:
            parts.pop(0)
        name, rest = "/".join(parts[:2]), parts[2:]
        if name.startswith("gated/") and self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "GatedRepo", f"Access to {kind[:-1]} {name} is restricted.")
        files = self.hub.repositories.get(name)
        if files is None:
            return self.refuse(401, "RepoNotFound", "Invalid username or password.")
        what, revision, path = (*rest[:2], "/".join(rest[2:])) if len(rest) > 1 else ("", "main", "")
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if not api:
            return self.content(path, files, name)
        if what == "tree":
            return self.reply(200, self.hub.listed(files, path, whole="recursive=true" in self.path.lower()))
        if what == "paths-info":
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else _form(body)
            return self.reply(200, [self.hub.described(one, files[one]) for one in wanted if one in files])
        siblings = [{"rfilename": path} for path in files]
        about = {"id": name, "sha": COMMIT, "private": False, "gated": False, "tags": [], "downloads": 0, "likes": 0}
        return self.reply(200, {**about, "siblings": siblings, "lastModified": "2025-01-01T00:00:00.000Z"})

    def content(self, path: str, files: dict[str, bytes], name: str = "", *, moved: bool = False) -> None:
        """A file or a part of it; of one that has moved where it is."""
        if path not in files:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        content, size = files[path], self.hub.sizes.get(path, len(files[path]))
        etag = hashlib.sha256(content).hexdigest() if path in self.hub.moved else hashlib.sha1(content).hexdigest()
        if path in self.hub.moved and not moved:
            host = self.hub.address.replace("127.0.0.1", "localhost")  # another one, as clients see it
            there = f"{host}/{ELSEWHERE}/{name}/{path}"
            told = {"x_linked_etag": f'"{etag}"', "x_linked_size": str(size), "x_repo_commit": COMMIT}
            return self.reply(302, location=there, **told)
        first, _, last = self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        begin, end = int(first), int(last) + 1 if last else size
        self.send_response(206 if "range" in self.headers else 200)
        self.send_header("etag", f'"{etag}"')
        self.send_header("accept-ranges", "bytes")
        self.send_header("content-length", str(end - begin))
        if not moved:
            self.send_header("x-repo-commit", COMMIT)
        if "range" in self.headers:
            self.send_header("content-range", f"bytes {begin}-{end - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        breaks = self.hub.break_after.get(path)
        sent = content[begin : min(end, begin + breaks.pop(0)) if breaks else end]
        self.hub.served.append((path, begin, len(sent)))
        self.wfile.write(sent)
        if len(sent) < end - begin:
            self.close_connection = True
        return None


def _form(body: bytes) -> list[str]:
    return [
        unquote(part.partition("=")[2].replace("+", " "))
        for part in body.decode().split("&")
        if part.startswith("paths=")
    ]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, answering at its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub.handler())
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


def python(hub: Hub, home: Path, *arguments: str, offline: str = "0", **more: str) -> subprocess.CompletedProcess[str]:
    """A process of Python whose hub this is, with caches of its own below ``home``."""
    environment = {**os.environ, "HF_HUB_OFFLINE": offline, "HF_ENDPOINT": hub.address, "HF_HOME": str(home), **more}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "POISE_CACHE": str(home / "poise")}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)


def poise(hub: Hub, home: Path, *arguments: str, offline: str = "0", **more: str) -> subprocess.CompletedProcess[str]:
    """The command in such a process."""
    return python(hub, home, "-c", "from poise_core.cli import app; app()", *arguments, offline=offline, **more)
