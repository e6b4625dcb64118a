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
    existing_file,
    fail,
    progress_bar,
    say,
    say_json,
)

if TYPE_CHECKING:
    from poise_core.config.problems import GraderSpec
    from poise_core.grading import Row, Verdict

_CHUNK = 256


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
            found = "-" if verdict.extracted is None else _short(verdict.extracted)
            more = f"  ({verdict.message})" if verdict.message else ""
            say(
                f"{name}  {verdict.outcome}  gold {_short(row.gold)}  found {found}  {verdict.seconds:.3f} s{more}{mark}"
            )
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcome_counts(verdicts).items()))
    cpu = sum(verdict.seconds for verdict in verdicts)
    say(f"{len(rows)} rows: {counts}; {cpu:.1f} s of processor time, {wall:.1f} s by the clock", err=json_output)
    if otherwise:
        raise fail(f"{otherwise} rows were judged otherwise than expected", REFUSED)


def _grader(text: str) -> GraderSpec:
    from pydantic import ValidationError

    from poise_core.config.problems import GraderSpec, parse_document

    try:
        return GraderSpec.model_validate(parse_document(text, "--grader"))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise fail(f"--grader {key}: {first['msg'].removeprefix('Value error, ')}", UNUSABLE) from error
    except Exception as error:  # not YAML
        raise fail(f"--grader: {error}", UNUSABLE) from error


def _rows(file: Path) -> tuple[list[dict[str, Any]], list[Row]]:
    from poise_core.grading import Row

    documents, rows = [], []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"{file}: cannot be read as UTF-8 text: {error}", UNUSABLE) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
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


def _short(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


env = typer.Typer(
    name="env", help="Look at a preset's problems: check them all, or answer one yourself.", no_args_is_help=True
)
