"""What the views say, on a made-up evolution whose numbers are known."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import archive_samples as samples
import pytest
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from poise_core.archive import (
    Archive,
    ArchiveError,
    candidate_row,
    evaluation_rows,
    failure_row,
    selection_row,
    trajectory_rows,
)
from poise_core.config.protocol import Protocol
from poise_core.evidence.format import format_interval
from poise_core.evidence.intervals import Interval, overall_interval, paired_delta
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.render.markdown import fenced
from poise_core.render.terminal import render_candidate, render_leaderboard, render_lineage, render_selection
from poise_core.render.terminal.style import sparkline
from poise_core.tracking.pages import generation_page
from poise_core.tracking.plan import plan_runs
from poise_core.views import find_candidate, leaderboard, lineage, other_protocols, view_candidate
from poise_core.views.lineage import selection_report


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Archive, Protocol]:
    return samples.filled_archive(tmp_path)


def text(renderable: RenderableType, width: int = 100) -> str:
    """As a terminal of this width shows it; no line may be longer."""
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    shown = capture.get()
    assert max(map(len, shown.splitlines())) <= width
    return shown


# ---- numbers as text


def test_intervals_as_text() -> None:
    assert format_interval(Interval(52.44, 50.06, 54.71, 3)) == "52.4 [50.1, 54.7]"
    assert format_interval(Interval(1.5, -0.25, 3.25, 3), signed=True) == "+1.5 [-0.2, +3.2]"
    assert format_interval(Interval(52.44, -math.inf, math.inf, 1)) == "52.4 (one seed)"
    assert format_interval(None) == "-"


def test_a_view_as_a_code_block() -> None:
    table = Table("a", "b", box=None)
    table.add_row("1", Text("x", style="bold red"))
    assert fenced(table, 20) == "```\n a  b\n 1  x\n```"


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([0, math.nan, 7, math.inf]) == "▁!█!"
    assert sparkline([0, 0, 1, 1], width=2) == "▁█", "longer curves show the mean of each piece"
    assert len(sparkline(list(range(101)), width=40)) == 40
    assert sparkline([]) == ""


# ---- leaderboard


def test_the_leaderboard_ranks_by_overall_with_paired_deltas(filled: tuple) -> None:
    archive, protocol = filled
    rows = leaderboard(RunEvidence.load(archive, protocol))
    assert [(row.rank, row.name, row.status) for row in rows] == [
        (1, "VM-AV", "evaluated"), (2, "AV", "evaluated"), (3, "GRPO", "evaluated"), (4, "SA", "evaluated"),
        (None, "LATE", "unfinished"), (None, "HOT", "failed"),
    ]  # fmt: skip
    evaluations = archive.evaluations(protocol=protocol.digest)
    best, _, base, worst = rows[:4]
    assert best.overall == overall_interval(evaluations[samples.VM_AV], protocol)
    assert best.delta == paired_delta(evaluations[samples.VM_AV], evaluations[samples.GRPO], protocol)
    assert (best.verdict, base.verdict, worst.verdict) == ("better", "baseline", "worse")
    assert base.delta is None
    chain = [next(b.score for b in e.benchmarks if b.name == "chain") for e in evaluations[samples.VM_AV]]
    assert best.benchmarks["chain"] == pytest.approx(sum(chain) / 3)
    assert best.completion_length == pytest.approx(18.5)
    assert rows[-1].failure == {
        "stage": "train",
        "kind": "diverged",
        "message": "the loss is NaN at step 7",
        "attempt": 0,
    }


def test_a_delta_inside_the_noise_says_so(tmp_path: Path) -> None:
    protocol = samples.make_protocol()
    archive = Archive(tmp_path / "archive").initialise()
    samples.add_candidate(archive, protocol, samples.GRPO, "GRPO", 0, (), 0.45)
    samples.add_candidate(archive, protocol, samples.AV, "A-rather-long-name-for-a-candidate", 1, (samples.GRPO,), 0.46)
    rows = leaderboard(RunEvidence.load(archive, protocol))
    row = next(row for row in rows if row.candidate_id == samples.AV)
    assert row.delta is not None
    assert not row.delta.excludes_zero
    assert row.verdict == "not distinguishable"
    shown = text(render_leaderboard(rows, protocol))
    line = next(line for line in shown.splitlines() if "not distinguishable" in line)
    assert format_interval(row.delta, signed=True) in line
    assert format_interval(row.overall) in line
    assert "A-rather-long-" in shown, "a name has room even where every cell is filled"


def test_the_base_policy_is_a_reference_and_no_baseline(tmp_path: Path) -> None:
    """It is archived before GRPO, and without a parent too."""
    protocol = samples.make_protocol()
    archive = Archive(tmp_path / "archive").initialise()
    row = candidate_row(candidate_id="base-0", name="base policy", source="#", source_digest="d", written_by="poise",
                        arm="untrained")  # fmt: skip
    archive.append("candidates", [row])
    for seed in samples.SEEDS:
        evaluation = samples.make_evaluation(protocol, 0.5, seed)
        archive.append("evaluations", evaluation_rows("base-0", protocol.digest, evaluation))
    samples.add_candidate(archive, protocol, samples.GRPO, "GRPO", 0, (), 0.45)
    samples.add_candidate(archive, protocol, samples.AV, "AV", 1, (samples.GRPO,), 0.55)
    rows = leaderboard(RunEvidence.load(archive, protocol))
    assert [(r.rank, r.name, r.status) for r in rows] == [
        (1, "AV", "evaluated"), (None, "base policy", "reference"), (2, "GRPO", "evaluated"),
    ]  # fmt: skip
    assert [r.verdict for r in rows][2] == "baseline"
    assert rows[1].delta is not None
    assert "not corrected for 1 comparison." in text(render_leaderboard(rows, protocol))
    assert [root.name for root in lineage(RunEvidence.load(archive, protocol))] == ["GRPO"]


def test_numbers_of_another_protocol_are_not_ranked(filled: tuple) -> None:
    archive, protocol = filled
    other = samples.make_protocol(steps=21)
    for seed in samples.SEEDS:
        archive.append(
            "evaluations", evaluation_rows(samples.WAITING, other.digest, samples.make_evaluation(other, 0.9, seed))
        )
    rows = leaderboard(RunEvidence.load(archive, protocol))
    assert rows[0].name == "VM-AV"
    assert next(row for row in rows if row.candidate_id == samples.WAITING).status == "unfinished"
    assert other_protocols(RunEvidence.load(archive, protocol)) == [other.digest]
    assert [row.name for row in leaderboard(RunEvidence.load(archive, other)) if row.rank] == ["LATE"]
    shown = text(render_leaderboard(rows, protocol, others=other_protocols(RunEvidence.load(archive, protocol))))
    assert f"Not ranked here, another protocol: {other.digest}." in shown


def test_the_report_split_never_shows(filled: tuple) -> None:
    archive, protocol = filled
    before = [row.to_dict() for row in leaderboard(RunEvidence.load(archive, protocol))]
    report = samples.make_evaluation(protocol, 0.99, 0, "report")
    archive.append("evaluations", evaluation_rows(samples.SA, protocol.digest, report))
    archive.read("evaluations", unsealed=True)
    assert [row.to_dict() for row in leaderboard(RunEvidence.load(archive, protocol))] == before


def test_one_seed_and_no_shared_seed(tmp_path: Path) -> None:
    protocol = samples.make_protocol()
    archive = Archive(tmp_path / "archive").initialise()
    for name, seed, parents in (("GRPO", 0, ()), ("AV", 0, ("grpo-0",)), ("SA", 5, ("grpo-0",))):
        row = candidate_row(candidate_id=f"{name.lower()}-0", name=name, source="x", source_digest="d",
                            written_by="rules", generation=len(parents), parent_ids=parents)  # fmt: skip
        archive.append("candidates", [row])
        evaluation = samples.make_evaluation(protocol, 0.5, seed)
        archive.append("evaluations", evaluation_rows(f"{name.lower()}-0", protocol.digest, evaluation))
    rows = {row.name: row for row in leaderboard(RunEvidence.load(archive, protocol))}
    assert rows["AV"].verdict == "not distinguishable"
    assert rows["AV"].delta is not None
    assert (rows["SA"].delta, rows["SA"].verdict) == (None, "")
    assert "(one seed)" in text(render_leaderboard(list(rows.values()), protocol))
    json.dumps([row.to_dict() for row in rows.values()], allow_nan=False)


def test_an_idea_that_never_became_code_is_listed_as_a_failure(filled: tuple) -> None:
    archive, protocol = filled
    failure = CandidateFailure(FailureKind.REJECTED, "implement", "three [bold]attempts[/bold] did not pass the gate")
    row = failure_row(failure, candidate_id="evolution-g2-s1-p0", protocol=protocol.digest, name="IDEA", generation=2)
    archive.append("failures", [row])
    rows = leaderboard(RunEvidence.load(archive, protocol))
    assert [(r.name, r.status) for r in rows if r.status == "failed"] == [("IDEA", "failed"), ("HOT", "failed")]
    assert "three [bold]attempts[/bold] did not pass the gate" in text(render_leaderboard(rows, protocol))


def test_the_rendered_leaderboard_states_noise_comparisons_and_failures(filled: tuple) -> None:
    archive, protocol = filled
    shown = text(render_leaderboard(leaderboard(RunEvidence.load(archive, protocol)), protocol))
    base = next(row for row in leaderboard(RunEvidence.load(archive, protocol)) if row.verdict == "baseline")
    assert f"Leaderboard, protocol {protocol.digest}" in shown
    assert f"Seed noise of GRPO: standard deviation {base.seed_std:.2f} points over 3 seeds." in shown
    assert "not corrected for 3 comparisons" in shown
    assert "Not finished: LATE (generation 2)." in shown
    assert "diverged" in shown
    assert "the loss is NaN at step 7" in shown


def test_an_untuned_baseline_is_named_below_the_leaderboard_and_on_mlflows_page(filled: tuple) -> None:
    archive, protocol = filled
    tuned, untuned = (
        RunEvidence.load(archive, protocol),
        RunEvidence.load(archive, protocol, untuned="It was never tuned."),
    )
    rows, said = leaderboard(tuned), "It was never tuned. A positive delta may be a matter of numbers"
    assert said in text(render_leaderboard(rows, protocol, evidence=untuned))
    assert said in generation_page(untuned, [rows[0].candidate_id])
    assert "never tuned" not in text(render_leaderboard(rows, protocol, evidence=tuned))
    assert "never tuned" not in generation_page(tuned, [rows[0].candidate_id])


def test_gradings_without_a_verdict_are_shown_wherever_scores_are(tmp_path: Path) -> None:
    protocol, archive = samples.make_protocol(), Archive(tmp_path / "archive").initialise()
    given = {"GRPO": {"right": 9, "cut_off": 1}, "AV": {"right": 7, "timed_out": 2, "failed": 1}, "SA": None}
    for name, graded in given.items():
        samples.add_candidate(archive, protocol, f"{name.lower()}-0", name, 0 if name == "GRPO" else 1)
        evaluation = samples.make_evaluation(protocol, 0.5, 0)
        results = tuple(dataclasses.replace(one, graded=graded) for one in evaluation.benchmarks)
        evaluation = dataclasses.replace(evaluation, benchmarks=results)
        archive.append("evaluations", evaluation_rows(f"{name.lower()}-0", protocol.digest, evaluation))
    evidence = RunEvidence.load(archive, protocol)
    rows = leaderboard(evidence)
    # three benchmarks: of AV 2 x 3 timed out and 1 x 3 failed; SA was scored before this was counted
    said = "Of 60 completions the grader timed out on 6 (AV 6) and the grader failed on 3 (AV 3), which count as wrong."
    assert said in text(render_leaderboard(rows, protocol), 200)
    shown = text(render_candidate(view_candidate(evidence, "AV"), code=False), 200)
    assert "the grader timed out on 6 (add 2, chain 2, mod 2)" in shown
    assert "timed out" not in text(render_candidate(view_candidate(evidence, "GRPO"), code=False))
    assert "timed out" not in text(render_leaderboard([row for row in rows if row.name != "AV"], protocol))
    json.dumps(view_candidate(evidence, "AV").to_dict(), allow_nan=False)
    metrics = {plan.name: {name: value for name, value, _ in plan.metrics} for plan in plan_runs(evidence)}
    assert (metrics["AV"]["evaluation/timed_out"], metrics["AV"]["evaluation/failed"]) == (6, 3)
    assert (metrics["GRPO"]["evaluation/timed_out"], metrics["GRPO"]["evaluation/cut_off"]) == (0, 3)
    assert "evaluation/timed_out" not in metrics["SA"]


def test_an_empty_archive_is_a_sentence(tmp_path: Path) -> None:
    protocol = samples.make_protocol()
    archive = Archive(tmp_path / "archive").initialise()
    assert leaderboard(RunEvidence.load(archive, protocol)) == []
    assert "No candidate has been evaluated yet." in text(render_leaderboard([], protocol))
    assert lineage(RunEvidence.load(archive, protocol)) == []


# ---- lineage


def test_the_last_selection_says_what_its_terms_add_and_how_well_it_predicts(filled: tuple) -> None:
    """Observed 0.1, 0.2, 0.6 and predicted 0.2, 0.2, 0.4: errors 0.1, 0, 0.2. By the mean of the others: 0.3, 0.15, 0.45."""
    archive, protocol = filled
    assert selection_report(RunEvidence.load(archive, protocol)) is None, "older archives have no contributions"
    judged = {samples.GRPO: (0.1, 0.2, 0.3), samples.AV: (0.2, 0.2, 0.1), samples.SA: (0.6, 0.4, 0.2)}
    rows = [
        selection_row(
            protocol=protocol.digest, generation=9, candidate_id=name, total=added,
            terms={"contribution_performance": added, "gain_observed": observed, "gain_left_out": predicted},
        )
        for name, (observed, predicted, added) in judged.items()
    ]  # fmt: skip
    archive.append("selections", rows)
    report = selection_report(RunEvidence.load(archive, protocol))
    assert report is not None
    assert (report.generation, report.targets) == (9, 3)
    assert report.contributions["performance"] == pytest.approx((2 * 0.01 / 3) ** 0.5)
    assert report.error == pytest.approx((0.05 / 3) ** 0.5)
    assert report.error_of_mean == pytest.approx(((0.09 + 0.0225 + 0.2025) / 3) ** 0.5)
    shown = text(render_selection(report))
    assert "performance 0.082" in shown
    assert "error 0.129, better than 0.324 by their mean" in " ".join(shown.split())


def test_the_lineage_nests_children_under_their_parents(filled: tuple) -> None:
    archive, protocol = filled
    (root,) = lineage(RunEvidence.load(archive, protocol))

    def shape(node: object) -> tuple:
        return (node.name, *(shape(child) for child in node.children))

    assert shape(root) == ("GRPO", ("AV", ("VM-AV",), ("HOT",)), ("SA",), ("LATE",))
    evaluations = archive.evaluations(protocol=protocol.digest)
    grandchild = root.children[0].children[0]
    assert grandchild.delta == paired_delta(evaluations[samples.VM_AV], evaluations[samples.AV], protocol)
    assert grandchild.other_parents == ("SA",)
    assert (root.selected, root.terms, root.total) == (2, {"score": 0.5, "exploration": 0.7}, 1.2)
    assert root.children[0].children[1].failure == "diverged"
    plain = json.loads(json.dumps(root.to_dict(), allow_nan=False))
    assert plain["children"][0]["children"][0]["verdict"] == "better"


def test_the_rendered_tree_says_what_changed_and_what_it_brought(filled: tuple) -> None:
    archive, protocol = filled
    roots = lineage(RunEvidence.load(archive, protocol))
    shown = text(render_lineage(roots))
    grandchild = roots[0].children[0].children[0]
    assert format_interval(grandchild.delta, signed=True) in shown
    for wanted in (
        "scale: std -> vm-av (with SA)",
        "diverged",
        "not finished",
        "selected for 2 children",
        "score 0.50",
    ):
        assert wanted in shown


# ---- one candidate


def test_a_candidate_is_found_by_id_name_or_beginning(filled: tuple) -> None:
    archive, _ = filled
    for wanted in (samples.VM_AV, "vm-av", "VM-AV", "vm"):
        assert find_candidate(archive, wanted) == samples.VM_AV
    with pytest.raises(ArchiveError, match="no candidate 'x'; the nearest of"):
        find_candidate(archive, "x")
    archive.append(
        "candidates", [candidate_row(candidate_id="av-9", name="AW", source="x", source_digest="d", written_by="llm")]
    )
    with pytest.raises(ArchiveError, match="could be any of av-1111111111, av-9"):
        find_candidate(archive, "AV-")
    for number in range(30):
        archive.append(
            "candidates",
            [candidate_row(candidate_id=f"many-{number:02d}", name=f"M{number}", source=f"x = {number}",
                           source_digest="d", written_by="llm")],
        )  # fmt: skip
    with pytest.raises(ArchiveError, match="could be any of many-00, many-01, many-02, many-03, many-04 and 25 more"):
        find_candidate(archive, "many")
    with pytest.raises(ArchiveError) as caught:
        find_candidate(archive, "M99")
    assert str(caught.value).count(",") == 4, "five names, however many there are"


def test_one_candidate_shows_everything_the_archive_holds(filled: tuple) -> None:
    archive, protocol = filled
    view = view_candidate(RunEvidence.load(archive, protocol), "VM-AV")
    assert view.parents == {samples.AV: "AV", samples.SA: "SA"}
    assert list(view.deltas) == ["AV", "GRPO"]
    assert view.curves["kl"][19] == pytest.approx(0.38)
    shown = text(render_candidate(view))
    for wanted in ("generation 2, by llm", "admitted", "VM-AV keeps the scale", "seed 1:", "▁", "KL ended at 0.38 nats",
                   "def f(x):", "to GRPO: +", "candidate/sigma"):  # fmt: skip
        assert wanted in shown
    assert "def f(x):" not in text(render_candidate(view, code=False))
    plain = json.loads(json.dumps(view.to_dict(), allow_nan=False))
    assert plain["record"]["mechanisms"] == {"level": "token", "scale": "analytic"}
    assert plain["reflection"]["content"]["reflector"] == "rules"
    assert plain["curves"]["kl"]["19"] == pytest.approx(0.38)


def test_a_training_that_shared_the_network_says_so(filled: tuple) -> None:
    archive, protocol = filled
    view = view_candidate(RunEvidence.load(archive, protocol), "VM-AV")
    assert view.unconfined == {}
    assert "trained without" not in text(render_candidate(view))
    shared = {"limits": "granted", "network": "not granted: no; sharing the machine's was allowed"}
    for seed, confinement in ((8, shared), (9, {"limits": "granted", "network": "granted"})):
        steps = [{"step": 0.0, "kl": 0.1}]
        archive.append(
            "trajectories", trajectory_rows(samples.VM_AV, protocol.digest, seed, steps, confinement=confinement)
        )
    view = view_candidate(RunEvidence.load(archive, protocol), "VM-AV")
    assert view.to_dict()["unconfined"] == {"network": shared["network"]}
    shown = " ".join(text(render_candidate(view)).split())
    assert "trained without network (not granted: no; sharing the machine's was allowed)" in shown


def test_candidates_without_results_show_what_there_is(filled: tuple) -> None:
    archive, protocol = filled
    shown = text(render_candidate(view_candidate(RunEvidence.load(archive, protocol), "HOT"), code=False))
    assert "diverged in train, attempt 0: the loss is NaN at step 7" in shown
    assert "Traceback ..." in shown
    collapsed = view_candidate(RunEvidence.load(archive, protocol), "SA")
    line = next(line for line in text(render_candidate(collapsed)).splitlines() if "entropy" in line)
    assert "!" in line
    assert "nan" in line
    json.dumps(collapsed.to_dict(), allow_nan=False)
    root = view_candidate(RunEvidence.load(archive, protocol), "GRPO")
    assert root.deltas == {}
    assert "none, a root" in text(render_candidate(root))
