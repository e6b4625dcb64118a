"""``poise evaluate``."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise_core.cli.common import (
    REFUSED,
    UNUSABLE,
    JsonOption,
    RunPresetOption,
    SetOption,
    SharedNetworkOption,
    algorithm_file,
    default_run_dir,
    fail,
    interval_text,
    plain_errors,
    refuse_misfit,
    say,
    say_json,
    serve_another_node,
    settings_to_go_on,
    shared_network,
)

if TYPE_CHECKING:
    from poise_core.evolution import CandidateRef, Trials
    from poise_core.run_directory import RunDirectory


def evaluate(
    file: Annotated[Path, typer.Argument(help="A candidate file, or a shipped algorithm such as dapo.")],
    preset: RunPresetOption = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Training seeds. Default: the preset's.")] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Where its results go, and whose baseline it is compared with. Default: runs/PRESET."),
    ] = None,
    allow_shared_network: SharedNetworkOption = False,
    overrides: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Verify, train and score one algorithm file, exactly as a child of the evolution is.

    Finished seeds are read back, so more seeds can be added later. In a directory whose baseline has been scored under
    the same protocol the difference to it is shown, paired by seed.

    Exit status 1: the candidate was refused, crashed, diverged or took too long.

    Examples:

    poise evaluate my_algorithm.py --preset laptop --seeds 3

    poise evaluate dapo --run-dir runs/laptop --json
    """
    from poise_core.cli.progress import ProgressDisplay

    file = algorithm_file(file)
    with plain_errors():
        settings = [*(overrides or []), *shared_network(allow_shared_network)]
        resolved, anew = settings_to_go_on(preset, run_dir, settings, {})
        folder = run_dir or default_run_dir(resolved)
        chosen = resolved.protocol.seeds[: seeds or resolved.search.seeds_per_candidate]
        if seeds and seeds > len(chosen):
            raise fail(f"--seeds {seeds}: protocol.seeds lists {len(chosen)}; list more of them", UNUSABLE)
        refuse_misfit(resolved, folder)
        serve_another_node(resolved, folder)
        from poise_core.evolution import Trials
        from poise_core.evolution.records import failure_to_dict
        from poise_core.failures import CandidateFailure
        from poise_core.run_directory import RunDirectory

        with RunDirectory.open(folder, resolved) as run:
            for line in anew:
                say(f"poise: {line}", err=True)
            with ProgressDisplay(resolved, len(chosen)) as display:
                trials = Trials(run, observer=display)
                try:
                    candidate = _measure(trials, file, chosen)
                except CandidateFailure as failure:
                    if json:
                        say_json(json_module.dumps({"failure": failure_to_dict(failure)}, indent=1))
                    raise fail(
                        f"{file.stem}: {failure.kind} in {failure.stage}: {failure.message}", REFUSED
                    ) from failure
            result = _result(run, trials, candidate, chosen)
    if json:
        say_json(json_module.dumps(result, indent=1))
    else:
        say(_text(result))


def _measure(trials: Trials, file: Path, seeds: tuple[int, ...]) -> CandidateRef:
    candidate = trials.adopt(file)
    trials.measure(candidate, seeds)
    return candidate


def _result(run: RunDirectory, trials: Trials, candidate: CandidateRef, seeds: tuple[int, ...]) -> dict[str, Any]:
    from poise_core.evaluation.results import benchmark_means
    from poise_core.evidence.intervals import delta_between, distinguishable, overall_interval

    protocol, identity = run.preset.protocol, candidate.candidate_id
    mine = trials.evaluations(candidate, seeds)
    result: dict[str, Any] = {
        "candidate_id": identity,
        "name": candidate.name,
        "protocol": protocol.digest,
        "overall": overall_interval(mine, protocol).to_dict(),
        "seeds": {one.seed: one.overall for one in mine},
        "benchmarks": benchmark_means(mine),
        "baseline": None,
    }
    evidence = run.evidence()
    base = evidence.baseline
    if base is not None and base != identity:
        evaluations = {**evidence.evaluations, identity: mine}
        delta = delta_between(identity, base, evaluations, protocol, evidence.noise)
        if delta is not None:
            result["baseline"] = {
                "name": evidence.candidates[base]["name"],
                "delta": delta.to_dict(),
                "verdict": distinguishable(delta),
            }
    return result


def _text(result: dict[str, Any]) -> str:
    from poise_core.evidence.format import counted_seeds

    scores = "   ".join(f"{name} {score:.1f}" for name, score in result["benchmarks"].items())
    count = result["overall"]["seeds"]
    lines = [
        f"{result['name']}  Overall {interval_text(result['overall'])}, {counted_seeds(count)}",
        scores,
    ]
    if result["baseline"]:
        against = result["baseline"]
        lines.append(f"to {against['name']}: {interval_text(against['delta'], signed=True)} {against['verdict']}")
    else:
        lines.append("no baseline has been scored here under this protocol; 'poise evolve' scores it first")
    return "\n".join(lines)
