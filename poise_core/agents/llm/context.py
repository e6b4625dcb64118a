"""What the agents are told about a child slot, fitted to a token budget: pure functions of a ``ProposalContext``.

A prompt's data is a list of sections. ``fit`` takes them by priority until the budget is spent; what does not fit whole is
cut at a line where its beginning is useful, and otherwise left out and named. Only the search split reaches a
``ProposalContext``, and no benchmark item does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from poise_core.agents.briefing import archive_table, open_ideas
from poise_core.agents.digest import digest_lines
from poise_core.agents.llm.literature import Note, retrieve
from poise_core.agents.llm.prompts import CHARACTERS_PER_TOKEN, data_block, estimate_tokens
from poise_core.agents.roles import CandidateRecord, ProposalContext
from poise_core.evidence.format import spell_interval
from poise_core.failures import FailureKind

_WORTH_CUTTING = 150
"""Tokens below which the beginning of a section is not worth showing."""

_EXCERPT = 1500
"""Characters of one text by another model or from a log, in a section that holds several."""


class ContextTooSmallError(ValueError):
    """A section that a role needs does not fit into its token budget."""


@dataclass(frozen=True)
class Section:
    """One part of the data; the higher the priority, the later it is left out."""

    name: str
    text: str
    priority: int
    required: bool = False

    @property
    def block(self) -> str:
        """The section as a prompt holds it."""
        return data_block(self.name, self.text, 1_000_000)


@dataclass(frozen=True)
class Fitted:
    """The data of a prompt."""

    text: str
    tokens: int  # estimated
    cut: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def fit(sections: Iterable[Section], budget: int) -> Fitted:
    """The sections that ``budget`` tokens hold, taken by priority and kept in the order given.

    Raises:
        ContextTooSmallError: a required section does not fit.
    """
    given = [section for section in sections if section.text.strip()]
    kept: dict[str, str] = {}
    cut, left_out = [], []
    left = budget
    for section in sorted(given, key=lambda one: (not one.required, -one.priority)):
        block = section.block
        need = estimate_tokens(block + "\n\n")
        if need <= left:
            kept[section.name] = block
            left -= need
        elif section.required:
            raise ContextTooSmallError(
                f"{section.name} needs about {need} tokens and {left} of the {budget} of agents.context_tokens are left"
            )
        elif left >= _WORTH_CUTTING:
            kept[section.name] = _beginning(section, left)
            left -= estimate_tokens(kept[section.name] + "\n\n")
            cut.append(section.name)
        else:
            left_out.append(section.name)
    text = "\n\n".join(kept[section.name] for section in given if section.name in kept)
    return Fitted(text, estimate_tokens(text), tuple(cut), tuple(left_out))


def _beginning(section: Section, tokens: int) -> str:
    room = int(tokens * CHARACTERS_PER_TOKEN) - len(data_block(section.name, "")) - 60
    lines = section.text[: max(0, room)].rsplit("\n", 1)[0]
    return data_block(section.name, f"{lines}\n[cut: the rest did not fit]")


def slot_sections(context: ProposalContext, notes: Sequence[Note] = (), note_count: int = 6) -> list[Section]:
    """What the proposer and the screener may know, in reading order.

    Priorities, from what is left out last: directive, the parent's code and scores, the task card, the parent's reflection,
    ablations, the archive as a table, the parent's trajectory, the credit of mechanisms, failure boundaries, ideas not taken,
    literature, references, the contract's text, the first reference's code, earlier ancestors.
    """
    parent = context.parent
    return [
        Section("directive", context.directive, 100, required=True),
        Section("task", context.task.text() if context.task else "", 93),
        Section("parent", _identity(parent), 95, required=True),
        Section("parent_scores", scores_text(parent), 90, required=True),
        Section("parent_code", parent.source, 94, required=True),
        Section("parent_proposal", _proposal_text(parent), 70),
        Section("parent_reflection", _reflection_text(parent), 85),
        Section("parent_trajectory", digest_text(parent), 80),
        Section("failure_boundaries", boundaries_text(context), 75),
        Section("archive", archive_table(context.table) or _ideas_text(context), 82),
        Section("ablations", context.ablations, 83),
        Section("credit_of_mechanisms", context.credit, 79),
        Section("ideas_not_taken", open_ideas(context.table), 63),
        Section("calibration", context.calibration.text() if context.calibration else "", 68),
        Section("literature", _notes_text(retrieve(notes, context, note_count)), 60),
        Section("references", _references_text(context), 55),
        Section("contract", contract_text(), 50),
        Section("reference_code", _reference_code(context), 45),
        Section("ancestors", _ancestors_text(context), 40),
    ]


def contract_text() -> str:
    """The contract and the helpers that a candidate may import, as they stand in the code."""
    package = resources.files("poise_core")
    return "\n\n".join((package / name).read_text(encoding="utf-8") for name in ("contract.py", "reductions.py"))


def scores_text(record: CandidateRecord) -> str:
    """Overall and every benchmark of the search split, with intervals."""
    if record.overall is None:
        return "not measured"
    lines = [f"Overall {spell_interval(record.overall, '.2f')}"]
    for name, mean in record.benchmarks.items():
        interval = record.benchmark_intervals.get(name)
        lines.append(f"{name} {spell_interval(interval, '.2f') if interval else f'{mean:.2f}'}")
    return "\n".join(lines)


def digest_text(record: CandidateRecord) -> str:
    """The numbers of the training, one per line."""
    digest = record.reflection.digest if record.reflection else None
    return "\n".join(digest_lines(digest)) if digest else ""


def boundaries_text(context: ProposalContext) -> str:
    """Ideas of the parent's lineage that failed, were stopped or made results worse, one per line."""
    lineage = {context.parent.candidate_id, *(one.candidate_id for one in context.ancestors)}
    lines = [
        f"- {tried.name}: {tried.outcome}: {tried.reason[:_EXCERPT]}"
        + "".join(f"; avoid: {one[:300]}" for one in tried.avoid[:2])
        for tried in context.avoid
        if (tried.outcome in set(FailureKind) or tried.outcome.startswith("stopped"))
        and lineage & set(tried.parent_ids)
    ]
    for record in (context.parent, *context.ancestors):
        avoid = record.reflection.avoid if record.reflection else ()
        lines += [f"- from the reflection on {record.name}: {advice[:_EXCERPT]}" for advice in avoid]
    return "\n".join(dict.fromkeys(lines))


