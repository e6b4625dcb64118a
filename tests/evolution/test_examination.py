"""The examination of a champion candidate: every condition by numbers, what they say together, once, and whatever happens."""

from __future__ import annotations

import datetime as dt
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from archive_samples import replication
from laboratory import Killed, Laboratory, contents, dies_after_one_write, evolved, one_at_a_time, preset_with

from poise_core.algorithms import algorithm_path
from poise_core.archive import evaluation_rows
from poise_core.config import ExaminationSpec, PresetError, load_preset
from poise_core.config.protocol import BenchmarkSpec
from poise_core.evaluation.job import EvaluationJob
from poise_core.evaluation.problems import problem_set
from poise_core.evaluation.results import BenchmarkResult, SeedEvaluation
from poise_core.evaluation.scoring import benchmark_score, overall
from poise_core.evidence.examination import Plan, best_rate, conclude, conditions_of, level_of, multiplicity, unfinished
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution import Evolution
from poise_core.experiments.examination import Examination, ExaminationRecord
from poise_core.experiments.replication import Replication, ReplicationRefused
from poise_core.failures import CandidateFailure, FailureKind, InfrastructureError
from poise_core.render.markdown import fenced, render_examination_page, render_nightly_report
from poise_core.render.terminal import render_candidate
from poise_core.run_directory import RunDirectory
from poise_core.tracking.plan import plan_runs
from poise_core.tracking.registry import champion_of, plan_versions
from poise_core.training.job import TrainingJob
from poise_core.views import leaderboard, other_protocols, view_candidate
from poise_core.views.nightly import NightlyRun, nightly_report

LEARNING_RATE = 1e-4  # of the laboratory's protocol
WHOLE = {"seeds": 3, "choice_seeds": 2, "rates": (0.5, 1.0, 2.0), "policies": ("other",), "passes": (1, 2, 4, 8)}
PLANNED = ["primary", "pass@1", "pass@2", "pass@4", "greedy", "collapse", "rates", "policy:other"]

DRAWN = [
    {
        "name": "drawn", "problems": 20, "metric": "accuracy", "weight": 1.0,
        "source": {"reasoning_gym": {"chain_sum": {}, "gcd": {}}},
    }
]  # fmt: skip

DIVERGED = CandidateFailure(FailureKind.DIVERGED, "train", "NaN at step 3")


