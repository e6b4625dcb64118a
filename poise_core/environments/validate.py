"""Looking over the problems of a protocol before a run: golds, prompts, lengths, repetitions, and overlap with the training set.

Nothing here is an error: what is wrong is collected as lines, so that one call tells all of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from poise_core.config.problems import GraderSpec
from poise_core.config.protocol import BenchmarkSpec, Protocol
from poise_core.environments.base import Environment, Problem, Split, verify_all
from poise_core.environments.prompts import training_problems
from poise_core.environments.registry import benchmark_environment, get_environment
from poise_core.environments.sources import SourceEnvironment, read_rows, words
from poise_core.escaping import one_line
from poise_core.policies.locate import resolve_policy
from poise_core.policies.prompt import PromptSpec

if TYPE_CHECKING:
    from poise_core.policies.model import PromptCodec

NGRAM = 5
"""Words of the pieces by which problems are compared."""
SHARED = 0.6
"""Share of a benchmark problem's pieces within one training problem from which the two count as overlapping."""
_SHOWN, _HEAD = 5, 70  # lines of a kind, and characters of a prompt in one

Tokens = Callable[[str, PromptSpec | None], int]
"""The number of tokens of a problem's prompt, by the template of a benchmark's own where one is given."""


@dataclass
class SetReport:
    """What was found about the problems of one use: the training, or one split of a benchmark."""

    name: str
    problems: list[Problem] = field(repr=False)
    left_out: str = ""  # rows filtered, repeated, without answer
    digest: str = ""
    outcomes: dict[str, int] = field(default_factory=dict)  # of golds judged against themselves
    golds_failed: list[str] = field(default_factory=list)
    golds_alike: list[str] = field(default_factory=list)  # golds of other texts that were judged equal
    golds_tried: int = 0
    longest: int = 0
    median: int = 0
    over: list[str] = field(default_factory=list)
    limit: int = 0  # tokens that a prompt may have
    overlaps: list[str] = field(default_factory=list)
    overlapping: int = 0
    repeated: int = 0

    @property
    def wrong(self) -> bool:
        """Whether a run on these problems would be wasted: a gold that is not right, or a prompt that does not fit."""
        return bool(self.golds_failed or self.over)


def gold_completions(spec: GraderSpec | None, gold: str) -> list[str]:
    """Return completions that give the gold answer, in the forms in which a grader may look for it."""
    forms = {"boxed": f"\\boxed{{{gold}}}", "hash": f"#### {gold}", "tag": f"<answer>{gold}</answer>", "whole": gold}
    if spec is not None and spec.name not in ("regex", "function"):
        return [gold if spec.answer == "boxed" and "\\boxed" in gold else forms[spec.answer]]
    return [gold, f"#{gold}", *(forms[name] for name in ("boxed", "hash", "tag"))]


def judged_golds(environment: Environment, problems: Sequence[Problem], report: SetReport, others: int = 3) -> None:
    """Judge every gold as its own problem's answer, and as that of ``others`` further problems, and note what is odd."""
    spec = environment.grader if isinstance(environment, SourceEnvironment) else None
    open_: list[Problem] = list(problems)
    form: dict[str, int] = {}
    counts: Counter[str] = Counter()
    last: dict[str, str] = {}
    for number in range(len(gold_completions(spec, ""))):
        texts = [gold_completions(spec, problem.answer)[number] for problem in open_]
        left = []
        for problem, outcome in zip(open_, verify_all(environment, open_, texts), strict=True):
            if outcome.correctness == 1.0:
                counts["right"] += 1
                form[problem.prompt] = number
            else:
                left.append(problem)
                last[problem.prompt] = outcome.how or "wrong"
        open_ = left
    for problem in open_:
        counts[last[problem.prompt]] += 1
        report.golds_failed.append(
            f"{last[problem.prompt]}: answer {problem.answer!r} of {one_line(problem.prompt, _HEAD)}"
        )
    report.outcomes = dict(counts)
    pairs = [
        (problem, problems[(place + step) % len(problems)])
        for place, problem in enumerate(problems)
        for step in range(1, min(others, len(problems) - 1) + 1)
        if problems[(place + step) % len(problems)].answer != problem.answer and problem.prompt in form
    ]
    texts = [gold_completions(spec, other.answer)[form[problem.prompt]] for problem, other in pairs]
    report.golds_tried = len(pairs)
    for (problem, other), outcome in zip(
        pairs, verify_all(environment, [problem for problem, _ in pairs], texts), strict=True
    ):
        if outcome.correctness > 0:
            report.golds_alike.append(f"{other.answer!r} counts for {problem.answer!r}")


