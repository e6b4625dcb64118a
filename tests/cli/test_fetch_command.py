"""``poise fetch`` as a process, against a hub on loopback that speaks the hub's wire protocol."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from poise_core.policies.locate import resolve_policy

COMMIT = "5f0c7d1e" * 5


@dataclass
class Hub:
    """Repositories by name, and what was asked for."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # of files, where another size than theirs is told
    break_after: dict[str, int] = field(default_factory=dict)  # bytes after which the connection ends, once
    served: list[tuple[str, int, int]] = field(default_factory=list)  # file, first byte, bytes
    address: str = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def reply(self, status: int, content: bytes = b"", **headers: str) -> None:
                self.send_response(status)
                for name, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(content)

            def answer(self, *, body: bool) -> None:
                parts = unquote(urlsplit(self.path).path).strip("/").split("/")
                api = parts[0] == "api"
                name = "/".join(
                    parts[2:4] if api else parts[-2:] if len(parts) < 5 else parts[parts.index("resolve") - 2 :][:2]
                )
                if name.startswith("gated/"):
                    return self.reply(403, x_error_code="GatedRepo")
                files = hub.repositories.get(name)
                if files is None:
                    return self.reply(401, x_error_code="RepoNotFound")
                revision = parts[5] if api and len(parts) > 5 else COMMIT
                if revision not in ("main", COMMIT):
                    return self.reply(404, x_error_code="RevisionNotFound")
                listed = [self.described(path, content) for path, content in files.items()]
                if api and parts[4] == "tree":
                    return self.reply(200, json.dumps(listed).encode(), content_type="application/json")
                if api:
                    document = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
                    return self.reply(200, json.dumps(document).encode(), content_type="application/json")
                return self.file(parts[-1], files[parts[-1]], body=body)

            @staticmethod
            def described(path: str, content: bytes) -> dict[str, object]:
                size = hub.sizes.get(path, len(content))
                return {"type": "file", "path": path, "size": size, "oid": hashlib.sha1(content).hexdigest()}

            def file(self, path: str, content: bytes, *, body: bool) -> None:
                first = int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
                size = hub.sizes.get(path, len(content))
                self.send_response(206 if first else 200)
                self.send_header("etag", f'"{hashlib.sha1(content).hexdigest()}"')
                self.send_header("x-repo-commit", COMMIT)
                self.send_header("content-length", str(size - first))
                self.send_header("accept-ranges", "bytes")
                if first:
                    self.send_header("content-range", f"bytes {first}-{size - 1}/{size}")
                self.end_headers()
                if not body:
                    return
                end = min(len(content), first + hub.break_after.pop(path, len(content)))
                hub.served.append((path, first, end - first))
                self.wfile.write(content[first:end])
                if end < len(content):
                    self.close_connection = True

        return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub.handler())
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    shipped = resolve_policy(_smallest())
    files = {
        path.name: path.read_bytes() for path in shipped.iterdir() if path.is_file() and path.name != "__init__.py"
    }
    with serving(
        Hub({"some/model": {**files, "pytorch_model.bin": b"never read"}, "some/rows": {"a.parquet": b"rows"}})
    ) as made:
        yield made


def _smallest() -> str:
    from poise_core.policies.locate import shipped_policies

    return min(shipped_policies(), key=lambda name: (resolve_policy(name) / "model.safetensors").stat().st_size)


def python(hub: Hub, home: Path, *arguments: str, offline: str = "0") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": offline, "HF_ENDPOINT": hub.address, "HF_HOME": str(home)}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)


def poise(hub: Hub, home: Path, *arguments: str, offline: str = "0") -> subprocess.CompletedProcess[str]:
    return python(hub, home, "-c", "from poise_core.cli import app; app()", *arguments, offline=offline)


def fetch(hub: Hub, home: Path, policy: str, *more: str) -> subprocess.CompletedProcess[str]:
    return poise(hub, home, "fetch", "laptop", "--set", f"protocol.policy={policy}", *more)