@pytest.fixture(autouse=True)
def made_up_policies(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "laboratory" in request.fixturenames:
        monkeypatch.setattr("poise_core.experiments.replication.policy_digest", lambda policy: "beef")


def begun(tmp_path: Path, laboratory: Laboratory, **examination: Any) -> tuple[RunDirectory, list[str]]:
    """A run whose first child is a champion candidate, with these settings of the examination; and its candidates."""
    evolution, candidates = evolved(tmp_path, laboratory)
    evolution.run.close()
    settings = ExaminationSpec.model_validate({**WHOLE, **examination})
    preset = preset_with((0, 1, 2, 3, 4)).model_copy(update={"examination": settings})
    laboratory.trained.clear()
    laboratory.steps.clear()
    return RunDirectory.open(tmp_path / "run", preset), candidates


def rate_of(job: TrainingJob | EvaluationJob) -> float:
    return round(job.protocol.training.learning_rate / LEARNING_RATE, 6)


def solved(chains: int, each: int, sums: int) -> Callable[[BenchmarkSpec], list[int]]:
    """The first ``chains`` of 20 chains by ``each`` of four completions, the first ``sums`` of 20 sums."""
    return lambda spec: (
        [each] * chains + [0] * (20 - chains) if spec.name == "chain" else [1] * sums + [0] * (20 - sums)
    )


def by_hand(
    laboratory: Laboratory,
    baseline: str,
    best: str,
    *,
    baseline_at: dict[float, Callable[[BenchmarkSpec], list[int]]] | None = None,
    candidate: Callable[[int], Callable[[BenchmarkSpec], list[int]]] = lambda seed: solved(20, 1, 15 + seed),
) -> None:
    """Fill in what the module's tests compute by hand.

    The baseline solves 12 chains with every completion and 4 sums: 60 % at any k, and 20 %. The candidate solves all 20 chains with
    one completion of four (25 % at k = 1, 50 % at 2, 100 % at 4) and with seeds 2, 3, 4 of the comparison 17, 18, 19 sums
    (90 %); at half the learning rate it solves nothing, at twice the rate it diverges.
    """
    at = baseline_at or {}

    def counts(owner: str, job: EvaluationJob, seed: int, spec: BenchmarkSpec) -> Sequence[int] | None:
        rate = rate_of(job)
        if owner == baseline:
            return at.get(rate, solved(12, 4, 4))(spec)
        seed = min(seed, 4)
        return (solved(0, 0, 0) if rate < 1 else candidate(seed))(spec)

    def fail(job: TrainingJob) -> BaseException | None:
        mine = best in job.candidate_path.parts
        return DIVERGED if mine and rate_of(job) == 2.0 else None

    laboratory.counts, laboratory.fail_under = counts, fail


def test_conditions_are_those_that_the_protocol_can_answer() -> None:
    protocol = preset_with((0, 1)).protocol  # chain: four completions; sums: greedy
    settings = ExaminationSpec.model_validate(WHOLE)
    assert [one.name for one in conditions_of(settings, protocol)] == PLANNED  # nobody draws eight completions
    assert [one.name for one in conditions_of(settings, protocol) if one.trains] == ["primary", "rates", "policy:other"]
    own = ExaminationSpec(policies=(protocol.policy,), rates=(), greedy=False, passes=(1,))
    assert [one.name for one in conditions_of(own, protocol)] == ["primary", "pass@1", "collapse"]
    laptop = load_preset("laptop-64")
    names = [one.name for one in conditions_of(laptop.examination, laptop.protocol)]
    assert names == ["primary", "pass@1", "pass@8", "pass@32", "greedy", "collapse", "rates", "policy:arithmetic-d"]
    for wrong in ({"rates": (3.0, 0.5)}, {"rates": (1.0,)}, {"rates": (1.0, 1.0)}, {"policies": ("a/x", "b/x")}):
        with pytest.raises(ValueError, match=r"list 1 and at least one|repeat"):
            ExaminationSpec.model_validate(wrong)


def test_a_procedural_set_is_a_condition_that_presets_of_before_do_not_have() -> None:
    protocol = preset_with((0, 1)).protocol
    settings = ExaminationSpec.model_validate({**WHOLE, "procedural": DRAWN})
    names = [one.name for one in conditions_of(settings, protocol)]
    assert names == [*PLANNED[:5], "procedural", *PLANNED[5:]]
    assert "procedural" not in ExaminationSpec().model_dump(), "digests of examinations of before stay"
    plans = [Plan("base", True, (2, 3), one) for one in (settings, ExaminationSpec.model_validate(WHOLE))]
    assert len({plan.digest(protocol, "c") for plan in plans}) == 2, "it is hashed with the examination"
    assert Plan.from_dict(json.loads(json.dumps(plans[0].to_dict()))) == plans[0]
    (one,) = DRAWN
    for wrong, said in (
        ({**one, "source": None}, "needs a source of reasoning_gym"),
        ({**one, "source": {"dataset": "public.jsonl"}}, "needs a source of reasoning_gym"),
        ({**one, "sealed": "same"}, "in halves"),
        ({**one, "weight": 0.5}, "add up to 0.5"),
    ):
        with pytest.raises(ValueError, match=said):
            ExaminationSpec.model_validate({"procedural": [wrong]})
    with pytest.raises(PresetError, match=r"examination\.procedural has the name of another one"):
        load_preset("smoke", [f"examination.procedural={json.dumps([{**one, 'name': 'products'}])}"])


def test_settings_of_an_examination_are_no_part_of_the_protocol() -> None:
    assert load_preset("smoke").protocol == load_preset("smoke", ["examination.seeds=7"]).protocol
    assert "examination" not in load_preset("smoke").protocol.model_dump()


def test_levels_allow_for_every_condition_but_the_first() -> None:
    assert level_of("primary", PLANNED) == pytest.approx(0.95)
    assert level_of("rates", PLANNED) == pytest.approx(1 - 0.05 / 6)  # pass@1, 2, 4, greedy, rates, policy
    assert "at 99.17 % for each of the 6 other comparisons" in multiplicity(PLANNED)
    assert multiplicity(["primary", "collapse"]) == "The interval is at 95 %."


def test_the_best_rate_is_the_highest_of_those_that_came_to_an_end() -> None:
    assert best_rate({0.33: 70.0, 1.0: 72.0, 3.0: None}) == 1.0
    assert best_rate({0.33: 72.0, 1.0: 72.0, 3.0: 71.0}) == 1.0
    assert best_rate({0.5: None, 1.0: None}) is None


@pytest.mark.slow
def test_a_baseline_that_wins_at_its_best_rate_leaves_a_champion_and_nothing_robust(
    tmp_path: Path, laboratory: Laboratory
) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory)
    by_hand(laboratory, baseline, best, baseline_at={2.0: solved(20, 4, 20)})
    said: list[str] = []
    record = Examination(run, best).examine(say=said.append)
    rows = {row["condition"]: row for row in record.rows}
    assert list(rows) == PLANNED
    numbers = {
        name: (row["verdict"], row["overall"], row["baseline_overall"], row["delta"]) for name, row in rows.items()
    }
    assert numbers == {
        "primary": ("holds", 70.0, 40.0, 30.0),  # (50 + 90) / 2 and (60 + 20) / 2
        "pass@1": ("does not hold", 25.0, 60.0, -35.0),
        "pass@2": ("not distinguishable", 50.0, 60.0, -10.0),
        "pass@4": ("holds", 100.0, 60.0, 40.0),
        "greedy": ("holds", 90.0, 20.0, 70.0),
        "collapse": ("not distinguishable", None, None, None),  # none of three: up to 63 %
        "rates": ("does not hold", 70.0, 100.0, -30.0),
        "policy:other": ("holds", 70.0, 40.0, 30.0),
    }
    assert (rows["greedy"]["worst"], rows["primary"]["worst"]) == (85.0, 67.5)  # 17 of 20, and (50 + 85) / 2
    assert (rows["rates"]["rate"], rows["rates"]["baseline_rate"]) == (1.0, 2.0)
    assert json.loads(rows["rates"]["detail"])["rates"] == {
        "baseline": {"0.5": 40.0, "1": 40.0, "2": 100.0},
        "candidate": {"0.5": 0.0, "1": 72.5, "2": None},  # (50 + 95) / 2; it diverged
    }
    assert "GRPO at x2 is better than" in rows["rates"]["message"]
    assert "a better rate of GRPO may lie beyond" in rows["rates"]["message"]
    assert rows["collapse"]["collapse_bound"] == pytest.approx(1 - 0.05 ** (1 / 3))
    conclusion = conclude(record.rows)
    assert conclusion.standing == "champion"
    assert conclusion.sentence == (
        "champion: holds under primary, pass@4, greedy, policy:other; does not hold under pass@1, rates; "
        "not distinguishable under pass@2, collapse"
    )
    # 2 sides x 3 seeds, then 2 sides x 3 rates x 2 seeds and again as many as the primary has, then the policy
    assert said == [
        "examination 1 of this run: up to 30 trainings (primary 6, rates 12 and up to 6 more, policy:other 6); "
        "so many take about 15 s"  # two at a time; an evaluation of the laboratory says that it took a second
    ]


