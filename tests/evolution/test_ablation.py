"""Ablations and credit: by numbers that are computed by hand, once, and whatever happens."""

from __future__ import annotations

import itertools
import json
import math
import random
import shutil
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laboratory import Killed, Laboratory, dies_after_one_write, one_at_a_time, open_evolution, preset_with
from scipy.special import ndtri
from scipy.stats import multivariate_normal

from poise_core.algorithms import algorithm_path
from poise_core.candidate.identity import source_digest
from poise_core.candidate.switches import Switches
from poise_core.config import load_preset
from poise_core.config.protocol import BenchmarkSpec
from poise_core.evaluation.job import EvaluationJob
from poise_core.evidence.ablation import Ablation, conclude_ablation, each_alone, each_off, limits, moved_numbers, pairs
from poise_core.evidence.changes import slot_changes
from poise_core.evidence.credit import credit, credit_lines, run_credit
from poise_core.evidence.intervals import Interval
from poise_core.evolution import CandidateRef, Evolution, Trials
from poise_core.evolution.generation import establish_baseline
from poise_core.evolution.history import History
from poise_core.evolution.records import ChildSlot
from poise_core.experiments.ablation import AblationRefused, AblationStudy
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.mechanisms.composition import GRPO, Composition, changed_slots, compose
from poise_core.mechanisms.conflicts import conflicts
from poise_core.mechanisms.known import composition_for
from poise_core.mechanisms.operators import random_composition
from poise_core.mechanisms.render import render
from poise_core.render.markdown import render_ablation_page
from poise_core.run_directory import RunDirectory
from poise_core.tracking.plan import plan_runs
from poise_core.tracking.sync import SyncReport, Tracker
from poise_core.verification import VerificationReport
from poise_core.views import leaderboard, other_protocols, view_candidate

SOURCE = '''"""A file with four mechanisms."""
MECHANISMS = {"a": {"alpha": 0.0}, "b": {"beta": 0.0}, "c": {"gamma": False}, "d": {"delta": 0}}


class Hyperparameters:
    alpha: float = 1.0
    beta: float = 2.0
    gamma: bool = True
    delta: int = 3
'''


def solved(source: str) -> list[int]:
    """Which of 20 sums a file solves: the first by itself, nine by a (five by half of a), three by b, six more by both together,
    none by c; the last one is lost by d."""
    numbers: dict[str, Any] = dict(Switches.of(source).defaults)
    if "alpha" not in numbers:
        return [1] + [0] * 19
    a = 9 if numbers["alpha"] >= 1.0 else 5 if numbers["alpha"] else 0
    b = 3 if numbers["beta"] else 0
    together = 6 if a and b else 0
    parts = [(1, 1), (9, a), (3, b), (6, together), (1, 0 if numbers["delta"] else 1)]
    return [one for size, count in parts for one in [1] * count + [0] * (size - count)]


def counts(owner: str, job: EvaluationJob, seed: int, spec: BenchmarkSpec) -> Sequence[int]:
    source = (job.folder.parent / "candidate.py").read_text()
    return solved(source) if spec.name == "sums" else [2] * 20


def begun(
    tmp_path: Path, laboratory: Laboratory, source: str = SOURCE, counts: Any = counts
) -> tuple[Evolution, CandidateRef]:
    """A run with its baseline and one candidate, both scored with two seeds; a sum is worth 2.5 points of Overall."""
    laboratory.counts = counts
    evolution = open_evolution(tmp_path / "run", preset_with((0, 1, 2)))
    establish_baseline(evolution)
    base = next(row for row in evolution.run.archive.rows("candidates") if row["arm"] == "evolution")
    candidate = evolution.trials.register(
        "ABCD", source, written_by="llm", generation=1, parent_ids=[base["candidate_id"]]
    )
    evolution.trials.measure(candidate, (0, 1))
    for record in (laboratory.trained, laboratory.steps, laboratory.evaluated):
        record.clear()
    return evolution, candidate


