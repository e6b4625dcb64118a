"""The page of a headline run: its candidates, its champions, their replication, and the control arms at the same budget.

``python -m studies.headline FOLDER`` reads the runs of ``poise compare-search`` below a folder (``evolution-seed-0``,
``random-seed-0``, ...), writes ``docs/results/FOLDER.md`` with a drawing, and puts the archive of the search that is told of beside
it: the one whose candidate was examined, or else ablated, or else the first evolution. There lie its page for a browser, too, and
the simplified file of an ablated candidate. Every number on the page comes from the archives.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from poise_core.archive import EVOLUTION_ARM, TABLES, Archive
from poise_core.config import LadderSpec
from poise_core.evidence.ablation import conclude_ablation
from poise_core.evidence.credit import run_credit
from poise_core.evidence.format import format_duration, format_interval, format_level
from poise_core.evidence.promotion import Declaration, corrected_level
from poise_core.evidence.run_evidence import RunEvidence
from poise_core.evolution.ladder import judged_by
from poise_core.experiments.arms import ARMS
from poise_core.files import write_atomically
from poise_core.render.explorer import run_page
from poise_core.render.lines import outlook_note, pick_cells
from poise_core.render.markdown import fenced, render_ablation_page, render_examination_page, table
from poise_core.render.svg import draw_comparison
from poise_core.render.terminal import render_credit, render_lineage, render_rungs
from poise_core.run_directory import RunDirectory
from poise_core.views import LeaderboardRow, leaderboard, lineage
from poise_core.views.arms import ArmCurve, Step, best_so_far, compare_arms, picks_at_budget
from poise_core.views.outlook import outlook
from poise_core.views.rungs import rung_report

SHOWN = 15
"""Rows of the leaderboard on the page; all of them lie in the archive."""


@dataclass(frozen=True)
class Run:
    """One run with the evidence from its archive."""

    directory: RunDirectory
    evidence: RunEvidence

    @classmethod
    def read(cls, path: Path) -> Run:
        """From its directory."""
        directory = RunDirectory.read(path)
        return cls(directory, directory.evidence())

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.directory.path.name


def find_runs(folder: Path) -> dict[str, list[Run]]:
    """Arm -> its runs by search seed.

    Raises:
        ValueError: there is no run of the evolution.
    """
    found: dict[str, list[Run]] = {}
    for arm in ARMS:
        paths = sorted(path for path in folder.glob(f"{arm}-seed-*") if RunDirectory.exists(path))
        if paths:
            found[arm] = [Run.read(path) for path in paths]
    if "evolution" not in found:
        raise ValueError(f"{folder}: no evolution-seed-N below it; make it with poise compare-search")
    return found


def told_of(runs: Mapping[str, Sequence[Run]]) -> Run:
    """The search that the page tells of in full: see the module's docstring."""
    every = [run for group in runs.values() for run in group]
    examined = [run for run in every if run.evidence.examinations]
    ablated = [run for run in every if run.evidence.ablations]
    return [*examined, *ablated, *runs["evolution"]][0]


def steps_of(runs: Mapping[str, Sequence[Run]]) -> dict[str, list[list[Step]]]:
    """The best so far of every run of every arm."""
    return {arm: [best_so_far(run.evidence) for run in group] for arm, group in runs.items()}


