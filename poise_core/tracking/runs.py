"""Writes to one run of MLflow what its plan says: numbers, tags, texts, curves and its page.

MLflow takes two seconds to import and is imported by the first call, not before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from poise_core.archive import ArchiveError
from poise_core.escaping import mlflow_key, one_line, printable
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.failures import InfrastructureError
from poise_core.render.html import html_page
from poise_core.tracking.pages import candidate_page, generation_page
from poise_core.tracking.plan import RunPlan
from poise_core.views.candidate import mean_curves

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY_TAG, STATE_TAG, CURVES_TAG, REFUSED_TAG = "poise.key", "poise.state", "poise.curves", "poise.refused"
TAG_LENGTH = 5000
_PARENT_TAG, _COLOR_TAG = "mlflow.parentRunId", "mlflow.runColor"
_METRICS_PER_CALL, _PARAM_LENGTH = 1000, 500
_NO_METRICS = ("step", "seed")

KnownRuns = dict[str, tuple[str, Mapping[str, str]]]
"""Key of a run -> its id and its tags."""


def known_runs(client: MlflowClient, experiment_id: str) -> KnownRuns:
    """The runs of an experiment that come from an archive."""
    known: KnownRuns = {}
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        for run in page:
            key = run.data.tags.get(KEY_TAG)
            if key:
                known[key] = (run.info.run_id, run.data.tags)
        token = page.token
        if not token:
            return known


def create_run(client: MlflowClient, experiment_id: str, plan: RunPlan, known: KnownRuns) -> str:
    """Make the run, still empty, below its parent; its id."""
    tags = {KEY_TAG: plan.key} | ({_COLOR_TAG: plan.color} if plan.color else {})
    if plan.parent_key is not None:
        tags[_PARENT_TAG] = known[plan.parent_key][0]
    run = client.create_run(experiment_id, start_time=plan.start, tags=tags, run_name=one_line(plan.name))
    return str(run.info.run_id)


def fill_run(client: MlflowClient, run_id: str, plan: RunPlan, evidence: RunEvidence, *, had_curves: bool) -> None:
    """Write what the plan says to its run; the state tag comes last, so an interrupted run is filled again."""
    from mlflow.entities import Metric, Param, RunTag

    # a fixed time makes a point that is pushed again the same point, a later one makes it the newest at its step
    points = [(name, value, plan.as_of, step) for name, value, step in plan.metrics]
    tags = dict(plan.tags)
    if plan.curves and not had_curves:
        curves = _curves(evidence, *plan.curves)
        points += [(name, value, plan.start, step) for name, value, step in curves]
        tags[CURVES_TAG] = "1"
        dropped = sum(not math.isfinite(value) for _, value, _ in curves)
        if dropped:
            tags["non_finite_points"] = str(dropped)
    # MLflow would store infinities as 1.8e308
    metrics = [Metric(mlflow_key(name), value, at, step) for name, value, at, step in points if math.isfinite(value)]
    for start in range(0, len(metrics), _METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_CALL])
    client.log_batch(
        run_id,
        params=[Param(mlflow_key(name), one_line(value)[:_PARAM_LENGTH]) for name, value in plan.params.items()][:100],
        tags=[RunTag(name, printable(value)[:TAG_LENGTH]) for name, value in tags.items()],
    )
    for name, text in plan.texts.items():
        client.log_text(run_id, text, name)
    if plan.report:
        client.log_text(run_id, _page(client, run_id, plan, evidence), "report.html")
    if plan.status != "RUNNING":
        client.set_terminated(run_id, plan.status, plan.end)
    client.set_tag(run_id, STATE_TAG, plan.state)


def _page(client: MlflowClient, run_id: str, plan: RunPlan, evidence: RunEvidence) -> str:
    """The run's page; one that says why where it cannot be drawn."""
    try:
        one = plan.tags["level"] == "candidate"
        page = candidate_page(evidence, *plan.report) if one else generation_page(evidence, plan.report)
        page.encode()
    except ArchiveError:
        raise
    except Exception as failure:  # whatever a candidate's numbers and texts do to a view
        reason = f"no page: {type(failure).__name__}: {printable(str(failure))[:300]}"
        client.set_tag(run_id, REFUSED_TAG, reason)
        return html_page(Text(reason))
    return page


def is_refusal(failure: Exception) -> bool:
    """Whether MLflow does not take what it was given, and would not at the next try; a server that is down refuses nothing."""
    from mlflow.exceptions import MlflowException

    if isinstance(failure, MlflowException):
        return failure.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "INVALID_STATE")
    return isinstance(failure, ValueError | TypeError) and not isinstance(failure, InfrastructureError | OSError)


def mark_refused(client: MlflowClient, run_id: str, plan: RunPlan, reason: str) -> None:
    """Note at a run what was refused of it, and that this content is not to be pushed again."""
    client.set_tag(run_id, REFUSED_TAG, printable(reason)[:TAG_LENGTH])
    if plan.status != "RUNNING":
        client.set_terminated(run_id, plan.status, plan.end)
    client.set_tag(run_id, STATE_TAG, plan.state)


def _curves(evidence: RunEvidence, candidate: str, seed: int | None) -> list[tuple[str, float, int]]:
    """Points of one seed's curves; of their mean for ``None``."""
    seeds = evidence.archive.trajectory(candidate, evidence.protocol.digest)
    if seed is not None:
        rows: Iterable[tuple[int, Mapping[str, Any]]] = ((int(row["step"]), row) for row in seeds.get(seed, []))
        return [
            (name, float(value), step) for step, row in rows for name, value in row.items() if name not in _NO_METRICS
        ]
    return [(name, value, step) for name, curve in mean_curves(seeds).items() for step, value in curve.items()]
