"""Another version of a candidate's file: mechanisms switched off, or one number changed; everything else letter by letter.

Both are edits of the source, found by its syntax tree and never by running it. Switching a mechanism off makes what ``MECHANISMS``
says switches it off the default of ``Hyperparameters``, and takes the mechanism from the table.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

Overrides = Mapping[str, object]


@dataclass(frozen=True)
class Switched:
    """A file with mechanisms switched off."""

    source: str
    dropped: tuple[
        str, ...
    ]  # in the order of MECHANISMS; more than was asked for where one's numbers switch off another
    mechanisms: Mapping[str, Overrides]  # that are left
    numbers: Overrides  # hyperparameters that have another default now


@dataclass(frozen=True)
class Switches:
    """What a candidate's file says can be switched off, and its numbers."""

    source: str
    mechanisms: Mapping[str, Overrides]  # name -> the overrides that switch it off
    defaults: Mapping[str, object]  # field of Hyperparameters -> its default, where that is a literal

    @classmethod
    def of(cls, source: str) -> Self:
        """Read a file.

        Raises:
            ValueError: it is no Python, or its table of mechanisms is not written out.
        """
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            raise ValueError(f"line {error.lineno}: {error.msg}") from error
        return cls(source, mechanism_table(tree), {name: value for name, (_, value) in _defaults(tree).items()})

    @property
    def switchable(self) -> tuple[str, ...]:
        """Mechanisms whose overrides all have a literal default that they change."""
        return tuple(
            name
            for name, given in self.mechanisms.items()
            if given.keys() <= self.defaults.keys() and any(self.defaults[key] != value for key, value in given.items())
        )

    def closure(self, names: Collection[str]) -> tuple[str, ...]:
        """These mechanisms and all that their numbers switch off too, in the order of the file."""
        numbers = self._numbers(names)
        return tuple(
            name
            for name, given in self.mechanisms.items()
            if name in names or all(numbers.get(key, self.defaults.get(key)) == given[key] for key in given)
        )

    def without(self, names: Collection[str]) -> Switched | None:
        """The file with these mechanisms switched off; None where two of them ask for different numbers.

        Raises:
            KeyError: one is not in the file.
        """
        numbers = self._numbers(names)
        if any(numbers.get(key, value) != value for name in names for key, value in self.mechanisms[name].items()):
            return None
        dropped = self.closure(names)
        kept = {name: given for name, given in self.mechanisms.items() if name not in dropped}
        return Switched(_edited(self.source, numbers, kept), dropped, kept, numbers)

    def with_number(self, key: str, value: object) -> str:
        """The file with another default of this hyperparameter."""
        return _edited(self.source, {key: value}, self.mechanisms)

    def with_numbers(self, numbers: Overrides) -> str:
        """The file with other defaults of these hyperparameters, and without the mechanisms that they switch off."""
        changed = {key: value for key, value in numbers.items() if self.defaults[key] != value}
        kept = {
            name: given
            for name, given in self.mechanisms.items()
            if not given or any(changed.get(key) != value for key, value in given.items())
        }
        return _edited(self.source, changed, kept)

    def switches_off(self, key: str, value: object) -> bool:
        """Whether a mechanism is switched off by this value."""
        return any(given.get(key) == value for given in self.mechanisms.values())

    def _numbers(self, names: Collection[str]) -> dict[str, object]:
        """What switching these off changes."""
        found: dict[str, object] = {}
        for name in names:
            found |= {key: value for key, value in self.mechanisms[name].items() if self.defaults.get(key) != value}
        return found


def constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Name -> value of every assignment at module level, annotated or not."""
    found: dict[str, ast.expr] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            found.update({target.id: node.value for target in node.targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
    return found


def literal(name: str, value: ast.expr) -> object:
    """The value of the constant ``name`` of a file.

    Raises:
        ValueError: it is computed, and not written out.
    """
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError) as error:  # TypeError: {[]: 1}
        raise ValueError(f"line {value.lineno}: {name} is not written out as plain values") from error


def mechanism_table(tree: ast.Module) -> dict[str, dict[str, Any]]:
    """The table ``MECHANISMS`` of a file, empty where there is none.

    Raises:
        ValueError: it is not written out, or no table of dicts.
    """
    value = constants(tree).get("MECHANISMS")
    table = {} if value is None else literal("MECHANISMS", value)
    if not isinstance(table, dict) or not all(isinstance(given, dict) for given in table.values()):
        raise ValueError("MECHANISMS does not map names to dicts of hyperparameters")
    return {str(name): dict(given) for name, given in table.items()}


def _defaults(tree: ast.Module) -> dict[str, tuple[ast.expr, object]]:
    """Field of Hyperparameters -> the expression of its default, and its value; those that are literals."""
    found: dict[str, tuple[ast.expr, object]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Hyperparameters":
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.value is not None:
                    try:
                        found[field.target.id] = field.value, ast.literal_eval(field.value)
                    except ValueError:
                        continue
    return found


def _edited(source: str, numbers: Overrides, mechanisms: Mapping[str, Overrides]) -> str:
    """The source with other defaults and another table of mechanisms."""
    tree = ast.parse(source)
    defaults = _defaults(tree)
    edits: list[tuple[ast.expr, str]] = [(defaults[key][0], repr(value)) for key, value in numbers.items()]
    if dict(mechanisms) != mechanism_table(tree):
        entries = "".join(f"    {name!r}: {dict(given)!r},\n" for name, given in mechanisms.items())
        edits.append((constants(tree)["MECHANISMS"], "{\n" + entries + "}" if entries else "{}"))
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    raw = source.encode()
    for place, text in sorted(edits, key=lambda edit: (-edit[0].lineno, -edit[0].col_offset)):
        begin = starts[place.lineno - 1] + place.col_offset
        end = starts[(place.end_lineno or place.lineno) - 1] + (place.end_col_offset or 0)
        raw = raw[:begin] + text.encode() + raw[end:]
    return raw.decode()
