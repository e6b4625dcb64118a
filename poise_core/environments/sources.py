"""Problems from data sets and libraries: rows read, filtered, drawn and divided; completions graded by a grader.

A data set is read once, outside every confinement, into a file of plain rows (``prepared``), which confined processes
read. Rows of reasoning-gym are drawn where they are needed, from the seed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from poise_core.config.problems import GraderSpec, SourceSpec, column, row_filter
from poise_core.config.protocol import ALL, EnvironmentSpec, Protocol
from poise_core.config.user_files import file_digest
from poise_core.environments.base import Outcome, Problem, Split, split_of
from poise_core.files import json_lines, write_atomically
from poise_core.grading import GradingPool, Row, Verdict
from poise_core.grading.graders import load_callable, wrapped_gold
from poise_core.surroundings import cache_folder

CACHE = "POISE_CACHE"
"""Variable with the folder for prepared problems; by default that of ``poise_core.surroundings.cache_folder``."""
ENTRY_POINTS = "poise.environments"

Shares = tuple[float, float] | None
"""Shares of the train and the search split, by a hash of the prompt; the report split has the rest. None: all splits have all."""
HASH: Shares = (0.7, 0.15)
HALVES: Shares = (0.0, 0.5)
TRAIN: Shares = (1.0, 0.0)
SAME: Shares = None


@dataclass(frozen=True)
class Read:
    """The rows of a data set and what was left out of it."""

    rows: tuple[dict[str, Any], ...]  # problem, answer, kind, data
    total: int
    filtered: int  # by ``where``
    long: int  # for ``max_characters``
    unanswered: int
    repeated: int

    @property
    def left_out(self) -> str:
        """How many rows were left out for what, in words; empty where none was."""
        counts = {
            "filtered by where": self.filtered,
            "longer than max_characters": self.long,
            "without answer": self.unanswered,
            "repeated": self.repeated,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


# reading


def read_rows(source: SourceSpec) -> Read:
    """Read, filter, deduplicate and draw the rows of a data set.

    Raises:
        ValueError: the set or a column is not there, a row lacks its answer, the filter leaves nothing, or the rows have another
            digest; one line.
    """
    rows = _raw_rows(source)
    name = source.dataset or ""
    if not rows:
        raise ValueError(f"{name} holds no rows")
    names = _columns(source, rows[0])
    test, read = row_filter(source.where) if source.where else (lambda row: True, set())
    for path in sorted(read):
        if not any(column(row, path) is not None for row in rows):
            lacks = (
                f"no value of {path} in any row"
                if path in rows[0]
                else f"no column {path}; it has {', '.join(rows[0])}"
            )
            raise ValueError(f"where is {source.where!r}, but {name} has {lacks}")
    kept: dict[str, dict[str, Any]] = {}
    unanswered: list[int] = []
    filtered = long = repeated = 0
    for number, row in enumerate(rows, 1):
        if not test(row):
            filtered += 1
            continue
        problem, answer = _text(column(row, names["problem"])), _text(column(row, names["answer"]))
        if not problem:
            raise ValueError(f"{name}: row {number} has no {names['problem']}")
        if source.max_characters is not None and len(problem) > source.max_characters:
            long += 1
            continue
        if not answer or not answer.strip():
            unanswered.append(number)
            continue
        key = " ".join(problem.split())
        if key in kept:
            repeated += 1
            continue
        kind = str(column(row, names["kind"])) if "kind" in names else ALL
        extra: dict[str, Any] = {name: row[name] for name in ("data_source", "extra_info") if name in row}
        if source.grader.name == "function" and source.grader.shape == "trl":
            extra = {other: value for other, value in row.items() if other not in (names["problem"], "prompt")}
        kept[key] = {
            "prompt": problem,
            "answer": wrapped_gold(answer),  # of a whole solution the last box, or what follows ####
            "kind": kind,
            "data": json.dumps(extra, default=str) if extra else "",
        }
    if unanswered and source.unanswered == "refuse":
        raise ValueError(
            f"{name}: {len(unanswered)} rows have no {names['answer']} (the first is row {unanswered[0]}); mend them, or set "
            "unanswered: drop"
        )
    left = Read(tuple(kept.values()), len(rows), filtered, long, len(unanswered), repeated)
    if not left.rows:
        raise ValueError(f"{name}: none of {len(rows)} rows is left: {left.left_out}")
    if source.draw is None:
        return left
    if source.draw > len(left.rows):
        left_out = f": {left.left_out}" if left.left_out else ""
        raise ValueError(
            f"{name}: draw is {source.draw}, but only {len(left.rows)} of {len(rows)} rows are left{left_out}"
        )
    return replace(left, rows=tuple(random.Random(f"draw/{source.draw_seed}").sample(left.rows, source.draw)))


def _raw_rows(source: SourceSpec) -> list[dict[str, Any]]:
    import datasets

    name = source.dataset or ""
    if not source.is_file:
        return _hub_rows(source)
    try:
        file_digest(Path(name), source.digest)
        if name.endswith(".jsonl"):
            return _json_lines(Path(name))
        kind = {"json": "json", "parquet": "parquet", "csv": "csv"}[name.rpartition(".")[2]]
        found = datasets.load_dataset(kind, data_files=name, split="train", cache_dir=str(cache() / "datasets"))
    except ValueError:
        raise
    except OSError as error:
        raise ValueError(f"{name}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # Arrow's own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"dataset {name}: cannot be loaded: {type(error).__name__}: {reason}") from error
    return [dict(row) for row in found]


def _hub_rows(source: SourceSpec) -> list[dict[str, Any]]:
    """Read the rows of a hub's data set; what was downloaded before an interruption is not read again.

    Raises:
        ValueError: it cannot be had, or holds no such subset, split or rows that can be read; one line.
        InfrastructureError: the hub cannot be reached.
    """
    import datasets
    from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError

    from poise_core.policies.locate import explained, refused

    name = f"{source.dataset}@{source.revision}"
    with explained(name, "dataset"):
        try:
            found = datasets.load_dataset(
                str(source.dataset), source.subset, split=source.split, revision=source.revision
            )
        except DatasetNotFoundError as error:  # only its words say why, but for a revision
            if error.__cause__ is not None:
                raise
            raise refused(name, "dataset", "gated" if "gated" in str(error) else "missing") from error
        except (ValueError, DataFilesNotFoundError, DatasetGenerationError) as error:
            cause = error.__cause__ if isinstance(error, DatasetGenerationError) else None
            reason = " ".join(str(cause or error).split())[:300]
            raise ValueError(f"dataset {name}: {reason}") from error
        _require_commit(source, [Path(file["filename"]).parent.name for file in found.cache_files])
    return [dict(row) for row in found]


def _require_commit(source: SourceSpec, commits: Sequence[str]) -> None:
    """Refuse rows of another commit, which the library takes from its cache where it cannot ask the hub for the right one.

    Raises:
        OSError: the rows are of another one.
    """
    others = [commit for commit in commits if commit != source.revision]
    if re.fullmatch("[0-9a-f]{40}", source.revision or "") and others:
        raise OSError(f"the hub cannot be asked, and the copy that is here is of commit {others[0][:12]}")


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Read JSONL as it stands; Arrow would ask for equal types in all rows."""
    rows = []
    for number, line in json_lines(path.read_text(encoding="utf-8-sig")):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected an object with the columns of a row")
        rows.append(row)
    return rows


