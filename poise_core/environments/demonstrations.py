"""Demonstrations of arithmetic behaviour for the supervised training of base policies.

Behaviours: ``direct`` answers at once, ``scratchpad`` works digit by digit first, ``ramble`` repeats itself until the
length limit, ``malformed`` forgets or doubles the marker. Shares and the rate of slips are chosen by the recipe of each
base policy (``poise_core.training.base_policy``).
"""

from __future__ import annotations

import random
import re

from poise_core.environments.base import Problem


def scratchpad(prompt: str) -> str:
    """Intermediate steps for an expression, without markers: ``47+85=`` gives ``7+5=12,4+8+1=13``."""
    expression = prompt.rstrip("=")
    match = re.fullmatch(r"(\d+)([-+*%])(\d+)", expression)
    if match is None:
        return _running_total(expression)
    a, operator, b = match.group(1), match.group(2), match.group(3)
    if operator in "+-":
        return _columns(a, b, operator)
    if operator == "*":
        return _partial_products(a, b)
    quotient = int(a) // int(b)
    return f"{b}*{quotient}={int(b) * quotient}"


def _columns(a: str, b: str, operator: str) -> str:
    width = max(len(a), len(b))
    steps, carry = [], 0
    for x, y in zip(reversed(a.zfill(width)), reversed(b.zfill(width)), strict=True):
        value = int(x) + int(y) + carry if operator == "+" else int(x) - int(y) - carry
        steps.append(f"{x}{operator}{y}" + (f"{operator}1" if carry else "") + f"={value}")
        carry = int(value > 9 or value < 0)
    return ",".join(steps)


def _partial_products(a: str, b: str) -> str:
    parts = [int(a) * int(digit) * 10**place for place, digit in enumerate(reversed(b))]
    if len(parts) > 1:
        return ",".join(str(part) for part in parts)
    digits = [int(digit) * int(b) * 10**place for place, digit in enumerate(reversed(a))]
    return "+".join(str(part) for part in digits)


def _running_total(expression: str) -> str:
    numbers = re.findall(r"[-+]?\d+", expression)
    total, steps = int(numbers[0]), []
    for number in numbers[1:]:
        total += int(number)
        steps.append(str(total))
    return ",".join(steps)


def demonstrate(problem: Problem, behaviour: str, slip: float, rng: random.Random) -> str:
    """One completion showing a behaviour; with probability ``slip`` a digit of its answer is wrong.

    Raises:
        ValueError: unknown behaviour.
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
        return steps + rng.choice(";!?") * 64
    if behaviour == "malformed":
        return rng.choice([answer, f"{answer}#", f"#{answer}#", f"{steps}.{answer}", f"#{answer}?"])
    raise ValueError(f"unknown behaviour {behaviour!r}; use direct, scratchpad, ramble or malformed")
