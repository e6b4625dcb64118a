"""What a generation leaves for people: the leaderboard and the lineage as artifacts, and everything in MLflow."""

from __future__ import annotations

import io
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from rich.console import Console

from poise_core.tracking import Tracker
from poise_core.views import LeaderboardRow, leaderboard, lineage, lineage_tree
from tasks.session import current_evolution


@task(task_run_name="show leaderboard", tags={"report"})
def show_leaderboard(run_dir: str, after: Any = None) -> str:
    """The leaderboard as a table artifact and the lineage as a Markdown one; the name of the first."""
    run = current_evolution(run_dir).run
    rows = leaderboard(run.archive, run.preset.protocol)
    create_table_artifact([_cells(row) for row in rows], key="leaderboard", description=f"Leaderboard of {run.path}")
    page = Console(file=io.StringIO(), width=100, record=True)
    page.print(lineage_tree(lineage(run.archive, run.preset.protocol)))
    create_markdown_artifact(f"```\n{page.export_text()}```\n", key="lineage", description=f"Lineage of {run.path}")
    return rows[0].name if rows and rows[0].overall else ""


@task(task_run_name="update MLflow", tags={"report"})
def update_tracking(run_dir: str, after: Any = None) -> str:
    """Push what MLflow does not have yet; that MLflow is down is a warning, and the next update catches up."""
    run = current_evolution(run_dir).run
    report = Tracker.for_run(run).sync_archive(run.archive, run.preset.protocol)
    if report.error:
        get_run_logger().warning("MLflow is behind the archive: %s", report.error)
    return report.error


def _cells(row: LeaderboardRow) -> dict[str, object]:
    def points(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    return {
        "rank": row.rank or "",
        "candidate": row.name,
        "generation": row.generation,
        "Overall": points(row.overall.estimate if row.overall else None),
        "delta": points(row.delta.estimate if row.delta else None),
        "low": points(row.delta.low if row.delta else None),
        "high": points(row.delta.high if row.delta else None),
        "verdict": row.verdict or (f"{row.failure['kind']} in {row.failure['stage']}" if row.failure else row.status),
    }
