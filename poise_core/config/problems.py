"""Where problems come from, what text the model reads and how its answers are graded, as a preset says it."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from poise_core.config.user_files import CALLABLE, absolute_callable, file_digest, pinned_callable


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GraderSpec(_Frozen):
    """How completions are judged."""

    name: Literal["math", "exact", "numeric", "choice", "regex", "function"] = "math"
    answer: Literal["boxed", "hash", "tag", "whole"] = Field(
        "boxed",
        description="where the answer stands: the last box, after ####, in <answer> tags, or all of the completion",
    )
    tolerance: float = Field(
        0.0, ge=0, lt=1, description="relative difference that two numbers may have (math, numeric)"
    )
    pattern: str | None = Field(
        None, description="regex: its last match in the completion is the answer, or the match's first group"
    )
    function: str | None = Field(None, description="package.module:function or FILE.py:function of your own")
    shape: Literal["verl", "trl"] = Field("verl", description="how the function is called; docs/problems.md")
    threshold: float | None = Field(
        1.0, gt=0, le=1, description="score from which an answer is right; null keeps partial credit"
    )

    @model_validator(mode="after")
    def _complete(self) -> GraderSpec:
        if (self.name == "regex") != (self.pattern is not None):
            raise ValueError("pattern belongs to the grader regex, which needs one")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern is {self.pattern!r}; it is no regular expression: {error}") from error
        if (self.name == "function") != (self.function is not None):
            raise ValueError("function belongs to the grader of that name, which needs one")
        if self.function is not None and not CALLABLE.fullmatch(self.function):
            raise ValueError(f"function is {self.function!r}; write package.module:function or FILE.py:function")
        if self.tolerance and self.name not in ("math", "numeric"):
            raise ValueError(f"the grader {self.name} knows no tolerance; math and numeric do")
        return self


class SourceSpec(_Frozen):
    """Where problems come from: one of ``dataset``, ``reasoning_gym`` and ``environment``, and how their answers are graded."""

    dataset: str | None = Field(None, description="hub id, or a local file: .jsonl, .json, .parquet, .csv")
    revision: str | None = Field(None, description="commit of a hub data set, which needs one")
    subset: str | None = Field(None, description="configuration of a hub data set")
    split: str = Field("train", description="split of a hub data set")
    columns: dict[Literal["problem", "answer", "kind"], str] = Field(
        default_factory=dict, description="names of the columns; by default problem and answer, or those of verl's rows"
    )
    where: str | None = Field(None, description="which rows, for example level >= 3 and subject != 'Geometry'")
    max_characters: PositiveInt | None = Field(
        None, description="rows with a longer problem are left out, whose prompt would not fit the policy"
    )
    unanswered: Literal["refuse", "drop"] = Field("refuse", description="what happens to rows without an answer")
    draw: PositiveInt | None = Field(None, description="so many rows, drawn with draw_seed; by default all")
    draw_seed: int = 0
    digest: str = Field(
        "", description="of the rows' file; a local file's is filled in, a hub's may be given: it must match"
    )
    reasoning_gym: dict[str, dict[str, Any]] | None = Field(
        None, description="sets of that library, each with its configuration; kinds are their names"
    )
    environment: str | None = Field(
        None, description="package.module:Class of your own, or the name of an entry point of poise.environments"
    )
    grader: GraderSpec = Field(default_factory=GraderSpec)
    prepared: str = Field("", description="file with the rows, filled in for confined processes", repr=False)

    @model_validator(mode="after")
    def _one(self) -> SourceSpec:
        given = [name for name in ("dataset", "reasoning_gym", "environment") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of dataset, reasoning_gym and environment (given: {', '.join(given) or 'none'})"
            )
        if self.dataset is not None and not self.is_file and not self.revision:
            raise ValueError(f"dataset {self.dataset} is of the hub and needs a revision, the commit of its repository")
        if self.dataset is None and (self.columns or self.where or self.draw or self.revision or self.max_characters):
            raise ValueError("columns, where, max_characters, draw and revision belong to a dataset")
        if self.reasoning_gym is not None and not self.reasoning_gym:
            raise ValueError("reasoning_gym names no set")
        if self.where is not None:
            row_filter(self.where)
        return self

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value not in (None, "", {})}

    @property
    def is_file(self) -> bool:
        """Whether the data set is a local file."""
        return (self.dataset or "").endswith((".jsonl", ".json", ".parquet", ".csv"))

    @property
    def files(self) -> list[Path]:
        """Return what a confined process must read: the prepared rows and a function's file."""
        found = [Path(self.prepared)] if self.prepared else []
        for reference in (self.environment, self.grader.function):
            match = CALLABLE.fullmatch(reference or "")
            if match and match["where"].endswith(".py"):
                found.append(Path(match["where"]).resolve())
        return found

    @property
    def title(self) -> str:
        """Where the problems come from, in a few words and without folders."""
        if self.reasoning_gym is not None:
            return f"reasoning-gym ({', '.join(self.reasoning_gym)})"
        if self.dataset is not None:
            return Path(self.dataset).name if self.is_file else self.dataset
        return (self.environment or "").partition("#")[0].rpartition(":")[2]

    @property
    def described(self) -> str:
        """What the problems are and how they are graded, for whoever designs algorithms; no problem is quoted."""
        parts = [self.title]
        if self.reasoning_gym is not None:
            settings = [f"{name} {config}" for name, config in self.reasoning_gym.items() if config]
            parts = [self.title + (f" with {'; '.join(settings)}" if settings else "") + ", drawn from a seed"]
        if self.where:
            parts.append(f"rows where {self.where}")
        if self.max_characters:
            parts.append(f"of at most {self.max_characters} characters")
        if self.environment is not None:
            return ", ".join(parts)  # its class grades
        where = {
            "boxed": "in the last \\boxed{}",
            "hash": "after ####",
            "tag": "in <answer> tags",
            "whole": "the whole completion",
        }
        how = {
            "math": f"equal as mathematics, {where[self.grader.answer]}",
            "exact": f"equal as text, {where[self.grader.answer]}",
            "numeric": f"equal as a number, {where[self.grader.answer]}",
            "choice": f"the same letter, {where[self.grader.answer]}",
            "regex": f"what the last match of {self.grader.pattern!r} holds",
            "function": "right by a function of the user's",
        }
        graded = "right by reasoning-gym's own score" if self.reasoning_gym is not None else how[self.grader.name]
        return f"{', '.join(parts)}; an answer counts that is {graded}"

    def pinned(self) -> SourceSpec:
        """Return the same source with the digests of its local file and of its functions' files.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is not what the digest says that it was.
        """
        changes: dict[str, Any] = {}
        if self.dataset is not None and self.is_file and not self.prepared:
            changes["digest"] = file_digest(Path(self.dataset), self.digest)
        if self.environment:
            changes["environment"] = pinned_callable(self.environment)
        if self.grader.function:
            changes["grader"] = self.grader.model_copy(update={"function": pinned_callable(self.grader.function)})
        return self.model_copy(update=changes)

    def absolute(self) -> SourceSpec:
        """Return the same source with absolute paths, for a process with another working directory."""
        changes: dict[str, Any] = {}
        if self.dataset is not None and self.is_file:
            changes["dataset"] = os.path.abspath(self.dataset)
        if self.environment:
            changes["environment"] = absolute_callable(self.environment)
        if self.grader.function:
            function = absolute_callable(self.grader.function)
            changes["grader"] = self.grader.model_copy(update={"function": function})
        return self.model_copy(update=changes)


