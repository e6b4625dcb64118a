"""Whether two answers are the same, by stated rules: docs/problems.md lists them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy

from poise_core.grading.answers import LONGEST_ANSWER, Answer, is_name, normalized, read_answer, squeezed
from poise_core.grading.expressions import TooLarge, Unreadable, parse_expression

ROUNDED_DIGITS = 6
"""A decimal of so many significant digits that is the correct rounding of an exact answer counts as the answer."""
_DIGITS = 40
_MOST_ITEMS = 64


@dataclass(frozen=True)
class Rules:
    """What counts as equal beyond mathematical equality."""

    tolerance: float = 0.0  # relative, between two numbers; 0 for exact answers


def answers_equal(gold: str, answer: str, rules: Rules = Rules()) -> bool:
    """Whether an answer is the gold answer; neither text is normalized yet.

    Raises:
        Unreadable: one of them cannot be read, and their texts differ.
    """
    try:
        return _same(normalized(gold), normalized(answer), rules)
    except Unreadable:
        raise
    except Exception as error:  # SymPy raises what it likes where an expression makes no sense
        raise Unreadable(f"{type(error).__name__}: {error}") from error


def readable(text: str) -> bool:
    """Whether an answer, not yet normalized, can be read as anything that is compared by more than its text."""
    try:
        answer = read_answer(normalized(text)) if len(text) <= 2 * LONGEST_ANSWER else Answer("opaque")
        if answer.kind == "value":
            _expression(answer.text)
        return answer.kind not in ("opaque", "nothing")
    except Exception:  # see answers_equal
        return False


def _same(gold: str, answer: str, rules: Rules) -> bool:
    if squeezed(gold) == squeezed(answer):
        return bool(gold)
    if max(len(gold), len(answer)) > LONGEST_ANSWER:
        raise TooLarge("too long to be read")
    wanted = read_answer(gold)
    given = read_answer(
        answer, listed=wanted.kind in ("list", "tuple", "set") and "," in answer and " " not in gold[:0]
    )
    if given.kind == "list" and wanted.kind not in ("list", "tuple", "set"):
        given = read_answer(answer)
    if wanted.kind == "nothing" or given.kind == "nothing":
        return False
    return _compare(wanted, given, rules)


def _compare(gold: Answer, answer: Answer, rules: Rules) -> bool:
    if gold.kind != "equation" and answer.kind == "equation":
        return _equation_for_value(gold, answer, rules)
    if gold.kind == "equation":
        return _against_equation(gold, answer, rules)
    if "opaque" in (gold.kind, answer.kind):
        if gold.kind == "opaque":
            raise Unreadable(gold.text)
        return False
    compare = _BY_KIND.get((gold.kind, answer.kind))
    return compare(gold, answer, rules) if compare else False


# values


def _values(gold: Answer, answer: Answer, rules: Rules) -> bool:
    one, other = gold.unit, answer.unit
    if one.kind and other.kind and one != other:
        if one.kind != other.kind:
            return False
        return _numbers(
            _scaled(gold.text, one.factor), _scaled(answer.text, other.factor), gold.text, answer.text, rules
        )
    value, found = _expression(gold.text), _expression(answer.text)
    if _numbers(value, found, gold.text, answer.text, rules):
        return True
    # a unit that one side leaves out: 25% is 1/4, and 60 degrees are pi/3 where pi is written
    if one.kind == "share" and not other.kind:
        return _numbers(value / 100, found, "", answer.text, rules)
    if other.kind == "share" and not one.kind:
        return _numbers(value, found / 100, gold.text, "", rules)
    if one.kind == "angle" and one.factor != "1" and not other.kind and found.has(sympy.pi):
        return _numbers(_scaled(gold.text, one.factor), found, "", answer.text, rules)
    if other.kind == "angle" and other.factor != "1" and not one.kind and value.has(sympy.pi):
        return _numbers(value, _scaled(answer.text, other.factor), gold.text, "", rules)
    return False


def _scaled(text: str, factor: str) -> Any:
    return _expression(text) * sympy.sympify(factor, rational=True)


@lru_cache(maxsize=4096)
def _expression(text: str) -> Any:
    return parse_expression(_expanded_decimals(text))


def _expanded_decimals(text: str) -> str:
    """Write repeating decimals as fractions: 0.\\overline{3}, 0.333\\ldots."""

    def fraction(whole: str, fixed: str, block: str) -> str:
        scale, nines = 10 ** len(fixed), 10 ** len(block) - 1
        top = int((whole or "0") + fixed) * nines + int(block)
        return rf"\frac{{{top}}}{{{scale * nines}}}"

    text = re.sub(
        r"(\d*)\.(\d*)\\(?:overline|bar|dot|overbar)\s*(?:\{(\d+)\}|(\d))",
        lambda m: fraction(m[1], m[2], m[3] or m[4]),
        text,
    )
    return re.sub(r"(\d*)\.(\d*?)(\d+?)\3{2,}\s*\\ldots", lambda m: fraction(m[1], m[2], m[3]), text)


def _numbers(gold: Any, answer: Any, gold_text: str, answer_text: str, rules: Rules) -> bool:
    if gold == answer:
        return True
    if gold.free_symbols or answer.free_symbols:
        return _identical(gold, answer)
    if not (gold.is_Rational and answer.is_Rational) and _constants(gold, answer):
        return True
    if _rounds_to(answer_text, gold, gold_text) or _rounds_to(gold_text, answer, answer_text):
        return True
    if rules.tolerance:
        one, other = (complex(sympy.N(value, 20)) for value in (gold, answer))
        return abs(one - other) <= rules.tolerance * abs(one)
    return False


def _constants(gold: Any, answer: Any) -> bool:
    one, other = sympy.N(gold, _DIGITS), sympy.N(answer, _DIGITS)
    if not (one.is_number and other.is_number) or one.has(sympy.nan, sympy.zoo) or other.has(sympy.nan, sympy.zoo):
        return False
    if one.has(sympy.oo, -sympy.oo) or other.has(sympy.oo, -sympy.oo):
        return bool(one == other)
    scale = max(abs(one), abs(other))
    if 0 in (
        gold,
        answer,
    ):  # SymPy marks a sum that cancels to all its digits by a precision of one bit; exp(-100) has all its bits
        value = other if gold == 0 else one
        return getattr(value, "_prec", 53) <= 1
    return bool(abs(one - other) <= scale * sympy.Float(10) ** (10 - _DIGITS))


def _rounds_to(text: str, exact: Any, exact_text: str) -> bool:
    """Whether a decimal of enough digits is the rounding of an exact number that is not written as a decimal."""
    match = re.fullmatch(r"\(?-?\(?\s*(\d*)\.(\d+)\)?", text.replace(" ", ""))
    if not match or re.fullmatch(r"-?\s*\d*\.?\d*", exact_text.strip()):
        return False
    if len((match.group(1) + match.group(2)).lstrip("0")) < ROUNDED_DIGITS:
        return False
    value = _expression(text)
    return bool(abs(sympy.N(exact - value, 30)) <= sympy.Rational(1, 2 * 10 ** len(match.group(2))))


def _identical(gold: Any, answer: Any) -> bool:
    """Whether two expressions agree at points drawn once for all, positive and negative, wherever both are real or both are not.

    Two different analytic expressions agree at random points with probability zero (Schwartz 1980, Zippel 1979, for polynomials).
    """
    symbols = sorted(gold.free_symbols | answer.free_symbols, key=str)
    unknown = (gold.atoms(sympy.core.function.AppliedUndef)) | answer.atoms(sympy.core.function.AppliedUndef)
    if unknown or len(symbols) > 12:
        return bool(sympy.expand(gold - answer) == 0)
    whole = _integers_only(gold) or _integers_only(answer)
    agreed = 0
    for point in range(10):
        values = {}
        for place, symbol in enumerate(symbols):
            draw = sympy.Rational(7 + (point * 37 + place * 53 + 11 * place * point) % 97, 31)
            if whole:
                draw = sympy.Integer(1 + (point * 3 + place * 5) % 11)
            values[symbol] = -draw if (point + place * (point // 2)) % 2 and not whole else draw
        one, other = (side.evalf(30, subs=values) for side in (gold, answer))
        if not (one.is_number and other.is_number) or any(
            side.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo) for side in (one, other)
        ):
            continue
        real = [abs(sympy.im(side)) < 1e-20 for side in (one, other)]
        if real[0] != real[1]:
            continue  # a root or logarithm of a negative number, on one side only
        if abs(one - other) > 1e-18 * max(abs(one), abs(other), sympy.Float("1e-30")):
            return False
        agreed += 1
    return agreed >= 3


def _integers_only(expression: Any) -> bool:
    return bool(expression.has(sympy.factorial, sympy.binomial))


# several


def _matched(golds: tuple[str, ...], answers: tuple[str, ...], rules: Rules, *, multiple: bool = True) -> bool:
    """Whether the items are the same in any order."""
    if not multiple:
        golds, answers = _distinct(golds, rules), _distinct(answers, rules)
    if len(golds) != len(answers) or len(golds) > _MOST_ITEMS:
        return False
    left = list(answers)
    for gold in golds:
        found = next((item for item in left if _readable_same(gold, item, rules)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _distinct(items: tuple[str, ...], rules: Rules) -> tuple[str, ...]:
    kept: list[str] = []
    for item in _opened(items)[:_MOST_ITEMS]:
        if not any(_readable_same(item, other, rules) for other in kept):
            kept.append(item)
    return tuple(kept)


def _opened(items: tuple[str, ...]) -> tuple[str, ...]:
    """Write plus-minus items as two."""
    found: list[str] = []
    for item in items:
        inner = read_answer(item) if "\\pm" in item else None
        found += inner.items if inner is not None and inner.kind == "list" else (item,)
    return tuple(found)


def _readable_same(gold: str, answer: str, rules: Rules) -> bool:
    try:
        return _same(gold, answer, rules)
    except TooLarge:
        raise
    except Unreadable:
        return False


def _ordered(gold: Answer, answer: Answer, rules: Rules) -> bool:
    return len(gold.items) == len(answer.items) and all(
        _readable_same(one, other, rules) for one, other in zip(gold.items, answer.items, strict=True)
    )


def _lists(gold: Answer, answer: Answer, rules: Rules) -> bool:
    one, other = _opened(gold.items), _opened(answer.items)
    if any("\\ldots" in item for item in (*one, *other)):  # a sequence has an order
        return _ordered(Answer("tuple", items=one), Answer("tuple", items=other), rules)
    return _matched(one, other, rules)


def _sets(gold: Answer, answer: Answer, rules: Rules) -> bool:
    return _matched(_opened(gold.items), _opened(answer.items), rules, multiple=False)


def _tuple_for_list(gold: Answer, answer: Answer, rules: Rules) -> bool:
    """A tuple without its brackets, or equations of its entries in the gold's order."""
    values = tuple(item.split("=")[-1] if "=" in item else item for item in gold.items)
    found = tuple(item.split("=")[-1] if "=" in item else item for item in answer.items)
    return _ordered(Answer("tuple", items=values), Answer("tuple", items=found), rules)


