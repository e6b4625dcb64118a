"""Where the answer stands in a completion, and what it is: a number with a unit, a list, an interval, an equation, a word.

Everything here takes time in proportion to the text and computes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

LONGEST_ANSWER = 2_000
"""Characters of a normalized answer beyond which it is compared as text only."""

_BOX = re.compile(r"\\(?:boxed|fbox)\b\s*")
_SPACE = re.compile(
    r"(?<!\\)\\[,!;: ]|~|\\(?:q?quad|(?:display|text|script)style|left|right|[bB]igg?[lrm]?|(?:no)?limits|hfill|thinspace)"
    r"(?![A-Za-z])"
)
_UNICODE = {
    "−": "-", "–": "-", "—": "-", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "÷": "\\div ", "π": "\\pi ", "∞": "\\infty ",
    "≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≠": "\\ne ", "°": "^\\circ ", "º": "^\\circ ", "∪": "\\cup ",
    "∩": "\\cap ", "∈": "\\in ", "√": "\\sqrt ", "±": "\\pm ", "²": "^{2}", "³": "^{3}", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}",
    "¾": "\\frac{3}{4}", "∅": "\\emptyset ", "ℝ": "\\mathbb{R}", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "…": "\\ldots ",
    "€": "\\$", "£": "\\$", "％": "%", "\u00a0": " ", "⟨": "\\langle ", "⟩": "\\rangle ", "λ": "\\lambda ",
}  # fmt: skip
_SAME = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:leq|leqslant|le)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geq|geqslant|ge)(?![A-Za-z])", r"\\ge "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq?(?![A-Za-z])|!=", r"\\ne "),
        (r"\\(?:mp)(?![A-Za-z])", r"\\pm "),
        (r"\\(?:degrees?|degree)(?![A-Za-z])", r"^\\circ "),
        (r"\\(?:varnothing|emptyset)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\(?:dots|cdots|ldots|dotsc|dotsb)(?![A-Za-z])|\.\.\.+", r"\\ldots "),
        (r"\\(?:lbrace)(?![A-Za-z])", r"\\{"),
        (r"\\(?:rbrace)(?![A-Za-z])", r"\\}"),
        (r"\\(?:mathbb|mathbf)\s*(?:\{\s*R\s*\}|R)|\\R(?![A-Za-z])|\\Reals", r"\\mathbb{R}"),
        (r"\{\s*([,:.])\s*\}", r"\1"),
        (r"\\(?:textbf|textrm|textit|textsf|texttt|mbox|hbox|textnormal|mathsf|textup)\s*(?=\{)", r"\\text"),
        (r"\\(?:mathrm|mathbf|operatorname|boldsymbol|bm|mathit|bf|rm|it)\s*\{\s*([A-Za-z]|[^A-Za-z{}\\]*)\s*\}", r"\1"),
        (r"\\(?:mathrm|operatorname|mathbf|boldsymbol|mathit)\s*(?=\{\s*[A-Za-z][A-Za-z .]+\})", r"\\text"),
        (r"\*\*", "^"),
        (r"\{\s*([^{}]*?)\s*\\choose(?![A-Za-z])\s*([^{}]*?)\s*\}", r"\\binom{\1}{\2}"),
        (r"^\s*([^{}\\]*?)\s*\\choose(?![A-Za-z])\s*([^{}\\]*?)\s*$", r"\\binom{\1}{\2}"),
        (r"\{\s*([^{}]*?)\s*\\over(?![A-Za-z])\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}"),
        (r"\\%", "%"),
        (r"\\begin\{[bvV]?matrix\}|\\begin\{smallmatrix\}|\\begin\{array\}(\{[^{}]*\})?", r"\\begin{pmatrix}"),
        (r"\\end\{[bvV]?matrix\}|\\end\{smallmatrix\}|\\end\{array\}", r"\\end{pmatrix}"),
        (r"(\d(?:\.\d*)?)[eE]([+-]?\d+)(?![\d.])", r"\1\\cdot 10^{\2}"),
        (r"(\d(?:\.\d*)?)\s*[x]\s*10\s*\^", r"\1\\cdot 10^"),
        (r"(?<![A-Za-z\\])(?:np\.|math\.)?(sqrt|(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|ln|exp|pi)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![A-Za-z\\])(?:inf|infinity|oo)(?![A-Za-z])", r"\\infty "),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"(?<![\d.])(\d+)\s+(\d+)\s*/\s*(\d+)(?!\d)", r"\1\\frac{\2}{\3}"),
    )
]  # fmt: skip


def last_box(text: str) -> str | None:
    """Return what stands in the last ``\\boxed{}`` (or ``\\fbox{}``) of a text, None where there is none or it never closes."""
    last = None
    for last in _BOX.finditer(text):  # noqa: B007
        pass
    if last is None:
        return None
    start = last.end()
    if start >= len(text):
        return None
    if text[start] != "{":
        token = re.match(r"\\[A-Za-z]+|[^\s$\\]+", text[start:])
        return token.group().rstrip(".,;") if token else None
    depth, at = 0, start
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + 1 : at].strip()
        at += 1
    return None


def find_answer(text: str, where: str) -> str | None:
    """Return the answer in a text.

    Args:
        text: a completion.
        where: ``boxed``, the last box; ``hash``, what follows the last ``####`` on its line; ``tag``, the last
            ``<answer>...</answer>`` (and its last box, if it has one); ``whole``, the text without spaces around it.
    """
    if where == "boxed":
        return last_box(text)
    if where == "hash":
        _, mark, tail = text.rpartition("####")
        return (tail.strip().splitlines() or [""])[0].strip() or None if mark else None
    if where == "tag":
        start = text.rfind("<answer>")
        end = text.find("</answer>", start)
        if start < 0 or end < 0:
            return None
        inner = text[start + len("<answer>") : end].strip()
        return last_box(inner) or inner
    return text.strip() or None


def normalized(text: str) -> str:
    """Return LaTeX in which equal notations have equal text: no sizes, spaces of typesetting or doubled brackets, one name each."""
    for sign, latex in _UNICODE.items():
        if sign in text:
            text = text.replace(sign, latex)
    text = unicodedata.normalize("NFKC", text)
    text = text.replace("\\$", "\\dollar ").replace("$", " ")
    text = re.sub(r"\\[()\[\]]", " ", text).replace("\\dollar ", "\\$")
    text = re.sub(r"(?<=\d)\\[,!;: ](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)(?:\{,\}|,\s*\\!)\s*(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\\phantom\s*(?:\{[^{}]*\}|.)", " ", text)
    text = _SPACE.sub(" ", text)
    for pattern, replacement in _SAME:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\\text\s*\{([^A-Za-z{}]*)\}", r"\1", text)
    if match := re.fullmatch(r"\s*\\text\s*\{(\s*\d[^{}]*)\}\s*", text):
        text = match.group(1)
    elif match := re.fullmatch(r"\s*\\text\s*\{([^{}]*,[^{}]*)\}\s*", text):
        text = ", ".join(f"\\text{{{part.strip()}}}" for part in match.group(1).split(","))
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"(?:\s*[.,;!?]|\s*\\text\{\.\})+$", "", text) if not text.endswith("!") else text
    return _without_doubled_brackets(text).strip()


def _without_doubled_brackets(text: str) -> str:
    """((x)) becomes (x), {{x}} becomes {x} and a sole outer pair of braces goes, at any depth and in linear time."""
    tight = re.sub(r"(?<!\\)([({])\s+", r"\1", text)
    tight = re.sub(r"(?<!\\)\s+([)}])", r"\1", tight)
    partner: dict[int, int] = {}
    stack: list[int] = []
    at = 0
    while at < len(tight):
        character = tight[at]
        if character == "\\":
            at += 2
            continue
        if character in "({":
            stack.append(at)
        elif character in ")}" and stack:
            if {"(": ")", "{": "}"}[tight[stack[-1]]] != character:
                return text
            partner[stack.pop()] = at
        at += 1
    gone: set[int] = set()
    for start, end in partner.items():
        if partner.get(start + 1) == end - 1 and tight[start] == tight[start + 1]:
            gone |= {start, end}
    if partner.get(0) == len(tight) - 1 and tight[:1] == "{":
        gone |= {0, len(tight) - 1}
    return "".join(character for at, character in enumerate(tight) if at not in gone)


def squeezed(text: str) -> str:
    """Return the characters that matter where two normalized texts are compared as texts: no spaces, no ``\\text``."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    return re.sub(r"\s+", "", re.sub(r",\s+(?=\d{3}(?!\d))", ",~", text))