def overlaps(training: Sequence[Problem], benchmark: Sequence[Problem]) -> list[tuple[float, Problem, Problem]]:
    """Return (share, benchmark problem, training problem) of overlapping problems, the most alike first.

    The share is that of the benchmark problem's pieces of ``NGRAM`` words which one training problem holds, or, where that is
    less, of the training problem's pieces in it. Problems shorter than that overlap where their words are equal.
    """
    index: dict[tuple[str, ...], set[int]] = defaultdict(set)
    pieces = [_pieces(problem.prompt) for problem in training]
    for place, own in enumerate(pieces):
        for piece in own:
            index[piece].add(place)
    found = []
    for problem in benchmark:
        own = _pieces(problem.prompt)
        shared = Counter(place for piece in own for place in index.get(piece, ()))
        best = max(
            ((count / max(len(own), len(pieces[place])), place) for place, count in shared.items()), default=(0.0, 0)
        )
        if best[0] >= SHARED:
            found.append((best[0], problem, training[best[1]]))
    return sorted(found, key=lambda item: -item[0])


def _pieces(text: str) -> set[tuple[str, ...]]:
    own = words(text)
    return {tuple(own[i : i + NGRAM]) for i in range(max(1, len(own) - NGRAM + 1))} if own else set()


def validate(
    protocol: Protocol,
    tokens: Tokens | None = None,
    context: int | None = None,
    progress: Callable[[str], None] = print,
    *,
    procedural: Sequence[BenchmarkSpec] = (),
) -> list[SetReport]:
    """Load all problems of a protocol and look them over.

    Args:
        protocol: the preset's.
        tokens: counts the tokens of a problem's prompt; None leaves lengths out.
        context: tokens that the policy can see, prompt and completion together.
        progress: told what is looked at.
        procedural: benchmarks of the examination, beside the protocol's.

    Raises:
        ValueError: problems cannot be loaded.
    """
    progress("training")
    environment = get_environment(protocol.environment)
    training = list({problem.prompt: problem for problem in training_problems(protocol.environment, 0)}.values())
    reports = [_report("training", environment, training, protocol, None, tokens, context)]
    for spec in (*protocol.benchmarks, *procedural):
        own = benchmark_environment(protocol, spec)
        splits: tuple[Split, ...] = ("search",) if spec.sealed == "same" else ("search", "report")
        asked = {split: own.problems(split, spec.kinds, spec.problems, f"validate/{spec.name}") for split in splits}
        everything = [problem for split in splits for problem in asked[split]]
        progress(spec.name)
        report = _report(spec.name, own, everything, protocol, spec, tokens, context)
        sizes = ", ".join(f"{split} {len(asked[split])}" for split in splits)
        note = "; the same problems in search and report, nothing is sealed" if spec.sealed == "same" else ""
        report.left_out = f"{sizes}{note}" + (f"; {report.left_out}" if report.left_out else "")
        found = overlaps(training, everything)
        report.overlapping = len(found)
        report.overlaps = [
            f"{share:.2f}: {one_line(mine.prompt, _HEAD)} | {one_line(theirs.prompt, _HEAD)}"
            for share, mine, theirs in found
        ]
        reports.append(report)
    return reports


def codec_of(protocol: Protocol) -> tuple[PromptCodec, int | None]:
    """The tokenizer of a protocol's policy with its template, and the tokens that the policy can see, completion included.

    Raises:
        ValueError: the policy has no tokenizer that can be used, or the template does not suit it.
    """
    from poise_core.policies.model import PromptCodec, text_configuration  # which load torch

    folder = resolve_policy(protocol.policy)
    codec = PromptCodec.load(folder, protocol.prompt)
    for spec in protocol.benchmarks:
        if spec.prompt:
            codec.with_prompt(spec.prompt, f"benchmark {spec.name}: prompt")
    return codec, getattr(text_configuration(folder), "max_position_embeddings", None)


