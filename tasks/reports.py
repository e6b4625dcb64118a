"""Tasks that publish results: leaderboard, lineage and nightly report as artifacts, and everything in MLflow."""

from __future__ import annotations

import base64
import contextvars
import json
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from queue import Empty, Queue
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from poise_core.escaping import code_block, markdown, markdown_page, one_line, shell_command
from poise_core.evidence.format import format_interval
from poise_core.files import write_atomically
from poise_core.render.lines import judgement, untuned_note
from poise_core.render.markdown import fenced, render_nightly_report
from poise_core.render.terminal import render_lineage
from poise_core.tracking.sync import SyncReport, Tracker
from poise_core.views import LeaderboardRow, leaderboard, lineage
from poise_core.views.explorer import page_address
from poise_core.views.nightly import NightlyRun, nightly_report, report_file
from tasks.session import current_evolution

MLFLOW_SECONDS = 5.0
STOP_SECONDS = 2.0
"""How long a sync with MLflow may go on after the run was stopped."""
LINKED = 10
"""Candidates whose place in the explorer's page is told."""


@task(task_run_name="show leaderboard")
def show_leaderboard(run_dir: str, after: Any = None) -> str:
    """The leaderboard as a table artifact, the lineage and the way to the explorer as Markdown; the name of the first."""
    run = current_evolution(run_dir).run
    evidence = run.evidence()
    rows = leaderboard(evidence)
    about = f"Leaderboard of {markdown(run_dir)}" + (f". {untuned_note(evidence.untuned)}" if evidence.untuned else "")
    create_table_artifact([_cells(row) for row in rows], key="leaderboard", description=about)
    tree = fenced(render_lineage(lineage(evidence)), 100)
    create_markdown_artifact(f"{tree}\n", key="lineage", description=f"Lineage of {markdown(run_dir)}")
    command = code_block(shell_command(["poise", "explore", run.path]))
    way = f"The whole run as one page: run\n\n{command}\n\nand open {page_address(run.path)}"
    shown = [f"- {markdown(row.name)}: {page_address(run.path, row.candidate_id)}" for row in rows[:LINKED] if row.rank]
    create_markdown_artifact("\n".join([way, "", *shown]), key="explorer", description="The run in a browser")
    return one_line(rows[0].name) if rows and rows[0].overall else ""


@task(task_run_name="update MLflow")
def update_tracking(run_dir: str, after: Any = None) -> str:
    """Push what MLflow does not have yet; a fault of MLflow is a warning, and the next update catches up."""
    evolution = current_evolution(run_dir)
    run = evolution.run
    tracker = Tracker.for_run(run)
    report = _unless_stopped(
        lambda: tracker.sync_archive(run.archive, run.preset.protocol, run_dir=run.path), lambda: evolution.stopped
    )
    if report is None:
        return "stopped"
    if report.error:
        get_run_logger().warning("MLflow is behind the archive: %s", one_line(report.error))
    elif link := experiment_link(tracker.uri, tracker.experiment):
        create_link_artifact(link, link_text=tracker.experiment, key="mlflow", description="Curves of all candidates")
    return report.error


def _unless_stopped(work: Callable[[], SyncReport], stopped: Callable[[], bool]) -> SyncReport | None:
    """The result of the work; None where the run is stopped meanwhile and it takes longer than ``STOP_SECONDS`` more.

    A server that takes a request and does not answer it would otherwise hold up whoever asked to stop. The next sync goes on.
    """
    results: Queue[SyncReport | BaseException] = Queue()

    def do() -> None:
        try:
            results.put(work())
        except BaseException as error:
            results.put(error)

    threading.Thread(target=contextvars.copy_context().run, args=(do,), name="MLflow", daemon=True).start()
    patience = STOP_SECONDS
    while True:
        try:
            result = results.get(timeout=0.1)
        except Empty:
            patience -= 0.1 * stopped()
            if patience <= 0:
                return None
            continue
        if isinstance(result, BaseException):
            raise result
        return result


@task(task_run_name="nightly report")
def leave_nightly_report(run_dir: str, nightly: NightlyRun) -> str:
    """Write the nightly report as an artifact and as a file of the run directory; returns the path of the file."""
    run = current_evolution(run_dir).run
    text = render_nightly_report(nightly_report(run.evidence(), run.preset, nightly))
    path = report_file(run.path, nightly)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, text)
    create_markdown_artifact(
        text, key="morning-summary", description=f"Generation {nightly.generation} of {markdown(run_dir)}"
    )
    return str(path)


def experiment_link(uri: str, experiment: str) -> str | None:
    """Where MLflow's UI shows an experiment; None where the store has no server, or it does not answer."""
    if not uri.startswith(("http://", "https://")):
        return None
    parts = urllib.parse.urlsplit(uri.rstrip("/"))
    base = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # whoever sees the link signs in himself
    query = urllib.parse.urlencode({"experiment_name": experiment})
    request = urllib.request.Request(f"{base}/api/2.0/mlflow/experiments/get-by-name?{query}")
    user = urllib.parse.unquote(parts.username or os.environ.get("MLFLOW_TRACKING_USERNAME", ""))
    if user:
        password = urllib.parse.unquote(parts.password or os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
        request.add_header("Authorization", f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=MLFLOW_SECONDS) as reply:
            identity = json.load(reply)["experiment"]["experiment_id"]
    except (urllib.error.URLError, OSError, ValueError, KeyError):
        return None
    return f"{base}/#/experiments/{identity}"


def _cells(row: LeaderboardRow) -> dict[str, object]:
    return {
        "rank": row.rank or "",
        "candidate": markdown_page(one_line(row.name)),
        "generation": row.generation,
        "Overall": format_interval(row.overall) if row.overall else "",
        "seeds": row.overall.seeds if row.overall else "",
        "delta": format_interval(row.delta, signed=True) if row.delta else "",
        "verdict": f"{row.failure['kind']} in {row.failure['stage']}" if row.failure else judgement(row) or row.status,
    }
