"""The graders: what a completion answers, and whether that is the gold answer. One call judges one completion, in this process.

What may take long (``SLOW``) is called by ``poise_core.grading.pool`` in processes that can be killed.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from poise_core.config.problems import GraderSpec
from poise_core.config.user_files import CALLABLE
from poise_core.grading.answers import find_answer, last_box, normalized

SLOW = frozenset({"math", "regex", "function"})
"""Graders that run in the pool; the others take time in proportion to the text."""

OUTCOMES = ("right", "partial", "wrong", "no_answer", "unreadable", "timed_out", "failed")
"""What a grading may come to. ``unreadable``: an answer is there, but nothing that the grader reads. ``timed_out``: it was still at
work at its limit. ``failed``: the grader itself raised, returned no number in [0, 1], or its process died."""


@dataclass(frozen=True)
class Row:
    """One completion to judge."""

    gold: str
    completion: str
    data: Mapping[str, Any] = field(
        default_factory=dict
    )  # for functions: prompt, data_source, extra_info, other columns


@dataclass(frozen=True)
class Verdict:
    """How one completion was judged."""

    correctness: float  # in [0, 1]
    outcome: str  # one of OUTCOMES
    extracted: str | None = None  # the answer that was found, at most 500 characters of it
    seconds: float = 0.0  # of processor time
    message: str = ""

    @property
    def format_valid(self) -> bool:
        """Whether an answer was found and read."""
        return self.outcome in ("right", "partial", "wrong")


def wrapped_gold(gold: str) -> str:
    """Return the answer in a gold text: its last box, what follows ``####``, or all of it without dollar signs around it."""
    boxed = last_box(gold)
    if boxed is not None:
        return boxed
    after = find_answer(gold, "hash") if "####" in gold else None
    return (after or gold).strip()


def extracted(spec: GraderSpec, completion: str) -> str | None:
    """Return the answer that a completion gives, None where it gives none; linear in the text but for ``regex``."""
    if spec.name == "regex":
        last = None
        for last in re.finditer(spec.pattern or "", completion):  # noqa: B007
            pass
        return (last.group(1) if last.re.groups else last.group()) if last else None
    if spec.name == "function":
        return completion
    return find_answer(completion, spec.answer)


def judge(spec: GraderSpec, row: Row) -> Verdict:
    """Judge one completion in this process, without limits."""
    if spec.name == "function":
        return _by_function(spec, row)
    found = extracted(spec, row.completion)
    if found is None or not found.strip():
        return Verdict(0.0, "no_answer", found)
    return judge_answer(spec, row.gold, found)


def judge_answer(spec: GraderSpec, gold: str, found: str) -> Verdict:
    """Judge an answer that is already extracted; not for ``function``."""
    outcome = _JUDGES[spec.name](spec, wrapped_gold(gold), found)
    return Verdict(float(outcome == "right"), outcome, found[:500])


def _math(spec: GraderSpec, gold: str, found: str) -> str:
    from poise_core.grading.equality import Rules, answers_equal, readable
    from poise_core.grading.expressions import Unreadable

    try:
        return "right" if answers_equal(gold, found, Rules(spec.tolerance)) else "wrong"
    except Unreadable:
        return "wrong" if readable(found) else "unreadable"


def _exact(spec: GraderSpec, gold: str, found: str) -> str:
    def plain(text: str) -> str:
        return re.sub(r"\s+", " ", normalized(re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text))).strip().casefold()

    return "right" if plain(gold) == plain(found) else "wrong"


def _regex(spec: GraderSpec, gold: str, found: str) -> str:
    return "right" if gold.strip() == found.strip() else "wrong"


_NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|\.)?(?:[eE][-+]?(?P<power>\d+))?(?:/\d+)?")


def read_number(text: str) -> Fraction | None:
    """Return the last number in a text, exactly: 1,234.5, -3/4, 1e-3; None where there is none, or its power of ten has more than
    three digits: written out it would not fit into memory, and a part of it is another number."""
    found = None
    for match in _NUMBER.finditer(text):
        if re.search(r"\d", match.group()):
            found = match
    if found is None or len(found.group()) > 1_000 or len(found["power"] or "") > 3:
        return None
    last = found.group()
    over, _, under = last.replace(",", "").replace("−", "-").partition("/")
    try:
        return Fraction(over.rstrip(".")) / Fraction(under or 1)
    except (ValueError, ZeroDivisionError):
        return None