@pytest.mark.slow
def test_who_wins_at_one_rate_only_is_not_robust(tmp_path: Path, laboratory: Laboratory) -> None:
    """At twice the rate the baseline does what the candidate does at the protocol's."""
    run, (baseline, best, *_) = begun(tmp_path, laboratory, passes=(4,), seeds=12, policies=())
    by_hand(laboratory, baseline, best, baseline_at={2.0: solved(20, 1, 18)}, candidate=lambda seed: solved(20, 1, 18))
    record = Examination(run, best).examine()
    verdicts = {row["condition"]: row["verdict"] for row in record.rows}
    assert verdicts == {
        "primary": "holds", "pass@4": "holds", "greedy": "holds", "collapse": "holds", "rates": "not distinguishable",
    }  # fmt: skip
    assert conclude(record.rows).standing == "champion"
    assert champion_of(plan_versions(RunEvidence.load(run.archive, run.preset.protocol))) == best


@pytest.mark.slow
def test_what_holds_under_every_condition_is_robust(tmp_path: Path, laboratory: Laboratory) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory, passes=(4,), seeds=12, procedural=DRAWN)
    by_hand(laboratory, baseline, best)
    asked: list[EvaluationJob] = []
    counts = laboratory.counts
    laboratory.counts = lambda owner, job, seed, spec: asked.append(job) or counts(owner, job, seed, spec)  # type: ignore[func-returns-value]
    record = Examination(run, best).examine()
    assert conclude(record.rows).sentence == (
        "robust: holds under all 7 conditions (primary, pass@4, greedy, procedural, collapse, rates, policy:other)"
    )
    # drawn problems are none of a public set: the policies of the primary condition answer them, and nothing is trained for it
    drawn = next(row for row in record.rows if row["condition"] == "procedural")
    # of 20 sums the candidate solves 15 + min(seed, 4): 17, 18 and ten times 19; the baseline 4
    assert (drawn["overall"], drawn["baseline_overall"]) == (pytest.approx(5 * (17 + 18 + 10 * 19) / 12), 20.0)
    assert drawn["message"].endswith("on 20 problems that were drawn for this examination (chain_sum, gcd)")
    assert drawn["level"] == pytest.approx(1 - 0.05 / 5)  # beside pass@4, greedy, rates and the policy
    jobs = [job for job in asked if job.protocol.benchmarks[0].name == "drawn"]
    assert {(job.split, job.examination, len(job.protocol.benchmarks)) for job in jobs} == {("report", 1, 1)}
    trained = {job.policies for job in asked if job.split == "report" and job.folder.parent.name == "replicate"}
    assert {job.policies for job in jobs} == trained
    # as without it: 2 x 12, at half the rate and as it is 2 x 2 each, at twice the rate the baseline's 2, and 2 x 12 on the policy
    assert len(laboratory.trained) == 24 + 4 + 4 + 2 + 24
    # twelve seeds: those of the protocol that are left, then those after them; two more chose the rates
    assert record.rows[0]["seeds"] == list(range(2, 14))
    assert record.rows[0]["choice_seeds"] == [14, 15]


