"""The leaderboard as the server shows it: every Overall with its limits and its seeds."""

from __future__ import annotations

import base64
import logging
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import archive_samples as samples
import pytest
from markdown_it import MarkdownIt

from poise_core.agents.roles import Reflection
from poise_core.archive import Archive
from poise_core.evidence.intervals import Interval
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.views import LeaderboardRow

pytestmark = pytest.mark.xdist_group("prefect")


def _cells(row: LeaderboardRow) -> dict[str, Any]:
    from tasks.reports import _cells  # imports Prefect, which only the worker with this group needs

    return _cells(row)


def row(name: str, **known: object) -> LeaderboardRow:
    return LeaderboardRow(
        known.pop("rank", None), name, name, 1, "catalogue", "evolution", **{"status": "evaluated", **known}
    )  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("user", ["", "anna:pass%40word@"])
def test_the_link_to_mlflow_has_no_password_and_signs_in_with_it(user: str) -> None:
    """A link with one stood in Prefect for everybody who looks, and the server was asked without it."""
    from tasks.reports import experiment_link

    asked: list[tuple[str, str | None]] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"experiment": {"experiment_id": "7"}}')

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_address[1]}"
        link = experiment_link(f"http://{user}{place}/", "poise/x")
        server.shutdown()
    assert link == f"http://{place}/#/experiments/7"
    basic = f"Basic {base64.b64encode(b'anna:pass@word').decode()}" if user else None
    assert asked == [("/api/2.0/mlflow/experiments/get-by-name?experiment_name=poise%2Fx", basic)]


@pytest.mark.slow
def test_an_overall_has_its_limits_and_its_seeds() -> None:
    shown = _cells(
        row("a", rank=1, overall=Interval(52.44, 50.1, 54.7, 3), delta=Interval(0.4, -1.0, 1.8, 3),
            verdict="not distinguishable", state="replicated, undeclared")
    )  # fmt: skip
    assert shown == {
        "rank": 1, "candidate": "a", "generation": 1, "Overall": "52.4 [50.1, 54.7]", "seeds": 3, "delta": "+0.4 [-1.0, +1.8]",
        "verdict": "not distinguishable; replicated, undeclared",
    }  # fmt: skip


def test_one_seed_without_limits_says_so_and_what_was_not_measured_is_empty() -> None:
    alone = Interval(40.0, -math.inf, math.inf, 1)
    assert _cells(row("b", overall=alone))["Overall"] == "40.0 (one seed)"
    assert _cells(row("b", overall=alone))["seeds"] == 1
    stopped = _cells(row("c", status="stopped", state="stopped at the proxy"))
    assert [stopped[name] for name in ("Overall", "seeds", "delta", "verdict")] == ["", "", "", "stopped at the proxy"]
    failed = _cells(row("d", status="failed", failure={"kind": "diverged", "stage": "train"}, state="revised"))
    assert failed["verdict"] == "diverged in train"


@pytest.mark.slow
def test_the_artifacts_of_a_hostile_run_are_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The UI renders artifacts and their descriptions as Markdown, with HTML in it."""
    import tasks.replication
    import tasks.reports
    import tasks.stages

    archive, protocol = Archive(tmp_path / "archive").initialise(), samples.make_protocol()
    hostile = "x ![i](http://evil.example/i.png) <img src=y> [a](javascript:b) \x1b[31m \u202e ```\n# no"
    samples.add_candidate(archive, protocol, "root-0000000001", hostile, 0, (), 0.4)
    evidence, made = RunEvidence.load(archive, protocol), []
    for module in (tasks.reports, tasks.stages, tasks.replication):
        monkeypatch.setattr(module, "create_markdown_artifact", lambda *given, **named: made.append((*given, named)))
        monkeypatch.setattr(module, "current_evolution", lambda _: fake)
    monkeypatch.setattr(tasks.reports, "create_table_artifact", lambda *given, **named: made.append((*given, named)))
    taught = Reflection(candidate_id="r", parent_id=None, reflector="rules", summary=hostile, avoid=(hostile,))
    row = dict.fromkeys(("candidate_id", "outcome", "seeds", "declared"), "x") | {"message": hostile}
    fake = SimpleNamespace(
        run=SimpleNamespace(evidence=lambda: evidence, path=tmp_path / hostile[:12]),
        reflect=lambda _: taught,
        executor=None,
        observer=None,
        trials=SimpleNamespace(compute_slot=None),
    )
    record = SimpleNamespace(replication=row, rows=[])
    monkeypatch.setattr(
        tasks.replication.Examination, "within", lambda *_, **__: SimpleNamespace(examine=lambda *_, **__: record)
    )
    monkeypatch.setattr(tasks.replication, "get_run_logger", lambda: logging.getLogger("examination"))
    tasks.reports.show_leaderboard.fn(hostile)
    tasks.stages.reflect.fn("run", SimpleNamespace(name=hostile), None)
    tasks.replication.replicate.fn("run", "root-0000000001", hostile)
    assert len(made) == 5
    for content, named in made:
        texts = [content] if isinstance(content, str) else [str(cell) for line in content for cell in line.values()]
        for text in (*texts, named["description"]):
            kinds = {one.type for token in MarkdownIt().parse(text) for one in (token, *(token.children or ()))}
            assert not kinds & {"link_open", "image", "html_inline", "html_block"}, text
            assert not set("\x1b\u202e") & set(text)