def top_level(text: str, separator: re.Pattern[str]) -> list[tuple[str, str]]:
    """Split at matches outside all brackets; returns (part, the separator before it)."""
    parts, depth, start, at, before = [], 0, 0, 0, ""
    while at < len(text):
        if depth == 0 and (found := separator.match(text, at)) and found.end() > at:
            parts.append((text[start:at].strip(), before))
            before, at = found.group().strip(), found.end()
            start = at
            continue
        if text.startswith(("\\{", "\\}", "\\langle", "\\rangle"), at):
            depth += 1 if text.startswith(("\\{", "\\langle"), at) else -1
            at += 2
            continue
        if text[at] == "\\":
            word = re.compile(r"\\(?:begin|end)\{|\\[A-Za-z]+|\\.").match(text, at)
            if word and word.group() == "\\begin{":
                depth += 1
                at = text.find("}", at) + 1 or len(text)
                continue
            if word and word.group() == "\\end{":
                depth -= 1
                at = text.find("}", at) + 1 or len(text)
                continue
            at = word.end() if word else at + 1
            continue
        if text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
        at += 1
    parts.append((text[start:].strip(), before))
    return parts


# units

_UNITS: dict[str, tuple[str, float | str]] = {}


def _unit(kind: str, factor: str, names: str) -> None:
    for name in names.split():
        _UNITS[name.replace("_", " ")] = (kind, factor)