@pytest.mark.slow
def test_who_was_not_declared_is_no_champion_whatever_holds(tmp_path: Path, laboratory: Laboratory) -> None:
    run, (baseline, _, ordinary, *_) = begun(tmp_path, laboratory, passes=(), rates=(), policies=())
    by_hand(laboratory, baseline, ordinary)
    record = Examination(run, ordinary).examine(undeclared=True)
    assert conclude(record.rows).sentence == (
        "no champion, as it had not been declared: holds under primary, greedy; not distinguishable under collapse"
    )


@pytest.mark.slow
def test_a_collapse_in_one_seed_is_shown_with_its_bound(tmp_path: Path, laboratory: Laboratory) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory, rates=(), policies=(), passes=(), seeds=5)
    by_hand(laboratory, baseline, best, candidate=lambda seed: solved(0, 0, 5) if seed == 3 else solved(20, 4, 20))
    record = Examination(run, best).examine()
    (collapse,) = [row for row in record.rows if row["condition"] == "collapse"]
    assert (collapse["verdict"], collapse["collapsed"], collapse["worst"]) == ("does not hold", 1, 12.5)  # 25 % of sums
    p = collapse["collapse_bound"]
    assert (1 - p) ** 5 + 5 * p * (1 - p) ** 4 == pytest.approx(0.05)
    assert collapse["message"] == (
        "does not hold: 1 of 5 trainings collapsed, so the chance is at most 66 %; the worst has 12.5"
    )
    view = view_candidate(RunEvidence.load(run.archive, run.preset.protocol), best)
    page = fenced(render_candidate(view, code=False), 100)
    assert "12.5 (40.0)" in page
    assert "1 of 5, <= 66 %" in page


@pytest.mark.slow
def test_a_side_that_fails_under_a_condition_decides_it_alone(tmp_path: Path, laboratory: Laboratory) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory, passes=(), greedy=False)
    by_hand(laboratory, baseline, best)

    def fail(job: TrainingJob) -> BaseException | None:
        """The baseline on the other policy, the candidate at every rate but the protocol's."""
        mine, rate = best in job.candidate_path.parts, rate_of(job)
        failing = rate != 1.0 if mine else job.protocol.policy == "other"
        return DIVERGED if failing else None

    laboratory.fail_under = fail
    rows = {row["condition"]: row for row in Examination(run, best).examine().rows}
    assert (rows["policy:other"]["verdict"], rows["policy:other"]["delta"]) == ("not measured", None)
    assert "the baseline GRPO failed, diverged in train: NaN at step 3" in rows["policy:other"]["message"]
    assert (rows["rates"]["verdict"], rows["rates"]["rate"]) == ("holds", 1.0)  # the two that failed are no choice
    trained = len(laboratory.trained)
    assert Examination(run, best).examine().rows == list(rows.values())
    assert len(laboratory.trained) == trained


