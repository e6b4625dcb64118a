"""A run of the search in a made-up laboratory: what it records, what it repeats, what it never mixes."""

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from laboratory import (
    Laboratory,
    admit,
    contents,
    establish_baseline,
    evolve,
    make_preset,
    measure,
    open_evolution,
    with_problems_of,
)

from poise_core.agents.catalogue.proposer import CatalogueProposer
from poise_core.agents.roles import Attempt, Proposal, ProposalContext
from poise_core.archive import UNTRAINED_ARM
from poise_core.evolution import Event, Evolution, EvolutionError, Roles, default_roles
from poise_core.evolution.stages.evaluate import UNTRAINED
from poise_core.failures import Cancelled, CandidateFailure, FailureKind, InfrastructureError
from poise_core.mechanisms.composition import Composition
from poise_core.verification.report import PROBE_SEED_BITS


def rows(evolution: Evolution, table: str, **equals: object) -> list[dict]:
    return evolution.run.archive.rows(table, **equals)


@pytest.mark.slow
def test_a_run_leaves_a_row_for_every_stage_of_every_candidate(evolution: Evolution, laboratory: Laboratory) -> None:
    evolve(evolution)
    candidates = rows(evolution, "candidates")
    assert Counter(row["generation"] for row in candidates) == {0: 2, 1: 2, 2: 2}  # 0: GRPO and the base policy
    children = [row["candidate_id"] for row in candidates if row["generation"] > 0]
    trained = {row["candidate_id"] for row in candidates} - {
        row["candidate_id"] for row in candidates if row["arm"] == UNTRAINED_ARM
    }
    assert {row["candidate_id"] for row in rows(evolution, "verifications")} == trained
    assert Counter(row["candidate_id"] for row in rows(evolution, "trajectories")) == dict.fromkeys(trained, 2 * 12)
    # two seeds, two benchmarks
    assert set(Counter(row["candidate_id"] for row in rows(evolution, "evaluations")).values()) == {4}
    assert {row["candidate_id"] for row in rows(evolution, "reflections")} == trained
    assert len(rows(evolution, "proposals")) == 2 * 2 * 3
    assert {row["proposal_id"] for row in rows(evolution, "proposals", taken=True)} == {
        row["proposal_id"] for row in candidates if row["candidate_id"] in children
    }
    assert not rows(evolution, "failures")
    assert evolution.run.archive.check() == []
    assert laboratory.splits == {"search"}


def test_a_file_that_the_gate_would_not_read_is_not_adopted(evolution: Evolution, tmp_path: Path) -> None:
    """Its text used to be guessed, so that another one was judged and trained than ``poise verify`` refuses."""
    path = tmp_path / "[red] my \x1bfile.py"
    path.write_bytes("# tw\xefst\n".encode("latin-1"))
    with pytest.raises(CandidateFailure, match=r"language: the file is not UTF-8 text \(byte 4\)") as failure:
        evolution.trials.adopt(path)
    assert failure.value.kind is FailureKind.REJECTED
    assert not rows(evolution, "candidates")
    path.write_bytes(b"\xef\xbb\xbf# fine\r\n")
    adopted = evolution.trials.adopt(path)
    assert adopted.name == "red-my-file"
    assert rows(evolution, "candidates")[0]["source"] == "# fine\n"
    assert evolution.trials.adopt(path) == adopted


@pytest.mark.slow
def test_equal_seeds_give_equal_runs_and_other_seeds_other_children(tmp_path: Path, laboratory: Laboratory) -> None:
    runs = [open_evolution(tmp_path / name) for name in ("first", "second")]
    runs.append(open_evolution(tmp_path / "third", make_preset(seed=1)))
    for one in runs:
        evolve(one)
    first, second, third = (contents(one.run.archive) for one in runs)
    assert first == second
    assert first["candidates"].keys() != third["candidates"].keys()


