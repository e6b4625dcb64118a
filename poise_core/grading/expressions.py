"""LaTeX of an answer to an expression: a small parser that refuses to compute what nobody can, and math-verify for the rest.

The parser knows what nearly all answers consist of (numbers, letters, fractions, roots, powers, functions, factorials). It is
faster than a grammar for all of LaTeX and looks at the size of a power or factorial before it computes it. What it does not
know (sums, integrals, limits) goes to the parser of math-verify. Decimals are read as exact fractions.
"""

from __future__ import annotations

import re
from typing import Any

import sympy

MAXIMAL_BITS = 50_000
"""A power is computed where its result has no more bits than this; a factorial up to 3,000."""
MAXIMAL_FACTORIAL = 3_000

_FUNCTIONS = {
    "sin": sympy.sin, "cos": sympy.cos, "tan": sympy.tan, "cot": sympy.cot, "sec": sympy.sec, "csc": sympy.csc,
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "sinh": sympy.sinh, "cosh": sympy.cosh,
    "tanh": sympy.tanh, "ln": sympy.log, "exp": sympy.exp, "arccot": sympy.acot,
}  # fmt: skip
_DECORATIONS = {
    "vec",
    "hat",
    "bar",
    "dot",
    "ddot",
    "tilde",
    "overline",
    "underline",
    "widehat",
    "mathcal",
    "mathbb",
    "text",
}
_WRAPPERS = {"mathrm", "mathbf", "boldsymbol", "mathit", "bm", "operatorname"}
_TOKEN = re.compile(r"\d+\.?\d*|\.\d+|\\[A-Za-z]+|\\.|[A-Za-z]|\S")
_INVERSE = {"sin": sympy.asin, "cos": sympy.acos, "tan": sympy.atan}


class Unreadable(ValueError):
    """The text is no expression that can be read."""


class TooLarge(Unreadable):
    """The expression is read, and its value is larger than anybody computes."""


def parse_expression(text: str) -> Any:
    """Return the expression of normalized LaTeX.

    Raises:
        Unreadable: it is none, or ``TooLarge``.
    """
    try:
        return _Parser(text).whole()
    except TooLarge:
        raise
    except (Unreadable, RecursionError):
        return _by_math_verify(text)


def _by_math_verify(text: str) -> Any:
    if re.search(r"\d{4,}|!\)*!|\^\{?[^{}]*\^", text) and not re.search(r"\\(sum|int|prod|lim)", text):
        raise Unreadable(text)  # what could grow without bound is for the parser above, which looks before it computes
    if "%" in text or "\\begin" in text or len(text) > 500:
        raise Unreadable(text)
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    try:
        found = latex2sympy(text, conversion_config=ConversionConfig(lowercase_symbols=False))
    except Exception as error:  # its grammar, its conversion and SymPy raise what they like
        raise Unreadable(text) from error
    if not isinstance(found, sympy.Expr):
        raise Unreadable(text)
    return found.subs({sympy.Symbol("i"): sympy.I, sympy.Symbol("e"): sympy.E}).replace(
        lambda part: part.is_Float, lambda part: sympy.Rational(str(part))
    )