def _columns(source: SourceSpec, row: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of problem, answer and, where the source names one, kind."""
    verl = "prompt" in row and column(row, "reward_model.ground_truth") is not None
    names = {"problem": "problem", "answer": "answer"}
    if verl:
        names = {"problem": "prompt", "answer": "reward_model.ground_truth"}
    elif "problem" not in row and "question" in row:
        names["problem"] = "question"
    names |= {str(key): value for key, value in source.columns.items()}
    for wanted, path in names.items():
        if path.split(".")[0] not in row:
            raise ValueError(f"{source.dataset} has no column {path}; set columns.{wanted} to one of {', '.join(row)}")
    return names


def _text(value: Any) -> str:
    """Return a cell as text; of a list of messages the contents of system and user."""
    if value is None:
        return ""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) and "content" in part for part in value):
        return "\n\n".join(str(part["content"]) for part in value if part.get("role") != "assistant")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list) and len(value) == 1:
        return _text(value[0])
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, list | dict) else str(value)


# preparing


def cache() -> Path:
    """Return the folder for prepared problems."""
    return Path(os.environ.get(CACHE) or cache_folder())


def prepared(source: SourceSpec) -> SourceSpec:
    """Return the source with the file of its rows, which is made where it is missing.

    Raises:
        ValueError: see ``read_rows``; or a hub's rows have another digest than the source says.
    """
    if source.dataset is None or source.prepared:
        return source
    path = _prepared_file(source)
    if source.is_file:
        file_digest(Path(source.dataset), source.digest)
    if not path.exists():
        text = "".join(json.dumps(row) + "\n" for row in read_rows(source).rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    if source.digest and not source.is_file:
        found = file_digest(path)
        if found != source.digest:
            raise ValueError(
                f"{source.dataset} at {source.revision} has rows of digest {found}, expected {source.digest}: the data set has "
                "changed, or was filtered otherwise"
            )
    return source.model_copy(update={"prepared": str(path)})


def _prepared_file(source: SourceSpec) -> Path:
    """Where the rows of a data set are kept once they are read."""
    described = source.model_dump(
        mode="json", exclude={"grader": True, "digest": not source.is_file, "dataset": source.is_file}
    )
    if source.grader.shape == "trl":
        described["shape"] = "trl"
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    return cache() / "problems" / f"{key}.jsonl"


def is_prepared(source: SourceSpec) -> bool:
    """Whether the rows of a data set are here, so that ``prepared`` needs no network."""
    return bool(source.prepared) or _prepared_file(source).exists()


def prepared_protocol(protocol: Protocol) -> Protocol:
    """Return the protocol with the files of all its sources, for processes that can read nothing else.

    Raises:
        ValueError: see ``prepared``.
    """
    environment = prepared_environment(protocol.environment)
    benchmarks = tuple(
        benchmark.model_copy(update={"source": prepared(benchmark.source)}) if benchmark.source else benchmark
        for benchmark in protocol.benchmarks
    )
    return protocol.model_copy(update={"environment": environment, "benchmarks": benchmarks})


def prepared_environment(spec: EnvironmentSpec) -> EnvironmentSpec:
    """Return the specification with the file of its source, where it has one."""
    return spec.model_copy(update={"source": prepared(spec.source)}) if spec.source else spec


@lru_cache(maxsize=32)
def _problems(path: str) -> tuple[Problem, ...]:
    return tuple(Problem(**json.loads(line)) for _, line in json_lines(Path(path).read_text(encoding="utf-8")))


# the environment


class SourceEnvironment:
    """Problems of a data set or of reasoning-gym, divided by a hash of their prompts, and judged by a grader."""

    name = "source"

    def __init__(self, source: SourceSpec, shares: Shares = HASH) -> None:
        """Prepare the source.

        Raises:
            ValueError: see ``prepared``.
        """
        self.source = source if source.reasoning_gym else prepared(source)
        self.shares = shares
        self.grader = _GYM_GRADER if source.reasoning_gym else source.grader
        if source.reasoning_gym:
            self.grader = self.grader.model_copy(update={"threshold": source.grader.threshold})
        self._pool: GradingPool | None = None

    def kinds(self) -> list[str]:
        """Return the kinds that the source has."""
        if self.source.reasoning_gym:
            return list(self.source.reasoning_gym)
        return sorted({problem.kind for problem in self._all()})

    def _all(self) -> tuple[Problem, ...]:
        return _problems(self.source.prepared)

    def _in(self, problem: Problem, split: Split) -> bool:
        return self.shares is None or split_of(problem.prompt, self.shares) == split

    def problems(self, split: Split, kinds: Sequence[str], count: int, seed: str) -> list[Problem]:
        """See ``poise_core.environments.base.Environment.problems``; a count of 0 takes all; without kinds they are mixed."""
        if self.source.reasoning_gym:
            return self._drawn(split, kinds, count, seed)
        known = self.kinds()
        kinds = [] if list(kinds) == [ALL] else list(kinds)
        for kind in kinds:
            if kind not in known:
                raise ValueError(f"unknown kind of problem {kind!r}; {self.source.dataset} has {', '.join(known[:20])}")
        decks: dict[str, list[Problem]] = {kind: [] for kind in kinds or [ALL]}
        for problem in self._all():
            deck = decks.get(problem.kind if kinds else ALL)
            if deck is not None and self._in(problem, split):
                deck.append(problem)
        total = sum(len(deck) for deck in decks.values())
        turns = [list(decks)[i % len(decks)] for i in range(count)]
        for kind, deck in decks.items():
            if turns.count(kind) > len(deck):
                raise ValueError(
                    f"the {split} split of {self.source.dataset} holds {len(deck)} problems"
                    f"{f' of the kind {kind}' if kinds else ''}, not {turns.count(kind)}"
                )
            if count:
                random.Random(f"{kind}/{seed}").shuffle(deck)
        if not total:
            raise ValueError(f"the {split} split of {self.source.dataset} is empty; give more rows, or another split")
        return (
            [decks[kind].pop() for kind in turns] if count else [problem for deck in decks.values() for problem in deck]
        )

    def _drawn(self, split: Split, kinds: Sequence[str], count: int, seed: str) -> list[Problem]:
        sets = self.source.reasoning_gym or {}
        kinds = list(sets) if not kinds or list(kinds) == [ALL] else list(kinds)
        for kind in kinds:
            if kind not in sets:
                raise ValueError(f"unknown kind of problem {kind!r}; reasoning_gym names {', '.join(sets)}")
        found: dict[str, Problem] = {}
        for place, kind in enumerate(kinds):
            wanted = count // len(kinds) + (place < count % len(kinds))
            first = int.from_bytes(hashlib.sha256(f"{kind}/{split}/{seed}".encode()).digest()[:4]) >> 1
            own = 0
            for attempt in range(50):
                if own == wanted:
                    break
                for entry in _gym_set(kind, sets[kind], max(64, 2 * wanted), first + attempt):
                    problem = _gym_problem(kind, sets[kind], entry)
                    if problem.prompt not in found and self._in(problem, split):
                        found[problem.prompt] = problem
                        own += 1
                    if own == wanted:
                        break  # some sets take a tenth of a second for an entry
            if own < wanted:
                raise ValueError(f"reasoning_gym {kind} has no {wanted} distinct problems for the {split} split")
        return list(found.values())

    def pool_size(self, kind: str) -> int:
        """See ``poise_core.environments.base.Environment.pool_size``."""
        if self.source.reasoning_gym:
            return 5000
        return sum(kind in (ALL, problem.kind) and self._in(problem, "train") for problem in self._all())

    def verify(self, problem: Problem, completion: str) -> Outcome:
        """See ``poise_core.environments.base.Environment.verify``."""
        return self.verify_all([problem], [completion])[0]

    def verify_all(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Outcome]:
        """Judge many completions, each of the problem at its place, side by side."""
        return [
            Outcome(verdict.correctness if verdict.format_valid else 0.0, verdict.format_valid, verdict.outcome)
            for verdict in self.grade(problems, completions)
        ]

    def grade(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """Return the whole verdicts of many completions."""
        if self._pool is None:
            self._pool = GradingPool(path=[os.getcwd()])
        return self._pool.grade(self.grader, [grading_row(*pair) for pair in zip(problems, completions, strict=True)])

    def close(self) -> None:
        """End the processes that grade; the next grading starts new ones."""
        if self._pool is not None:
            self._pool.close()


def grading_row(problem: Problem, completion: str) -> Row:
    """Return what a grader judges."""
    data = json.loads(problem.data) if problem.data else {}
    return Row(problem.answer, completion, {"prompt": problem.prompt, **data})


# reasoning-gym

_GYM_GRADER = GraderSpec(name="function", function="poise_core.environments.sources:score_gym", shape="verl")


def _gym_set(name: str, config: Mapping[str, Any], size: int, seed: int) -> Iterable[dict[str, Any]]:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ValueError("reasoning_gym is not installed; run pip install 'poise-rl[gym]'") from error
    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **config)  # type: ignore[no-any-return]
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"reasoning_gym {name}: cannot be made: {type(error).__name__}: {reason}") from error


def _gym_problem(kind: str, config: Mapping[str, Any], entry: Mapping[str, Any]) -> Problem:
    about = {"extra_info": {"set": kind, "config": dict(config), "entry": dict(entry)}}
    return Problem(str(entry["question"]), str(entry["answer"] or ""), kind, json.dumps(about, default=str))


def score_gym(data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any]) -> float:
    """Return reasoning-gym's own score of a completion, of its ``<answer>`` tag, last box or whole text."""
    from poise_core.grading.answers import find_answer

    answer = next(
        (found for where in ("tag", "boxed") if (found := find_answer(solution_str, where)) is not None),
        solution_str.strip(),
    )
    scorer = _gym_scorer(extra_info["set"], json.dumps(extra_info["config"], sort_keys=True))
    return min(1.0, max(0.0, float(scorer(answer, extra_info["entry"]))))


@lru_cache(maxsize=128)
def _gym_scorer(name: str, config: str) -> Callable[..., float]:
    return _gym_set(name, json.loads(config), 1, 0).score_answer  # type: ignore[attr-defined, no-any-return]


# a user's class


def user_class(reference: str) -> Callable[[], object]:
    """Return the class that ``package.module:Class``, ``FILE.py:Class`` or the name of an entry point stands for.

    Raises:
        ValueError: there is none.
    """
    if ":" in reference:
        return load_callable(reference)
    points = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    if reference not in points:
        known = ", ".join(sorted(points)) or "none"
        raise ValueError(
            f"environment {reference!r} is no entry point of {ENTRY_POINTS} (known: {known}); or give package:Class"
        )
    try:
        return points[reference].load()  # type: ignore[no-any-return]
    except Exception as error:
        raise ValueError(f"entry point {reference}: cannot be loaded: {type(error).__name__}: {error}") from error


def words(text: str) -> list[str]:
    """Return the words by which two problems are compared: letters and digits, in lower case."""
    return re.findall(r"[a-z]+|\d+", text.lower())
