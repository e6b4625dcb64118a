"""``poise cost`` and ``poise context``: what the language models cost, and what they are told."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise_core.cli.common import UNUSABLE, JsonOption, fail, plain_errors, say, say_json, view_console
from poise_core.cli.reading import RunDir, find_candidate_id

if TYPE_CHECKING:
    from poise_core.config import Preset
    from poise_core.run_directory import RunDirectory
    from poise_core.views.outlook import Compute


def cost(run_dir: RunDir, json: JsonOption = False) -> None:
    """What a run cost so far: language models by generation, role and model; training tokens and GPU-hours by candidate.

    Example: poise cost runs/laptop
    """
    from poise_core.agents.llm.ledger import Spent
    from poise_core.run_directory import RunDirectory
    from poise_core.views.outlook import computed

    with plain_errors():
        run = RunDirectory.read(run_dir)
        groups: dict[tuple[int, str, str], dict[str, Any]] = {}
        for row in run.archive.rows("calls"):
            key = (row["generation"], row["role"], row["model"])
            entry = groups.setdefault(key, {"spent": Spent(), "failed": 0})
            entry["spent"] = entry["spent"].plus(Spent.of_row(row))
            entry["failed"] += row["outcome"] != "ok"
        lines = [_line(*key, **groups[key]) for key in sorted(groups)]
        compute = computed(run.evidence(), run.current_preset.resources.gpus_held)
        if json:
            candidates = [one.to_dict() for one in compute]
            say_json(json_module.dumps({"calls": lines, "total": _total(lines), "candidates": candidates}, indent=1))
        else:
            _print_table(lines, run)
            _print_compute(compute)


def _line(generation: int, role: str, model: str, spent: Any, failed: int) -> dict[str, Any]:
    return {
        "generation": generation,
        "role": role,
        "model": model,
        "calls": spent.calls,
        "failed": failed,
        "input_tokens": spent.input_tokens,
        "output_tokens": spent.output_tokens,
        "dollars": None if spent.unpriced else spent.dollars,
        "seconds": round(spent.seconds, 1),
    }


def _total(lines: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {
        key: sum(line[key] for line in lines) for key in ("calls", "failed", "input_tokens", "output_tokens", "seconds")
    }
    total["seconds"] = round(total["seconds"], 1)
    priced = [line["dollars"] for line in lines if line["dollars"] is not None]
    return {**total, "dollars": sum(priced), "unpriced_calls": sum(x["calls"] for x in lines if x["dollars"] is None)}


def _print_table(lines: list[dict[str, Any]], run: RunDirectory) -> None:
    from rich.table import Table

    console = view_console()
    if not lines:
        console.print("no calls: the catalogue and the rules did the work")
        return
    table = Table(title=f"Language models of {run.path}", title_justify="left")
    for name in ("gen", "role", "model", "calls", "failed", "tokens in", "tokens out", "dollars", "seconds"):
        table.add_column(name, justify="left" if name in ("role", "model") else "right")
    for line in [*lines, {"generation": "", "role": "total", "model": "", **_total(lines)}]:
        priced = line["dollars"] is not None and line.get("unpriced_calls", 0) < max(line["calls"], 1)
        dollars = f"{line['dollars']:.4f}" if priced else "no price"
        numbers = [str(line[key]) for key in ("calls", "failed", "input_tokens", "output_tokens")]
        table.add_row(str(line["generation"]), line["role"], line["model"], *numbers, dollars, f"{line['seconds']:.0f}")
    console.print(table)
    caps = run.current_preset.agents.caps.model_dump(exclude_none=True)
    for scope, cap in caps.items():
        for unit, limit in cap.items():
            console.print(f"cap per {scope}: {limit:g} {unit}")


def _print_compute(found: list[Compute]) -> None:
    from rich.table import Table
    from rich.text import Text

    from poise_core.render.lines import compute_note

    if not found:
        return
    table = Table(title="Trainings and evaluations", title_justify="left")
    for name in ("gen", "candidate", "tokens", "training s", "evaluation s", "GPU-hours"):
        table.add_column(name, justify="left" if name == "candidate" else "right")
    for one in found:
        seconds = (f"{one.train_seconds:.0f}", f"{one.evaluate_seconds:.0f}", f"{one.gpu_hours:.4f}")
        table.add_row(str(one.generation), Text(one.name), f"{one.tokens:,}", *seconds)
    console = view_console()
    console.print(table)
    console.print(compute_note(found))


def context(
    run_dir: RunDir,
    candidate: Annotated[str, typer.Argument(help="Name, id, or the beginning of an id: the parent to be.")],
    tokens: Annotated[int | None, typer.Option(min=500, help="Budget in tokens. Default: the run's.")] = None,
) -> None:
    """What the proposer would be told about a candidate as the parent of the next generation; sizes go to standard error.

    Example: poise context runs/laptop GRPO
    """
    from poise_core.agents.llm.context import ContextTooSmallError, fit, slot_sections
    from poise_core.agents.llm.literature import LiteratureError, load_notes
    from poise_core.agents.llm.prompts import estimate_tokens
    from poise_core.agents.llm.team import began_on
    from poise_core.evolution import ChildSlot, Evolution, default_roles
    from poise_core.run_directory import RunDirectory

    with plain_errors():
        run = RunDirectory.join(run_dir)
        found = find_candidate_id(run, candidate)
        rows = {row["candidate_id"]: row for row in run.archive.rows("candidates")}
        generation = 1 + max(row["generation"] for row in rows.values())
        evolution = Evolution(run, roles=default_roles(run.preset))
        slot = ChildSlot(generation, 0, found, rows[found]["name"])
        settings = run.preset.agents
        try:
            began, digest = began_on(run.archive), run.preset.protocol.digest
            notes = load_notes(settings.literature_folder, today=began, protocol=digest)
            sections = slot_sections(evolution.context(slot), notes, settings.literature_notes)
            budget = tokens or settings.for_role("proposer").context_tokens or 0
            fitted = fit(sections, budget)
        except (ContextTooSmallError, LiteratureError) as error:
            raise fail(error, UNUSABLE) from error
    say(fitted.text)
    for section in sections:
        mark = "cut" if section.name in fitted.cut else "left out" if section.name in fitted.left_out else ""
        typer.echo(f"{section.name:20} {estimate_tokens(section.text):6} tokens {mark}".rstrip(), err=True)
    typer.echo(f"about {fitted.tokens} of {budget} tokens", err=True)


def lessons(
    run_dir: RunDir,
    out: Annotated[Path | None, typer.Option(help="The notes file; by default they are printed.")] = None,
    days: Annotated[int, typer.Option(min=1, help="After which the notes expire.")] = 180,
) -> None:
    """Write what a run has measured as literature notes, which a later run is given by agents.literature_folder.

    Example: poise lessons runs/laptop --out lessons/laptop.md
    """
    import datetime as dt

    from poise_core.escaping import printable
    from poise_core.evolution import Evolution, default_roles
    from poise_core.evolution.briefs import lessons as written
    from poise_core.files import write_atomically
    from poise_core.run_directory import RunDirectory

    with plain_errors():
        run = RunDirectory.join(run_dir)
        briefs = Evolution(run, roles=default_roles(run.preset)).search.briefs
        text = printable(written(briefs, run=run.path.resolve().name, today=dt.datetime.now(dt.UTC).date(), days=days))
    if not text:
        raise fail(f"{run_dir}: no child was measured yet", UNUSABLE)
    if out is None:
        say(text)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text)
    except OSError as error:
        raise fail(f"{out}: {error.strerror or error}", UNUSABLE) from error
    say(f"{text.count('title: ')} lessons in {out}; give its folder as agents.literature_folder")


def bridge(
    folder: Annotated[Path, typer.Argument(help="Where questions appear and answers are looked for; made if missing.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="On loopback; 0 takes a free one.")] = 8765,
) -> None:
    """Serve an OpenAI-compatible endpoint whose questions are files and whose answers you, or any program, write. Ctrl-C ends it.

    Each question is a Markdown file to read and a JSON file for programs; write the answer beside it, under the name that the
    question gives. The same question is answered from its file again.

    Example: poise bridge questions, and in another terminal: poise evolve --llm openai:bridge --base-url http://127.0.0.1:8765/v1
    --set agents.timeout_seconds=86400 --set agents.total_seconds=86400
    """
    from poise_core.agents.llm.bridge import Bridge

    try:
        serving = Bridge(folder, port, say)
    except OSError as error:
        raise fail(f"{folder}, port {port}: {error.strerror or error}", UNUSABLE) from error
    with serving:
        say(f"serving {serving.url}; questions and answers in {folder}")
        try:
            serving.wait()
        except KeyboardInterrupt:
            say("stopped; the same command goes on")


def agent_overrides(model: str | None, base_url: str | None, directive: str | None) -> list[str]:
    """The options of ``poise evolve`` as settings of the preset."""
    given = {"agents.model": model, "agents.base_url": base_url, "agents.steering.directive": directive}
    return [f"{key}={json_module.dumps(value)}" for key, value in given.items() if value is not None]


def check_and_forecast(preset: Preset, *, asks: bool = True) -> str:
    """One line on what the models may cost; empty where there are none. Bad settings: one line and status 2.

    Args:
        preset: of the run.
        asks: whether servers will be asked, rather than a recording.
    """
    from poise_core.agents.llm.preflight import AgentSettingsError, check_agents, forecast

    try:
        check_agents(preset.agents, asks=asks)
    except AgentSettingsError as error:
        raise fail(error, UNUSABLE) from error
    if not preset.agents.enabled:
        return ""
    search = preset.search
    return str(
        forecast(
            preset.agents,
            generations=search.generations,
            parents=search.parents,
            ideas=search.ideas_tried,
            revisions=search.revisions,
            repairs=search.repairs,
        )
    )


def recording(run_dir: Path | None) -> Any:
    """The archive of a recorded run, for ``--replay``."""
    from poise_core.run_directory import RunDirectory

    return None if run_dir is None else RunDirectory.read(run_dir).archive
