"""Replication: fresh seeds, the sealed split, once; and nobody else reads that split."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from laboratory import Killed, Laboratory, dies_after_one_write, evolved, one_at_a_time

import poise_core
from poise_core.evidence.examination import fresh_seeds
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.experiments.replication import Replication, ReplicationRefused
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.render.lines import candidate_headline
from poise_core.render.markdown import fenced
from poise_core.render.terminal import render_candidate, render_leaderboard, render_lineage
from poise_core.tracking.plan import plan_runs
from poise_core.tracking.registry import champion_of, plan_versions
from poise_core.views import leaderboard, lineage, view_candidate


@pytest.mark.slow
def test_a_true_champion_is_declared_and_replicated_with_fresh_seeds(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, (baseline, best, *_) = evolved(tmp_path, laboratory)
    archive, protocol = evolution.run.archive, evolution.preset.protocol
    assert view_candidate(RunEvidence.load(archive, protocol), best).state == "champion candidate"
    assert laboratory.splits == {"search"}
    laboratory.trained.clear()
    row = Replication(evolution.run, best).carry_out()
    assert (row["outcome"], row["seeds"], row["declared"]) == ("replicated", [2, 3, 4], True)
    assert row["delta"] == pytest.approx(row["overall"] - row["baseline_overall"])
    assert row["low"] > 0
    names = {one["candidate_id"]: one["name"] for one in archive.rows("candidates")}
    trained = [f"{names[one]}/{seed}" for one in (baseline, best) for seed in (2, 3, 4)]
    assert sorted(laboratory.trained) == sorted(trained)  # the two sides at the same time
    assert laboratory.splits == {"search", "report"}
    # the search sees none of it
    assert {one.seed for one in archive.evaluations(protocol=protocol.digest)[best]} == {0, 1}
    assert set(archive.trajectory(best, protocol.digest)) == {0, 1}
    shown = {one.candidate_id: one.state for one in leaderboard(RunEvidence.load(archive, protocol))}
    assert shown[best] == "replicated"
    assert archive.check() == []

    laboratory.trained.clear()
    assert Replication(evolution.run, best).carry_out(2) == row  # once is once, whatever is asked for
    assert laboratory.trained == []


def test_what_was_luck_is_refuted(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, (_, best, *_) = evolved(tmp_path, laboratory)
    laboratory.skills[best] = 0.3  # from now on: fresh seeds show no more than the baseline
    row = Replication(evolution.run, best).carry_out()
    assert row["outcome"] == "refuted"
    assert row["low"] < 0
    assert "does not exclude zero" in row["message"]


def test_only_a_declared_champion_is_replicated_unless_one_says_so(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, (baseline, _, ordinary, *_) = evolved(tmp_path, laboratory)
    for candidate, message in ((ordinary, "no champion candidate"), (baseline, "is the baseline")):
        with pytest.raises(ReplicationRefused, match=message):
            Replication(evolution.run, candidate).carry_out()
    assert laboratory.splits == {"search"}
    row = Replication(evolution.run, ordinary).carry_out(2, undeclared=True)
    assert (row["declared"], row["seeds"]) == (False, [2, 3])
    assert "had not been declared" in row["message"]


def test_who_was_never_declared_is_no_champion_in_any_view(tmp_path: Path, laboratory: Laboratory) -> None:
    """Luck with fresh seeds alone: the declaration, which allows for all that were tried, was passed over."""
    evolution, (_, _, ordinary, *_) = evolved(tmp_path, laboratory)
    archive, protocol = evolution.run.archive, evolution.preset.protocol
    laboratory.skills[ordinary] = 0.9  # with fresh seeds only
    assert Replication(evolution.run, ordinary).carry_out(undeclared=True)["outcome"] == "replicated"
    said = "replicated, undeclared"
    evidence = RunEvidence.load(archive, protocol)
    assert evidence.state(ordinary) == view_candidate(evidence, ordinary).state == said
    (row,) = [one for one in leaderboard(evidence) if one.candidate_id == ordinary]
    assert (row.state, row.verdict) == (said, "not distinguishable")
    pages = {
        "leaderboard": render_leaderboard([row], protocol, evidence=evidence),
        "lineage": render_lineage(lineage(evidence)),
        "show": render_candidate(view_candidate(evidence, ordinary), code=False),
    }
    shown = {name: fenced(page, 100) for name, page in pages.items()}
    for name, page in shown.items():
        assert said in page, name
        assert "not distinguishable" in page, name  # from the baseline, in the search
    assert candidate_headline(leaderboard(evidence), ordinary).endswith(f"not distinguishable; {said}")
    (run,) = [one for one in plan_runs(evidence) if one.key == f"candidate/{ordinary}"]
    assert run.tags["standing"] == said
    assert champion_of(plan_versions(evidence)) is None


@pytest.mark.slow
def test_where_the_listed_seeds_are_used_up_those_that_follow_are_fresh(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, (_, best, *_) = evolved(tmp_path, laboratory, (0, 1, 2))
    with pytest.raises(ReplicationRefused, match="1 fresh seeds are asked for: at least 2 are needed"):
        Replication(evolution.run, best).carry_out(1)
    assert laboratory.splits == {"search"}
    assert not (evolution.run.candidate_folder(best) / "replicate").exists()
    assert Replication(evolution.run, best).carry_out(3)["seeds"] == [2, 3, 4]


def test_fresh_seeds_are_those_of_the_list_and_then_the_integers_after_it() -> None:
    assert fresh_seeds((5, 0, 3), {0, 6}, 4) == (5, 3, 7, 8)


def test_a_candidate_that_fails_with_fresh_seeds_is_no_champion(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, (_, best, *_) = evolved(tmp_path, laboratory)
    name = evolution.run.archive.rows("candidates", candidate_id=best)[0]["name"]
    laboratory.fail[name] = CandidateFailure(FailureKind.DIVERGED, "train", "NaN")
    row = Replication(evolution.run, best).carry_out()
    assert (row["outcome"], row["delta"]) == ("failed", None)
    view = view_candidate(RunEvidence.load(evolution.run.archive, evolution.preset.protocol), best)
    assert view.state == "refuted"
    assert view.overall is not None


@pytest.mark.slow
def test_killed_after_every_write_it_goes_on_and_trains_nothing_twice(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, (_, best, *_) = evolved(tmp_path, laboratory)
    one_at_a_time(evolution.run)  # so that every write has a death of its own
    laboratory.steps.clear()
    deaths = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            dies_after_one_write(patch)
            try:
                row = Replication(evolution.run, best).carry_out(2)
            except Killed:
                deaths += 1
                continue
            break
    assert deaths > 4
    assert row["outcome"] == "replicated"
    assert len(laboratory.steps) == len(set(laboratory.steps))


def test_a_replication_that_was_begun_keeps_its_seeds(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, (_, best, *_) = evolved(tmp_path, laboratory)
    with pytest.MonkeyPatch.context() as patch:
        dies_after_one_write(patch)
        with pytest.raises(Killed):
            Replication(evolution.run, best).carry_out(2)
    with pytest.raises(ReplicationRefused, match=r"begun with seeds \[2, 3\]"):
        Replication(evolution.run, best).carry_out(3)


ALLOWED = {
    "poise_core/archive/reader.py",  # the seal itself
    "poise_core/archive/checking.py",  # the check of an archive's files
    "poise_core/experiments/replication.py",
    "poise_core/testbed/panel.py",  # calibration of the testbed, in a directory of its own
}


MENTIONS = ALLOWED - {"poise_core/archive/reader.py", "poise_core/archive/checking.py"} | {
    # names the splits, or checks a name
    "poise_core/environments/base.py",
    "poise_core/evaluation/results.py",
    "poise_core/archive/schema.py",
    # loads every problem before a run, to check it; nothing is trained or scored
    "poise_core/environments/validate.py",
    # another meaning: the report of the gate, as a column, a key or a kind of message
    "poise_core/archive/rows.py",
    "poise_core/views/candidate.py",
    "poise_core/verification/__init__.py",
    "poise_core/verification/verify.py",
    "poise_core/verification/worker.py",
}


def program() -> Iterator[tuple[str, list[ast.AST]]]:
    """Every file of the program with its nodes."""
    root = Path(poise_core.__file__).parents[1]
    for part in ("poise_core", "tasks", "flows"):
        for path in (root / part).rglob("*.py"):
            yield str(path.relative_to(root)), list(ast.walk(ast.parse(path.read_text())))


@pytest.mark.slow
def test_nobody_else_names_the_sealed_split() -> None:
    """Whoever does not write ``report`` cannot hand it on in a variable; taking it from a list of all splits counts as writing it.

    ``row["report"]`` is a column, the gate's report, and does not count.
    """
    found = set()
    for path, nodes in program():
        columns = {id(node.slice) for node in nodes if isinstance(node, ast.Subscript)}
        for node in nodes:
            literal = isinstance(node, ast.Constant) and node.value == "report" and id(node) not in columns
            if literal or getattr(node, "id", getattr(node, "attr", "")) in ("SPLITS", "get_args"):
                found.add(path)
    assert found == MENTIONS


@pytest.mark.slow
def test_nobody_else_opens_the_sealed_split() -> None:
    """A call with ``unsealed`` that is not literally False, or an evaluation of the split ``report``, anywhere in the program."""
    readers = set()
    for path, nodes in program():
        for node in nodes:
            if not isinstance(node, ast.Call):
                continue
            unsealed = [key for key in node.keywords if key.arg == "unsealed"]
            opens = any(not (isinstance(key.value, ast.Constant) and key.value.value is False) for key in unsealed)
            values = [*node.args, *(key.value for key in node.keywords)]
            named = getattr(node.func, "id", getattr(node.func, "attr", ""))
            report = any(isinstance(value, ast.Constant) and value.value == "report" for value in values)
            split = any(key.arg == "split" and getattr(key.value, "value", "") == "report" for key in node.keywords)
            if (
                opens
                or split
                or (report and named in ("EvaluationJob", "evaluate", "evaluate_policy", "benchmark_problems"))
            ):
                readers.add(path)
    assert readers == ALLOWED
