"""Candidates that return arbitrary junk, through a whole run: each is a typed failure, and everybody else goes on.

Real are the gate's checks, the trainer's calls into the candidate, the archive, MLflow on SQLite and every page; gate and training
are made in this process, without the language check and its wall, so that a candidate can return anything that Python has.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import shutil
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_fixtures import ADVANTAGE, RATIO, RETURN, edited, in_a_fresh_process
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laboratory import Laboratory, contents, evolve, make_preset, open_evolution

from poise_core.agents.roles import Proposal
from poise_core.archive import Archive, ArchiveRowError
from poise_core.candidate.loading import Candidate, CandidateError, load_candidate_source, source_digest
from poise_core.config import Preset
from poise_core.contract import Advantages
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution import Evolution, Roles, default_roles
from poise_core.failures import CandidateFailure, FailureKind, plain_name
from poise_core.render.markdown import render_nightly_report
from poise_core.render.terminal import render_lineage
from poise_core.tracking import pages
from poise_core.tracking.sync import Tracker
from poise_core.training.algorithm import Algorithm
from poise_core.training.job import TrainingJob
from poise_core.training.launcher import SeedTraining
from poise_core.trajectory import CANDIDATE, CONTROLLER
from poise_core.verification import VerificationReport
from poise_core.verification.gate import run_checks
from poise_core.verification.harness import loss_inputs
from poise_core.verification.probes import make_probe
from poise_core.views import leaderboard, lineage
from poise_core.views.nightly import NightlyRun, nightly_report

JUNK_RUNS = int(os.environ.get("POISE_JUNK_RUNS", "16"))
"""Drawn runs of nine candidates in ``make test-all``, others every time."""

SIZES, LENGTH = (5, 4, 4), 7  # 13 completions: no probe of the gate has as many
IN_TRAINING = "len({rows}.correctness) == 13 and dynamics.step >= 3"

VALUES = (
    "torch.zeros(3, device='meta')", "x.to('meta')", "x.int()", "x.double()", "x.half()", "x.to_sparse()", "x.to(torch.complex64)",
    "x * float('inf')", "x * float('nan')", "x[:1]", "x.sum()", "torch.nn.Parameter(x.detach())", "x.detach().requires_grad_()",
    "x.as_subclass(type('Sub', (torch.Tensor,), {}))", "torch.nested.nested_tensor([x[0], x[1]])", "None", "'\\ud800'", "10 ** 400",
    "object()", "(i for i in range(3))", "lambda: 1", "[x]", "{}", "{'a': x}", "type", "print", "b'x'", "range(10 ** 9)", "1.0",
    "'x' * 10000", "ValueError('boom')", "dynamics", "torch.finfo", "float('nan')", "True",
)  # fmt: skip
NAMES = (
    "'\\ud800'", "'a\\x00b'", "'../x'", "'<script>alert(1)</script>'", "'x' * 10000", "3", "None", "('a',)", "'[red]'", "'\\u202e'",
    "''", "'..'", "b'x'", "'step'", "'loss'", "'clip_fraction'", "float('nan')", "'a|b'", "'m\\n'", "'\\x1b[31m'", "'ok'",
)  # fmt: skip
ERRORS = (
    "ValueError('\\ud800 \\x1b[31m\\n' * 5000)", "SystemExit(0)", "MemoryError('x')", "RecursionError()", "StopIteration(1)",
    "GeneratorExit()", "type('E', (Exception,), {'__str__': lambda s: 1 / 0})()", "type('B', (BaseException,), {})('\\u202e')",
    "KeyError('\\ud800')", "OSError(28, 'No space left on device')", "TimeoutError('60 s')", "UnicodeError('<b>')",
)  # fmt: skip
STATES = (
    "{'k': 10 ** 400}", "{f'k{i}': 1.0 for i in range(100)}", "{'k': float('nan')}", "{**state, f'k{len(state)}': 1.0}", "None",
    "{'\\ud800': 1.0}", "{'k' * 10000: 1.0}", "{'k': True}", "{'k': '1'}", "{'k': state}", "[1]",
    "{f'k{len(state)}': 2.0 ** dynamics.step}",
    "{'k': 1e300}", "{3: 1.0}", "{'a/b': 1.0}", "iter([])", "{'k': torch.ones(())}",
)  # fmt: skip
TITLES = (
    "\ud800", "x" * 10_000, "[bold red]X", "<script>alert(1)</script>", "a\x00b", "../../etc", "", "\u202etxt", "| a | b |", "X\nY",
    "\x1b[2J", "GRPO", "\u00ad", "a/b", "`rm`", "VM-AV",
)  # fmt: skip


def junk(place: str, what: str, when: str, number: int) -> str:
    """A candidate that returns or raises something at one place; its loss is scaled by its number, so that no two are alike."""
    values = "to_tokens(advantage, batch.completion_mask)"
    at_batch, at_rows = ("True" if when == "always" else IN_TRAINING.format(rows=rows) for rows in ("batch", "inputs"))
    advantages = {
        "values": "Advantages(values=x)",
        "carry": f"Advantages(values={values}, carry={{'c': x}})",
        "train_mask": f"Advantages(values={values}, train_mask=x)",
        "advantages": "x",
    }
    outputs = {
        "token_loss": "LossOutputs(token_loss=x)",
        "metric": "LossOutputs(token_loss=loss, metrics={'m': x})",
        "outputs": "x",
        "name": "LossOutputs(token_loss=loss, metrics={'ok': x.detach(), WHAT: x.detach()})",
    }
    first = {"raise": f"    if {at_rows}:\n        raise {what}\n"}.get(place, "")
    early = late = ""
    if place in advantages:
        early = f"    if {at_batch}:\n        x = {values}\n        x = {what}\n        return {advantages[place]}\n"
    if place in outputs:
        value = "loss" if place == "name" else what
        made = outputs[place].replace("WHAT", what)
        late = f"    if {at_rows}:\n        loss = x = -surrogate\n        x = {value}\n        return {made}\n"
    source = edited(
        ("for tests.", f"for tests, number {number}."),
        (ADVANTAGE, ADVANTAGE + early),
        (RATIO, first + RATIO),
        (RETURN, late + RETURN.replace("-surrogate", f"-surrogate * {1.05**number}")),
    )
    if place == "state":
        body = f"    return {what} if dynamics.step >= 3 or {when == 'always'} else dict(state)\n"
        source += (
            f"\n\ndef update_controller(state, dynamics: Dynamics, hp: Hyperparameters) -> dict[str, float]:\n{body}"
        )
    return source


SOUND = junk("", "", "", 0)
PLACES = (
    "values",
    "carry",
    "train_mask",
    "advantages",
    "token_loss",
    "metric",
    "outputs",
    "name",
    "raise",
    "state",
    "text",
)
BROKEN = (
    "",
    "\ud800",
    "x = 1",
    "raise SystemExit(0)",
    "\x00",
    "def f(:",
    "(" * 300,
    "class B(BaseException): ...\nraise B",
    "\ufeff",
)


@st.composite
def sources(draw: st.DrawFn, number: int) -> str:
    place = draw(st.sampled_from(PLACES))
    if place == "text":
        return f"# {number}\n{draw(st.sampled_from(BROKEN))}\n"
    pool = {"raise": ERRORS, "state": STATES, "name": NAMES}.get(place, VALUES)
    return junk(place, draw(st.sampled_from(pool)), draw(st.sampled_from(("always", "in training"))), number)


class Workshop(Laboratory):
    """The gate's checks and the trainer's calls are real, without processes; evaluations are made up."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: dict[str, Candidate] = {}  # digest of the text -> the candidate
        self.states: dict[tuple[str, int], dict[str, float]] = {}  # digest, seed -> state of the controller

    def verify(self, path: Path, *, name: str, known_fingerprints: dict[str, str], **_: Any) -> VerificationReport:
        source = path.read_text(encoding="utf-8-sig")
        report = run_checks(source, name, known_fingerprints=known_fingerprints, static=False)
        return VerificationReport.from_json(report.to_json())

    def train(self, job: TrainingJob, **options: Any) -> list[SeedTraining]:
        source = job.candidate_path.read_text(encoding="utf-8-sig")
        if source_digest(source) not in self.loaded:
            try:
                self.loaded[source_digest(source)] = load_candidate_source(source, "junk", wall=False)
            except CandidateError as error:
                raise CandidateFailure(FailureKind.CRASHED, "train", str(error)) from error
        return super().train(job, **options)

    def step(self, name: str, digest: str, seed: int, step: int) -> dict[str, float]:
        """One step as the trainer calls the candidate."""
        candidate = self.loaded[digest]
        algorithm, probe = Algorithm(candidate, LENGTH), make_probe("training", SIZES, LENGTH, 100 * seed + step)
        dynamics = replace(probe.dynamics, step=step, controller=self.states.get((digest, seed), {}))
        signal = algorithm.signal(probe.batch, dynamics)
        advantages = Advantages(signal.advantages, signal.mask, dict(signal.carry))
        inputs = loss_inputs(candidate, probe, advantages, torch.arange(len(signal.mask)))
        loss = algorithm.loss(inputs, dynamics, float(signal.mask.sum()), float(signal.mask.any(-1).sum()))
        state = self.states[digest, seed] = algorithm.controller(dynamics.controller, dynamics)
        row = super().step(name, digest, seed, step)
        row |= {f"{CANDIDATE}{key}": value for key, value in loss.metrics.items()}
        return row | {f"{CONTROLLER}{key}": value for key, value in state.items()}