@pytest.mark.exhaustive
def test_a_policy_is_fetched_resumed_and_then_used_offline(hub: Hub, tmp_path: Path) -> None:
    whole = 24 << 20  # the library writes what it has read every 10 MiB
    hub.repositories["some/rows"]["a.parquet"] = b"0" * whole
    hub.break_after["a.parquet"] = 16 << 20
    done = fetch(hub, tmp_path, f"some/model@{COMMIT}", "--dataset", "some/rows")
    assert done.returncode == 0, done.stderr
    assert f"model some/model@{COMMIT}, commit {COMMIT[:12]}" in done.stdout
    assert "dataset some/rows" in done.stdout
    assert f"pin it as some/rows@{COMMIT}" in done.stdout
    # the rest of the file that broke off, and nothing of formats that are not loaded
    (first, begun, _), (second, resumed, size) = (part for part in hub.served if part[0] == "a.parquet")
    assert (first, second, begun, resumed + size) == ("a.parquet", "a.parquet", 0, whole)
    assert resumed >= 10 << 20
    assert "pytorch_model.bin" not in {name for name, _, _ in hub.served}
    asked = len(hub.served)
    again = fetch(hub, tmp_path, f"some/model@{COMMIT}")
    assert ("0.0 MB to download" in again.stdout, len(hub.served)) == (True, asked)
    hub.repositories.clear()  # from here on nothing can be had
    there = poise(
        hub, tmp_path, "evolve", "--dry-run", "--set", f"protocol.policy=some/model@{COMMIT}", "--run-dir", str(tmp_path / "run"),
        offline="1",
    )  # fmt: skip
    assert there.returncode == 0, there.stderr


@pytest.mark.slow
def test_what_cannot_be_had_is_one_line(hub: Hub, tmp_path: Path) -> None:
    own = hub.repositories["some/model"]
    config = json.loads(own["config.json"])
    coded = {**config, "model_type": "shiny", "auto_map": {"AutoModelForCausalLM": "modeling_shiny.ShinyForCausalLM"}}
    hub.repositories["some/coded"] = {
        **own,
        "config.json": json.dumps(coded).encode(),
        "modeling_shiny.py": b"raise SystemExit",
    }
    hub.repositories["some/pickled"] = {"config.json": own["config.json"], "pytorch_model.bin": b""}
    hub.repositories["some/huge"] = {**own, "model-2.safetensors": b"x"}
    hub.sizes["model-2.safetensors"] = 10**15
    expected = {
        "gated/model": (2, "is gated: accept its terms"),
        "some/nothing": (2, "there is no model some/nothing"),
        "some/model@v9": (2, "has no revision 'v9'"),
        "some/coded": (2, "is a shiny model with code of its own, which is never run"),
        "some/pickled": (2, "has no *.safetensors file"),
        "some/huge": (3, "1000000.00 GB are to be downloaded"),
        "a/b/c": (2, "OWNER/NAME"),
    }
    script = f"""
import json
from typer.testing import CliRunner
from poise_core.cli import app
for name in {list(expected)}:
    done = CliRunner().invoke(app, ["fetch", "laptop", "--set", "protocol.policy=" + name])
    print("ANSWER", json.dumps([done.exit_code, done.stderr]))
"""
    done = python(hub, tmp_path, "-c", script)
    answers = [
        json.loads(line.removeprefix("ANSWER ")) for line in done.stdout.splitlines() if line.startswith("ANSWER")
    ]
    for (found, text), (status, message) in zip(answers, expected.values(), strict=True):
        assert (found, text.count("\n"), message in text) == (status, 1, True), text
    offline = poise(hub, tmp_path, "fetch", "laptop", "--set", "protocol.policy=some/model", offline="1")
    assert (offline.returncode, "HF_HUB_OFFLINE is set" in offline.stderr) == (3, True)


@pytest.mark.slow
def test_a_tokenizer_without_a_pad_token_is_told(tmp_path: Path) -> None:
    from poise_core.policies.fetch import FetchError, remark

    folder = tmp_path / "policy"
    shutil.copytree(resolve_policy(_smallest()), folder)
    assert remark(folder) == ""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None}))
    assert "the tokenizer has no pad token" in remark(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None, "eos_token": None}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    with pytest.raises(FetchError, match="names no token that ends a completion"):
        remark(folder)
