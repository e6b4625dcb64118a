"""``poise plan``, the price of a run before it starts, and the text of ``poise evolve --dry-run``."""

from __future__ import annotations

import json as json_module
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poise_core.cli.common import (
    UNUSABLE,
    JsonOption,
    SetOption,
    SharedNetworkOption,
    fail,
    plain_errors,
    resolve_preset,
    say,
    say_json,
    shared_network,
)

if TYPE_CHECKING:
    from poise_core.config import Preset
    from poise_core.experiments.plan import Plan
    from poise_core.experiments.rates import Rates


def plan(
    preset: Annotated[str, typer.Argument(help="A shipped preset, or the path of a YAML file.")],
    gpu: Annotated[
        str | None, typer.Option(help="h100, h200, a100, l40s, rtx4090, l4 or cpu; by default h100 with bfloat16.")
    ] = None,
    hourly: Annotated[float | None, typer.Option(min=0, help="Dollars for an hour of one GPU.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Take the rates from the last two of three training steps here.")
    ] = False,
    json: JsonOption = False,
    allow_shared_network: SharedNetworkOption = False,
    overrides: SetOption = None,
) -> None:
    """What a run will need: memory of a GPU by part, tokens, GPU-hours, hours and money of a candidate, a generation,
    the run, and the examination of a champion candidate.

    Without --measure it needs no network, and of the policy only its config.json. Exit status 1: it does not fit into the GPU.

    Examples:

    poise plan paper --gpu h100 --hourly 2.5

    poise plan my.yaml --set protocol.policy=FOLDER --measure
    """
    with plain_errors():
        from poise_core.config import read_preset
        from poise_core.experiments.plan import HOURLY, plan_run
        from poise_core.experiments.rates import GPUS
        from poise_core.policies.locate import PolicyNotFoundError

        settings = [*(overrides or []), *shared_network(allow_shared_network)]
        loaded = resolve_preset(preset, settings) if measure else read_preset(preset, settings)
        chosen = gpu or ("h100" if loaded.protocol.model else "cpu")
        if chosen not in GPUS:
            raise fail(f"--gpu {chosen!r}; known are {', '.join(GPUS)}", UNUSABLE)
        dollars = HOURLY[chosen] if hourly is None else hourly
        try:
            found = plan_run(loaded, chosen, dollars, _measured(loaded) if measure else None)
        except PolicyNotFoundError as error:
            raise fail(f"{error}; for a plan a folder with its config.json is enough", UNUSABLE) from error
        except ValueError as error:
            raise fail(error, UNUSABLE) from error
    if json:
        say_json(json_module.dumps({**found.to_dict(), "gpu": chosen, "hourly": dollars}, indent=1))
    else:
        say(plan_text(loaded, found, chosen, dollars))
    if found.available is not None and found.total > found.available:
        raise fail(
            f"{found.total / 1e9:.1f} GB do not fit into {found.available / 1e9:.0f} GB; lower resources.micro_batch_tokens or "
            "sampler.memory_share, raise zero_stage with processes_per_training, or set gradient_checkpointing",
            1,
        )


def _measured(preset: Preset) -> Rates:
    """Rates of this machine, from a run in a folder that is removed."""
    import tempfile

    from poise_core.experiments.rates import completions_of, measured_rates
    from poise_core.failures import CandidateFailure

    with tempfile.TemporaryDirectory(prefix="poise-plan-") as folder:
        try:
            return measured_rates(preset, Path(folder) / "run", completions_of(preset.protocol))
        except CandidateFailure as failure:
            raise fail(f"the measured steps failed: {failure.kind}: {failure.message}", 1) from failure


def _weights(count: float) -> str:
    return f"{count / 1e9:.3f} billion weights" if count >= 1e7 else f"{count / 1e6:.2f} million weights"


def _bytes(size: float) -> str:
    return f"{size / 1e9:8.2f} GB" if size >= 1e7 or not size else f"{size / 1e6:8.2f} MB"


def plan_text(preset: Preset, found: Plan, gpu: str, hourly: float) -> str:
    """The plan as lines for a terminal."""
    shape, rates, search = found.shape, found.rates, preset.search
    updating = sum(found.memory.values())
    unit = "process" if gpu == "cpu" else "GPU"
    parts = "".join(f"  {name:12} {_bytes(size)}\n" for name, size in found.memory.items())
    room = f" of {found.available / 1e9:.0f} GB" if found.available else ""
    lines = [
        f"Preset      {preset.name}: {preset.protocol.policy}, {_weights(shape.parameters)}",
        f"Memory of one {unit if gpu == 'cpu' else gpu} while weights are updated:",
        f"{parts}  {'together':12} {_bytes(updating)}{room}; while sampling {_bytes(found.memory_sampling).strip()}",
        f"Rates       {rates.how}",
        f"            a step {rates.step:.1f} s, {rates.length:.0f} tokens a completion; start {rates.start:.0f} s, evaluation of "
        f"{found.evaluated:,} completions {rates.evaluation:.0f} s, gate {rates.gate:.0f} s",
        f"{'':34}{'tokens':>12}{unit + '-hours':>14}{'hours':>9}{'dollars':>10}",
    ]
    names = {
        "candidate": f"candidate, {search.seeds_per_candidate} seeds",
        "child": f"child, expected ({found.saved:.0%} saved)",
        "generation": f"generation of {search.parents}",
        "run": f"run, {search.generations} generations + baseline",
        "examination": f"examination, {found.examined.trainings} trainings at most",
    }
    for name, label in names.items():
        price = found.prices[name]
        lines.append(
            f"{label:34}{price.tokens / 1e6:10.2f} M{price.gpu_hours:14.2f}{price.hours:9.2f}{price.dollars:10.2f}"
        )
    lines += _examination_lines(preset, found)
    lines.append(
        f"At a time: {found.gpus} x {gpu}, {hourly:g} dollars an hour each; language models, which poise evolve forecasts, extra"
    )
    if preset.protocol.unsealed:
        lines.append(preset.protocol.unsealed_note)
    return "\n".join(lines)