class Titled:
    """The catalogue's proposer, whose ideas get other names and texts."""

    def __init__(self, proposer: Any, titles: list[str]) -> None:
        self.proposer, self.titles = proposer, titles

    def propose(self, context: Any, count: int, seed: int) -> list[Proposal]:
        title = self.titles[context.slot % len(self.titles)]
        changes = {"name": title, "hypothesis": title, "mechanism_change": title[:200], "composition": None}
        return [one.model_copy(update=changes) for one in self.proposer.propose(context, count, seed)]


class Writer:
    """The implementer of these files: that of the slot's place, and for slot 0 a sound one."""

    revises = False

    def __init__(self, files: list[str]) -> None:
        self.files = files

    def implement(self, proposal: Proposal, context: Any, attempts: Any = ()) -> str:
        return self.files[context.slot]


def roles_with(preset: Preset, files: list[str], titles: list[str]) -> Roles:
    usual = default_roles(preset)
    return Roles(usual.selector, Titled(usual.proposer, titles), usual.screener, Writer(files), usual.reflector)


def run_of(files: list[str], titles: list[str], folder: Path) -> Evolution:
    preset = make_preset(generations=1, parents=len(files), proposals=1)
    return open_evolution(folder / "run", preset, roles_with(preset, files, titles))


def shown(evolution: Evolution) -> str:
    """All pages of a run in one text."""
    archive, preset = evolution.run.archive, evolution.preset
    evidence = RunEvidence.load(archive, preset.protocol)
    when = dt.datetime(2026, 11, 24, tzinfo=dt.UTC)
    night = NightlyRun(generation=1, began=when, ended=when, finished=True)
    texts = [pages.candidate_page(evidence, row["candidate_id"]) for row in archive.rows("candidates")]
    texts += [pages.generation_page(evidence, [row["candidate_id"] for row in archive.rows("candidates")])]
    texts += [render_nightly_report(nightly_report(evidence, preset, night)), str(render_lineage(lineage(evidence)))]
    texts += [json.dumps([row.to_dict() for row in leaderboard(evidence)], default=str)]
    return "\n".join(texts)