def power(base: Any, exponent: Any) -> Any:
    """Return base ** exponent.

    Raises:
        TooLarge: the result is a number of more than ``MAXIMAL_BITS`` bits.
    """
    if not base.free_symbols and not exponent.free_symbols and base not in (0, 1, -1):
        size = abs(sympy.N(exponent, 15))
        if size.is_number and size.is_real is not False:
            magnitude = abs(sympy.N(base, 15))
            bits = abs(sympy.N(sympy.log(magnitude, 2), 15)) if magnitude != 0 else 0
            if size > MAXIMAL_BITS or size * max(bits, 1 if not base.is_Integer else bits) > MAXIMAL_BITS:
                raise TooLarge("power")
    if base.is_Integer and base < 0 and exponent.is_Rational and exponent.q % 2 == 1 and exponent.q > 1:
        return -power(-base, exponent) if exponent.p % 2 else power(-base, exponent)  # the real root, as school has it
    return sympy.Pow(base, exponent)


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = _TOKEN.findall(text)
        self.at = 0

    def whole(self) -> Any:
        if not self.tokens:
            raise Unreadable("nothing")
        found = self.sum()
        if self.at != len(self.tokens):
            raise Unreadable(self.tokens[self.at])
        return found

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise Unreadable(token)
        self.at += 1
        return token

    def sum(self) -> Any:
        terms = [self.term()]
        while self.peek() in ("+", "-"):
            sign = self.take()
            terms.append(self.term() if sign == "+" else -self.term())
        return sympy.Add(*terms)

    def term(self) -> Any:
        found = self.signed()
        while True:
            token = self.peek()
            if token in ("*", "\\cdot", "\\times", "\\ast"):
                self.take()
                found = found * self.signed()
            elif token in ("/", "\\div"):
                self.take()
                divisor = self.signed()
                if divisor == 0:
                    raise Unreadable("division by zero")
                found = found / divisor
            elif self._begins_factor(token):
                found = found * self.power()
            else:
                return found

    def signed(self) -> Any:
        if self.peek() in ("+", "-"):
            return self.signed() if self.take() == "+" else -self.signed()
        return self.power()

    def _begins_factor(self, token: str) -> bool:
        if not token or token in (
            "+",
            "-",
            ")",
            "]",
            "}",
            "|",
            ",",
            "!",
            "%",
            "^",
            "_",
            "'",
            "=",
            "<",
            ">",
            ":",
            ";",
            ".",
        ):
            return False
        return token not in (
            "\\rfloor",
            "\\rceil",
            "\\rvert",
            "\\rangle",
            "\\le",
            "\\ge",
            "\\ne",
            "\\pm",
            "\\in",
            "\\cup",
        )

    def power(self) -> Any:
        base = self.postfix(self.atom())
        if self.peek() != "^":
            return base
        self.take()
        if self.peek() == "{" and self.tokens[self.at + 1 : self.at + 3] == ["\\circ", "}"]:
            self.at += 3
            return self._next_power(base * sympy.pi / 180)
        if self.peek() == "\\circ":
            self.take()
            return self._next_power(base * sympy.pi / 180)
        if self.peek() == "{" and self.tokens[self.at + 1 : self.at + 3] == ["\\prime", "}"]:
            self.at += 3
            return sympy.Symbol(f"{base}'")
        return self.postfix(power(base, self.argument(exponent=True)))

    def _next_power(self, base: Any) -> Any:
        return self.postfix(base)

    def postfix(self, found: Any) -> Any:
        while self.peek() in ("!", "%"):
            if self.take() == "%":
                found = found / 100
                continue
            if found.is_Integer and not 0 <= found <= MAXIMAL_FACTORIAL:
                raise TooLarge("factorial")
            found = sympy.factorial(found)
        return found

    def argument(self, *, exponent: bool = False) -> Any:
        """What follows a command or a power: a group in braces, or one token, of which a number gives its first digit."""
        token = self.peek()
        if token == "{":
            return self.group("{", "}")
        if exponent and token == "-":
            self.take()
            return -self.argument(exponent=True)
        if exponent and token == "(":
            return self.atom()
        if re.fullmatch(r"\d{2,}", token):
            self.tokens[self.at : self.at + 1] = [token] if exponent else [token[0], token[1:]]
        found = self.atom()
        return self.power_of(found) if exponent else found

    def power_of(self, found: Any) -> Any:
        if self.peek() == "^":  # 2^3^2 is 2^(3^2), as in plain text
            self.take()
            return power(found, self.argument(exponent=True))
        return found

    def group(self, opening: str, closing: str) -> Any:
        self.take(opening)
        found = self.sum()
        self.take(closing)
        return found

    def atom(self) -> Any:
        token = self.take()
        if token[0].isdigit() or (token[0] == "." and len(token) > 1):
            return self._number(token)
        if token.isalpha():
            return self._symbol(token)
        if token in ("(", "[", "{"):
            self.at -= 1
            return self.group(token, {"(": ")", "[": "]", "{": "}"}[token])
        if token in ("|", "\\lvert", "\\vert"):
            found = self.sum()
            if self.take() not in ("|", "\\rvert", "\\vert"):
                raise Unreadable("|")
            return sympy.Abs(found)
        if token.startswith("\\"):
            return self._command(token[1:])
        raise Unreadable(token)

    def _number(self, token: str) -> Any:
        if len(token) > 2_000:
            raise TooLarge("digits")
        number = sympy.Rational(token.rstrip(".") if not token.startswith(".") else "0" + token)
        rest = self.tokens[self.at : self.at + 7]  # a mixed number: 3\frac{1}{2} is seven halves
        if number.is_Integer and rest[:2] == ["\\frac", "{"] and rest[3:5] == ["}", "{"] and rest[6:7] == ["}"]:
            over, under = rest[2], rest[5]
            if over.isdigit() and under.isdigit() and 0 < int(over) < int(under):
                self.at += 7
                return number + sympy.Rational(int(over), int(under))
        return number

    def _symbol(self, name: str) -> Any:
        if self.peek() == "_":
            self.take()
            name = f"{name}_{self._raw()}"
        while self.peek() == "'":
            name += self.take()
        applied = self.tokens[self.at : self.at + 3]  # I(0) is a value of I, and not the product with 0
        numbered = len(applied) == 3 and applied[0] == "(" and applied[1][0].isdigit() and applied[2] == ")"
        if (name in ("f", "g", "h") or numbered) and self.peek() == "(":
            return sympy.Function(name)(self.group("(", ")"))
        return {"i": sympy.I, "e": sympy.E}.get(name, sympy.Symbol(name))

    def _raw(self) -> str:
        """The text of one group or token, for indices."""
        if self.peek() != "{":
            return self.take()
        parts: list[str] = []
        depth = 0
        while True:
            token = self.take()
            depth += {"{": 1, "}": -1}.get(token, 0)
            if depth == 0:
                return "".join(part for part in parts if part not in "{}" and part not in ("\\text", "\\mathrm"))
            parts.append(token)

    def _command(self, name: str) -> Any:
        if name == "frac":
            over, under = self.argument(), self.argument()
            if under == 0:
                raise Unreadable("division by zero")
            return over / under
        if name == "sqrt":
            degree = self.group("[", "]") if self.peek() == "[" else sympy.Integer(2)
            return power(self.argument(), 1 / degree)
        if name in ("binom", "choose"):
            upper, lower = self.argument(), self.argument()
            if upper.is_Integer and abs(upper) > 5_000:
                raise TooLarge("binomial")
            return sympy.binomial(upper, lower)
        if name in ("lfloor", "lceil"):
            found = self.sum()
            self.take("\\r" + name[1:])
            return (sympy.floor if name == "lfloor" else sympy.ceiling)(found)
        if name == "pi":
            return sympy.pi
        if name == "infty":
            return sympy.oo
        if name == "log":
            return self._logarithm()
        if name in _FUNCTIONS:
            return self._function(name)
        if name in _WRAPPERS:
            return self.group("{", "}")
        if name in _DECORATIONS:
            return self._symbol(f"{name}:{self._raw()}")
        if re.fullmatch(r"(var)?[A-Za-z]{2,8}", name) and name.removeprefix("var").lower() in _GREEK:
            return self._symbol(name)
        raise Unreadable(name)

    def _function(self, name: str) -> Any:
        exponent = None
        if self.peek() == "^":
            self.take()
            exponent = self.argument(exponent=True)
        inner = self._function_argument()
        if exponent == -1 and name in _INVERSE:
            return _INVERSE[name](inner)
        found = _FUNCTIONS[name](inner) if name != "exp" else power(sympy.E, inner)
        return found if exponent is None else power(found, exponent)

    def _logarithm(self) -> Any:
        base: Any = sympy.Integer(10)
        if self.peek() == "_":
            self.take()
            base = self.argument()
        exponent = None
        if self.peek() == "^":
            self.take()
            exponent = self.argument(exponent=True)
        found = sympy.log(self._function_argument()) / sympy.log(base)
        return found if exponent is None else power(found, exponent)

    def _function_argument(self) -> Any:
        """(x), {x}, or the factors without a sign that follow: sin 2x is sin(2x), sin(x) y is sin(x) times y."""
        if self.peek() == "(":
            found = self.group("(", ")")
            return found
        negative = self.peek() == "-"
        if negative:
            self.take()
        found = self.power()
        while self.peek() == "/" or (
            self._begins_factor(self.peek())
            and self.peek()[1:] not in (*_FUNCTIONS, "log")
            and self.peek() not in ("(", "\\cdot", "\\times", "*")
        ):
            if self.peek() == "/":
                self.take()
                found = found / self.power()
            else:
                found = found * self.power()
        return -found if negative else found


_GREEK = frozenset(
    re.findall(
        r"\w+",
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi "
        "chi psi omega ell mho hbar partial odot ",
    )
)