_unit("length", "1", "m meter meters metre metres")
_unit("length", "1/1000", "mm millimeter millimeters")
_unit("length", "1/100", "cm centimeter centimeters centimetre centimetres")
_unit("length", "1000", "km kilometer kilometers kilometre kilometres")
_unit("length", "254/10000", "in inch inches")
_unit("length", "3048/10000", "ft foot feet")
_unit("length", "9144/10000", "yd yard yards")
_unit("length", "1609344/1000", "mi mile miles")
_unit("time", "1", "s sec second seconds")
_unit("time", "60", "min minute minutes")
_unit("time", "3600", "h hr hrs hour hours")
_unit("time", "86400", "day days")
_unit("time", "604800", "week weeks")
_unit("calendar", "1", "month months")
_unit("calendar", "12", "year years")
_unit("mass", "1", "g gram grams")
_unit("mass", "1000", "kg kilogram kilograms")
_unit("mass", "1/1000", "mg milligram milligrams")
_unit("weight", "16", "lb lbs pound pounds")
_unit("weight", "1", "oz ounce ounces")
_unit("volume", "1", "L l liter liters litre litres")
_unit("volume", "1/1000", "ml mL milliliter milliliters")
_unit("money", "1", "dollar dollars USD euro euros")
_unit("money", "1/100", "cent cents ¢")
_unit("angle", "pi/180", "degree degrees deg")
_unit("angle", "1", "radian radians rad")
_unit("share", "1/100", "percent percents %")
_unit("temperature C", "1", "C Celsius")
_unit("temperature F", "1", "F Fahrenheit")
_unit("speed", "44704/100000", "mph")
_MULTIPLIERS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MULTIPLIERS |= {f"{name}s": factor for name, factor in _MULTIPLIERS.items()}
_TURNING = frozenset(
    re.findall(
        r"\w+",
        "not no never less more fewer greater least most about approximately roughly over under above below "
        "between almost nearly or either neither negative minus half double twice hundred hundreds dozen dozens except cannot "
        "maybe ",
    )
)
"""Words that change what the number beside them says; a text with one is compared as text."""
_PARTS = "third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|hundredth|thousandth|millionth|billionth"
_FACTOR = re.compile(
    rf"(?:halves|(?:{_PARTS})s|squared|cubed|factorial|plus|multiplied|divided|mod|modulo|choose)\b|(?:{_PARTS})(?=$| of\b)"
)
"""Words that, right behind a number, compute with it: 5 thirds, 5 squared; cm squared is a unit."""
_NUMBER_WORDS = dict(
    zip(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
        range(13),
        strict=True,
    )
)