def check_run(files: list[str], titles: list[str], store: Path, folder: Path) -> None:
    with Workshop() as workshop:
        evolution = run_of(files, titles, folder)
        with evolution.run:
            evolve(evolution)
            archive, protocol = evolution.run.archive, evolution.preset.protocol
            assert archive.check() == []
            ended = ends(archive)
            assert ended[0] == "measured", (ended, archive.rows("failures"))
            assert len(ended) == len(files)
            kept, steps = contents(archive), list(workshop.steps)
            tracker = Tracker(f"sqlite:///{store}", "junk", artifact_folder=folder / "artifacts")
            report = tracker.sync_archive(archive, protocol)
            assert (report.error, report.refused) == ("", ())
            again = tracker.sync_archive(archive, protocol)
            assert (again.created, again.updated, again.error) == (0, 0, "")
            shown(evolution).encode()
        resumed = run_of(files, titles, folder)
        with resumed.run:
            evolve(resumed)
            assert contents(resumed.run.archive) == kept
            assert workshop.steps == steps


def ends(archive: Archive) -> list[str]:
    """What became of each slot of the first generation: measured, or the kind of its failure."""
    found: list[str] = []
    failures = {row["candidate_id"]: row for row in archive.rows("failures")}
    scored = {row["candidate_id"] for row in archive.rows("evaluations")}
    for proposal in sorted(archive.rows("proposals"), key=lambda row: row["slot"]):
        candidates = archive.rows("candidates", proposal_id=proposal["proposal_id"])
        identity = candidates[0]["candidate_id"] if candidates else proposal["proposal_id"]
        failure = failures.get(identity)
        assert failure is None or FailureKind(failure["kind"])
        assert failure is not None or identity in scored
        found.append(failure["kind"] if failure else "measured")
    return found


