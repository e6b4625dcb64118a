"""Demonstrations of arithmetic behaviour for the supervised training of base policies.

The behaviour ``direct`` answers at once, ``scratchpad`` writes its steps first, ``ramble`` repeats itself until the
length limit, and ``malformed`` omits or doubles the marker. The recipe of each base policy (``poise_core.testbed.recipes``)
gives their shares and the rate of wrong answers.
"""

from __future__ import annotations

import random
import re

from poise_core.environments.base import Problem


def scratchpad(prompt: str) -> str:
    """Return the steps of an expression, each with its operands: ``47+85=`` gives ``7+5=12,4+8+1=13``."""
    expression = prompt.rstrip("=")
    match = re.fullmatch(r"(\d+)([-+*%])(\d+)", expression)
    if match is None:
        return _running_total(expression)
    a, operator, b = match.group(1), match.group(2), match.group(3)
    if operator == "%":
        product = int(a) // int(b) * int(b)
        return f"{int(a) // int(b)}*{b}={product},{a}-{product}={int(a) % int(b)}"
    return _columns(a, b, operator)


def _columns(a: str, b: str, operator: str) -> str:
    """Compute column by column from the right; for products ``b`` is a single digit."""
    width = len(a) if operator == "*" else max(len(a), len(b))
    others = b * width if operator == "*" else b.zfill(width)
    carry_sign = "-" if operator == "-" else "+"
    steps, carry = [], 0
    for x, y in zip(reversed(a.zfill(width)), reversed(others), strict=True):
        value = int(x) * int(y) if operator == "*" else int(x) + int(y) if operator == "+" else int(x) - int(y)
        value = value - carry if operator == "-" else value + carry
        steps.append(f"{x}{operator}{y}" + (f"{carry_sign}{carry}" if carry else "") + f"={value}")
        carry = int(value < 0) if operator == "-" else value // 10
    return ",".join(steps)


def _running_total(expression: str) -> str:
    numbers = re.findall(r"[-+]?\d+", expression)
    total, steps = int(numbers[0]), []
    for number in numbers[1:]:
        steps.append(f"{total}{number}={total + int(number)}")
        total += int(number)
    return ",".join(steps)


def demonstrate(problem: Problem, behaviour: str, slip: float, rng: random.Random) -> str:
    """Return one completion that shows a behaviour; with probability ``slip`` a digit of its answer is wrong.

    Raises:
        ValueError: the behaviour is unknown.
    """
    answer = problem.answer
    if rng.random() < slip:
        position = rng.randrange(len(answer))
        answer = answer[:position] + rng.choice("0123456789") + answer[position + 1 :]
    steps = f":{scratchpad(problem.prompt)}"
    if behaviour == "direct":
        return f"#{answer}"
    if behaviour == "scratchpad":
        return f"{steps}#{answer}"
    if behaviour == "ramble":
        return steps + rng.choice(";!?") * 48
    if behaviour == "malformed":
        return rng.choice([answer, f"{answer}#", f"#{answer}#", f"{steps}.{answer}", f"#{answer}?"])
    raise ValueError(f"unknown behaviour {behaviour!r}; use direct, scratchpad, ramble or malformed")