def render(
    runs: Mapping[str, Sequence[Run]],
    steps: Mapping[str, Sequence[Sequence[Step]]],
    curves: Sequence[ArmCurve],
    command: str,
    drawing: str,
) -> str:
    """The page.

    Args:
        runs: from ``find_runs``.
        steps: from ``steps_of``.
        curves: the same on a common grid of budgets.
        command: that makes the page.
        drawing: file name of the curves.
    """
    run = told_of(runs)
    preset, rows = run.directory.preset, leaderboard(run.evidence)
    lines = [
        f"# The run of preset {preset.name}",
        "",
        f"Made by `{command}`; the archive of the search `{run.name}`, of which this page tells, lies beside it. The folder's runs "
        f"are those of `{_searched(runs)}`. The search in a browser: "
        f"[explorer.html]({drawing.removesuffix('.svg')}/explorer.html), a file to download and open.",
        "",
        *_what_was_tried(run, rows),
        "",
        "## What was found",
        "",
        *_what_was_found(run, rows),
        "",
        *_leaderboard(rows),
        "",
        "## The arms at equal budget",
        "",
        *_arms(runs, steps, curves, drawing),
        "",
        *_picks(runs, steps),
        "",
        *_examined(runs),
        "## The ladder",
        "",
        fenced(render_rungs(rung_report(run.evidence, run.directory.current_preset.ladder)), 100),
        "",
        "## Lineage",
        "",
        fenced(render_lineage(lineage(run.evidence)), 120),
        "",
        "## Credit",
        "",
        fenced(render_credit(run_credit(run.evidence)), 120),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _searched(runs: Mapping[str, Sequence[Run]]) -> str:
    """The command that made the runs."""
    preset = runs["evolution"][0].directory.current_preset
    seeds = max(len(group) for group in runs.values())
    budget = f" --trainings {preset.search.trainings:g}" if preset.search.trainings is not None else ""
    arms = " ".join(f"--arm {arm}" for arm in runs)
    generations = f" --set search.generations={preset.search.generations}"
    return f"poise compare-search --preset {preset.name} {arms} --search-seeds {seeds}{budget}{generations}"


def _what_was_tried(run: Run, rows: Sequence[LeaderboardRow]) -> list[str]:
    preset = run.directory.current_preset
    search, ladder = preset.search, judged_by(preset.ladder, preset.protocol)
    children = [row for row in rows if row.generation and row.arm == EVOLUTION_ARM]
    ends = Counter(row.state if row.status == "stopped" else row.status for row in children)
    short = sum(
        row.status == "evaluated" and row.overall is not None and row.overall.seeds < search.seeds_per_candidate
        for row in children
    )
    ends["measured with all seeds"] = ends.pop("evaluated", 0) - short
    ends["stopped after one seed"] = short
    counted = ", ".join(f"{count} {what}" for what, count in sorted(ends.items(), key=lambda item: -item[1]) if count)
    return [
        f"GRPO and {len(children)} variants in {max((row.generation or 0 for row in rows), default=0)} generations of "
        f"{search.parents} parents by the arm {search.arm}: {counted}. "
        f"A child is measured with {search.seeds_per_candidate} seeds unless the ladder stops it "
        f"({described_thresholds(ladder)}). "
        f"{sum(run.evidence.training_tokens.values()) / 1e6:.1f} million training tokens; from the first row of the archive "
        f"to the last reflection {_span(run)}.",
    ]


def described_thresholds(ladder: LadderSpec) -> str:
    """The probabilities below which a child ends, those that are in force."""
    if not ladder.enabled:
        return "there is none: the ladder is switched off"
    rules = {
        "at the proxy for its reward": ladder.proxy_stop_below * bool(ladder.proxy_steps),
        "at the proxy for its forecast": ladder.forecast_stop_below * bool(ladder.proxy_steps),
        "after one seed": ladder.first_stop_below,
        "after one seed against the best of earlier generations": ladder.leader_stop_below,
    }
    return "thresholds " + ", ".join(f"{limit:g} {where}" for where, limit in rules.items() if limit)


def _span(run: Run) -> str:
    first = min(row["created_at"] for row in run.evidence.candidates.values())
    last = max(row["created_at"] for row in run.evidence.archive.rows("reflections"))
    took: timedelta = last - first
    return format_duration(took.total_seconds())


def _what_was_found(run: Run, rows: Sequence[LeaderboardRow]) -> list[str]:
    evidence = run.evidence
    named = {row.candidate_id: row for row in rows}
    lines = []
    champions = evidence.champions
    level = next((one.level for one in evidence.declarations.values()), corrected_level(evidence.family))
    corrected = f"interval against GRPO at {format_level(level)} ({evidence.counted()}) lies above zero"
    if champions:
        listed = "; ".join(
            f"**{named[one.candidate_id].name}** {format_interval(one.delta, signed=True)} ({_stable(evidence, one)})"
            for one in champions
        )
        lines.append(f"Champion candidates, whose {corrected}: {listed}.")
        lines += ["", f"What all of them changed in GRPO: {_shared_by(run, {one.candidate_id for one in champions})}."]
    else:
        lines.append(f"No champion candidate: there is no child whose {corrected}.")
    for row in evidence.replications.values():
        lines += ["", f"**{named[row['candidate_id']].name}** on the sealed split: {row['message']}."]
    if note := outlook_note(outlook(evidence, run.directory.current_preset)):
        lines += ["", note]
    if evidence.noise:
        lines += [
            "",
            f"Noise floor: {evidence.noise.typical.std:.2f} points per seed ({evidence.noise.candidates} candidates).",
        ]
    return lines


def _stable(evidence: RunEvidence, declared: Declaration) -> str:
    found = evidence.stability(declared.candidate_id)
    return found.sentence() if found else ""


def _shared_by(run: Run, champions: set[str]) -> str:
    """Slots in which every champion candidate differs from the baseline, with their choices and who else has them."""
    rows = [row for row in run.evidence.candidates.values() if row["arm"] == EVOLUTION_ARM]
    made = {row["candidate_id"]: json.loads(row["mechanisms"]) for row in rows}
    root = made[next(row["candidate_id"] for row in rows if not row["generation"])]
    children = [made[row["candidate_id"]] for row in rows if row["generation"]]
    shared = []
    for slot, usual in root.items():
        choices = Counter(made[name].get(slot, usual) for name in sorted(champions))
        if usual not in choices:
            listed = ", ".join(
                f"`{choice}` ({count} of {len(champions)}, {sum(one.get(slot) == choice for one in children)} of all children)"
                for choice, count in choices.most_common()
            )
            shared.append(f"{slot} {listed}")
    return "; ".join(shared) or "nothing"


def _leaderboard(rows: Sequence[LeaderboardRow]) -> list[str]:
    scored = [row for row in rows if row.overall is not None]
    kept = [row for row in scored if row.rank is None or row.rank <= SHOWN or row.verdict == "baseline"]
    names = sorted({name for row in kept for name in row.benchmarks})
    lines = [
        f"| # | candidate | generation | Overall [95 %] | seeds | delta to GRPO [95 %] | verdict | {' | '.join(names)} | tokens |",
        "|---" * (8 + len(names)) + "|",
    ]
    for row in kept:
        scores = " | ".join(f"{row.benchmarks[name]:.1f}" if name in row.benchmarks else "" for name in names)
        delta = format_interval(row.delta, signed=True) if row.delta else ""
        length = "" if row.completion_length is None else f"{row.completion_length:.1f}"
        lines.append(
            f"| {row.rank or ''} | {row.name} | {row.generation or 0} | {format_interval(row.overall)} | "
            f"{row.overall.seeds if row.overall else ''} | {delta} | {row.state or row.verdict} | {scores} | {length} |"
        )
    rest = len(scored) - len(kept)
    return [
        *lines,
        "",
        f"{rest} more scored candidates are in the archive. Verdicts are not corrected for the number compared.",
    ]


def _arms(
    runs: Mapping[str, Sequence[Run]],
    steps: Mapping[str, Sequence[Sequence[Step]]],
    curves: Sequence[ArmCurve],
    drawing: str,
) -> list[str]:
    common = curves[0].tokens[-1]
    lines = [
        f"![best so far over training tokens]({drawing})",
        "",
        f"| arm | search seeds | children | measured with all seeds | training tokens | best shrunken Overall, all children | "
        f"the same at {common / 1e6:.1f} million tokens | champion candidates |",
        "|---|---|---|---|---|---|---|---|",
    ]
    last = {curve.arm: curve.best[-1] for curve in curves}
    for arm, group in runs.items():
        tokens = statistics.fmean(sum(run.evidence.training_tokens.values()) for run in group)
        best = last[arm]
        whole = ", ".join(f"{one[-1].best:.1f}" for one in steps[arm])
        lines.append(
            f"| {arm} | {len(group)} | {_each(group, _children)} | {_each(group, _whole)} | {tokens / 1e6:.1f} million | {whole} | "
            f"{format_interval(best) if best.seeds > 1 else f'{best.estimate:.1f}'} | {_each(group, _champions)} |"
        )
    budget = next(iter(runs.values()))[0].directory.current_preset.search.trainings
    rule = (
        "Arms have as many children each; what these cost is the ladder's decision, so the tokens differ"
        if budget is None
        else f"Every search went on until its children had cost {budget:g} whole trainings of the baseline, to the generation's end"
    )
    lines += [
        "",
        f"{rule}. Both readings are shown: all children, and those within the tokens that every search has spent.",
    ]
    if any(len(group) == 1 for group in runs.values()):
        lines += ["", "One search seed of an arm has no interval: it says what happened, not which arm is better."]
    return lines


def _picks(runs: Mapping[str, Sequence[Run]], steps: Mapping[str, Sequence[Sequence[Step]]]) -> list[str]:
    """What each search picked within the common budget, and what that scored again."""
    budget, picks = picks_at_budget(
        (arm, run.directory.current_preset.search.seed, own, run.evidence)
        for arm, group in runs.items()
        for run, own in zip(group, steps[arm], strict=True)
    )
    head = ("arm", "search seed", "pick", "Overall in its search", "minus baseline, measured again [95 %]", "outcome")
    rows = [(f"**{arm.arm}**" if cells[0] == "mean" else arm.arm, *cells) for arm in picks for cells in pick_cells(arm)]
    return [
        f"What each search names best at {budget / 1e6:.1f} million tokens, and the same candidate trained again: fresh seeds, "
        "sealed problems, the baseline beside it (`--measure-again`).",
        "",
        table(head, rows),
        "",
        "Limits of a pick are over its fresh seeds, those of a mean and of a difference (Welch) over searches. The baseline's "
        "fresh seeds are the same for all picks: their noise is in every mean, and in no difference between arms.",
    ]


def _examined(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """The examinations and ablations of candidates of any search; nothing where there are none."""
    lines = []
    for run in (run for group in runs.values() for run in group):
        names = {name: row["name"] for name, row in run.evidence.candidates.items()}
        where = f"of the search `{run.name}`"
        for candidate, rows in run.evidence.examinations.items():
            title = f"## The examination of {names[candidate]}, {where}"
            lines += [title, "", render_examination_page(rows, names[candidate])]
        for candidate in run.evidence.ablations:
            if (found := conclude_ablation(run.evidence, candidate)) is not None:
                lines += [f"## The ablation of {names[candidate]}, {where}", "", render_ablation_page(found)]
    return lines


def _each(runs: Sequence[Run], number: Any) -> str:
    return ", ".join(str(number(run)) for run in runs)


def _children(run: Run) -> int:
    rows = run.evidence.candidates.values()
    return sum(row["generation"] > 0 and row["arm"] == EVOLUTION_ARM for row in rows)


def _whole(run: Run) -> int:
    """Children with all seeds, whether a ladder let them or there was none."""
    seeds = run.directory.current_preset.search.seeds_per_candidate
    found = run.evidence.evaluations
    rows = run.evidence.candidates.values()
    children = [row["candidate_id"] for row in rows if row["generation"] > 0 and row["arm"] == EVOLUTION_ARM]
    return sum(len(found.get(child, ())) >= seeds for child in children)


def _champions(run: Run) -> str:
    """How many, and the best of them with its corrected interval."""
    champions = run.evidence.champions
    if not champions:
        return "0"
    best = max(champions, key=lambda one: one.delta.estimate)
    name = run.evidence.candidates[best.candidate_id]["name"]
    return f"{len(champions)}, best {name} {format_interval(best.delta, signed=True)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page, the drawing and the copy of the archive."""
    parser = argparse.ArgumentParser(prog="python -m studies.headline", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="default: docs/results/FOLDER.md")
    given = parser.parse_args(arguments)
    out: Path = given.out or Path("docs/results") / f"{given.folder.name}.md"
    runs = find_runs(given.folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    steps = steps_of(runs)
    curves = compare_arms(steps)
    command = f"python -m studies.headline {given.folder.name}"
    if given.out is not None:
        command += f" --out {given.out.name if given.out.is_absolute() else given.out}"
    page = render(runs, steps, curves, command, out.with_suffix(".svg").name)
    write_atomically(out, page)
    draw_comparison(curves, out.with_suffix(".svg"))
    copy = out.with_suffix("")
    shutil.rmtree(copy, ignore_errors=True)
    told = told_of(runs)
    publish_archive(told.directory.path / "archive", copy / "archive")
    shutil.copy(told.directory.path / "preset.yaml", copy / "preset.yaml")
    write_atomically(copy / "explorer.html", explored(told, runs))
    for candidate in told.evidence.ablations:
        found = conclude_ablation(told.evidence, candidate)
        if found is not None and found.simplified is not None:
            write_atomically(copy / "simplified.py", found.simplified.source)
    print(page)


def explored(told: Run, runs: Mapping[str, Sequence[Run]]) -> str:
    """The page of a search for a browser, with the best so far of the other arms' search of the same seed."""
    seed = told.name.rpartition("-")[2]
    others = [
        run for group in runs.values() for run in group if run is not told and run.name.rpartition("-")[2] == seed
    ]
    return run_page(told.name, told.evidence, {run.name: run.evidence for run in others})


def publish_archive(source: Path, target: Path) -> None:
    """A copy to be kept beside a page: compacted, and without the files that only a run which goes on needs.

    These are the schema of a table that has rows, and tables of which an archive may have none and this one has no row.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(".snapshot*"))
    archive = Archive(target)
    archive.compact(lambda _: None)
    for one in TABLES.values():
        if archive.has(one.name) and archive.parts(one.name):
            (target / one.name / "schema.parquet").unlink()
        elif one.later:
            shutil.rmtree(target / one.name, ignore_errors=True)


if __name__ == "__main__":
    main()