def _examination_lines(preset: Preset, found: Plan) -> list[str]:
    settings, examined = preset.examination, found.examined
    choice = f" and {settings.choice_seeds} to choose rates {_factors(settings.rates)}" if settings.rates else ""
    lines = [
        f"Examination of one champion candidate beside the baseline, apart from the run: {settings.seeds} seeds{choice};",
        f"            {', '.join(examined.conditions)}; {examined.evaluations} evaluations",
    ]
    if examined.as_own:
        lines.append(f"            not here and priced as {preset.protocol.policy}: {', '.join(examined.as_own)}")
    return lines


def _factors(rates: Sequence[float]) -> str:
    return ", ".join(f"x{rate:.3g}" for rate in rates)


def dry_run_text(preset: Preset, folder: Path) -> str:
    """Say what a run of the preset in this folder would do, at most, and what of it is there already.

    Raises:
        RunDirectoryError: the folder holds a run that cannot be read, or one of another protocol.
    """
    from poise_core.experiments.rates import completions_of

    protocol, search, resources, ladder = preset.protocol, preset.search, preset.resources, preset.ladder
    training, seeds = protocol.training, protocol.seeds[: search.seeds_per_candidate]
    children = search.generations * search.parents
    tokens = training.steps * training.batch_size * training.max_completion_length
    answers = sum(completions_of(protocol).values())
    proxy = f"; of these {ladder.proxy_steps} as the proxy" if ladder.enabled and ladder.proxy_steps else ""
    lower = [name for name, there in (("proxy", proxy), ("first seed", len(seeds) > 1)) if there]
    rungs = f"rungs: {', '.join([*lower, 'all seeds'])}" if ladder.enabled else "no ladder"
    trainings = len(seeds) * (children + 1)
    processes = resources.training_processes
    stages = "select, propose, screen, implement, verify, train, evaluate, reflect"
    lines = [
        f"Preset      {preset.name}, protocol {protocol.digest}",
        f"Policy      {protocol.policy}, {protocol.model.dtype if protocol.model else 'float32'}",
        f"Arm         {search.arm}, seed {search.seed}; baseline {search.baseline}",
        f"Generations {search.generations}, each of {search.parents} children: {children} candidates and the baseline"
        + (f"; none begins after {search.trainings:g} whole trainings" if search.trainings is not None else ""),
        f"Stages      {stages}; {search.proposals} proposals a parent; {rungs}",
        f"Training    seeds {', '.join(map(str, seeds))}; {training.steps} steps{proxy}; {training.prompts_per_step} prompts x "
        f"{training.group_size} completions of at most {training.max_completion_length} tokens",
        f"            {trainings:,} trainings, at most {trainings * tokens:,} tokens",
        f"Evaluation  {answers:,} completions a seed, at most {trainings * answers:,}, and the untrained policy's",
        f"Processes   {resources.parallel_candidates} candidates at a time ({resources.dispatch}), a training of {processes} "
        f"process{'es' * (processes > 1)}, ZeRO {resources.zero_stage}",
        f"Folder      {folder}; archive {preset.archive or folder / 'archive'}",
        *_found(preset, folder),
    ]
    from poise_core.escaping import without_credentials

    return without_credentials("\n".join(lines))


def _found(preset: Preset, folder: Path) -> list[str]:
    from poise_core.run_directory import RunDirectory, RunDirectoryError

    if not RunDirectory.exists(folder):
        return ["There       nothing yet; everything would be done"]
    run = RunDirectory.read(folder)
    if run.preset.protocol.digest != preset.protocol.digest:
        raise RunDirectoryError(
            f"{folder} holds a run under protocol {run.preset.protocol.digest}, and this is {preset.protocol.digest}; give "
            "another --run-dir"
        )
    rows = run.archive.rows("candidates")
    generations = [int(row["generation"]) for row in rows]
    scored = {
        (row["candidate_id"], row["seed"]) for row in run.archive.rows("evaluations", protocol=preset.protocol.digest)
    }
    open_seeds = sorted(
        f"{place.parts[-3]} seed {place.name.removeprefix('seed-')}"
        for place in (run.path / "candidates").glob("*/train/seed-*")
        if not (place / "result.json").exists()
    )
    lines = [
        f"There       {len(rows)} candidates, the newest of generation {max(generations, default=0)}; {len(scored)} scored seeds; "
        "they are read back and not done again"
    ]
    return lines + ([f"Resumed     {', '.join(open_seeds)}"] if open_seeds else [])