def require_fit(protocol: Protocol) -> None:
    """Refuse weights that no sampler could take, prompts that the policy's tokenizer cannot make, and rows of data sets whose
    prompts and completions do not fit into what the policy sees.

    Of problems that are drawn or come from a user's class no length is looked at.

    Raises:
        ValueError: they do not fit; see ``codec_of`` and ``misfit`` for the rest.
    """
    if protocol.sampler is not None:
        from poise_core.policies.model import saved_tensors

        saved_tensors(resolve_policy(protocol.policy))
    sources = [protocol.environment.source, *(one.source for one in protocol.benchmarks)]
    rows = any(one is not None and one.dataset for one in sources)
    if not rows and not any((protocol.prompt, *(one.prompt for one in protocol.benchmarks))):
        return
    codec, context = codec_of(protocol)
    if rows and context and (line := misfit(protocol, codec.prompt_tokens, context)):
        raise ValueError(line)


def misfit(protocol: Protocol, tokens: Tokens, context: int) -> str:
    """Return one line on completions, or prompts of data sets, that do not fit into what the policy sees; "" where all fit.

    Raises:
        ValueError: problems cannot be loaded.
    """
    for spec in (None, *protocol.benchmarks):
        name, room = spec.name if spec else "training", context - protocol.length_limit(spec)
        if room < 1:
            return (
                f"{name}: completions may have {context - room} tokens, and the policy sees {context}, the prompt among them; "
                "lower max_completion_length"
            )
        source = (spec.source if spec else None) or protocol.environment.source
        if source is None or source.dataset is None:
            continue
        if spec is None:
            problems = training_problems(protocol.environment, 0)
        else:
            problems = benchmark_environment(protocol, spec).problems("search", spec.kinds, 0, name)
        own = spec.prompt if spec else None
        over = sum(tokens(problem.prompt, own) > room for problem in problems)
        if over:
            return (
                f"{name}: {over} of {len(problems)} prompts have more than the {room} tokens that completions of {context - room} "
                f"leave of the {context} which the policy sees; poise env validate shows them, and max_characters of the source "
                "leaves them out"
            )
    return ""


def _report(
    name: str,
    environment: Environment,
    problems: list[Problem],
    protocol: Protocol,
    spec: BenchmarkSpec | None,
    tokens: Tokens | None,
    context: int | None,
) -> SetReport:
    report = SetReport(name, problems)
    report.repeated = len(problems) - len({" ".join(words(problem.prompt)) for problem in problems})
    if isinstance(environment, SourceEnvironment) and environment.source.dataset is not None:
        source = environment.source.model_copy(update={"prepared": ""})
        read = read_rows(source)
        report.left_out = f"{read.total} rows" + (f", {read.left_out}" if read.left_out else "")
        report.digest = environment.source.digest
    judged_golds(environment, problems, report)
    if tokens is not None:
        own = spec.prompt if spec else None
        counted = [(tokens(problem.prompt, own), problem) for problem in problems]
        lengths = sorted(length for length, _ in counted)
        report.longest, report.median = lengths[-1], lengths[len(lengths) // 2]
        if context is not None:
            report.limit = context - protocol.length_limit(spec)
            report.over = [
                f"{length} tokens: {one_line(problem.prompt, _HEAD)}"
                for length, problem in counted
                if length > report.limit
            ]
    if isinstance(environment, SourceEnvironment):
        environment.close()
    return report


def described(report: SetReport) -> list[str]:
    """Return the report as lines."""
    lines = [f"{report.name}: {len(report.problems)} problems ({report.left_out or 'drawn'})"]
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(report.outcomes.items()))
    lines.append(
        f"  golds against themselves: {counts}; against {report.golds_tried} others: {len(report.golds_alike)} equal"
    )
    lines += _some("  GOLD NOT RIGHT", report.golds_failed)
    lines += _some("  judged equal", report.golds_alike)
    if report.longest:
        room = f" of {report.limit} that fit" if report.limit else ""
        lines.append(f"  prompts: {report.median} tokens in the middle, {report.longest} at most{room}")
    lines += _some("  TOO LONG", report.over)
    if report.repeated:
        lines.append(f"  {report.repeated} problems repeat another word for word")
    if report.overlapping:
        lines.append(f"  {report.overlapping} problems overlap with training problems (benchmark | training):")
        lines += _some("   ", report.overlaps)
    return lines


def _some(label: str, items: Sequence[str]) -> list[str]:
    more = [f"{label} and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return [f"{label} {item}" for item in items[:_SHOWN]] + more