# ---- junk


def files_of(count: int) -> st.SearchStrategy[list[str]]:
    return st.tuples(*(sources(number) for number in range(1, count + 1))).map(lambda found: [SOUND, *found])


titles = st.lists(st.sampled_from(TITLES), min_size=4, max_size=4)
QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def in_a_folder(files: list[str], titles: list[str], empty_store: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(empty_store, Path(folder) / "mlflow.db")
        check_run(files, titles, Path(folder) / "mlflow.db", Path(folder))


def failures_of_junk(examples: int, children: int, derandomize: bool, empty_store: Path) -> list[str]:
    """What hypothesis finds among so many drawn runs; in a process of its own, since the gate runs in it."""

    @settings(max_examples=examples, derandomize=derandomize, **QUIET)
    @given(files=files_of(children), titles=titles)
    def check(files: list[str], titles: list[str]) -> None:
        in_a_folder(files, titles, empty_store)

    try:
        check()
    except BaseException as error:
        return ["".join(traceback.format_exception(error))]
    return []


@pytest.mark.exhaustive
def test_junk_is_that_candidates_failure(empty_store: Path) -> None:
    assert in_a_fresh_process(failures_of_junk, 2, 3, True, empty_store) == []


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("half", [1, 2])  # for two workers; each draws runs of its own
def test_much_junk(empty_store: Path, half: int) -> None:
    assert in_a_fresh_process(failures_of_junk, JUNK_RUNS // 2, 9, False, empty_store) == [], half


# ---- what the archive refuses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "stage", "kind"),
    [
        ("candidates", "implement", "rejected"),
        ("verifications", "verify", "rejected"),
        ("trajectories", "train", "crashed"),
        ("evaluations", "evaluate", "rejected"),
    ],
)
def test_what_the_archive_refuses(
    table: str, stage: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Archive.append

    def refuse(archive: Archive, name: str, rows: Any, **options: Any) -> int:
        if name == table and str(rows[0]["candidate_id"]).startswith("refused-"):
            raise ArchiveRowError(f"{name}: no")
        return append(archive, name, rows, **options)

    monkeypatch.setattr(Archive, "append", refuse)
    files, names = [junk("", "", "", 1), SOUND], ["REFUSED", "OTHER"]
    with Laboratory() as laboratory:
        evolution = run_of(files, names, tmp_path)
        with evolution.run:
            evolve(evolution)
            archive = evolution.run.archive
            assert ends(archive) == [kind, "measured"]
            (failure,) = [row for row in archive.rows("failures") if row["stage"] == stage]
            assert failure["message"] == f"the archive refuses what it left: {table}: no"
            kept, steps = contents(archive), list(laboratory.steps)
        resumed = run_of(files, names, tmp_path)
        with resumed.run:
            evolve(resumed)
            assert (contents(resumed.run.archive), laboratory.steps) == (kept, steps)


@pytest.mark.slow
def test_trajectories_that_the_trainer_does_not_write(tmp_path: Path) -> None:
    """Numbers that no column takes, in the file that the untrusted process writes: the candidate's failure."""
    odd = {"ODD STEP": {"step": 1e300}, "ODD TOKENS": {"tokens": math.nan}}
    files = [junk("", "", "", number) for number in range(3)]
    with Laboratory() as laboratory:
        usual = laboratory.step
        laboratory.step = lambda *given: usual(*given) | (odd.get(given[0], {}) if given[3] == 8 else {})
        evolution = run_of(files, [*odd, "OTHER"], tmp_path)
        with evolution.run:
            evolve(evolution)
            assert ends(evolution.run.archive) == ["crashed", "crashed", "measured"]


@pytest.mark.parametrize("title", TITLES)
def test_names_of_ideas_become_plain(title: str) -> None:
    name = plain_name(title)
    assert 0 < len(name) <= 80
    assert name.encode().decode().isprintable() or "\ufffd" in name
    assert plain_name(name) == name