def ablated(evolution: Evolution, candidate: CandidateRef, budget: int = 200, **options: Any) -> Ablation:
    return AblationStudy(evolution.run, candidate.candidate_id).carry_out(budget, **options)


@pytest.mark.slow
def test_every_mechanism_pair_and_number_by_hand(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, candidate = begun(tmp_path, laboratory)
    said: list[str] = []
    found = ablated(evolution, candidate, say=said.append)
    by_name = {one.name: one for one in found.contributions}
    # with all: 1 + 9 + 3 + 6 = 19 sums; without a: 1 + 3; without b: 1 + 9; without c: 19; without d: 20
    told = {name: one.contribution.estimate for name, one in by_name.items() if one.contribution}
    assert told == pytest.approx({"a": 15 * 2.5, "b": 9 * 2.5, "c": 0.0, "d": -2.5})
    # alone and without d one sum more: a 1 + 9 + 1, b 1 + 3 + 1, c 1 + 1, d 1; the baseline solves 1
    told = {name: one.alone.estimate for name, one in by_name.items() if one.alone}
    assert told == pytest.approx({"a": 10 * 2.5, "b": 4 * 2.5, "c": 2.5, "d": 0.0})
    verdicts = {name: one.verdict for name, one in by_name.items()}
    assert verdicts == {"a": "helps", "b": "helps", "c": "not distinguishable", "d": "not distinguishable"}
    # nine in twenty sums: mean 0.45, standard error sqrt(0.45 * 0.55 / 19) = 0.1141, t with 19 degrees of freedom 2.093
    b = by_name["b"].contribution
    assert b is not None
    assert (b.low, b.high) == pytest.approx((50 * (0.45 - 2.093 * 0.1141), 50 * (0.45 + 2.093 * 0.1141)), abs=0.02)
    (together,) = found.beyond_noise  # with both 19, without a 4, without b 10, without both 1: 19 - 4 - 10 + 1 = 6
    assert together.pair == ("a", "b")
    assert together.effect.estimate == pytest.approx(6 * 2.5)
    assert len(found.interactions) == 6
    alpha = {point.value: point.delta.estimate for point in found.curves["alpha"] if point.delta}
    assert alpha == pytest.approx({0.25: -10.0, 0.5: -10.0, 1.0: 0.0, 2.0: 0.0, 4.0: 0.0})
    assert [point.value for point in found.curves["delta"]] == [1, 2, 3, 6, 12]
    assert "gamma" not in found.curves
    simple = found.simplified
    assert simple is not None
    assert (simple.dropped, simple.kept, simple.delta.estimate) == (("c", "d"), 2, pytest.approx(2.5))
    assert simple.over_baseline is not None
    assert simple.over_baseline.estimate == pytest.approx(19 * 2.5)
    assert "a, b carry ABCD" in found.sentence
    assert "a with b +15.0" in found.sentence
    written = (evolution.run.candidate_folder(candidate.candidate_id) / "ablate" / "simplified.py").read_text()
    assert Switches.of(written).mechanisms.keys() == {"a", "b"}
    assert said[0].startswith("ablation of ABCD: up to 26 versions")


@pytest.mark.slow
def test_no_version_counts_as_a_candidate_and_every_view_shows_them(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, candidate = begun(tmp_path, laboratory)
    before = [row.to_dict() for row in leaderboard(evolution.run.evidence())]
    ablated(evolution, candidate)
    evidence = evolution.run.evidence()
    assert [row.to_dict() for row in leaderboard(evidence)] == before
    assert other_protocols(evidence) == []
    assert evolution.run.archive.check() == []
    assert laboratory.splits == {"search"}
    assert evidence.counted() == "1 tried of 5 planned"
    shown = view_candidate(evidence, "ABCD").to_dict()["ablation"]
    assert json.loads(json.dumps(shown, allow_nan=False))["simplified"]["dropped"] == ["c", "d"]
    plan = next(one for one in plan_runs(evidence) if one.name == "ABCD")
    assert "a, b carry ABCD" in plan.tags["ablation"]
    assert "| a with b |" in plan.texts["ablation.md"]
    shutil.rmtree(evolution.run.path / "archive" / "ablations")  # an archive of before there were ablations
    assert conclude_ablation(evolution.run.evidence(), candidate.candidate_id) is None


@pytest.mark.slow
def test_the_budget_is_kept_and_a_larger_one_goes_on(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, candidate = begun(tmp_path, laboratory)
    with pytest.raises(AblationRefused, match="1 trainings are too few: one version takes 2"):
        ablated(evolution, candidate, 1)
    assert len(laboratory.trained) == 0
    first = ablated(evolution, candidate, 9)
    assert len(laboratory.trained) == 8, "four versions with two seeds, and no half one"
    assert [one.verdict for one in first.contributions][:2] == ["helps", "helps"]
    assert first.simplified is None, "not measured yet"
    whole = ablated(evolution, candidate, 200)
    assert whole.versions == 26
    assert len(laboratory.trained) == len(set(laboratory.trained)) == 52
    assert ablated(evolution, candidate, 200) == whole
    assert len(laboratory.trained) == 52
    with pytest.raises(AblationRefused, match="begun with seeds"):
        ablated(evolution, candidate, seeds=1)


def test_what_is_refused_or_fails_is_a_row_and_counts_as_needed(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, candidate = begun(tmp_path, laboratory)
    laboratory.refuse = lambda name, source: "no gradient" if name.endswith("without a") else None
    laboratory.fail["ABCD without c"] = CandidateFailure(FailureKind.DIVERGED, "train", "NaN at step 6")
    found = ablated(evolution, candidate, 12)
    told = {one.name: (one.verdict, one.message) for one in found.contributions}
    assert told["a"] == ("needed", "made-up: no gradient")
    assert told["c"] == ("needed", "diverged in train: NaN at step 6")
    assert evolution.run.archive.rows("failures") == [], "no candidate has failed"
    again = len(laboratory.trained)
    assert ablated(evolution, candidate, 12) == found
    assert len(laboratory.trained) == again
    assert found.simplified is not None
    assert found.simplified.dropped == ("d",)


@pytest.mark.slow
def test_a_simplification_that_loses_has_back_what_contributed_most(tmp_path: Path, laboratory: Laboratory) -> None:
    """Either of c and d is enough: each alone can go, and both together cannot."""

    def either(owner: str, job: EvaluationJob, seed: int, spec: BenchmarkSpec) -> Sequence[int]:
        numbers = Switches.of((job.folder.parent / "candidate.py").read_text()).defaults
        both_gone = not numbers.get("gamma", True) and not numbers.get("delta", 1)
        return (
            [0 if both_gone else 1] * 10 + [1 if numbers.get("beta") else 0] * 10 if spec.name == "sums" else [2] * 20
        )

    evolution, candidate = begun(tmp_path, laboratory, counts=either)
    found = ablated(evolution, candidate)
    assert {one.name: one.verdict for one in found.contributions}["b"] == "helps"
    assert found.simplified is not None
    assert found.simplified.dropped == ("a", "c"), "with d back, as c and d come alike and d is later in the file"
    rows = {row["version"]: row["delta"] for row in evolution.run.archive.rows("ablations")}
    assert rows["without:a+c+d"] == pytest.approx(-25.0)


def changed(baseline: Composition, own: Composition) -> dict[tuple[str, ...], tuple[bool, bool]]:
    """Slots -> whether the change can be undone alone, and made alone."""
    return {one.slots: (one.undone is not None, one.alone is not None) for one in slot_changes(own, baseline)}


def test_changes_that_do_not_go_apart_are_changed_together() -> None:
    """No ratio leaves nothing to clip, and a reward without a baseline goes with no deviation of the group."""
    assert changed(GRPO, compose(kl="none")) == {}, "the only change is the whole candidate"
    assert changed(GRPO, compose(kl="none", aggregation="token-mean")) == {
        ("kl",): (True, True),
        ("aggregation",): (True, True),
    }
    plain = compose(ratio="none", clip="none", kl="none")
    assert changed(GRPO, plain) == {
        ("ratio",): (True, False), ("ratio", "clip"): (True, True), ("kl",): (True, True), ("clip",): (False, True),
    }  # fmt: skip
    (kl,) = [one for one in slot_changes(plain, GRPO) if one.slots == ("kl",)]
    assert kl.undone == compose(ratio="none", clip="none")
    assert kl.alone == compose(kl="none")
    assert kl.says == "kl: k3(kl_coef=0.01) -> none"
    moved = compose(numbers={"kl_coef": 0.002}, aggregation="token-mean")
    (numbers, _) = slot_changes(moved, GRPO)
    assert (numbers.undone, numbers.alone) == (compose(aggregation="token-mean"), compose(numbers={"kl_coef": 0.002}))


@pytest.mark.parametrize("seed", range(40))
def test_a_change_undone_or_alone_differs_in_its_slots_and_no_others(seed: int) -> None:
    own = random_composition(random.Random(seed))
    for one in slot_changes(own, GRPO):
        for made, near, far in ((one.undone, own, GRPO), (one.alone, GRPO, own)):
            if made is not None:
                assert conflicts(made) == []
                assert changed_slots(near, made) == list(one.slots)
                assert not set(changed_slots(far, made)) & set(one.slots)


def test_what_a_candidate_left_out_of_the_baseline_is_undone_and_done_alone(
    tmp_path: Path, laboratory: Laboratory
) -> None:
    """A sum is 2.5 points: without a penalty nine more are solved, with another aggregation two, with both one more."""
    own = compose(kl="none", aggregation="token-mean")

    def by_slot(owner: str, job: EvaluationJob, seed: int, spec: BenchmarkSpec) -> Sequence[int]:
        known = composition_for((job.folder.parent / "candidate.py").read_text())
        of = known.composition.choices if known else GRPO.choices  # the untrained policy has no file
        free, tokens = of["kl"] == "none", of["aggregation"] == "token-mean"
        right = 3 + 9 * free + 2 * tokens + (free and tokens)
        return [1] * right + [0] * (20 - right) if spec.name == "sums" else [2] * 20

    evolution, candidate = begun(tmp_path, laboratory, render(own, "free"), by_slot)
    said: list[str] = []
    found = ablated(evolution, candidate, say=said.append)
    told = {
        one.name: [interval.estimate for interval in (one.contribution, one.alone) if interval] for one in found.changes
    }
    assert told == {
        "kl: k3(kl_coef=0.01) -> none": pytest.approx([10 * 2.5, 9 * 2.5]),
        "aggregation: sequence-mean -> token-mean": pytest.approx([3 * 2.5, 2 * 2.5]),
    }
    assert "changes undone 2, changes alone 2" in said[0]
    assert "of 2 changes to the baseline: kl: k3(kl_coef=0.01) -> none helps (+25.0)" in found.sentence
    page = render_ablation_page(found)
    assert "| change to the baseline |" in page
    assert found.to_dict()["changes"][0]["gone"] == ["kl"]
    rows = evolution.run.archive.rows("ablations")
    keys = {row["version"] for row in rows}
    assert {"undone:kl=k3(kl_coef=0.01)", "alone:kl=none", "undone:aggregation=sequence-mean"} <= keys
    tried = [
        one for one in History(evolution.run.archive, evolution.run.preset.protocol).tried(9, 0) if one.composition
    ]
    assert compose(kl="none").model_dump(mode="json") in [one.composition for one in tried]


def test_a_table_is_read_whether_annotated_or_not_and_is_a_table() -> None:
    annotated = Switches.of(SOURCE.replace("MECHANISMS =", "MECHANISMS: dict ="))
    assert annotated.mechanisms == Switches.of(SOURCE).mechanisms
    switched = annotated.without(["b"])
    assert switched is not None
    assert Switches.of(switched.source).mechanisms.keys() == {"a", "c", "d"}
    for table in ("OFF", '{"a": 0.0}', "[]", '{"a": {[]: 0.0}}'):
        with pytest.raises(ValueError, match="MECHANISMS"):
            Switches.of(f"MECHANISMS = {table}\n")


def test_what_trains_like_something_measured_is_not_trained(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, candidate = begun(tmp_path, laboratory)
    gone = Switches.of(SOURCE).without(["b"])
    assert gone is not None
    known = evolution.trials.register("ACD", gone.source, written_by="llm", generation=1)
    evolution.trials.measure(known, (0, 1))
    laboratory.trained.clear()
    ablated(evolution, candidate, 8)
    assert not any(name.startswith("ABCD without b/") for name in laboratory.trained)
    row = next(row for row in evolution.run.archive.rows("ablations") if row["version"] == "without:b")
    assert (row["measured"], row["delta"]) == (known.candidate_id, pytest.approx(-22.5))
    assert "trains exactly like it" in row["message"]


def test_what_trains_like_something_that_failed_costs_no_training(tmp_path: Path, laboratory: Laboratory) -> None:
    """Three versions are affordable: without a fails, without b trains as that one, and so there is room for d beside c."""
    evolution, candidate = begun(tmp_path, laboratory)
    verify = laboratory.verify

    def twins(path: Path, *, name: str, known_fingerprints: dict[str, str], **options: Any) -> VerificationReport:
        report = verify(path, name=name, known_fingerprints=known_fingerprints, **options)
        if name not in ("ABCD without a", "ABCD without b"):
            return report
        known = known_fingerprints.get("twins")
        failure = FailureKind.DUPLICATE if known else None
        return replace(report, fingerprint="twins", admitted=not known, duplicate_of=known, failure=failure)

    laboratory.verify = twins  # type: ignore[method-assign]
    laboratory.fail["ABCD without a"] = CandidateFailure(FailureKind.DIVERGED, "train", "NaN at step 6")
    for _ in range(2):
        ablated(evolution, candidate, 6)
        rows = {row["version"]: row["outcome"] for row in evolution.run.archive.rows("ablations")}
        assert rows == {
            "without:a": "failed", "without:b": "failed", "without:c": "measured", "without:d": "measured"
        }  # fmt: skip


@pytest.mark.slow
def test_killed_after_every_write_it_goes_on_and_trains_nothing_twice(
    tmp_path: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    evolution, candidate = begun(tmp_path, laboratory)
    one_at_a_time(evolution.run)  # so that every write has a death of its own
    deaths = 0
    while True:
        with monkeypatch.context() as patch:
            dies_after_one_write(patch)
            try:
                found = ablated(evolution, candidate, 4)
                break
            except Killed:
                deaths += 1
    assert deaths == 2 * 5, "of each version the file, the report, two seeds' scores and the row"
    assert len(laboratory.steps) == len(set(laboratory.steps)) == 4 * 12, "no step is done twice"
    assert found.versions == 2


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_a_real_candidate_is_ablated_and_what_it_wrote_can_be_read(tmp_path: Path) -> None:
    preset = load_preset("smoke", ["search.seeds_per_candidate=1"])
    with RunDirectory.open(tmp_path / "run", preset) as run:
        trials = Trials(run)
        base = trials.register("GRPO", algorithm_path("grpo").read_text(), written_by="human")
        source = algorithm_path("dapo").read_text()
        made = trials.register("DAPO", source, written_by="human", generation=1, parent_ids=[base.candidate_id])
        for candidate in (base, made):
            trials.measure(candidate, (0,))
        found = AblationStudy(run, made.candidate_id).carry_out(2)
        rows = {row["version"]: row for row in run.archive.rows("ablations")}
        assert set(rows) >= {one.key for one in each_off(Switches.of(source))[:1]}
        assert {row["outcome"] for row in rows.values()} <= {"measured", "refused"}
        assert found.versions >= 1
        (part, *_) = [row for row in rows.values() if row["measured"]]
        assert part["overall"] is not None
        kept = run.archive.rows("completions", candidate_id=made.candidate_id)
        assert {row["origin"] for row in kept} == {"train", "search"}
        assert {row["benchmark"] for row in kept if row["origin"] == "search"} == {
            one.name for one in preset.protocol.benchmarks
        }
        assert all(row["prompt"] for row in kept)
        told = History(run.archive, preset.protocol).samples(made.candidate_id)
        assert 0 < len(told) <= 16
        assert "prompt: " in told[0]


@pytest.mark.exhaustive
@pytest.mark.xdist_group("prefect")
def test_the_flow_ablates_and_reads_the_record(
    tmp_path: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.testing.utilities import prefect_test_harness

    from flows.replicate import ablate_candidate

    monkeypatch.setattr(Tracker, "sync_archive", lambda *_, **__: SyncReport())
    evolution, candidate = begun(tmp_path, laboratory)
    evolution.run.close()
    with prefect_test_harness(server_startup_timeout=600):
        state = ablate_candidate(str(tmp_path / "run"), "ABCD", budget=20, return_state=True)
        assert (state.name, "a, b carry ABCD" in state.message) == ("Ablated", True)
        trained = len(laboratory.trained)
        again = ablate_candidate(str(tmp_path / "run"), candidate.candidate_id, budget=20, return_state=True)
        assert (again.message, len(laboratory.trained)) == (state.message, trained)
        refused = ablate_candidate(str(tmp_path / "run"), "ABCD", seeds=1, return_state=True)
        assert refused.name == "Refused"


def test_what_cannot_be_ablated_says_what_can_be_done(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, candidate = begun(
        tmp_path, laboratory, "MECHANISMS = {}\n\n\nclass Hyperparameters:\n    x: float = 1.0\n"
    )
    found = ablated(evolution, candidate, 8)
    assert found.contributions == ()
    assert [point.value for point in found.curves["x"]] == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert "give it a hyperparameter that switches it off" in found.limits
    bare = evolution.trials.register("BARE", "MECHANISMS = {}\n", written_by="human")
    with pytest.raises(AblationRefused, match="BARE has no score"):
        ablated(evolution, bare)
    evolution.trials.measure(bare, (0, 1))
    with pytest.raises(AblationRefused, match="it has no numbers"):
        ablated(evolution, bare)


def test_versions_of_a_file_change_nothing_else() -> None:
    switches = Switches.of(SOURCE)
    assert [one.key for one in each_off(switches)] == ["without:a", "without:b", "without:c", "without:d"]
    assert next(one.key for one in each_alone(switches)) == "without:b+c+d"
    assert len(pairs(switches)) == 6
    version = each_off(switches)[2]
    rest = SOURCE.partition("\n\n\n")[2].replace("gamma: bool = True", "gamma: bool = False")
    assert version.source.partition("\n\n\n")[2] == rest
    assert [one.key for one in moved_numbers(switches, (2.0,))] == ["number:alpha=2", "number:beta=4", "number:delta=6"]
    shared = Switches.of(SOURCE.replace('"b": {"beta": 0.0}', '"b": {"alpha": 0.0}'))
    assert shared.closure(["a"]) == ("a", "b"), "the same number switches both off"
    assert {one.key for one in each_off(shared)} == {"without:a+b", "without:c", "without:d"}
    assert limits(switches) == ""
    computed = Switches.of(SOURCE.replace("beta: float = 2.0", "beta: float = 1 / 2"))
    assert limits(computed).startswith("b cannot be switched off")


def test_every_shipped_algorithm_can_be_switched() -> None:
    for name in ("grpo", "dapo", "gspo", "dace"):
        switches = Switches.of(algorithm_path(name).read_text())
        for version in each_off(switches):
            assert Switches.of(version.source).mechanisms.keys() == switches.mechanisms.keys() - set(version.dropped)


@pytest.mark.slow
def test_the_next_generation_is_told_and_tries_no_version_again(tmp_path: Path, laboratory: Laboratory) -> None:
    evolution, candidate = begun(tmp_path, laboratory)
    ablated(evolution, candidate, 20)
    search = evolution.search
    told = search.context(ChildSlot(2, 0, candidate.candidate_id, "ABCD")).ablations
    assert told.startswith("ABCD, each version trained with the same 2 seeds; Overall to ABCD's:")
    assert "\n- without a: -37.5 [" in told
    assert "\n- without c, d: +2.5 [" in told
    early = search.briefs.ablations(1, [candidate.candidate_id])
    assert early == "", "what was measured after a generation began is no part of what it is told"
    sources = {one.source_digest for one in search.context(ChildSlot(2, 0, candidate.candidate_id, "ABCD")).avoid}
    assert {source_digest(row["source"]) for row in evolution.run.archive.rows("ablations")} <= sources


def test_credit_is_told_in_a_few_lines() -> None:
    gains = {str(n): (("a",) if n % 2 else ("b",), gain(5.0 if n % 2 else 0.1)) for n in range(8)}
    lines = credit_lines(credit(gains, ()))
    assert lines[0].startswith("a pays +4.9")
    assert any(line.startswith("cannot be told apart: ") for line in lines) == bool(credit(gains, ()).confounded)
    assert credit_lines(credit({}, ())) == []


# credit


def gain(estimate: float, half: float = 1.0) -> Interval:
    return Interval(estimate, estimate - half, estimate + half, 3)


def test_credit_finds_what_pays_and_names_what_cannot_be_told_apart() -> None:
    """a is worth 4 points, b nothing, and c and d always come together; the baseline's own g costs 2."""
    truth = {"a": 4.0, "b": 0.0, "c": 1.0, "d": 1.0, "g": -2.0}
    sets = ["a", "b", "ab", "acd", "bcd", "cd", "g", "ag", "bg", "abg", "cdg", "abcdg", "acdg"]
    gains = {
        f"{name}-{number}": (tuple(name), gain(sum(truth[one] for one in name) + 2.0 + (-1) ** number * 0.1))
        for number, name in enumerate(sets)
    }
    found = credit(gains, ["g", "h"], left_out=3)
    by_name = {one.name: one for one in found.mechanisms}
    assert by_name["a"].verdict == "pays"
    assert by_name["a"].credit.estimate == pytest.approx(4.0, abs=0.5)
    assert by_name["g"].verdict == "costs"
    assert by_name["b"].verdict == "not distinguishable"
    assert by_name["c"].credit == by_name["d"].credit, "what always stands together shares its credit"
    (pair,) = found.confounded
    assert (pair.pair, pair.apart, pair.opposed) == (("c", "d"), 0, False)
    assert pair.sentence == "c and d: they come and go together always"
    assert (found.candidates, found.left_out, by_name["a"].having) == (13, 3, 7)
    # h, which no candidate kept, is -1 in every row and not "never varied"
    assert "h" in by_name
    plain = {name: (("g",), Interval(0.0, -2.0, 2.0, 3)) for name in "abcd"}
    assert (
        credit(plain, ["g"]).sentence
        == "all 4 scored candidates have the baseline's mechanisms: there is nothing to credit"
    )
    assert credit({}, ["g"]).sentence == "0 scored candidates are too few to credit mechanisms; 4 are needed"
    bare = credit({"one seed": (("a",), Interval(1.0, -math.inf, math.inf, 1))}, ["g"])
    assert bare.sentence.startswith("0 scored candidates, and 1 without an interval, are too few")


@pytest.mark.exhaustive
def test_credit_covers_the_truth_as_often_as_it_says() -> None:
    """60 runs of 30 candidates with 8 mechanisms drawn at random: of 480 intervals at 95 %, three standard errors are 3 %."""
    draw = np.random.default_rng(5)
    covered = []
    for _ in range(60):
        worth = draw.normal(0.0, 1.5, 8)
        shared = draw.normal(0.0, 0.7)
        gains = {}
        for number in range(30):
            has = draw.random(8) < 0.4
            noise = draw.normal(0.0, 0.7) + shared
            value = float(has @ worth + noise)
            gains[str(number)] = (
                tuple(f"m{i}" for i in range(8) if has[i]),
                Interval(value, value - 1.96 * 0.99, value + 1.96 * 0.99, 3),
            )
        found = credit(gains, ()).mechanisms
        covered += [one.credit.low <= worth[int(one.name[1:])] <= one.credit.high for one in found]
    assert 0.91 < np.mean(covered) <= 0.99


def credit_by_whole_matrices(
    design: np.ndarray, gained: np.ndarray, deviations: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every credit by the formulas of Bishop, sec. 3.3, over candidates x candidates."""
    shared = 0.5 * np.outer(deviations, deviations) + 0.5 * np.diag(deviations**2)
    scales = np.geomspace(0.1, 30.0, 16)
    likelihoods = {}
    for tau, misfit in itertools.product(scales, (0.0, *scales)):
        covariance = shared + misfit**2 * np.eye(len(gained)) + tau**2 * design @ design.T
        likelihoods[tau, misfit] = multivariate_normal(np.zeros(len(gained)), covariance).logpdf(gained)
    tau, misfit = max(likelihoods, key=lambda place: likelihoods[place])
    noise = np.linalg.inv(shared + misfit**2 * np.eye(len(gained)))
    posterior = np.linalg.inv(design.T @ noise @ design + np.eye(design.shape[1]) / tau**2)
    return posterior @ design.T @ noise @ gained, np.sqrt(np.diag(posterior))


@pytest.mark.parametrize("candidates", [6, 60])
def test_credit_is_that_of_the_whole_matrices(candidates: int) -> None:
    draw = np.random.default_rng(candidates)
    names = "abcdefgh"
    has = draw.random((candidates, len(names))) < 0.4
    has[:, 1] = has[:, 0]  # a and b always stand together
    deviations = draw.uniform(0.3, 3.0, candidates)
    gained = has @ draw.normal(0.0, 2.0, len(names)) + draw.normal(0.0, 1.0, candidates)
    gains = {
        f"{number:03d}": (
            tuple(name for name, own in zip(names, has[number], strict=True) if own),
            Interval(value, value - ndtri(0.975) * deviation, value + ndtri(0.975) * deviation, 3),
        )
        for number, (value, deviation) in enumerate(zip(gained.tolist(), deviations.tolist(), strict=True))
    }
    found = {one.name: one.credit for one in credit(gains, "h").mechanisms}
    design = has.astype(float)
    design[:, 7] -= 1.0
    mean, spread = credit_by_whole_matrices(design, gained, deviations)
    assert [found[name].estimate for name in names] == pytest.approx(mean.tolist(), rel=1e-8)
    half = [(found[name].high - found[name].low) / 2.0 for name in names]
    assert half == pytest.approx((ndtri(0.975) * spread).tolist(), rel=1e-8)


def test_credit_of_many_candidates_holds_no_matrix_of_them_all() -> None:
    """4,000 candidates; one matrix of candidates x candidates would be 128 MB, and solving with it minutes."""
    draw = np.random.default_rng(0)
    values = draw.normal(0.0, 2.0, 4_000).tolist()
    gains = {
        str(i): (tuple("abcdef"[j] for j in range(6) if i >> j & 1), gain(value)) for i, value in enumerate(values)
    }
    tracemalloc.start()
    try:
        found = credit(gains, "a")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert found.candidates == 4_000


def test_credit_of_the_committed_run_names_its_champions_mechanism() -> None:
    folder = Path(__file__).parents[2] / "docs" / "results" / "laptop-64"
    found = run_credit(RunDirectory.read(folder).evidence())
    assert found.mechanisms[0].name == "negative_damping"
    assert found.mechanisms[0].verdict == "pays"
    assert found.candidates == 45