@pytest.mark.slow
def test_a_file_meets_the_same_probes_whenever_it_is_handed_in(
    tmp_path: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once they were drawn for every verification, and a file that was refused on some of them could try again."""
    met: list[tuple[str, str, int]] = []
    made_up = laboratory.verify

    def verify(path: Path, *, probe_seed: int, **others: Any) -> Any:
        met.append((path.parents[2].name, path.parent.name, probe_seed))
        return made_up(path, **others)

    monkeypatch.setattr(laboratory, "verify", verify)
    evolution = open_evolution(tmp_path / "run")
    establish_baseline(evolution)
    children = [evolution.verify(slot, evolution.implement(slot)).candidate_id for slot in evolution.select_parents(1)]
    evolution.run.close()
    with_problems_of(tmp_path / "run", tmp_path / "the same secret")
    for name in ("another secret", "the same secret"):
        again = open_evolution(tmp_path / name)
        establish_baseline(again)
        for slot in again.select_parents(1):
            again.verify(slot, again.implement(slot))
        again.run.close()
    seeds = {(run, candidate): seed for run, candidate, seed in met}
    assert len({seeds["run", one] for one in children}) == len(children) == 2
    for one in children:
        assert seeds["run", one] == seeds["the same secret", one] != seeds["another secret", one]
        assert 0 <= seeds["run", one] < 2**PROBE_SEED_BITS


@pytest.mark.exhaustive
def test_the_order_in_which_children_finish_changes_nothing(tmp_path: Path, laboratory: Laboratory) -> None:
    """Once the ideas of the second slot depended on whether the first child had been scored already."""
    one_by_one, all_at_once = open_evolution(tmp_path / "a"), open_evolution(tmp_path / "b")
    evolve(all_at_once)
    establish_baseline(one_by_one)
    for generation in (1, 2):
        for slot in one_by_one.select_parents(generation):
            child = one_by_one.verify(slot, one_by_one.implement(slot))
            measure(one_by_one, child)  # before the next slot begins
    assert contents(one_by_one.run.archive) == contents(all_at_once.run.archive)


@pytest.mark.slow
def test_a_finished_run_is_read_back_without_any_work(tmp_path: Path, laboratory: Laboratory) -> None:
    first = open_evolution(tmp_path / "run")
    evolve(first)
    first.run.close()
    before = contents(first.run.archive)
    laboratory.trained.clear()
    laboratory.evaluated.clear()
    events: list[Event] = []
    again = open_evolution(tmp_path / "run", observer=events.append)
    evolve(again)
    assert laboratory.trained == laboratory.evaluated == []
    assert not [event for event in events if event.message]
    assert contents(again.run.archive) == before


def test_the_log_says_an_overall_with_its_limits_and_seeds(tmp_path: Path, laboratory: Laboratory) -> None:
    events: list[Event] = []
    evolution = open_evolution(tmp_path / "run", observer=events.append)
    baseline = establish_baseline(evolution)
    (tmp_path / "other.py").write_text("# by hand\n")
    other = evolution.trials.adopt(tmp_path / "other.py")
    evolution.trials.train(other, [0])
    evolution.trials.evaluate(other, [0])
    said = {one.subject: one.message for one in events if (one.kind, one.stage) == ("finished", "evaluate")}
    number = r"\d+\.\d"
    for name in (UNTRAINED, "other"):
        assert re.fullmatch(f"Overall {number}, 1 seed, no interval", said[name])
    assert re.fullmatch(rf"Overall {number} \[-?{number}, {number}\], 2 seeds", said[baseline.name])


def test_the_base_policy_is_scored_once_and_is_no_parent(evolution: Evolution, laboratory: Laboratory) -> None:
    candidate = evolution.measure_base_policy()
    evolution.measure_base_policy()
    scores = evolution.trials.evaluations(candidate)
    assert [score.seed for score in scores] == [0, 1]
    assert scores[0].benchmarks == scores[1].benchmarks
    assert len(laboratory.evaluated) == 1
    with pytest.raises(EvolutionError, match="no candidate has been evaluated"):
        evolution.select_parents(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FailureKind.CRASHED, FailureKind.DIVERGED, FailureKind.TIMED_OUT])
def test_a_failure_in_training_is_a_typed_row_and_the_generation_goes_on(
    evolution: Evolution, laboratory: Laboratory, kind: FailureKind
) -> None:
    establish_baseline(evolution)
    bad, good = admit(evolution, 1)
    laboratory.fail[bad.name] = CandidateFailure(kind, "train", "it went wrong at step 6", "the traceback")
    for child in (bad, good):
        measure(evolution, child)
    (row,) = rows(evolution, "failures")
    assert (row["candidate_id"], row["stage"], row["kind"]) == (bad.candidate_id, "train", str(kind))
    assert (row["message"], row["detail"], row["generation"]) == ("it went wrong at step 6", "the traceback", 1)
    assert not rows(evolution, "evaluations", candidate_id=bad.candidate_id)
    # the six steps that it got to are kept as evidence, and the reflection speaks of the failure
    assert len(rows(evolution, "trajectories", candidate_id=bad.candidate_id)) == 6
    assert rows(evolution, "reflections", candidate_id=bad.candidate_id)
    assert len(rows(evolution, "evaluations", candidate_id=good.candidate_id)) == 4
    assert evolution.finished(1)
    # gone through again it is still the admitted child of its slot, and not taken for a refused draft
    assert [child.name for child in admit(evolution, 1)] == [bad.name, good.name]
    # recorded once, raised again from the record, never trained again, never a parent
    laboratory.trained.clear()
    with pytest.raises(CandidateFailure, match="it went wrong at step 6"):
        evolution.train(bad)
    assert not laboratory.trained
    slots = evolution.select_parents(2)
    assert bad.candidate_id not in {slot.parent_id for slot in slots}


@pytest.mark.slow
def test_a_fault_of_the_machine_leaves_no_row_and_the_stage_is_done_later(
    evolution: Evolution, laboratory: Laboratory
) -> None:
    establish_baseline(evolution)
    child, _ = admit(evolution, 1)
    laboratory.fail[child.name] = InfrastructureError("the node went away")
    with pytest.raises(InfrastructureError, match="the node went away"):
        evolution.train(child)
    assert not rows(evolution, "failures")
    assert not rows(evolution, "trajectories", candidate_id=child.candidate_id)
    with pytest.raises(Cancelled, match="neither a score nor a failure"):
        evolution.reflect(child)
    assert not evolution.finished(1)
    laboratory.fail.clear()
    measure(evolution, child)
    assert len(rows(evolution, "evaluations", candidate_id=child.candidate_id)) == 4


@pytest.mark.slow
def test_a_full_disk_is_a_fault_of_the_machine(evolution: Evolution, laboratory: Laboratory) -> None:
    establish_baseline(evolution)
    child, _ = admit(evolution, 1)
    laboratory.fail[child.name] = OSError(28, "No space left on device")
    with pytest.raises(InfrastructureError, match=f"train of {child.name}.*No space left"):
        evolution.train(child)
    assert not rows(evolution, "failures")


@pytest.mark.slow
def test_a_refused_idea_gives_way_to_the_next_ranked_one(tmp_path: Path, laboratory: Laboratory) -> None:
    refused: list[str] = []

    def refuse_first(name: str, source: str) -> str | None:
        if name not in refused and name != "GRPO" and len(refused) < 1:
            refused.append(name)
        return "padding: change that" if name in refused else None

    laboratory.refuse = refuse_first
    evolution = open_evolution(tmp_path / "run", make_preset(parents=1))
    establish_baseline(evolution)
    (slot,) = evolution.select_parents(1)
    ranked = [evolution.propose(slot)[index].name for index in evolution.screen(slot)]
    child = evolution.verify(slot, evolution.implement(slot))
    assert (refused, child.name) == (ranked[:1], ranked[1])
    (failure,) = rows(evolution, "failures")
    assert (failure["kind"], failure["stage"], failure["message"]) == (
        "rejected",
        "verify",
        "made-up: padding: change that",
    )
    assert {row["name"] for row in rows(evolution, "proposals", taken=True)} == set(ranked[:2])


@pytest.mark.slow
def test_when_every_idea_is_refused_the_place_ends_without_a_child(tmp_path: Path, laboratory: Laboratory) -> None:
    laboratory.refuse = lambda name, source: None if name == "GRPO" else "no"
    evolution = open_evolution(tmp_path / "run", make_preset(parents=1, proposals=5))
    establish_baseline(evolution)
    (slot,) = evolution.select_parents(1)
    for _ in range(2):  # the second time from the record
        with pytest.raises(CandidateFailure, match="no admissible child of GRPO"):
            evolution.verify(slot, evolution.implement(slot))
    assert (
        len(rows(evolution, "failures"))
        == len(rows(evolution, "verifications", admitted=False))
        == evolution.preset.search.ideas_tried
    )
    assert len(rows(evolution, "proposals")) == 5
    assert evolution.finished(1)
    assert evolution.select_parents(2)[0].parent_name == "GRPO"


class Reviser:
    """An implementer that answers the gate: the nth draft says in its text that it is the nth."""

    revises = True

    def __init__(self) -> None:
        self.asked: list[int] = []

    def implement(self, proposal: Proposal, context: ProposalContext, attempts: tuple[Attempt, ...] = ()) -> str:
        self.asked.append(len(attempts))
        if attempts:
            assert "draft" in json.loads(attempts[-1].report)["checks"][0]["message"]
        return f'"""{proposal.name}, draft {len(attempts)}."""\n'


@pytest.mark.slow
def test_an_implementer_may_answer_the_gate_a_bounded_number_of_times(tmp_path: Path, laboratory: Laboratory) -> None:
    laboratory.refuse = lambda name, source: "this draft" if "draft" in source and "draft 2" not in source else None
    preset, reviser = make_preset(parents=1), Reviser()
    roles = default_roles(preset)
    roles = Roles(roles.selector, roles.proposer, roles.screener, reviser, roles.reflector)
    evolution = open_evolution(tmp_path / "run", preset, roles)
    establish_baseline(evolution)
    (slot,) = evolution.select_parents(1)
    child = evolution.verify(slot, evolution.implement(slot))
    assert reviser.asked == [0, 1, 2] == list(range(preset.search.revisions + 1))
    assert {row["candidate_id"] for row in rows(evolution, "verifications", admitted=True)} >= {child.candidate_id}
    assert len({row["proposal_id"] for row in rows(evolution, "candidates", generation=1)}) == 1
    evolution.verify(slot, evolution.implement(slot))
    assert reviser.asked == [0, 1, 2]  # no answer is asked for twice


@pytest.mark.slow
@pytest.mark.parametrize("added", ["", "# in other words\n"])
def test_a_child_that_behaves_like_an_admitted_one_is_a_duplicate(
    added: str, tmp_path: Path, laboratory: Laboratory
) -> None:
    """By its fingerprint, which is the text's in the laboratory, or because it is the same program."""

    class Copyist(Reviser):
        def implement(self, proposal: Proposal, context: ProposalContext, attempts: tuple[Attempt, ...] = ()) -> str:
            if attempts:
                raise CandidateFailure(FailureKind.REJECTED, "implement", "no other way")
            return context.parent.source + added

    preset = make_preset(parents=1)
    roles = default_roles(preset)
    roles = Roles(roles.selector, roles.proposer, roles.screener, Copyist(), roles.reflector)
    evolution = open_evolution(tmp_path / "run", preset, roles)
    establish_baseline(evolution)
    (slot,) = evolution.select_parents(1)
    with pytest.raises(CandidateFailure):
        evolution.verify(slot, evolution.implement(slot))
    assert {row["kind"] for row in rows(evolution, "failures")} == {"duplicate"}


@pytest.mark.slow
def test_a_stop_ends_the_running_stage_and_begins_no_other(tmp_path: Path, laboratory: Laboratory) -> None:
    def stop_at_step_3(event: Event) -> None:
        if event.kind == "step" and event.row["step"] == 3:
            evolution.stop()

    evolution = open_evolution(tmp_path / "run", observer=stop_at_step_3)
    baseline = evolution.verify_baseline(evolution.register_baseline())
    with pytest.raises(Cancelled):
        evolution.train(baseline)
    with pytest.raises(Cancelled):
        evolution.measure_base_policy()
    assert not rows(evolution, "trajectories")
    assert not rows(evolution, "failures")
    evolution.run.close()
    resumed = open_evolution(tmp_path / "run")
    evolve(resumed)
    assert resumed.finished(2)


def test_a_baseline_that_fails_stops_the_search_with_its_reason(evolution: Evolution, laboratory: Laboratory) -> None:
    laboratory.fail["GRPO"] = CandidateFailure(FailureKind.DIVERGED, "train", "the loss is NaN at step 6")
    with pytest.raises(CandidateFailure):
        establish_baseline(evolution)
    with pytest.raises(EvolutionError, match=r"GRPO diverged in train: the loss is NaN at step 6"):
        evolution.select_parents(1)


@pytest.mark.slow
def test_every_node_of_every_round_is_archived_with_all_its_terms(evolution: Evolution) -> None:
    evolve(evolution)
    judged = rows(evolution, "selections", generation=2)
    assert len(judged) == 3  # GRPO and the two children of generation 1
    for row in judged:
        assert {"pareto", "performance", "diversity", "potential", "gain_mean", "gain_std"} <= row["terms"].keys()
        acquisition = evolution.preset.search.acquisition
        names = ("pareto", "performance", "diversity", "potential")
        added = {name: row["terms"][f"contribution_{name}"] for name in names}
        assert row["total"] == pytest.approx(sum(added.values()))
        # on the common scale a term lies within three standard deviations, a quarter each, of 0.5
        assert all(-0.25 <= added[name] / getattr(acquisition, name) <= 1.25 for name in names)


class NarrowProposer(CatalogueProposer):
    """Knows one slot only, whose few answers would soon come again."""

    def _weights(self, context: ProposalContext, base: Composition) -> tuple[dict, dict]:
        slots, choices = super()._weights(context, base)
        return {name: weight * (name == "entropy") for name, weight in slots.items()}, choices


@pytest.mark.slow
def test_refused_and_failed_ideas_do_not_come_again_from_the_same_parent(
    tmp_path: Path, laboratory: Laboratory
) -> None:
    """Every second file is refused at the gate, every admitted one fails in training: GRPO stays the only parent."""
    seen: list[str] = []

    def refuse(name: str, source: str) -> str | None:
        seen.append(source)
        return "made up" if len(seen) % 2 else None

    preset = make_preset(proposals=2)
    roles = dataclasses.replace(default_roles(preset), proposer=NarrowProposer(double_share=0.0))
    evolution = open_evolution(tmp_path / "run", preset, roles)
    establish_baseline(evolution)
    laboratory.refuse = refuse
    for generation in range(1, 4):
        for child in admit(evolution, generation):
            laboratory.fail[child.name] = CandidateFailure(FailureKind.DIVERGED, "train", "made up")
            measure(evolution, child)
    (root,) = [row for row in evolution.history.candidates() if row["generation"] == 0]
    assert {row["parent_id"] for row in rows(evolution, "failures")} == {root["candidate_id"]}
    proposed = sorted(rows(evolution, "proposals"), key=lambda row: (row["generation"], row["slot"], row["index"]))
    assert len(proposed) >= 8
    dead: set[str] = set()
    for row in proposed:
        key = Composition.model_validate(json.loads(row["content"])["composition"]).key
        assert key not in dead
        if row["taken"]:
            dead.add(key)


@pytest.mark.slow
def test_scores_of_another_protocol_are_not_seen_by_the_selection(evolution: Evolution) -> None:
    establish_baseline(evolution)
    (child, _) = admit(evolution, 1)
    measure(evolution, child)
    table = rows(evolution, "evaluations", candidate_id=child.candidate_id)
    stranger, _ = admit(evolution, 2)
    foreign = [{**row, "protocol": "another", "candidate_id": stranger.candidate_id} for row in table]
    for row in foreign:
        for computed in ("row_key", "content_digest"):
            del row[computed]
    evolution.run.archive.append("evaluations", foreign)
    scored = {node.candidate_id: node.scored for node in evolution.history.nodes(3)}
    assert scored[child.candidate_id]
    assert not scored[stranger.candidate_id]


@pytest.mark.slow
def test_a_seed_that_is_missing_makes_a_score_weaker_and_no_zero(evolution: Evolution, laboratory: Laboratory) -> None:
    establish_baseline(evolution)
    first, second = admit(evolution, 1)
    measure(evolution, first)
    evolution.trials.train(second, evolution.seeds[:1])
    evolution.trials.evaluate(second, evolution.seeds[:1])
    nodes = {node.candidate_id: node for node in evolution.history.nodes(2)}
    partial = nodes[second.candidate_id]
    assert partial.overall is not None
    assert (partial.overall.seeds, len(partial.seed_overalls)) == (1, 1)
    slots = evolution.select_parents(2)
    assert {slot.parent_id for slot in slots} <= nodes.keys()
    (row,) = rows(evolution, "selections", generation=2, candidate_id=second.candidate_id)
    assert row["total"] is not None


@pytest.mark.slow
def test_a_plateau_widens_mutation_and_control_arms_do_not_answer_it(
    tmp_path: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from poise_core.search.plateau import Plateau

    stuck = Plateau(4, 3, 0.0, 1.0, True, 0.01, None, False)
    for arm, wide in (("evolution", True), ("greedy", False), ("best-of-n", False), ("random", False), ("tune", False)):
        opened = open_evolution(tmp_path / arm, make_preset(arm=arm))
        monkeypatch.setattr(opened.search, "plateau", lambda nodes: stuck)
        establish_baseline(opened)
        (slot, _) = opened.select_parents(1)
        assert opened.context(slot).wide is wide
        opened.run.close()


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["random", "greedy", "best-of-n", "tune"])
def test_control_arms_run_with_the_same_interface_and_budget(tmp_path: Path, laboratory: Laboratory, arm: str) -> None:
    opened = open_evolution(tmp_path / arm, make_preset(arm=arm))
    evolve(opened)
    candidates = opened.history.candidates()
    assert Counter(row["generation"] for row in candidates) == {0: 1, 1: 2, 2: 2}
    parents = {row["parent_ids"][0] for row in candidates if row["generation"] == 2}
    root = candidates[0]["candidate_id"]
    assert (parents == {root}) == (arm != "greedy" or _best(opened) == root)
    assert opened.run.archive.check() == []
    opened.run.close()


def _best(evolution: Evolution) -> str:
    nodes = [node for node in evolution.history.nodes(2) if node.overall]
    return max(nodes, key=lambda node: node.overall.estimate if node.overall else 0.0).candidate_id
