"""``poise export``: a candidate as one file for another trainer, or as a page with its equations."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise_core.cli.common import REFUSED, UNUSABLE, algorithm_file, fail, plain_errors, say

if TYPE_CHECKING:
    from poise_core.run_directory import RunDirectory


class To(StrEnum):
    """Where an algorithm can be taken."""

    TRL = "trl"
    VERL = "verl"
    PRIME_RL = "prime-rl"
    OPENRLHF = "openrlhf"
    PAPER = "paper"


def export(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="A run directory, a candidate file, or a shipped algorithm.")
    ],
    candidate: Annotated[
        str | None, typer.Argument(help="Of a run: name, id, or the beginning of an id. Default: the best one.")
    ] = None,
    to: Annotated[To, typer.Option("--to", help="The trainer, or paper for a page with equations.")] = To.TRL,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file to write. Default: named after the candidate.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without", metavar="MECHANISM", help="Switch this mechanism off, for a trainer that cannot carry it."
        ),
    ] = None,
) -> None:
    """Write an algorithm as one self-contained file for TRL, verl, prime-rl or OpenRLHF, or as a page.

    Examples:

    poise export runs/laptop VM-AV --to trl

    poise export dapo --to verl
    """
    from poise_core.candidate.identity import UnreadableCandidate, candidate_name, read_candidate
    from poise_core.export import Exported, ExportError, export_candidate
    from poise_core.export.paper import paper

    with plain_errors():
        if source.is_dir():
            from poise_core.run_directory import RunDirectory

            text, name, evidence, proposal, hypothesis = _from_run(RunDirectory.read(source), candidate)
        else:
            if candidate is not None:
                raise fail(f"{source} is no run directory; give a candidate's name with a run only", UNUSABLE)
            source = algorithm_file(source)
            try:
                text = read_candidate(source)
            except (OSError, UnreadableCandidate) as error:
                raise fail(error, UNUSABLE) from error
            name, evidence, proposal, hypothesis = candidate_name(source.stem), [], "", ""
        stem = candidate_name(name).lower().replace("-", "_").replace(".", "_")
        target = out or Path(f"{stem}.md" if to is To.PAPER else f"{stem}_{to.value.replace('-', '_')}.py")
        if target.exists():
            raise fail(f"{target} exists; give another file with --out", UNUSABLE)
        try:
            if to is To.PAPER:
                if without:
                    raise fail("--without is for trainers; a page shows the whole algorithm", UNUSABLE)
                page = paper(text, name, evidence=evidence, proposal=proposal, hypothesis=hypothesis)
                exported = Exported(page, "", ())
            else:
                exported = export_candidate(
                    text, name, to.value, without=without or (), evidence=evidence, module=target.stem
                )
        except (ExportError, SyntaxError) as error:
            raise fail(error, REFUSED) from error
        try:
            target.write_text(exported.text, encoding="utf-8")
        except OSError as error:
            raise fail(f"{target} cannot be written: {error.strerror}", UNUSABLE) from error
    say(f"{target} written" + "".join(f"\n  - {note}" for note in exported.notes))
    if exported.usage:
        say(f"\n{exported.usage}")


def _from_run(run: RunDirectory, candidate: str | None) -> tuple[str, str, list[str], str, str]:
    """Source, name, evidence, the proposal's JSON and the hypothesis of a candidate of a run."""
    from poise_core.cli.reading import find_candidate_id
    from poise_core.evidence.format import format_interval, format_limits, format_overall
    from poise_core.views import leaderboard, view_candidate
    from poise_core.views.leaderboard import best_of

    evidence = run.evidence()
    best = best_of(leaderboard(evidence))
    view = view_candidate(evidence, find_candidate_id(run, candidate or (best.candidate_id if best else "")))
    if view.verification is None or not view.verification["admitted"]:
        raise fail(f"{view.record['name']} was not admitted by the gate; export an admitted candidate", REFUSED)
    protocol = evidence.protocol
    training = protocol.training
    lines = [
        f"Candidate {view.record['candidate_id']}, generation {view.record['generation']}, {view.state or 'no declaration'}",
        f"Protocol {protocol.digest}: policy {protocol.policy}, {training.steps} steps, group size {training.group_size}, "
        f"{training.prompts_per_step} prompts a step, completions of at most {training.max_completion_length} tokens",
        f"Overall {format_overall(view.overall)}" if view.overall else "Overall: not measured",
        *[f"{benchmark}: {score:.1f} %" for benchmark, score in view.benchmarks.items()],
        *[f"Difference to {name}: {format_interval(delta, signed=True)} points" for name, delta in view.deltas.items()],
    ]
    for row in view.examination:
        limits = (
            f"{format_limits(row['delta'], row['low'], row['high'], '+.1f')} points"
            if row["delta"] is not None and row["low"] is not None and row["high"] is not None
            else ""
        )
        lines.append(f"Examination, {row['condition']}: {row['verdict']} {limits}".rstrip())
    if view.replication:
        lines.append(
            f"Replication with fresh seeds on sealed problems: {view.replication['outcome']}; {view.replication['message']}"
        )
    if not view.examination:
        lines.append("Examination: none; the scores above are from the problems that the search has seen")
    proposal = view.proposal["content"] if view.proposal else ""
    return view.record["source"], view.record["name"], lines, proposal, view.record["hypothesis"] or ""