def _matrices(gold: Answer, answer: Answer, rules: Rules) -> bool:
    return gold.width == answer.width and _ordered(gold, answer, rules)


def _vector(gold: Answer, answer: Answer, rules: Rules) -> bool:
    matrix = gold if gold.kind == "matrix" else answer
    return 1 in (matrix.width, len(matrix.items) // matrix.width) and _ordered(gold, answer, rules)


# intervals


def _intervals(gold: Answer, answer: Answer, rules: Rules) -> bool:
    if gold.variable and answer.variable and squeezed(gold.variable) != squeezed(answer.variable):
        return False
    left = list(answer.intervals)
    if len(left) != len(gold.intervals):
        return False
    for opening, low, high, closing in gold.intervals:
        found = next(
            (
                other
                for other in left
                if (other[0], other[3]) == (opening, closing)
                and _readable_same(low, other[1], rules)
                and _readable_same(high, other[2], rules)
            ),
            None,
        )
        if found is None:
            return False
        left.remove(found)
    return True


def _pair_as_interval(gold: Answer, answer: Answer, rules: Rules) -> bool:
    def opened(side: Answer) -> Answer:
        if side.kind != "tuple":
            return side
        bounds = (("(", *side.items, ")"),) if len(side.items) == 2 else ()
        return Answer("intervals", intervals=bounds)

    return _intervals(opened(gold), opened(answer), rules) and bool(opened(gold).intervals)


# equations


def _against_equation(gold: Answer, answer: Answer, rules: Rules) -> bool:
    named = is_name(gold.items[0])
    if answer.kind != "equation":
        if answer.kind in ("opaque", "words", "choice") or not (named or is_name(gold.items[-1])):
            return False
        inner = gold.items[-1] if named else gold.items[0]
        return _compare(read_answer(inner), answer, rules)
    if is_name(gold.items[0]) and is_name(answer.items[0]):
        one, other = (re.sub(r"\s", "", side.items[0]) for side in (gold, answer))
        if one == other or (one[1:2] == "(") != (other[1:2] == "("):
            return _readable_same(gold.items[-1], answer.items[-1], rules)
    if len(gold.items) != 2 or len(answer.items) != 2:
        return False
    one, other = (_expression(side.items[0]) - _expression(side.items[1]) for side in (gold, answer))
    if not one.free_symbols or one.free_symbols != other.free_symbols:
        return False
    point = {
        symbol: sympy.Rational(13 + 7 * place, 11) for place, symbol in enumerate(sorted(one.free_symbols, key=str))
    }
    ratio = sympy.nsimplify(other.subs(point) / one.subs(point)) if one.subs(point) != 0 else sympy.Integer(0)
    return bool(ratio != 0 and ratio.is_finite and _identical(one * ratio, other))


def _equation_for_value(gold: Answer, answer: Answer, rules: Rules) -> bool:
    """An answer such as x = 5, or 2 + 3 = 5, for a value: the last side counts if those before are names or equal."""
    *before, last = answer.items
    if gold.kind == "opaque":
        raise Unreadable(gold.text)
    if is_name(last) and len(before) == 1 and not is_name(before[0]):
        before, last = [last], before[0]
    for side in before[1 if is_name(before[0]) else 0 :]:
        if is_name(side) or not _readable_same(last, side, rules):
            return False
    return _compare(gold, read_answer(last), rules)


# the rest


def _words(gold: Answer, answer: Answer, rules: Rules) -> bool:
    return gold.text.lower() == answer.text.lower()


def _choice_for_letter(gold: Answer, answer: Answer, rules: Rules) -> bool:
    return gold.text.strip("() ") == answer.text.strip("() ")


def _clocks(gold: Answer, answer: Answer, rules: Rules) -> bool:
    one, other = gold.items, answer.items
    if one[2] and other[2] and one[2] != other[2]:
        return False

    def minutes(time: tuple[str, ...]) -> int:
        hour = int(time[0]) % 12 + 12 * (time[2] == "p") if time[2] else int(time[0])
        return 60 * hour + int(time[1])

    if bool(one[2]) != bool(other[2]):
        return (int(one[0]) - int(other[0])) % 12 == 0 and one[1] == other[1] and min(int(one[0]), int(other[0])) >= 1
    return minutes(one) == minutes(other)


def _ratios(gold: Answer, answer: Answer, rules: Rules) -> bool:
    if len(gold.items) != len(answer.items):
        return False
    one, other = ([_expression(item) for item in side.items] for side in (gold, answer))
    return all(_numbers(a * other[0], b * one[0], "", "", rules) for a, b in zip(one, other, strict=True))


def _ratio_for_value(gold: Answer, answer: Answer, rules: Rules) -> bool:
    ratio, value = (gold, answer) if gold.kind == "ratio" else (answer, gold)
    if len(ratio.items) != 2 or ("frac" not in value.text and "/" not in value.text):
        return False
    return _numbers(_expression(ratio.items[0]), _expression(value.text) * _expression(ratio.items[1]), "", "", rules)


def _bases(gold: Answer, answer: Answer, rules: Rules) -> bool:
    return gold.items == answer.items and gold.text.lstrip("0") == answer.text.lstrip("0")


def _base_for_value(gold: Answer, answer: Answer, rules: Rules) -> bool:
    """The base left out on one side; the digits then must be the same, as the question has named the base."""
    return gold.text.lstrip("0") == answer.text.lstrip("0")


def _clock_ratio(gold: Answer, answer: Answer, rules: Rules) -> bool:
    return _ratios(Answer("ratio", items=gold.items[:2]), Answer("ratio", items=answer.items[:2]), rules)


_BY_KIND = {
    ("value", "value"): _values,
    ("words", "words"): _words,
    ("choice", "choice"): _words,
    ("choice", "value"): _choice_for_letter,
    ("value", "choice"): _choice_for_letter,
    ("list", "list"): _lists,
    ("set", "set"): _sets,
    ("set", "list"): _sets,
    ("list", "set"): _sets,
    ("set", "value"): lambda g, a, r: len(g.items) == 1 and _readable_same(g.items[0], a.text, r),
    ("value", "set"): lambda g, a, r: len(a.items) == 1 and _readable_same(g.text, a.items[0], r),
    ("tuple", "tuple"): _ordered,
    ("tuple", "list"): _tuple_for_list,
    ("list", "tuple"): _tuple_for_list,
    ("matrix", "matrix"): _matrices,
    ("matrix", "tuple"): _vector,
    ("tuple", "matrix"): _vector,
    ("intervals", "intervals"): _intervals,
    ("tuple", "intervals"): _pair_as_interval,
    ("intervals", "tuple"): _pair_as_interval,
    ("clock", "clock"): _clocks,
    ("ratio", "ratio"): _ratios,
    ("clock", "ratio"): _clock_ratio,
    ("ratio", "clock"): _clock_ratio,
    ("ratio", "value"): _ratio_for_value,
    ("value", "ratio"): _ratio_for_value,
    ("base", "base"): _bases,
    ("base", "value"): _base_for_value,
    ("value", "base"): _base_for_value,
}