@dataclass(frozen=True)
class Unit:
    """A unit as kind and factor; ``kind`` is empty where the words are no unit that we know."""

    kind: str = ""
    factor: str = "1"

    @classmethod
    def read(cls, words: str) -> Unit | None:
        """Return the unit that the words name, an unknown one for other nouns, None where they change the meaning."""
        words = re.sub(
            r"\s+", " ", words.strip().strip("().").replace("\\text", "").replace("{", "").replace("}", "")
        ).strip()
        lower = words.lower()
        if set(re.findall(r"[a-z]+", lower)) & _TURNING or re.search(r"\d", re.sub(r"\^\d", "", lower)):
            return None
        if _FACTOR.match(lower):
            return None
        squares = 1
        if match := re.fullmatch(r"(?:sq\.?|square|cubic)\s+(.+)", lower):
            squares, words = (3 if lower.startswith("cubic") else 2), match.group(1)
        elif match := re.fullmatch(r"(.+?)\s*\^(\d)", words):
            squares, words = int(match.group(2)), match.group(1).strip()
        over, _, under = re.sub(r"\s+per\s+", "/", words).partition("/")
        parts = [_UNITS.get(part.strip()) or _UNITS.get(part.strip().lower()) for part in (over, under) if part.strip()]
        if not parts or None in parts or (under and len(parts) < 2):
            return cls()
        kind, factor = parts[0]  # type: ignore[misc]
        if squares > 1:
            return cls(f"{kind}^{squares}", f"({factor})**{squares}")
        if under:
            kind, factor = f"{kind}/{parts[1][0]}", f"({factor})/({parts[1][1]})"  # type: ignore[index]
            return cls("speed" if kind == "length/time" else kind, str(factor))
        return cls(kind, str(factor))


# what an answer is


@dataclass(frozen=True)
class Answer:
    """One answer by its kind.

    ``value``: an expression (``text``, ``unit``); ``words`` and ``choice`` (``text``); ``tuple``, ``set``, ``list``, ``ratio``,
    ``clock`` and the sides of an ``equation`` (``items``); ``matrix`` (``items``, ``width``); ``intervals`` (left bracket,
    lower, upper, right bracket each); ``base`` (``text``, the base in ``items``); ``opaque``: compared as text;
    ``nothing``: empty.
    """

    kind: str
    text: str = ""
    items: tuple[str, ...] = ()
    unit: Unit = field(default_factory=Unit)
    intervals: tuple[tuple[str, str, str, str], ...] = ()
    variable: str = ""
    width: int = 0


_LIST = re.compile(
    r",\s*\\text\{\s*(?:and|or)\s*\}|,\s*(?:and|or)(?=\s)|[,;]|\\text\{\s*,?\s*(?:and|or)\s*,?\s*\}"
    r"|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:lor|land|wedge|vee)(?![A-Za-z])"
)
_RELATION = re.compile(r"\\(?:le|ge|ne|in)(?![A-Za-z])|[<>=]|\\(?:approx|equiv|sim|cong)(?![A-Za-z])")
_INDEX = r"(?:_(?:\w|\{[^{}]*\}))?'*"
_SYMBOL = rf"(?:[A-Za-z]|\\[A-Za-z]+){_INDEX}"
_NAME = re.compile(
    rf"{_SYMBOL}(?:\s*\(\s*[A-Za-z](?:\s*,\s*[A-Za-z])*\s*\))?"
    rf"|\(\s*{_SYMBOL}(?:\s*,\s*{_SYMBOL})+\s*\)"  # (x, y)
    rf"|[A-Za-z]{_INDEX}\s*\(\s*-?\s*\d+(?:\.\d+)?\s*\)"  # a(2) is a value of a
    rf"|[fgh]{_INDEX}\s*\((?:[^()]|\([^()]*\))*\)"  # f(x+1)
    rf"|([A-Z]){_INDEX}\s*\((?:(?!\1)[^()]|\((?:(?!\1)[^()])*\))*\)"  # P(X = 2), but not the product N(N-1)
    r"|\\angle .+|\\text\{[^{}]*\}|[A-Z]{2,3}"
)
_THOUSANDS = re.compile(r"-?(?:\\\$)?\s*\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)")
_EVERYTHING = {"allrealnumbers", "allreals", "allrealx", "therealnumbers", "realnumbers", "\\mathbb{R}"}
_NOTHING = {
    "nosolution",
    "nosolutions",
    "norealsolution",
    "norealsolutions",
    "emptyset",
    "\\emptyset",
    "none",
    "theemptyset",
}


def is_name(side: str) -> bool:
    """Whether a side of an equation only names what is asked: x, f(x), f(2), P(X = 2), (x, y), AB, a word."""
    return bool(_NAME.fullmatch(side.strip())) and side.strip() not in ("e", "i", "\\pi", "\\infty")