@pytest.mark.slow
def test_a_candidate_that_fails_with_fresh_seeds_fails_every_condition_that_rests_on_them(
    tmp_path: Path, laboratory: Laboratory
) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory)
    by_hand(laboratory, baseline, best)
    laboratory.fail_under = lambda job: DIVERGED if best in job.candidate_path.parts else None
    record = Examination(run, best).examine()
    assert record.replication["outcome"] == "failed"
    assert {row["condition"]: row["verdict"] for row in record.rows} == dict.fromkeys(PLANNED[:6], "does not hold")
    (row,) = [one for one in Examination(run, best).examine(conditions=["rates"]).rows if one["condition"] == "rates"]
    assert (row["verdict"], row["rate"], row["baseline_rate"]) == ("does not hold", None, 1.0)
    assert "failed at every rate" in row["message"]


@pytest.mark.slow
def test_where_both_sides_fail_at_every_rate_nothing_is_said_of_the_candidate(
    tmp_path: Path, laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory, passes=(), greedy=False)
    by_hand(laboratory, baseline, best)

    def fail(*_: object) -> None:
        raise DIVERGED

    monkeypatch.setattr(Examination, "chosen", fail)
    record = Examination(run, best).examine(conditions=["rates"])
    (row,) = [one for one in record.rows if one["condition"] == "rates"]
    assert (row["verdict"], row["message"]) == ("not measured", "not measured: GRPO failed at every rate")


@pytest.mark.slow
def test_a_candidate_that_is_not_better_costs_no_more_trainings_unless_they_are_asked_for(
    tmp_path: Path, laboratory: Laboratory
) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory)
    by_hand(laboratory, baseline, best, candidate=lambda seed: solved(12, 4, 4))
    record = Examination(run, best).examine()
    assert [row["condition"] for row in record.rows] == PLANNED[:6]
    assert record.replication["outcome"] == "refuted"
    assert conclude(record.rows).sentence == (
        "no champion: not distinguishable under primary, pass@1, pass@2, pass@4, greedy, collapse; "
        "not examined under rates, policy:other"
    )
    assert not unfinished(record.rows)
    assert len(laboratory.trained) == 6
    more = Examination(run, best).examine(conditions=["policy"])
    assert [row["condition"] for row in more.rows] == [*PLANNED[:6], "policy:other"]
    assert len(laboratory.trained) == 12


@pytest.mark.slow
def test_a_part_is_completed_later_with_the_same_seeds_and_shown_when_asked_again(
    tmp_path: Path, laboratory: Laboratory
) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory)
    by_hand(laboratory, baseline, best)
    said: list[str] = []
    with pytest.raises(ReplicationRefused, match="no condition 'luck' in this examination; it has primary, pass@1"):
        Examination(run, best).examine(conditions=["luck"])
    assert not (run.candidate_folder(best) / "replicate").exists()
    part = Examination(run, best).examine(conditions=["primary"], say=said.append)
    assert [row["condition"] for row in part.rows] == ["primary"]
    assert said == ["examination 1 of this run: 6 trainings (primary 6); so many take about 3 s"]
    assert unfinished(part.rows)
    assert conclude(part.rows).standing == "champion"
    whole = Examination(run, best).examine()
    assert [row["condition"] for row in whole.rows] == PLANNED
    assert {tuple(row["seeds"]) for row in whole.rows} == {(2, 3, 4)}
    assert len({row["examination"] for row in whole.rows}) == 1
    assert not unfinished(whole.rows)
    laboratory.trained.clear()
    laboratory.evaluated.clear()
    said.clear()
    assert Examination(run, best).examine(say=said.append) == whole
    assert Examination(run, best).examine(7, conditions=["rates"], say=said.append) == whole  # once is once
    assert (laboratory.trained, laboratory.evaluated, said) == ([], [], [])


@pytest.mark.slow
def test_a_second_examination_reads_other_problems_with_other_seeds(tmp_path: Path, laboratory: Laboratory) -> None:
    run, (_, best, ordinary, *_) = begun(tmp_path, laboratory, policies=())
    first = Examination(run, best).examine(conditions=["rates"]).rows[0]
    laboratory.sealed_sets.clear()
    second = Examination(run, ordinary).examine(conditions=["rates"], undeclared=True).rows[0]
    assert laboratory.sealed_sets == {0, 2}  # 0: the search split, where rates are chosen
    assert (first["sealed_set"], second["sealed_set"]) == (1, 2)
    assert (first["seeds"], first["choice_seeds"]) == ([2, 3, 4], [5, 6])
    assert (second["seeds"], second["choice_seeds"]) == ([7, 8, 9], [10, 11])
    assert first["examination"] != second["examination"]