def _identity(record: CandidateRecord) -> str:
    return f"name: {record.name}\nid: {record.candidate_id}\ngeneration: {record.generation}"


def _proposal_text(record: CandidateRecord) -> str:
    proposal = record.proposal
    if proposal is None:
        return ""
    return "\n".join(
        [
            f"hypothesis: {proposal.hypothesis}",
            f"change: {proposal.mechanism_change}",
            *(f"equation: {one}" for one in proposal.equations),
            *(f"expected: {one.foretold}, because {one.why}" for one in proposal.expectations),
        ]
    )


def _reflection_text(record: CandidateRecord) -> str:
    return record.reflection.as_text() if record.reflection else ""


def _ideas_text(context: ProposalContext) -> str:
    return "\n".join(f"- {one.name}: {one.outcome}" for one in context.avoid)


def _notes_text(notes: Sequence[Note]) -> str:
    return "\n\n".join(f"## {note.title} ({note.source})\n{note.text}" for note in notes)


def _references_text(context: ProposalContext) -> str:
    parts = []
    for reference in context.references:
        record = reference.record
        change = record.proposal.mechanism_change if record.proposal else "a known algorithm"
        taught = record.reflection.summary if record.reflection else "no reflection yet"
        parts.append(
            f"## {record.name}, id {record.candidate_id} ({reference.tier}: {reference.reason})\n"
            f"change: {change[:_EXCERPT]}\n{scores_text(record)}\ntaught: {taught[:_EXCERPT]}"
        )
    return "\n\n".join(parts)


def _reference_code(context: ProposalContext) -> str:
    """The file of the first reference, so that what it does can be taken over as it is; its id is the other parent's."""
    if not context.references:
        return ""
    record = context.references[0].record
    return f"# {record.name}, id {record.candidate_id}\n{record.source}"


def _ancestors_text(context: ProposalContext) -> str:
    lines = []
    for record in context.ancestors:
        change = record.proposal.mechanism_change if record.proposal else "the root"
        lines.append(f"- {record.name}: {change[:_EXCERPT]}; {scores_text(record).splitlines()[0]}")
    return "\n".join(lines)