def read_answer(text: str, *, listed: bool = False) -> Answer:
    """Return what a normalized text is.

    Args:
        text: see ``normalized``.
        listed: whether ``1,234`` is a list of two, because the other side is a list.
    """
    text = _led(text.strip())
    squeezed_text = squeezed(text)
    if not squeezed_text:
        return Answer("nothing")
    if squeezed_text in _EVERYTHING or squeezed_text.lower() in _EVERYTHING:
        return Answer("intervals", intervals=(("(", "-\\infty", "\\infty", ")"),))
    if squeezed_text.lower() in _NOTHING:
        return Answer("set")
    if (word := _word(text)) is not None:
        return word
    if match := re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", text):
        return _matrix(match.group(1))
    if not listed and not re.search(r"[(\[]|\\\{", text):  # (12,102) is a pair
        text = _THOUSANDS.sub(lambda found: found.group().replace(",", ""), text)
    parts = top_level(text, _LIST)
    if len(parts) > 1 and parts[-1][0] == "":
        parts = parts[:-1]
    if len(parts) > 1:
        return _list(parts)
    return _relation(text) or _bracketed(text) or _single(text)


def _led(text: str) -> str:
    """Take away words before an answer that say nothing about it: "The answer is", "x \\in", "Area:"."""
    match = re.match(r"\\text\s*\{([^{}]*)\}\s*[:=]?\s*(?=\S)", text)
    words = match.group(1) if match else ""
    if not match and (
        match := re.match(r"((?:[A-Za-z]{2,}\s+)*(?:is|are|answer|equals|exactly)\b)\s*[:=]?\s*(?=\S)", text)
    ):
        words = match.group(1)
    if (
        match
        and not re.fullmatch(r"\s*\(?[A-J]\)?[.:]?\s*", words)
        and not set(words.lower().split()) & (_TURNING | {"and"})
    ):
        return text[match.end() :]
    return text


def _word(text: str) -> Answer | None:
    """Choices, words and numbers as words; None where the text is no word."""
    match = re.fullmatch(r"(?:\\text\s*\{\s*)?\(?\s*([A-Z])\s*\)?[.:]?\s*\}?", text)
    if match and ("(" in text or "\\text" in text):
        return Answer("choice", match.group(1))
    for pattern in _CHOSEN:  # a letter with its content: (C) 12
        match = pattern.fullmatch(text)
        if match and not _SEVERAL.search(match.group(2)):
            return Answer("choice", match.group(1))
    plain = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).strip()
    if not re.fullmatch(r"[A-Za-z](?:[A-Za-z\s.,']|(?<=[A-Za-z])-(?=[A-Za-z]))*", plain) or re.fullmatch(
        r"\w(-\w)+", plain
    ):
        return None
    words = re.sub(r"[^a-z ]", "", plain.lower().replace("-", " ")).split()
    if "\\text" not in text and len(words) == 1 and not _looks_like_word(plain):
        return None
    if "," in plain or (set(words) & {"and", "or"} and ("\\text" not in text or len(words) < 2)):
        return None
    if len(words) == 1 and words[0] in _NUMBER_WORDS:
        return Answer("value", str(_NUMBER_WORDS[words[0]]))
    return Answer("words", " ".join(word for word in words if word not in ("a", "an", "the")))


_CHOSEN = (
    re.compile(r"(?:\\text\s*\{\s*)?\(\s*([A-J])\s*\)\s*\}?\s*((?:\\text\s*\{)?\S.*)"),
    re.compile(r"(?:\\text\s*\{\s*)([A-J])((?:\s*[).:]\s*.*\}|\s*[.:]?\s*\}.*))"),
)
_SEVERAL = re.compile(r"\(\s*[A-J]\s*\)|\b(?:and|or)\b|^\s*\}?\s*[,;&/]|\\text\s*\{\s*[A-J]\s*\}")


def _looks_like_word(letters: str) -> bool:
    """Whether letters side by side are a word and not a product of symbols: four or more, one of them twice, or a common word."""
    letters = letters.strip(" .,")
    return (
        len(letters) >= 4 or (len(letters) > 1 and len(set(letters)) < len(letters)) or letters.lower() in _SHORT_WORDS
    )


_SHORT_WORDS = {"yes", "no", "odd", "all", "one", "two", "six", "ten", "red", "sun", "mon", "dne", "am", "pm"}


