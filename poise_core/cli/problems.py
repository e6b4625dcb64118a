"""``poise grade``, ``poise env validate`` and ``poise env play``: problems and their graders, tried without a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poise_core.cli.common import (
    REFUSED,
    UNUSABLE,
    JsonOption,
    SetOption,
    codec_of,
    existing_file,
    fail,
    plain_errors,
    progress_bar,
    resolve_preset,
    say,
    say_json,
)
from poise_core.escaping import one_line

if TYPE_CHECKING:
    from poise_core.config.problems import GraderSpec
    from poise_core.grading import Row, Verdict

_CHUNK = 256
_SHOWN = 60  # characters of an answer
PresetArgument = Annotated[str, typer.Argument(help="A shipped preset, or the path of a YAML file.")]


def grade(
    file: Annotated[Path, typer.Argument(help="JSONL, one row a line, with the keys gold (or answer) and completion.")],
    grader: Annotated[
        str, typer.Option(help="math, exact, numeric, choice, or keys: '{name: math, tolerance: 0.01}'.")
    ] = "math",
    workers: Annotated[int, typer.Option(min=0, help="Completions judged at a time; 0: one per processor.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Judge completions against gold answers: the verdict, what was extracted, the outcome and the processor time of every row.

    A row may carry `expected` (true or false); rows that are judged otherwise are marked, and then the exit status is 1.

    Example: poise grade rows.jsonl --grader '{name: math, tolerance: 0.01}'
    """
    spec = _grader(grader)
    documents, rows = _rows(existing_file(file))
    from poise_core.grading import GradingPool, outcome_counts

    started, verdicts = time.perf_counter(), []
    with GradingPool(workers or None, path=[str(Path.cwd())]) as pool, progress_bar("graded", len(rows)) as advance:
        for first in range(0, len(rows), _CHUNK):
            verdicts += pool.grade(spec, rows[first : first + _CHUNK])
            advance(min(_CHUNK, len(rows) - first))
    wall = time.perf_counter() - started
    otherwise = 0
    for number, (document, row, verdict) in enumerate(zip(documents, rows, verdicts, strict=True), 1):
        expected = document.get("expected")
        differs = expected is not None and bool(expected) != (verdict.correctness == 1.0)
        otherwise += differs
        name = str(document.get("id", number))
        if json_output:
            say_json(json.dumps(_verdict_document(name, verdict, expected)))
        else:
            mark = f" EXPECTED {'right' if expected else 'wrong'}" if differs else ""
            found = "-" if verdict.extracted is None else one_line(verdict.extracted, _SHOWN)
            more = f"  ({one_line(verdict.message, 200)})" if verdict.message else ""
            say(
                f"{name}  {verdict.outcome}  gold {one_line(row.gold, _SHOWN)}  found {found}  {verdict.seconds:.3f} s{more}{mark}"
            )
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcome_counts(verdicts).items()))
    cpu = sum(verdict.seconds for verdict in verdicts)
    say(f"{len(rows)} rows: {counts}; {cpu:.1f} s of processor time, {wall:.1f} s by the clock", err=json_output)
    if otherwise:
        raise fail(f"{otherwise} rows were judged otherwise than expected", REFUSED)


def _grader(text: str) -> GraderSpec:
    from pydantic import ValidationError

    from poise_core.config.problems import GraderSpec, parse_document
    from poise_core.config.user_files import pinned_callable

    try:
        spec = GraderSpec.model_validate(parse_document(text, "--grader"))
        if spec.function:
            pinned_callable(spec.function)  # a file that is not there, or lacks the function
        return spec
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise fail(f"--grader {key}: {first['msg'].removeprefix('Value error, ')}", UNUSABLE) from error
    except Exception as error:  # not YAML
        raise fail(f"--grader: {error}", UNUSABLE) from error


def _rows(file: Path) -> tuple[list[dict[str, Any]], list[Row]]:
    from poise_core.files import json_lines
    from poise_core.grading import Row

    documents, rows = [], []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"{file}: cannot be read as UTF-8 text: {error}", UNUSABLE) from error
    for number, line in json_lines(text):
        try:
            document = json.loads(line)
        except ValueError as error:
            raise fail(f"{file}:{number}: not JSON: {error}", UNUSABLE) from error
        if not isinstance(document, dict):
            raise fail(f"{file}:{number}: expected an object with gold and completion", UNUSABLE)
        gold = document.get("gold", document.get("answer"))
        if gold is None or not isinstance(document.get("completion"), str):
            raise fail(f"{file}:{number}: needs gold (or answer) and completion, the latter as text", UNUSABLE)
        documents.append(document)
        data = {key: value for key, value in document.items() if key not in ("gold", "completion", "expected")}
        rows.append(Row(str(gold), document["completion"], data))
    if not rows:
        raise fail(f"{file}: holds no rows", UNUSABLE)
    return documents, rows


