"""Where problems come from, what text the model reads and how its answers are graded, as a preset says it."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

CALLABLE = re.compile(r"(?P<where>[\w.]+|.+\.py):(?P<name>[A-Za-z_]\w*)(?:#(?P<digest>[0-9a-f]{16}))?")
"""``package.module:function`` or ``FILE.py:function``, with the digest that the loader of presets appends."""


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


def parse_document(text: str, where: str) -> Any:
    """Read a grader given on the command line: a name, or YAML keys."""
    import yaml

    document = yaml.safe_load(text)
    if isinstance(document, str):
        document = {"name": document}
    if not isinstance(document, dict):
        raise ValueError(f"{where}: give a name such as math, or keys such as '{{name: math, tolerance: 0.01}}'")
    return document