def _matrix(inner: str) -> Answer:
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr\b", inner) if row.strip()]
    cells = [[cell.strip() for cell in row.replace("\\hline", "").split("&")] for row in rows]
    if not cells or len({len(row) for row in cells}) != 1:
        return Answer("opaque", inner)
    return Answer("matrix", items=tuple(cell for row in cells for cell in row), width=len(cells[0]))


def _list(parts: list[tuple[str, str]]) -> Answer:
    texts = [part for part, _ in parts]
    joined = any(re.search(r"or|lor|vee", before) for _, before in parts)
    if "" in texts:
        return Answer("opaque", ",".join(texts))
    relations = [_relation(part) for part in texts]
    if joined and all(relation is not None and relation.kind == "intervals" for relation in relations):
        names = {relation.variable for relation in relations if relation}
        if len(names) == 1:
            return Answer(
                "intervals",
                intervals=tuple(interval for relation in relations if relation for interval in relation.intervals),
                variable=names.pop(),
            )
    first, *rest = relations
    if first is not None and first.kind == "equation" and is_name(first.items[0]) and not any(rest):
        texts[0] = first.items[-1]  # x = 1, 2
    return Answer("list", items=tuple(texts))


def _relation(text: str) -> Answer | None:
    parts = top_level(text, _RELATION)
    if len(parts) == 1:
        return None
    sides, signs = [part for part, _ in parts], [sign for _, sign in parts[1:]]
    if "" in sides:
        return Answer("opaque", text)
    if signs == ["\\in"]:
        inner = read_answer(sides[1])
        return Answer(inner.kind, inner.text, inner.items, inner.unit, inner.intervals, sides[0])
    if set(signs) == {"="}:
        return Answer("equation", items=tuple(sides))
    up = {"<": ("<", False), "\\le": ("<", True), ">": (">", False), "\\ge": (">", True)}
    if all(sign in up for sign in signs) and len({up[sign][0] for sign in signs}) == 1:
        if up[signs[0]][0] == ">":
            sides, signs = sides[::-1], signs[::-1]
        closed = [up[sign][1] for sign in signs]
        if len(sides) == 3 and is_name(sides[1]):
            bounds = ("[" if closed[0] else "(", sides[0], sides[2], "]" if closed[1] else ")")
            return Answer("intervals", intervals=(bounds,), variable=sides[1])
        if len(sides) == 2 and is_name(sides[0]) and not is_name(sides[1]):
            bounds = ("(", "-\\infty", sides[1], "]" if closed[0] else ")")
            return Answer("intervals", intervals=(bounds,), variable=sides[0])
        if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]):
            bounds = ("[" if closed[0] else "(", sides[0], "\\infty", ")")
            return Answer("intervals", intervals=(bounds,), variable=sides[1])
    if signs == ["\\ne"] and is_name(sides[0]):
        apart = (("(", "-\\infty", sides[1], ")"), ("(", sides[1], "\\infty", ")"))
        return Answer("intervals", intervals=apart, variable=sides[0])
    return Answer("opaque", text)


def _bracketed(text: str) -> Answer | None:
    union = top_level(text, re.compile(r"\\cup(?![A-Za-z])"))
    if len(union) > 1:
        pieces = [_bracketed(part) for part, _ in union]
        found: list[tuple[str, str, str, str]] = []
        for piece in pieces:
            if piece is None or piece.kind not in ("tuple", "intervals", "set"):
                return Answer("opaque", text)
            if piece.kind == "set":
                found += [("[", item, item, "]") for item in piece.items]
            elif piece.kind == "intervals":
                found += piece.intervals
            elif len(piece.items) == 2:
                found.append(("(", *piece.items, ")"))
            else:
                return Answer("opaque", text)
        return Answer("intervals", intervals=tuple(found))
    if match := re.fullmatch(r"\\\{(.*)\\\}", text):
        inner = top_level(match.group(1), re.compile(r"[,;]"))
        if any(re.search(r"\\mid|(?<!\|)\|(?!.*\|)|:", part) for part, _ in inner):
            return Answer("opaque", text)
        return Answer("set", items=tuple(part for part, _ in inner))
    if match := re.fullmatch(r"\\langle(.*)\\rangle", text):
        return Answer("tuple", items=tuple(part for part, _ in top_level(match.group(1), re.compile(r","))))
    if match := re.fullmatch(r"([(\[])(.*)([)\]])", text):
        inside = top_level(text, re.compile(r"(?!)"))  # closes where it opens?
        depth = 0
        for at, character in enumerate(text):
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
            if depth == 0 and at < len(text) - 1:
                return None
        items = tuple(part for part, _ in top_level(match.group(2), re.compile(r"[,;]")))
        if len(items) == 1:
            return read_answer(items[0]) if items[0] and inside else None
        if (match.group(1), match.group(3)) == ("(", ")"):
            return Answer("tuple", items=items)
        if len(items) == 2:
            return Answer("intervals", intervals=((match.group(1), items[0], items[1], match.group(3)),))
        return Answer("tuple", items=items)
    return None