@pytest.mark.slow
def test_the_problems_of_a_replication_whose_plan_is_lost_are_not_read_again(
    tmp_path: Path, laboratory: Laboratory
) -> None:
    run, (_, best, ordinary, *_) = begun(tmp_path, laboratory, policies=())
    Replication(run, best).carry_out(3)
    (run.candidate_folder(best) / "replicate" / "plan.json").unlink()
    plan = Replication(run, ordinary).begin(3, undeclared=True)
    assert (plan.sealed_set, plan.seeds) == (2, (5, 6, 7))


@pytest.mark.slow
def test_the_leaderboard_does_not_see_what_an_examination_trains(tmp_path: Path, laboratory: Laboratory) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory)
    by_hand(laboratory, baseline, best)
    protocol = run.preset.protocol

    def shown() -> list[dict[str, Any]]:
        evidence = RunEvidence.load(run.archive, protocol)
        assert other_protocols(evidence) == []
        return [{**one.to_dict(), "state": ""} for one in leaderboard(evidence)]

    before = shown()
    record = Examination(run, best).examine()
    assert shown() == before
    filed = {row["protocol"] for row in run.archive.rows("evaluations", unsealed=True)}
    assert (
        len(filed) == 5
    )  # the run's, and of the examination: as it is, half the rate, twice the rate, the other policy
    trained = {one for row in record.rows for one in json.loads(row["detail"]).get("protocols", ())}
    assert filed >= {f"examination-{digest}" for digest in trained}
    assert protocol.digest not in trained
    assert run.archive.check() == []


def test_what_an_earlier_version_has_replicated_is_shown_as_it_was(tmp_path: Path, laboratory: Laboratory) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory)
    row = {**replication(run.preset.protocol, best, "replicated"), "baseline_id": baseline, "seeds": [2, 3]}
    run.archive.append("replications", [row])
    record = Examination(run, best).examine()
    assert record.rows == []
    assert record.replication["message"] == row["message"]
    assert laboratory.trained == []
    other = Examination(run, baseline)
    assert other._used()[0] >= {0, 1, 2, 3}


@pytest.mark.slow
def test_without_the_folder_that_holds_its_seeds_no_others_are_taken(tmp_path: Path, laboratory: Laboratory) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory)
    by_hand(laboratory, baseline, best)
    part = Examination(run, best).examine(conditions=["primary"])
    (run.candidate_folder(best) / "replicate" / "plan.json").unlink()
    laboratory.trained.clear()
    assert Examination(run, best).examine() == part
    assert laboratory.trained == []


@pytest.mark.slow
def test_one_table_is_on_every_page(tmp_path: Path, laboratory: Laboratory) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory, passes=(1,))
    by_hand(laboratory, baseline, best)
    rows = Examination(run, best).examine().rows
    protocol = run.preset.protocol
    evidence = RunEvidence.load(run.archive, protocol)
    assert evidence.state(best) == "replicated"
    name = evidence.candidates[best]["name"]
    page = render_examination_page(rows, name)
    plain = view_candidate(evidence, best).to_dict()["examination"]
    assert [one["detail"]["settings"]["seeds"] for one in json.loads(json.dumps(plain))] == [3] * 6
    assert "| pass@1 | 25.0 | 60.0 | -35.0 [" in page
    assert "| rates | 70.0 at x1 | 40.0 at x1 | +30.0 [" in page
    assert "sealed set 1" in page
    (plan,) = [one for one in plan_runs(evidence) if one.key == f"candidate/{best}"]
    assert plan.texts["examination.md"] == page
    assert (plan.tags["examined"], plan.tags["examination"]) == ("champion", conclude(rows).sentence)
    (version,) = [one for one in plan_versions(evidence) if one.candidate_id == best]
    assert version.tags["examined"] == "champion"
    now = dt.datetime.now(dt.UTC)
    night = NightlyRun(generation=1, began=now, ended=now, finished=True, examined=best)
    assert page.rstrip() in render_nightly_report(nightly_report(evidence, run.preset, night))
    without = NightlyRun(generation=1, began=now, ended=now, finished=True)
    assert "What was examined" not in render_nightly_report(nightly_report(evidence, run.preset, without))


