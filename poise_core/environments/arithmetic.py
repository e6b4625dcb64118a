"""The built-in arithmetic environment: problems drawn from a seed, with answers in a required format.

A prompt is an expression and ``=``: ``47+385=``. A completion is read as follows::

    #432            the answer, after a marker
    :7+5=12,4+8+1=13,0+3+1=4#432   a scratchpad opened by ":", then the marker and the answer

``format_valid``: exactly one ``#``, followed by an optional minus and digits to the end of the completion. A completion
is correct when it is valid and its number equals the problem's. Anything else (no marker, two markers, text after the
answer, a length limit reached inside the scratchpad) is malformed.

The demonstrations of ``poise_core.testbed.demonstrations`` show several behaviours, among which reinforcement learning selects:
direct answers (short, often wrong on the harder kinds), scratchpads (longer, more often right) and malformed completions.
They train the base policy only; candidates never see them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from poise_core.environments.base import Outcome, Problem, Split, split_of

ALPHABET = "0123456789+-*%()=,.:#>;!?| "
"""Every character of prompts and completions."""

_ANSWER = re.compile(r"[^#]*#(-?\d+)")


def _digits(rng: random.Random, count: int) -> int:
    return rng.randrange(10 ** (count - 1) if count > 1 else 0, 10**count)


def _add(low: int, high: int) -> Callable[[random.Random], tuple[str, int]]:
    def draw(rng: random.Random) -> tuple[str, int]:
        a, b = _digits(rng, rng.randint(low, high)), _digits(rng, rng.randint(low, high))
        return f"{a}+{b}", a + b

    return draw


def _subtract(digits: int) -> Callable[[random.Random], tuple[str, int]]:
    def draw(rng: random.Random) -> tuple[str, int]:
        a, b = sorted((_digits(rng, digits), _digits(rng, digits)), reverse=True)
        return f"{a}-{b}", a - b

    return draw


def _multiply(left: int, right: int) -> Callable[[random.Random], tuple[str, int]]:
    def draw(rng: random.Random) -> tuple[str, int]:
        a, b = _digits(rng, left), _digits(rng, right)
        return f"{a}*{b}", a * b

    return draw


def _chain(terms: int) -> Callable[[random.Random], tuple[str, int]]:
    def draw(rng: random.Random) -> tuple[str, int]:
        numbers = [rng.randrange(1, 10) for _ in range(terms)]
        text, total = str(numbers[0]), numbers[0]
        for number in numbers[1:]:
            sign = rng.choice("+-") if total - number >= 0 else "+"
            text, total = f"{text}{sign}{number}", total + number if sign == "+" else total - number
        return text, total

    return draw


def _modulo(rng: random.Random) -> tuple[str, int]:
    a, b = rng.randrange(10, 100), rng.randrange(3, 10)
    return f"{a}%{b}", a % b


_SMALL_POOLS = {"add2": 4000, "sub2": 2000, "mul1": 500, "chain3": 800, "chain4": 2000, "mod": 350}
"""A lower bound on the distinct training problems of the kinds that have few; the others have more than 5000."""

KINDS: dict[str, Callable[[random.Random], tuple[str, int]]] = {
    "add2": _add(2, 2),
    "add3": _add(3, 3),
    "add4": _add(4, 4),
    "sub2": _subtract(2),
    "sub3": _subtract(3),
    "mul1": _multiply(2, 1),
    "mul3": _multiply(3, 1),
    "chain3": _chain(3),
    "chain4": _chain(4),
    "chain5": _chain(5),
    "mod": _modulo,
}
"""Kinds of problems by name, each drawing an expression and its value."""

DESCRIPTIONS: dict[str, str] = {
    "add2": "the sum of two numbers of two digits",
    "add3": "the sum of two numbers of three digits",
    "add4": "the sum of two numbers of four digits",
    "sub2": "the difference of two numbers of two digits, not below zero",
    "sub3": "the difference of two numbers of three digits, not below zero",
    "mul1": "the product of a number of two digits and one of one digit",
    "mul3": "the product of a number of three digits and one of one digit",
    "chain3": "three numbers from 1 to 9 added and subtracted from the left",
    "chain4": "four numbers from 1 to 9 added and subtracted from the left",
    "chain5": "five numbers from 1 to 9 added and subtracted from the left",
    "mod": "the remainder of a number of two digits divided by one from 3 to 9",
}
"""Kind of problem -> what it asks for, in words."""

FORM = (
    "A prompt is an expression and '='. A completion is an optional scratchpad, opened by ':', then '#' and the number, and "
    "nothing after it; correctness is 1 where that number is right and 0 otherwise, also where the form is not valid."
)
"""What a prompt and a completion look like, for whoever designs algorithms."""


class ArithmeticEnvironment:
    """The environment that the module's docstring describes."""

    name = "arithmetic"

    def problems(self, split: Split, kinds: Sequence[str], count: int, seed: str) -> list[Problem]:
        """See ``poise_core.environments.base.Environment.problems``."""
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"unknown kind of problem {kind!r}; the arithmetic environment has {', '.join(KINDS)}")
        rng = random.Random(f"arithmetic/{split}/{seed}")
        found: dict[str, Problem] = {}
        draws = 0
        while len(found) < count:
            kind = kinds[len(found) % len(kinds)]
            expression, value = KINDS[kind](rng)
            prompt = f"{expression}="
            if prompt not in found and split_of(prompt) == split:
                found[prompt] = Problem(prompt=prompt, answer=str(value), kind=kind)
            draws += 1
            if draws > 1000 + 200 * count:
                raise ValueError(f"the {split} split has no {count} distinct problems of the kinds {', '.join(kinds)}")
        return list(found.values())

    @staticmethod
    def pool_size(kind: str) -> int:
        """Return how many distinct training problems of a kind can be requested."""
        return _SMALL_POOLS.get(kind, 5000)

    def verify(self, problem: Problem, completion: str) -> Outcome:
        """See ``poise_core.environments.base.Environment.verify``."""
        match = _ANSWER.fullmatch(completion)
        if match is None:
            return Outcome(correctness=0.0, format_valid=False)
        return Outcome(correctness=float(match.group(1) == problem.answer), format_valid=True)