def _numeric(spec: GraderSpec, gold: str, found: str) -> str:
    wanted, given = read_number(gold), read_number(found)
    if wanted is None or given is None:
        return "unreadable"
    return "right" if abs(wanted - given) <= Fraction(spec.tolerance) * abs(wanted) else "wrong"


_LETTER = re.compile(r"(?<![A-Za-z\\])\(?([A-Za-z])\)?(?![A-Za-z])")


def read_choice(text: str) -> str | None:
    """Return the letter of a choice: the only one, or the one that begins the text and is followed by its content ("C) 12")."""
    text = (
        re.sub(r"\\(?:text(?:bf|rm|it)?|mathrm|mathbf|boldsymbol)\s*", "", text)
        .replace("{", " ")
        .replace("}", " ")
        .strip()
    )
    text = text.strip("$ .")
    if match := re.match(r"\(?([A-Za-z])(?:\)|[.:])(?=\s*[^\s])(?!.*\b(?:or|and)\b)", text):
        return match.group(1).upper()
    letters = {letter.upper() for letter in _LETTER.findall(text)}
    if len(letters) == 1 and re.fullmatch(r"(?:the |answer |option |choice |is )*\(?[A-Za-z]\)?", text, re.IGNORECASE):
        return letters.pop()
    if match := re.search(r"answer(?: is)?:?\s*\(?([A-Za-z])\)?(?![A-Za-z])[^A-Za-z]*\Z", text, re.IGNORECASE):
        return match.group(1).upper()
    return None


def _choice(spec: GraderSpec, gold: str, found: str) -> str:
    wanted, given = read_choice(gold), read_choice(found)
    if wanted is None or given is None:
        return "unreadable"
    return "right" if wanted == given else "wrong"


_JUDGES: dict[str, Callable[[GraderSpec, str, str], str]] = {
    "math": _math,
    "exact": _exact,
    "numeric": _numeric,
    "choice": _choice,
    "regex": _regex,
}


# functions of users


@lru_cache(maxsize=64)
def load_callable(reference: str) -> Callable[..., Any]:
    """Import the function or class that ``package.module:name`` or ``FILE.py:name`` names.

    Raises:
        ValueError: there is none; one line.
    """
    match = CALLABLE.fullmatch(reference)
    if match is None:
        raise ValueError(f"{reference}: write package.module:function or FILE.py:function")
    where, name = match["where"], match["name"]
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(f"poise_user_{abs(hash(where))}", Path(where).absolute())
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        found = getattr(module, name)
    except Exception as error:
        raise ValueError(f"{reference}: cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise ValueError(f"{reference}: {name} is no function")
    return found


def _by_function(spec: GraderSpec, row: Row) -> Verdict:
    function = load_callable(spec.function or "")
    data = dict(row.data)
    if spec.shape == "verl":
        given = function(
            data_source=data.get("data_source", ""),
            solution_str=row.completion,
            ground_truth=row.gold,
            extra_info=data.get("extra_info", {}),
        )
        if isinstance(given, dict):
            given = given.get("score")
    else:
        columns = {key: [value] for key, value in data.items() if key != "prompt"}
        columns.setdefault("answer", [row.gold])
        given = function(prompts=[data.get("prompt", "")], completions=[row.completion], **columns)
        given = given[0] if isinstance(given, list | tuple) and len(given) == 1 else "no list of one score"
    return scored(given, spec.threshold, row.completion)


def scored(given: object, threshold: float | None, completion: str = "") -> Verdict:
    """Return the verdict for what a user's function returned: a number in [0, 1], of which a threshold makes right or wrong."""
    if hasattr(given, "item") and not isinstance(given, str):
        given = given.item()
    if isinstance(given, bool | int | float) and math.isfinite(given) and 0 <= given <= 1:
        score = float(given) if threshold is None else float(given >= threshold)
        outcome = "right" if score == 1 else "wrong" if score == 0 else "partial"
        return Verdict(score, outcome, completion[-200:])
    return Verdict(
        0.0, "failed", None, message=f"the function returned {given!r:.80}; it must return a number from 0 to 1"
    )