def killed_at(patch: pytest.MonkeyPatch, number: int) -> None:
    """The process dies right after its durable write of this number; see ``laboratory.dies_after_one_write``."""
    done = [0]

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def write_and_perhaps_die(source: Any, target: Any, **options: Any) -> None:
            write(source, target, **options)
            done[0] += 1
            if done[0] == number:
                raise Killed(str(target))

        return write_and_perhaps_die

    patch.setattr(os, "link", counted(os.link))
    patch.setattr(os, "replace", counted(os.replace))


def undisturbed(tmp_path: Path, laboratory: Laboratory) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The archive of an examination that nothing interrupts, and every step that it trained."""
    run, (baseline, best, *_) = begun(tmp_path / "undisturbed", laboratory)
    by_hand(laboratory, baseline, best)
    Examination(run, best).examine()
    return contents(run.archive), sorted(laboratory.steps)


@pytest.mark.slow
def test_killed_at_a_stage_it_goes_on_where_it_stopped(tmp_path: Path, laboratory: Laboratory) -> None:
    expected, steps = undisturbed(tmp_path, laboratory)
    for number in (1, 12, 17):  # the plan, a choice of rates, and the recorded failure at one
        run, (baseline, best, *_) = begun(tmp_path / str(number), laboratory)
        by_hand(laboratory, baseline, best)
        with pytest.MonkeyPatch.context() as patch:
            killed_at(patch, number)
            with pytest.raises(Killed):
                Examination(run, best).examine()
        Examination(run, best).examine()
        assert contents(run.archive) == expected, number
        assert sorted(laboratory.steps) == steps, number  # as many trainings of each side and seed, none twice


@pytest.mark.exhaustive
def test_killed_after_every_write_it_comes_to_the_same_answers(tmp_path: Path, laboratory: Laboratory) -> None:
    expected, _ = undisturbed(tmp_path, laboratory)
    run, (baseline, best, *_) = begun(tmp_path, laboratory)
    one_at_a_time(run)
    by_hand(laboratory, baseline, best)
    deaths = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            dies_after_one_write(patch)
            try:
                Examination(run, best).examine()
            except Killed:
                deaths += 1
                continue
            break
    assert deaths > 25
    assert contents(run.archive) == expected


@pytest.mark.slow
def test_both_sides_train_at_the_same_time_and_a_fault_of_one_stops_the_other(
    tmp_path: Path, laboratory: Laboratory
) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory, passes=())
    by_hand(laboratory, baseline, best)
    meeting = threading.Barrier(2, timeout=20)

    def meet(job: TrainingJob) -> BaseException | None:
        """Nobody goes on before the other side has come; then the baseline's machine fails while the candidate trains."""
        meeting.wait()
        if best not in job.candidate_path.parts:
            return InfrastructureError("the disk is full")
        stopped = time.monotonic() + 20
        while time.monotonic() < stopped and not examination._stopping():
            time.sleep(0.01)
        return None

    laboratory.fail_under = meet
    examination = Examination(run, best)
    with pytest.raises(InfrastructureError, match="the disk is full"):
        examination.examine()
    assert laboratory.steps == [], "the candidate was stopped before its first step"
    laboratory.fail_under = lambda job: None
    assert examination.examine().replication["outcome"] == "replicated"


@pytest.mark.slow
def test_a_fault_of_the_machine_is_no_answer(tmp_path: Path, laboratory: Laboratory) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory, passes=())
    by_hand(laboratory, baseline, best)
    full = InfrastructureError("the disk is full")
    laboratory.fail_under = lambda job: full if job.protocol.policy == "other" else None
    with pytest.raises(InfrastructureError, match="the disk is full"):
        Examination(run, best).examine()
    assert "policy:other" not in {row["condition"] for row in Examination(run, best).rows()}
    laboratory.fail_under = lambda job: None
    assert Examination(run, best).examine().rows[-1]["condition"] == "policy:other"


@pytest.mark.slow
def test_a_baseline_that_fails_as_it_is_is_tried_again(tmp_path: Path, laboratory: Laboratory) -> None:
    run, (baseline, best, *_) = begun(tmp_path, laboratory, rates=(), policies=(), passes=())
    by_hand(laboratory, baseline, best)
    laboratory.fail_under = lambda job: DIVERGED if baseline in job.candidate_path.parts else None
    with pytest.raises(InfrastructureError, match="the baseline GRPO failed: NaN at step 3"):
        Examination(run, best).examine()
    laboratory.fail_under = lambda job: None
    assert Examination(run, best).examine().replication["outcome"] == "replicated"


