"""The outer loop: an early fault in training goes back to the file's author; what is recorded, bounded and never repeated."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from laboratory import (
    Author,
    Faults,
    Killed,
    Laboratory,
    admit,
    contents,
    dies_after_one_write,
    establish_baseline,
    evolve,
    file_of,
    make_preset,
    measure,
    open_evolution,
    with_author,
)
from pyarrow import parquet

from poise_core.agents.roles import Attempt, Proposal, ProposalContext
from poise_core.config import Preset
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution import Evolution
from poise_core.evolution.early_faults import REPAIRABLE, clear_fault
from poise_core.failures import Cancelled, CandidateFailure, FailureKind, InfrastructureError
from poise_core.render.markdown import fenced
from poise_core.render.terminal import render_lineage
from poise_core.views import leaderboard, lineage

LADDER = {"enabled": True, "proxy_steps": 6, "proxy_window": 3, "proxy_stop_below": 0.0, "first_stop_below": 0.0}


def authored(folder: Path, author: Author, preset: Preset) -> Evolution:
    return open_evolution(folder, preset, with_author(preset, author))


@pytest.fixture
def faults(laboratory: Laboratory) -> Faults:
    return Faults(laboratory)


def one_child(tmp_path: Path, **search: Any) -> tuple[Evolution, Author, Any]:
    author = Author()
    evolution = authored(tmp_path / "run", author, make_preset(generations=1, parents=1, **search))
    establish_baseline(evolution)
    (child,) = admit(evolution, 1)
    return evolution, author, child


def rows(evolution: Evolution, table: str, **equals: object) -> list[dict[str, Any]]:
    return evolution.run.archive.rows(table, **equals)


@pytest.mark.slow
@pytest.mark.parametrize("ladder", [{}, LADDER])
def test_an_early_fault_goes_back_and_the_revised_file_is_a_candidate_of_its_own(
    tmp_path: Path, laboratory: Laboratory, faults: Faults, ladder: dict[str, Any]
) -> None:
    faults.at[0, 0, 3] = FailureKind.KL_BLOWUP
    evolution, author, child = one_child(tmp_path, ladder=ladder)
    measure(evolution, child)
    (failed, mended) = sorted(rows(evolution, "candidates", generation=1), key=lambda row: row["source"])
    assert failed["candidate_id"] == child.candidate_id
    assert (failed["revises"], mended["revises"]) == (None, child.candidate_id)
    assert failed["proposal_id"] == mended["proposal_id"]
    # the failed file keeps its failure and its steps; only the last one is scored and reflected on
    (failure,) = rows(evolution, "failures")
    assert (failure["candidate_id"], failure["kind"], failure["stage"]) == (child.candidate_id, "kl_blowup", "train")
    assert len(rows(evolution, "trajectories", candidate_id=child.candidate_id)) == 3
    assert {row["candidate_id"] for row in rows(evolution, "evaluations", candidate_id=mended["candidate_id"])}
    assert not rows(evolution, "evaluations", candidate_id=child.candidate_id)
    reflected = {row["candidate_id"] for row in rows(evolution, "reflections")}
    assert mended["candidate_id"] in reflected
    assert child.candidate_id not in reflected
    assert evolution.finished(1)
    # what its author was told: the typed failure, its traceback, the last steps and the digest
    (_, (attempt,)) = author.asked[-1]
    assert (attempt.source, attempt.stage) == (failed["source"], "train")
    for told in ("kl_blowup in train: it went wrong at step 3", "Traceback: boom", "seed 0 before it ended (3 done)",
                 "step reward_mean entropy kl", "kl_peak = "):  # fmt: skip
        assert told in attempt.report
    assert evolution.run.archive.check() == []
    # later generations know the idea by its last file, and neither failure nor score of the first one
    (idea,) = [one for one in evolution.history.tried(2, 0) if one.name == child.name and one.outcome != "not_taken"]
    assert (idea.outcome, idea.source_digest) == ("evaluated", mended["source_digest"])
    nodes = {node.candidate_id: node for node in evolution.history.nodes(2)}
    assert nodes[mended["candidate_id"]].scored
    assert child.candidate_id not in nodes  # an idea that took two files is one expansion of its parent
    # people see which file was answered, and the idea once
    archive, protocol = evolution.run.archive, evolution.preset.protocol
    tree = fenced(render_lineage(lineage(RunEvidence.load(archive, protocol))), 200)
    assert tree.count("kl_blowup, revised") == 1
    assert tree.count(child.name) == 2
    assert tree.count(mended["change"]) == 1
    states = {row.candidate_id: row.state for row in leaderboard(RunEvidence.load(archive, protocol))}
    assert (states[child.candidate_id], states[mended["candidate_id"]]) == ("revised", "")


@pytest.mark.slow
@pytest.mark.parametrize("bound", [0, 1, 3])
def test_repairs_are_bounded_and_end_in_the_last_files_failure(tmp_path: Path, faults: Faults, bound: int) -> None:
    faults.at = {(number, 0, 2): FailureKind.DIVERGED for number in range(9)}
    evolution, author, child = one_child(tmp_path, repairs=bound)
    assert evolution.repair_rounds(1) == bound
    measure(evolution, child)
    assert len(author.asked) == 1 + bound
    assert [(row["kind"], row["stage"]) for row in rows(evolution, "failures")] == [("diverged", "train")] * (1 + bound)
    made = rows(evolution, "candidates", generation=1)
    (last,) = [row for row in made if row["candidate_id"] not in {one["revises"] for one in made}]
    assert {row["candidate_id"] for row in rows(evolution, "reflections")} - {child.parent_id} == {last["candidate_id"]}
    assert evolution.finished(1)
    measure(evolution, child)
    assert len(author.asked) == 1 + bound  # nothing is asked again
    (idea,) = [one for one in evolution.history.tried(2, 0) if one.name == child.name and one.outcome != "not_taken"]
    assert idea.outcome == "diverged"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slot", "kind", "search"),
    [
        ((0, 0, 5), FailureKind.DIVERGED, {"repair_steps": 4}),  # too late
        ((0, 1, 1), FailureKind.DIVERGED, {}),  # the first seed went through
        ((0, 0, 1), FailureKind.NO_ANSWER, {}),  # not of the file's making
    ],
)
def test_what_is_no_clear_fault_is_not_mended(
    tmp_path: Path, faults: Faults, slot: tuple[int, int, int], kind: FailureKind, search: dict[str, Any]
) -> None:
    faults.at[slot] = kind
    evolution, author, child = one_child(tmp_path, **search)
    measure(evolution, child)
    assert len(author.asked) == 1
    (row,) = rows(evolution, "reflections", candidate_id=child.candidate_id)
    assert str(kind) in row["markdown"]


def test_clear_faults_are_early_ones_of_the_first_seed() -> None:
    def clear(kind: FailureKind, steps: dict[int, int], stage: str = "train") -> bool:
        trajectories = {seed: [{}] * count for seed, count in steps.items()}
        failure = CandidateFailure(kind, stage, "")
        return clear_fault(failure, trajectories, first_seed=7, within_steps=20, training_steps=60)

    assert all(clear(kind, {7: 20}) for kind in REPAIRABLE)
    assert clear(FailureKind.CRASHED, {})  # before its first step
    assert not clear(FailureKind.CRASHED, {7: 21})
    assert not clear(FailureKind.CRASHED, {7: 60, 8: 1})
    assert not clear(FailureKind.CRASHED, {8: 1})
    assert not clear(FailureKind.OUT_OF_MEMORY, {7: 1}, "verify")
    assert not any(clear(kind, {7: 1}) for kind in set(FailureKind) - REPAIRABLE)
    short = clear_fault(
        CandidateFailure(FailureKind.CRASHED, "train", ""),
        {7: [{}] * 4},
        first_seed=7,
        within_steps=20,
        training_steps=4,
    )
    assert not short  # a whole training, however short


@pytest.mark.slow
def test_a_repair_passes_the_gate_with_the_inner_loop(tmp_path: Path, laboratory: Laboratory, faults: Faults) -> None:
    """The gate refuses the first answer; its author then sees both reports, in the order in which they came."""
    faults.at[0, 0, 1] = FailureKind.CRASHED
    laboratory.refuse = lambda name, source: "not like this" if "file 1" in source else None
    evolution, author, child = one_child(tmp_path)
    measure(evolution, child)
    assert [attempt.stage for attempt in author.asked[-1][1]] == ["train", "verify"]
    assert json.loads(author.asked[-1][1][1].report)["checks"][0]["message"] == "not like this"
    found = sorted(rows(evolution, "candidates", generation=1), key=lambda row: row["source"])
    assert [row["revises"] for row in found] == [None, found[0]["candidate_id"], found[1]["candidate_id"]]
    assert rows(evolution, "evaluations", candidate_id=found[2]["candidate_id"])


@pytest.mark.slow
def test_where_no_answer_is_admitted_the_failure_of_the_training_stands(
    tmp_path: Path, laboratory: Laboratory, faults: Faults
) -> None:
    faults.at[0, 0, 1] = FailureKind.CRASHED
    laboratory.refuse = lambda name, source: None if "file 0" in source or "file" not in source else "no"
    evolution, author, child = one_child(tmp_path, revisions=1)
    measure(evolution, child)
    assert len(author.asked) == 1 + 2  # the file, and two answers to the gate on the way back
    with pytest.raises(CandidateFailure, match="it went wrong at step 1"):
        evolution.repair(child)
    assert len(author.asked) == 3
    (row,) = rows(evolution, "reflections", candidate_id=child.candidate_id)
    assert "crashed" in row["markdown"]
    assert evolution.finished(1)


@pytest.mark.slow
def test_an_author_who_writes_the_same_file_again_is_not_asked_on(tmp_path: Path, faults: Faults) -> None:
    class Stubborn(Author):
        def implement(self, proposal: Proposal, context: ProposalContext, attempts: Sequence[Attempt] = ()) -> str:
            super().implement(proposal, context, attempts)
            return file_of(proposal.name, 0)

    faults.at[0, 0, 1] = FailureKind.CRASHED
    author = Stubborn()
    evolution = authored(tmp_path / "run", author, make_preset(generations=1, parents=1, repairs=3))
    evolve(evolution)
    assert len(author.asked) == 2
    assert len(rows(evolution, "candidates", generation=1)) == 1
    assert [row["kind"] for row in rows(evolution, "failures")] == ["crashed"]


@pytest.mark.slow
def test_the_catalogue_has_nothing_to_revise(evolution: Evolution, laboratory: Laboratory) -> None:
    """A composition has one file: the failure stands at once, and the flow has no stage for it."""
    establish_baseline(evolution)
    child, _ = admit(evolution, 1)
    laboratory.fail[child.name] = CandidateFailure(FailureKind.DIVERGED, "train", "made up")
    assert evolution.repair_rounds(1) == 0
    measure(evolution, child)
    with pytest.raises(CandidateFailure, match="made up"):
        evolution.repair(child)
    assert [row["stage"] for row in rows(evolution, "failures")] == ["train"]


def test_a_fault_of_the_machine_is_not_mended(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, author, child = one_child(tmp_path)
    laboratory.fail[child.name] = InfrastructureError("the node went away")
    with pytest.raises(InfrastructureError):
        evolution.train(child)
    with pytest.raises(Cancelled, match="has not come to an end"):
        evolution.repair(child)
    assert len(author.asked) == 1


@pytest.mark.slow
def test_a_run_goes_on_whatever_became_of_the_bound(tmp_path: Path, faults: Faults) -> None:
    """Stopped with a repaired file that is not trained yet; then without repairs, and without an author who answers."""
    faults.at[0, 0, 1] = FailureKind.CRASHED
    evolution, _, child = one_child(tmp_path)
    with contextlib.suppress(CandidateFailure):
        evolution.train(child)
    mended = evolution.repair(child)
    evolution.run.close()
    again = open_evolution(tmp_path / "run", make_preset(generations=1, parents=1, repairs=0))
    assert again.repair_rounds(1) == 1
    measure(again, child)
    assert again.finished(1)
    assert rows(again, "evaluations", candidate_id=mended.candidate_id)


@pytest.mark.slow
def test_what_has_ended_is_not_taken_up_again_with_a_higher_bound(tmp_path: Path, faults: Faults) -> None:
    faults.at[0, 0, 1] = FailureKind.CRASHED
    evolution, _, child = one_child(tmp_path, repairs=0)
    measure(evolution, child)
    evolution.run.close()
    author = Author()
    again = authored(tmp_path / "run", author, make_preset(generations=1, parents=1, repairs=2))
    measure(again, child)
    assert not author.asked


@pytest.mark.slow
def test_a_run_made_before_there_were_repairs_opens_and_goes_on(tmp_path: Path, laboratory: Laboratory) -> None:
    """Its preset lacks the keys, its candidates the column, its drafts the field."""
    preset = make_preset(generations=1)
    before = open_evolution(tmp_path / "run", preset)
    evolve(before)
    before.run.close()
    path = tmp_path / "run" / "preset.yaml"
    document = yaml.safe_load(path.read_text())
    for key in ("ideas_tried", "revisions", "repairs", "repair_steps"):
        del document["preset"]["search"][key]
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    for draft in (tmp_path / "run" / "generations").rglob("draft-*.json"):
        record = json.loads(draft.read_text()) | {"revision": 0}  # a field that this version does not have
        del record["repairs"]
        draft.write_text(json.dumps(record))
    for part in (tmp_path / "run" / "archive" / "candidates").glob("part-*.parquet"):
        table = parquet.read_table(part)
        parquet.write_table(table.drop_columns(["revises"]), part)
    again = open_evolution(tmp_path / "run", make_preset(generations=2))
    assert "search.repairs" not in json.dumps(again.run.settings_changes)
    evolve(again)
    assert again.run.archive.check() == []
    assert {row["revises"] for row in rows(again, "candidates")} == {None}
    assert len(rows(again, "candidates", generation=2)) == 2


@pytest.mark.exhaustive
@pytest.mark.parametrize("ladder", [{}, LADDER])
def test_whether_siblings_are_repaired_before_or_after_a_place_is_admitted_changes_nothing(
    tmp_path: Path, laboratory: Laboratory, faults: Faults, ladder: dict[str, Any]
) -> None:
    faults.at[0, 0, 2] = FailureKind.CRASHED
    runs = []
    for name in ("one by one", "all at once"):
        evolution = authored(tmp_path / name, Author(), make_preset(parents=3, ladder=ladder))
        establish_baseline(evolution)
        for generation in (1, 2):
            waiting = []
            for slot in evolution.select_parents(generation):
                child = evolution.verify(slot, evolution.implement(slot))
                if name == "one by one":
                    measure(evolution, child)
                else:
                    waiting.append(child)
            for child in reversed(waiting):
                measure(evolution, child)
            assert evolution.finished(generation)
        runs.append(contents(evolution.run.archive))
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_a_place_sees_neither_later_children_nor_repairs_of_other_places(tmp_path: Path, faults: Faults) -> None:
    """Otherwise whether the gate takes a file for a duplicate would depend on how fast a sibling trains."""
    evolution = authored(tmp_path / "run", Author(), make_preset(generations=1, parents=2))
    faults.at[0, 0, 1] = FailureKind.CRASHED
    establish_baseline(evolution)
    first, second = admit(evolution, 1)
    for child in (first, second):
        measure(evolution, child)
    repaired = {row["candidate_id"] for row in rows(evolution, "candidates") if row["revises"]}
    assert len(repaired) == 2
    (of_first,) = [one for one in repaired if one.rsplit("-", 1)[0] == first.candidate_id.rsplit("-", 1)[0]]
    (of_second,) = repaired - {of_first}
    assert evolution.history.unseen(1, 0) == {second.candidate_id, of_second}
    assert evolution.history.unseen(1, 1) == {of_first}
    assert evolution.history.unseen(2, 0) == frozenset()


@pytest.mark.slow
def test_of_two_siblings_repaired_alike_the_first_is_the_one_that_counts(tmp_path: Path, faults: Faults) -> None:
    """The gate compares neither with the other; the next generation does, in whatever order they were repaired."""
    cure = '"""The same cure for everybody."""\n'

    class Healer(Author):
        def implement(self, proposal: Proposal, context: ProposalContext, attempts: Sequence[Attempt] = ()) -> str:
            return cure if attempts else super().implement(proposal, context, attempts)

    faults.at[0, 0, 2] = FailureKind.CRASHED
    runs = []
    for order in (1, -1):
        evolution = authored(tmp_path / str(order), Healer(), make_preset(generations=1))
        establish_baseline(evolution)
        children = admit(evolution, 1)
        for child in children[::order]:
            measure(evolution, child)
        first, second = [row for row in evolution.history.candidates() if row["source"] == cure]
        assert first["proposal_id"] < second["proposal_id"]
        nodes = {node.candidate_id: node for node in evolution.history.nodes(2)}
        assert nodes[first["candidate_id"]].scored
        assert not nodes[second["candidate_id"]].scored  # never a parent, but still an expansion of its own
        told = {one.name: one for one in evolution.history.tried(2, 0) if one.source_digest}
        assert told[first["name"]].outcome == "evaluated"
        assert told[second["name"]].outcome == "duplicate"
        assert told[second["name"]].reason == f"trains exactly as {first['candidate_id']}"
        runs.append(contents(evolution.run.archive))
    assert runs[0] == runs[1]


@pytest.mark.exhaustive
@pytest.mark.parametrize("ladder", [{}, LADDER])
def test_killed_after_every_single_write_of_a_repair(
    tmp_path: Path, laboratory: Laboratory, faults: Faults, ladder: dict[str, Any]
) -> None:
    """Nothing is written twice, no step is trained twice, and the run ends as if nothing had happened."""
    faults.at = {(0, 0, 2): FailureKind.CRASHED, (2, 0, 4): FailureKind.DIVERGED}
    laboratory.refuse = lambda name, source: "no" if "file 1" in source else None
    preset = make_preset(generations=1, ladder=ladder, repairs=2)
    undisturbed = authored(tmp_path / "undisturbed", Author(), preset)
    evolve(undisturbed)
    assert Counter(row["kind"] for row in rows(undisturbed, "failures")) == {"crashed": 2, "rejected": 2, "diverged": 2}
    once = Counter(laboratory.steps)
    laboratory.steps.clear()
    written = []
    while True:
        with pytest.MonkeyPatch.context() as patch:
            dies_after_one_write(patch)
            try:
                run = authored(tmp_path / "killed", Author(), preset)
                with run.run:
                    evolve(run)
            except Killed as death:
                written.append(str(death))
                continue
            finally:
                assert len(set(written)) == len(written), "written twice"
        break
    assert len(written) > 30
    assert contents(run.run.archive) == contents(undisturbed.run.archive)
    assert Counter(laboratory.steps) == once
