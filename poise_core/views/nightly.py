"""The nightly report: what the run has tried, what was learned, what it cost; and where reports are kept."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from poise_core.agents.llm.ledger import Spent, failures_of
from poise_core.archive.typed import ExaminationRow
from poise_core.config import Preset
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.briefs import Briefs
from poise_core.evolution.history import History
from poise_core.search.plateau import Plateau
from poise_core.views.candidate import missing_measures
from poise_core.views.leaderboard import LeaderboardRow, children_of, leaderboard
from poise_core.views.outlook import computed, outlook

_FOLDER = "nights"


@dataclass(frozen=True)
class NightlyRun:
    """One nightly run of one evolution."""

    generation: int
    began: dt.datetime  # with a time zone
    ended: dt.datetime
    finished: bool  # whether the generation has come to its end
    stopped: str = ""  # why the run ended before its work did; empty where it did not
    hours: float | None = None  # the time budget
    dollars: float | None = None  # the cost budget
    gpu_hours: float | None = None  # the budget of GPU-hours
    replication: str = ""  # the outcome of a replication in one sentence; empty where there was none
    examined: str = ""  # id of the candidate that was examined; empty where none was


@dataclass(frozen=True)
class Tried:
    """One child of the generation."""

    row: LeaderboardRow
    parents: tuple[str, ...]  # names
    change: str  # what differs from the primary parent; empty where the idea never became code


@dataclass(frozen=True)
class NightlyReport:
    """The content of a nightly report."""

    run: NightlyRun
    rows: tuple[LeaderboardRow, ...]  # of all candidates
    children: tuple[Tried, ...]
    learned: tuple[tuple[str, str], ...]  # name of a child and the summary of its reflection
    outlook: Plateau
    tokens: int  # completion tokens sampled in training by all children
    spent: Spent  # on language models since the run began
    gpu_hours: float = 0.0  # of all children's trainings and evaluations
    shared_network: tuple[str, ...] = ()  # names of children that were trained without a network of their own
    examination: tuple[ExaminationRow, ...] = ()  # of the candidate that was examined, one per condition
    examined_name: str = ""
    untuned: str = ""  # see RunEvidence.untuned
    not_sealed: str = ""  # see Protocol.unsealed_note
    model_failures: str = ""  # of language models since the run began, in one line
    calibration: str = ""  # how the forecasts of proposals came out; empty where none was scored


def nightly_report(evidence: RunEvidence, preset: Preset, run: NightlyRun) -> NightlyReport:
    """Collect the content of the nightly report from a run's evidence.

    Raises:
        poise_core.archive.ArchiveError: a file cannot be read.
    """
    rows = leaderboard(evidence)
    children = children_of(rows, run.generation)
    names = {row.candidate_id: row.name for row in children}
    reflections = evidence.archive.rows("reflections", protocol=evidence.protocol.digest, candidate_id=list(names))
    (trained,) = evidence.archive.trained([list(names)], evidence.protocol.digest)
    unconfined = {names[one]: missing_measures(found.confinement) for one, found in trained.items()}
    calls = [row for row in evidence.archive.rows("calls") if row["created_at"] >= run.began and not row["replayed"]]
    spent = Spent()
    for call in calls:
        spent = spent.plus(Spent.of_row(call))
    return NightlyReport(
        run=run,
        rows=tuple(rows),
        children=tuple(_tried(evidence, row) for row in children),
        learned=tuple((names[one["candidate_id"]], one["summary"]) for one in reflections),
        outlook=outlook(evidence, preset),
        tokens=sum(evidence.training_tokens.get(name, 0) for name in names),
        spent=spent,
        gpu_hours=sum(
            one.gpu_hours for one in computed(evidence, preset.resources.gpus_held) if one.candidate_id in names
        ),
        shared_network=tuple(name for name in names.values() if "network" in unconfined.get(name, ())),
        examination=tuple(evidence.examinations.get(run.examined, ())),
        examined_name=evidence.candidates[run.examined]["name"] if run.examined in evidence.candidates else "",
        untuned=evidence.untuned,
        not_sealed=evidence.protocol.unsealed_note,
        model_failures=failures_of(calls),
        calibration=_calibration(evidence, preset, run.generation),
    )


def _calibration(evidence: RunEvidence, preset: Preset, generation: int) -> str:
    history = History(evidence.archive, evidence.protocol, preset.ladder)
    return Briefs(history, preset).calibration(generation + 1).text()


def _tried(evidence: RunEvidence, row: LeaderboardRow) -> Tried:
    record = evidence.candidates.get(row.candidate_id)
    if record is None:
        return Tried(row, (), "")
    parents = [evidence.candidates[one]["name"] for one in record["parent_ids"] if one in evidence.candidates]
    return Tried(row, tuple(parents), record["change"] or "")


def report_file(run_dir: Path, run: NightlyRun) -> Path:
    """Where the report of a nightly run is kept."""
    return run_dir / _FOLDER / f"{run.began:%Y-%m-%dT%H%M}{_suffix(run.generation)}"


def kept_reports(run_dir: Path, generation: int) -> dict[str, str]:
    """The nightly reports on a generation: file, relative to the run directory, and text."""
    paths = sorted((run_dir / _FOLDER).glob(f"*{_suffix(generation)}"))
    return {path.relative_to(run_dir).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def _suffix(generation: int) -> str:
    return f"-gen-{generation:02d}.md"