def scored(evolution: Evolution, candidate: str, skill: int) -> None:
    """Made-up scores of the search, so that nothing has to be trained for it."""
    protocol = evolution.preset.protocol
    for seed in protocol.seeds:
        results = []
        for spec in protocol.benchmarks:
            correct = (skill * spec.samples,) * 2 + (0,) * (spec.problems - 2)
            score = benchmark_score(correct, spec.samples, spec.k)
            results.append(BenchmarkResult(spec.name, spec.metric_name, score, correct, spec.samples, 1.0, 5.0))
        found = SeedEvaluation(seed, "search", overall(results, protocol), tuple(results), 1.0)
        evolution.run.archive.append("evaluations", evaluation_rows(candidate, protocol.digest, found))


def examined_in_earnest(tmp_path: Path, conditions: list[str]) -> tuple[Evolution, Path, ExaminationRecord, list[str]]:
    """RLOO beside GRPO under the preset smoke, by real trainings of two steps; the folder of what was trained, and the cost."""
    drawn = f"examination.procedural={json.dumps(DRAWN)}"
    preset = load_preset("smoke", ["protocol.training.steps=2", "examination.rates=[1.0, 3.0]", drawn])
    evolution = Evolution(RunDirectory.open(tmp_path / "run", preset))
    said: list[str] = []
    with evolution.run:
        scored(evolution, evolution.register_baseline().candidate_id, 0)
        candidate = evolution.trials.adopt(algorithm_path("rloo")).candidate_id
        scored(evolution, candidate, 1)
        examination = Examination(evolution.run, candidate)
        record = examination.examine(undeclared=True, conditions=conditions, say=said.append)
    assert evolution.run.archive.check() == []
    assert [row["condition"] for row in record.rows] == ["primary", *conditions]
    assert {tuple(row["seeds"]) for row in record.rows} == {(2, 3)}
    return evolution, evolution.run.candidate_folder(candidate) / "replicate", record, said


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_a_real_examination_of_the_preset_smoke(tmp_path: Path) -> None:
    evolution, home, record, said = examined_in_earnest(tmp_path, ["procedural", "policy:arithmetic-b"])
    assert said == ["examination 1 of this run: 8 trainings (primary 4, policy:arithmetic-b 4)"]
    jobs = [json.loads(path.read_text()) for path in sorted(home.rglob("job-report.json"))]
    key = problem_set(evolution.run.secret, "report", 1).key.hex()
    bases = ["arithmetic-a", "arithmetic-b", "arithmetic-a"]
    assert [(Path(job["base"]).name, job["key"]) for job in jobs] == [(base, key) for base in bases]
    primary, drawn, other = record.rows
    # the confined process drew and judged 20 problems for each policy of the primary condition, and they are filed apart
    filed = f"examination-{json.loads(drawn['detail'])['protocols'][0]}"
    scored = evolution.run.archive.rows("evaluations", protocol=filed, unsealed=True)
    assert {(row["benchmark"], row["split"], len(row["correct"])) for row in scored} == {("drawn", "report", 20)}
    assert all(sum(row["graded"].values()) == 20 and "failed" not in row["graded"] for row in scored)
    assert len(scored) == 4
    trained = [{seed: folder for seed, folder, _ in job["policies"]} for job in jobs]
    assert trained[0] == trained[2] != trained[1]
    ours, theirs = (json.loads(row["detail"])["protocols"] for row in (primary, other))
    assert ours != theirs
    answers = [
        [
            row["correct"]
            for row in evolution.run.archive.rows("evaluations", protocol=f"examination-{one}", unsealed=True)
        ]
        for (one,) in (ours, theirs)
    ]  # not their means, which may be equal by chance
    assert answers[0] != answers[1]
    assert len(answers[0]) == len(answers[1]) > 0


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_a_real_examination_trains_at_other_learning_rates(tmp_path: Path) -> None:
    _, home, record, said = examined_in_earnest(tmp_path, ["rates"])
    assert said == ["examination 1 of this run: up to 12 trainings (primary 4, rates 4 and up to 4 more)"]
    assert record.rows[1]["choice_seeds"] == [4]
    steps = [home / folder / "train" / "seed-4" / "trajectory.jsonl" for folder in (".", "rate-x3")]
    usual, faster = (json.loads(path.read_text().splitlines()[-1])["learning_rate"] for path in steps)
    assert faster == pytest.approx(3 * usual)
    assert not list((home / "rate-x3").rglob("seed-4-report.json")), "the seed of the choice reads no sealed problem"