def _verdict_document(name: str, verdict: Verdict, expected: object) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": name,
        "correctness": verdict.correctness,
        "outcome": verdict.outcome,
        "format_valid": verdict.format_valid,
        "extracted": verdict.extracted,
        "seconds": verdict.seconds,
        "message": verdict.message,
    }
    return document | ({} if expected is None else {"expected": bool(expected)})


env = typer.Typer(
    name="env", help="Look at a preset's problems: check them all, or answer one yourself.", no_args_is_help=True
)


@env.command()
def validate(
    preset: PresetArgument,
    set_: SetOption = None,
    json_output: JsonOption = False,
) -> None:
    """Load all problems of a preset and look them over: golds, three prompts, lengths, repetitions, overlap with the training set.

    Exit status 1: a gold answer is not right by its own grader, or a prompt does not fit the policy.

    Example: poise env validate my.yaml
    """
    with plain_errors():
        from poise_core.environments.validate import described
        from poise_core.environments.validate import validate as look

        loaded = resolve_preset(preset, set_)
        codec, context = codec_of(loaded)
        try:
            reports = look(
                loaded.protocol,
                codec.prompt_tokens,
                context,
                lambda what: typer.echo(f"looking at {what}", err=True),
                procedural=loaded.examination.procedural,
            )
        except ValueError as error:
            raise fail(error, UNUSABLE) from error
    if json_output:
        keys = (
            "name",
            "left_out",
            "outcomes",
            "golds_failed",
            "golds_alike",
            "golds_tried",
            "longest",
            "median",
            "limit",
            "over",
        )
        more = ("repeated", "overlaps")
        say_json(
            json.dumps(
                [
                    {"problems": len(report.problems), **{key: getattr(report, key) for key in (*keys, *more)}}
                    for report in reports
                ]
            )
        )
    else:
        for report in reports:
            say("\n".join(described(report)))
        say("\nThree training prompts as the policy sees them:")
        for problem in reports[0].problems[:3]:
            say(f"---\n{codec.render(problem.prompt)}\n--- wants {problem.answer}")
        if loaded.protocol.unsealed:
            say(
                f"\nNothing is sealed on: {', '.join(loaded.protocol.unsealed)} (the search reads the report's problems)"
            )
    if any(report.wrong for report in reports):
        raise fail("some golds or prompts are wrong, see above", REFUSED)


@env.command()
def play(
    preset: PresetArgument,
    benchmark: Annotated[str, typer.Option(help="Ask its search problems; by default those of the training.")] = "",
    number: Annotated[int, typer.Option(min=1, help="Which problem.")] = 1,
    set_: SetOption = None,
) -> None:
    """Answer one problem yourself and see the verdict. The answer ends with an empty line, or with the end of the input.

    Example: poise env play my.yaml --number 3
    """
    with plain_errors():
        from poise_core.environments import benchmark_environment, get_environment
        from poise_core.environments.prompts import training_problems
        from poise_core.environments.sources import SourceEnvironment

        loaded = resolve_preset(preset, set_)
        protocol, (codec, _) = loaded.protocol, codec_of(loaded)
        try:
            if benchmark:
                specs = {spec.name: spec for spec in protocol.benchmarks}
                if benchmark not in specs:
                    raise fail(f"--benchmark {benchmark!r}; the preset has {', '.join(specs)}", UNUSABLE)
                spec = specs[benchmark]
                environment = benchmark_environment(protocol, spec)
                problems = environment.problems("search", spec.kinds, spec.problems, "play")
            else:
                environment = get_environment(protocol.environment)
                problems = training_problems(protocol.environment, 0)
        except ValueError as error:
            raise fail(error, UNUSABLE) from error
        if number > len(problems):
            raise fail(f"--number is {number}; there are {len(problems)} problems", UNUSABLE)
        problem = problems[number - 1]
        say(codec.render(problem.prompt))
        answer = codec.prompt.graded(_typed()) if codec.prompt else _typed()
        outcome = environment.verify(problem, answer)
        found = ""
        if isinstance(environment, SourceEnvironment):
            (verdict,) = environment.grade([problem], [answer])
            found = f", found {one_line(verdict.extracted or '-', _SHOWN)}" + (
                f" ({one_line(verdict.message, 200)})" if verdict.message else ""
            )
            environment.close()
        say(
            f"{outcome.how or ('right' if outcome.correctness == 1 else 'wrong')}: correctness {outcome.correctness:g}, "
            f"format {'valid' if outcome.format_valid else 'not valid'}{found}; the gold answer is {problem.answer}"
        )


def _typed() -> str:
    """What is typed up to an empty line or the end of the input."""
    import sys

    lines: list[str] = []
    for line in sys.stdin:
        if not line.strip() and lines:
            break
        lines.append(line.rstrip("\n"))
    return "\n".join(lines)