# the language of ``where``

_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def row_filter(expression: str) -> tuple[Callable[[Mapping[str, Any]], bool], set[str]]:
    """Return the test that a row must pass and the columns that it reads.

    The language: names of columns (``a.b`` for nested ones), numbers, texts, lists, comparisons, ``in``, ``and``, ``or``, ``not``.
    A text that ends with a number, such as "Level 5", is that number where it is compared with one. Nothing is evaluated as
    Python. A row in which two sides cannot be compared, such as one without a level, does not pass.

    Raises:
        ValueError: it is no such expression.
    """
    try:
        tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"where is {expression!r}; it is no expression such as level >= 3") from error
    names: set[str] = set()
    _checked(tree, expression, names)

    def test(row: Mapping[str, Any]) -> bool:
        try:
            return bool(_value(tree, row))
        except TypeError:
            return False

    return test, names


def _path(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    inner = _path(node.value) if isinstance(node, ast.Attribute) else None
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else None


def _checked(node: ast.AST, expression: str, names: set[str]) -> None:
    if (name := _path(node)) is not None:
        names.add(name)
    elif isinstance(node, ast.BoolOp | ast.List | ast.Tuple):
        for child in node.values if isinstance(node, ast.BoolOp) else node.elts:
            _checked(child, expression, names)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        _checked(node.operand, expression, names)
    elif isinstance(node, ast.Compare) and all(type(op) in _COMPARED for op in node.ops):
        for child in (node.left, *node.comparators):
            _checked(child, expression, names)
    elif not (isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool | None)):
        raise ValueError(
            f"where is {expression!r}; it may hold columns, numbers, texts, lists, comparisons, in, and, or, not"
        )


def column(row: Mapping[str, Any], path: str) -> Any:
    """Return a row's value at ``a.b``; None where it is missing."""
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _value(node: ast.AST, row: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BoolOp):
        results = (bool(_value(child, row)) for child in node.values)
        return all(results) if isinstance(node.op, ast.And) else any(results)
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, row)
        return not value if isinstance(node.op, ast.Not) else -value
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(child, row) for child in node.elts]
    if isinstance(node, ast.Compare):
        left = _value(node.left, row)
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            right = _value(comparator, row)
            if not _COMPARED[type(op)](*_alike(left, right)):
                return False
            left = right
        return True
    return column(row, _path(node) or "")


def _alike(left: Any, right: Any) -> tuple[Any, Any]:
    def number(value: Any) -> Any:
        match = re.search(r"(-?\d+(?:\.\d+)?)\s*$", value) if isinstance(value, str) else None
        return float(match.group(1)) if match else value

    if isinstance(left, int | float) and isinstance(right, str):
        return left, number(right)
    if isinstance(right, int | float) and isinstance(left, str):
        return number(left), right
    return left, right


def parse_document(text: str, where: str) -> Any:
    """Read a grader given on the command line: a name, or YAML keys."""
    import yaml

    document = yaml.safe_load(text)
    if isinstance(document, str):
        document = {"name": document}
    if not isinstance(document, dict):
        raise ValueError(f"{where}: give a name such as math, or keys such as '{{name: math, tolerance: 0.01}}'")
    return document