def _single(text: str) -> Answer:
    if re.search(r"\\pm(?![A-Za-z])", text):
        if text.count("\\pm") > 1:
            return Answer("opaque", text)
        return Answer("list", items=(text.replace("\\pm", "+", 1), text.replace("\\pm", "-", 1)))
    match = re.fullmatch(r"(\d{1,2}):(\d{2})(?:\s*(?:\\text\s*\{)?\s*([aApP])\.?\s*[mM]\.?\s*\}?)?", text)
    if match:
        return Answer("clock", items=(match.group(1), match.group(2), (match.group(3) or "").lower()))
    ratio = top_level(text, re.compile(r":"))
    if len(ratio) > 1 and all(part for part, _ in ratio):
        return Answer("ratio", items=tuple(part for part, _ in ratio))
    match = re.fullmatch(
        r"\(?\s*(-?[0-9A-F]+(?:\.[0-9A-F]+)?)\s*\)?\s*_\s*\{?\s*(?:\\text\s*\{)?\s*(\w+)\s*\}?\s*\}?", text
    )
    if match and (match.group(2).isdigit() or match.group(2).lower() in _BASES):
        return Answer("base", match.group(1), (str(_BASES.get(match.group(2).lower(), match.group(2))),))
    return _measured(text)


_BASES = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "sixteen": 16,
}
_TAIL = re.compile(
    r"(.*[\d})!\]a-z])\s*(?:\\text\s*\{([^{}]*)\}((?:\s*\^\s*\{?\d\}?)?)|(?<![A-Za-z\\])([A-Za-z][A-Za-z.\s/]*[A-Za-z])((?:\s*\^\s*\{?\d\}?)?))"
)
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")


def _measured(text: str) -> Answer:
    """A number or expression with what stands beside it: currency, percent, degrees, unit, thousand."""
    unit, factor = Unit(), 1
    if "\\$" in text or "¢" in text:
        text, unit = text.replace("\\$", "").strip(), Unit("money", "1")
    for _ in range(3):
        if match := re.fullmatch(r"(.+?)\s*%", text):
            text, unit = match.group(1), Unit("share", "1/100")
        elif not _TRIGONOMETRIC.search(text) and (  # sin 30 degrees has none itself
            match := re.fullmatch(r"(.+?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*(?:\\text\s*\{)?\s*([CF]?)\s*\}?", text)
        ):
            text = match.group(1)
            unit = Unit(f"temperature {match.group(2)}") if match.group(2) else Unit("angle", "pi/180")
        elif match := _TAIL.fullmatch(text):
            words = match.group(2) if match.group(2) is not None else match.group(4)
            index = re.sub(r"[{}\s]", "", match.group(3) or match.group(5) or "")
            first, _, rest = words.strip().partition(" ")
            if first.lower() in _MULTIPLIERS:
                text = f"{match.group(1)} \\text{{{rest}{index}}}" if rest else match.group(1)
                factor *= _MULTIPLIERS[first.lower()]
                continue
            named = Unit.read(words + index)
            if named is not None and named.kind == "angle" and _TRIGONOMETRIC.search(text):
                text = match.group(1) + ("^\\circ" if named.factor != "1" else "")
                continue
            if named is None or (match.group(2) is None and not named.kind and " " not in words and len(words) < 3):
                break
            if match.group(2) is None and not named.kind and not re.search(r"\d\s+$|\d\s+[A-Za-z]", text):
                break
            text, unit = match.group(1).strip(), named if named.kind or not unit.kind else unit
        else:
            break
    if re.fullmatch(r"\\text\s*\{[^{}]*\}.*|.*\\text\s*\{\s*(?:not|no)\b.*", text):
        return Answer("opaque", text)
    return Answer("value", f"({text})\\cdot {factor}" if factor > 1 else text, unit=unit)
