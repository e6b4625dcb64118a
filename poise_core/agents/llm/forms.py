"""What the language model is asked to fill in: one form per role. Descriptions are part of the question."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

PartOfFile = Literal["Hyperparameters", "LOSS_AGGREGATION", "compute_advantages", "compute_loss", "update_controller"]


class Form(BaseModel):
    """A form; keys that were not asked for are ignored, and what is longer than its limit is cut, not asked again."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Say the limits of every field in its description, because many models are not shown or do not heed the keywords."""
        for field in cls.model_fields.values():
            if said := _limits(field):
                text = field.description or ""
                field.description = f"{text}{'; ' if text else ''}{said}"
        cls.model_rebuild(force=True)

    @model_validator(mode="before")
    @classmethod
    def _cut(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        cut = dict(given)
        for name, field in cls.model_fields.items():
            value, most = cut.get(name), _limit(field, "max_length")
            if most is not None and name not in _WHOLE and isinstance(value, str | list) and len(value) > most:
                cut[name] = value[: int(most)]
        return cut


_WHOLE = ("source",)
"""Fields that mean nothing where they are cut."""


def _limit(field: FieldInfo, name: str) -> float | None:
    return next((float(value) for one in field.metadata if (value := getattr(one, name, None)) is not None), None)


def _limits(field: FieldInfo) -> str:
    items = "entries" if "list" in str(field.annotation) else "characters"
    low, high = _limit(field, "ge"), _limit(field, "le")
    least, most = _limit(field, "min_length"), _limit(field, "max_length")
    parts = []
    if low is not None and high is not None:
        parts.append(f"from {low:g} to {high:g}")
    elif low is not None:
        parts.append(f"at least {low:g}")
    if least is not None and (least > 1 or items == "entries"):
        parts.append(f"at least {least:g} {items}")
    if most is not None:
        parts.append(f"at most {most:g} {items}")
    return ", ".join(parts)


class ExpectationForm(Form):
    """A prediction that the measurements will score."""

    metric: str = Field(description="one of the metrics listed in the question")
    direction: Literal["increase", "decrease", "no_fall", "no_rise"] = Field(
        description="of the child against its parent; no_fall: does not fall by more than size, no_rise likewise"
    )
    why: str = Field(max_length=1000)
    size: float = Field(
        0.0, ge=0, description="at least by how much, in the metric's unit (percent points); the margin"
    )
    probability: float | None = Field(None, ge=0, le=1, description="that this comes true")


class ProposalForm(Form):
    """One proposal for a child of the parent."""

    direction: str = Field(max_length=60, description="one word: the family of mechanisms, from the list or your own")
    name: str = Field(min_length=1, max_length=40, description="short and new, such as VM-AV: letters, digits, dashes")
    addresses: str = Field(max_length=1500, description="the parent's deficiency that it answers, with its numbers")
    hypothesis: str = Field(min_length=1, max_length=1500, description="what should get better, by which mechanism")
    mechanism_change: str = Field(min_length=1, max_length=2000, description="what differs from the parent")
    equations: list[str] = Field(max_length=12, description="of the changed mechanisms, plain text, one per entry")
    mechanisms: list[str] = Field(
        max_length=8, description="snake_case names of the mechanisms; they become the keys of MECHANISMS"
    )
    touches: list[PartOfFile] = Field(description="the parts of the parent's file that change")
    expectations: list[ExpectationForm] = Field(min_length=1, max_length=8)


class ProposalsForm(Form):
    """Proposals for children of the parent, one for each direction asked for."""

    proposals: list[ProposalForm] = Field(min_length=1, max_length=16)


class JudgementForm(Form):
    """What the screener thinks of one proposal; numbers are from 0 (worst) to 10."""

    index: int = Field(description="the proposal's number in the question")
    logic: float = Field(ge=0, le=10, description="does the mechanism do what the hypothesis says")
    feasibility: float = Field(ge=0, le=10, description="can it be written within the contract")
    novelty: float = Field(ge=0, le=10, description="against the ideas so far and the literature")
    expected_gain: float = Field(ge=0, le=10, description="over the parent, by the evidence")
    admissible: bool = Field(description="false if the contract cannot express it or it repeats an idea that failed")
    reason: str = Field(max_length=1500)


class ScreeningForm(Form):
    """A judgement on every proposal."""

    judgements: list[JudgementForm] = Field(min_length=1, max_length=32)


class EquationUse(Form):
    """Where the file does what an equation says."""

    number: int = Field(description="of the equation in the proposal, from 1")
    code: str = Field(max_length=1000, description="one line of the file, copied exactly")


class TryForm(Form):
    """One tool to run on the draft before the answer counts."""

    tool: Literal["run_gate", "probe_numbers", "read_reference"] = Field(
        description="run_gate: all findings of the gate; probe_numbers: advantages and gradients on fixed batches; "
        "read_reference: the file of a known algorithm"
    )
    algorithm: str = Field("", max_length=60, description="for read_reference: its name, such as dapo; otherwise empty")


class ImplementationForm(Form):
    """A candidate file: first the plan, then the whole file, then where each equation stands in it."""

    tries: list[TryForm] = Field(
        default_factory=list,
        max_length=3,
        description="tools to run on this draft, whose results you are then shown to answer again; empty: the file is final",
    )

    plan: list[str] = Field(min_length=1, max_length=20, description="steps from the parent's file to the child's")
    source: str = Field(min_length=1, max_length=60_000, description="the whole Python file, without fences")
    equations: list[EquationUse] = Field(max_length=20, description="at least one line for every equation")


class DiagnosisForm(Form):
    """One thing that went wrong, or notably right, at the level of mechanisms."""

    code: str = Field(max_length=60, description="a code from the list in the question")
    text: str = Field(max_length=1000, description="one sentence: the mechanism, and the numbers that show it")


class ClaimForm(Form):
    """One statement and the evidence rows that it rests on."""

    text: str = Field(max_length=1000)
    cites: list[str] = Field(max_length=10, description="ids of evidence rows such as E3; empty if there are none")


class ReflectionForm(Form):
    """What the candidate taught."""

    summary: str = Field(min_length=1, max_length=2000, description="a paragraph: what changed, what happened, why")
    diagnoses: list[DiagnosisForm] = Field(max_length=8)
    claims: list[ClaimForm] = Field(max_length=12)
    try_next: list[str] = Field(max_length=6)
    avoid: list[str] = Field(max_length=6)
