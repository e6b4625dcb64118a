"""Evaluation of trained policies, in a process that never loads candidate code.

The environment draws the problems of a benchmark; the kinds, the number and a seed of the problem set determine them. The set
also determines the random numbers of sampling, so that all policies of a run answer the same problems with the same random
numbers. Problems of the ``search`` and ``report`` splits are disjoint from each other and from training.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol as Typed

from poise_core.config.protocol import BenchmarkSpec, Protocol
from poise_core.environments import Environment, Problem, Split, benchmark_environment, verify_all
from poise_core.environments.base import Outcome
from poise_core.evaluation.kept import COMPLETION_CHARACTERS, PROMPT_CHARACTERS, KeptCompletion, cut, kept_rows
from poise_core.evaluation.problems import ProblemSet
from poise_core.evaluation.results import GRADED, BenchmarkResult, SeedEvaluation
from poise_core.evaluation.scoring import benchmark_score, overall
from poise_core.files import write_atomically
from poise_core.policies.libraries import skipped_imports
from poise_core.policies.model import PromptCodec, load_model
from poise_core.sampling.base import Requests, Sampled
from poise_core.sampling.local import LocalSampler, prompt_tokens

ROWS_PER_BATCH = 2048
"""At most so many completions are decoded at once in this process, fewer where their caches do not fit the memory."""


def benchmark_problems(environment: Environment, spec: BenchmarkSpec, problem_set: ProblemSet) -> list[Problem]:
    """Return the problems of one benchmark, which are the same for equal sets."""
    return environment.problems(problem_set.split, spec.kinds, spec.problems, problem_set.seed(spec.name))


class _Samples(Typed):
    """The part of a ``Sampler`` that an evaluation uses."""

    def sample(self, requests: Requests) -> Sampled:
        """See ``Sampler.sample``."""


def evaluate_policy(
    folder: Path,
    protocol: Protocol,
    split: Split,
    seed: int,
    *,
    base: Path | None = None,
    key: bytes = b"",
    sampler: _Samples | None = None,
    memory_gib: float = 4.0,
    parts: Path | None = None,
) -> SeedEvaluation:
    """Score one policy on every benchmark of the protocol.

    Args:
        folder: the folder of the policy.
        base: folder of the policy from which architecture and tokenizer are taken; by default ``folder`` itself. Of a policy
            trained by candidate code only the weights are trusted.
        protocol: benchmarks, weights, length limit and temperature.
        split: ``search`` or ``report``.
        seed: the training seed under which the result is stored; it does not change the sampling.
        key: of the problem set; by default the problems are the public ones.
        sampler: has loaded the policy; by default the policy is loaded and sampled in this process.
        memory_gib: for caches and logits in this process.
        parts: a folder that gets the result of every benchmark as it comes, and from which they are read after an evaluation that
            did not end; it is removed in the end.
    """
    started = time.perf_counter()
    if sampler is None:
        with skipped_imports("scipy"):  # transformers imports it for a loss of object detection
            model = load_model(folder, protocol.model, configuration=base)
        sampler = local = LocalSampler(memory_gib=memory_gib, most_rows=ROWS_PER_BATCH)
        local.adopt("", model)
    codec = PromptCodec.load(base or folder, protocol.prompt)
    asked = ProblemSet(split, key)
    results = []
    for number, spec in enumerate(protocol.benchmarks):
        part = _Part(parts / f"{number}.json", protocol.digest, asked.fingerprint) if parts else None
        result = part.read() if part else None
        if result is None:
            result = _benchmark(sampler, codec, protocol, spec, asked)
            if part:
                part.write(result)
        results.append(result)
    evaluation = SeedEvaluation(
        seed=seed,
        split=split,
        overall=overall(results, protocol),
        benchmarks=tuple(results),
        seconds=time.perf_counter() - started,
        problems=asked.fingerprint,
    )
    if parts:
        shutil.rmtree(parts, ignore_errors=True)
    return evaluation


@dataclass(frozen=True)
class _Part:
    """The file of one benchmark's result within an evaluation that has not ended."""

    path: Path
    protocol: str
    problems: str

    def read(self) -> BenchmarkResult | None:
        """Return the result, or None where there is none for this protocol and these problems."""
        try:
            document = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        if (document["protocol"], document["problems"]) != (self.protocol, self.problems):
            return None
        return BenchmarkResult.from_dict(document["result"])

    def write(self, result: BenchmarkResult) -> None:
        """Keep the result."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        document = {"protocol": self.protocol, "problems": self.problems, "result": asdict(result)}
        write_atomically(self.path, json.dumps(document))


def _benchmark(
    sampler: _Samples,
    codec: PromptCodec,
    protocol: Protocol,
    spec: BenchmarkSpec,
    asked: ProblemSet,
) -> BenchmarkResult:
    environment = benchmark_environment(protocol, spec)
    codec = codec.with_prompt(spec.prompt, f"benchmark {spec.name}: prompt") if spec.prompt else codec
    problems = benchmark_problems(environment, spec, asked)
    total = len(problems) * spec.samples
    temperature = protocol.evaluation.temperature if protocol.evaluation else 1.0
    requests = Requests(
        prompts=prompt_tokens(codec, [problem.prompt for problem in problems]),
        samples=spec.samples,
        max_length=protocol.length_limit(spec),
        eos_ids=codec.eos_ids,
        pad_id=codec.pad_id,
        key=(asked.noise_key(spec.name),),
        temperature=temperature if spec.metric == "pass" else 0.0,
        stops=codec.stops,
    )
    sampled = sampler.sample(requests).completions
    texts = codec.decode(sampled.ids, sampled.mask)
    whole = (~sampled.truncated).tolist()
    judged = [j for j in range(total) if whole[j]]
    verdicts = verify_all(environment, [problems[j // spec.samples] for j in judged], [texts[j] for j in judged])
    correct = [0] * len(problems)
    for j, verdict in zip(judged, verdicts, strict=True):
        correct[j // spec.samples] += verdict.correctness >= 1.0  # pass@k knows right and wrong only
    valid = sum(verdict.format_valid for verdict in verdicts)
    return BenchmarkResult(
        name=spec.name,
        metric=spec.metric_name,
        score=benchmark_score(correct, spec.samples, spec.k),
        correct=tuple(correct),
        samples=spec.samples,
        format_valid=valid / total,
        completion_length=int(sampled.mask.sum()) / total,
        kept=_kept(
            spec, problems, texts, whole, dict(zip(judged, verdicts, strict=True)), sampled.mask.sum(-1).tolist()
        )
        if asked.split == "search"
        else (),
        graded=_graded(verdicts, total),
    )


def _graded(verdicts: Iterable[Outcome], total: int) -> dict[str, int]:
    """Count the outcomes of ``GRADED`` that have occurred; completions without a verdict were cut off."""
    found = Counter(_outcome(verdict) for verdict in verdicts)
    found["cut_off"] = total - found.total()
    return {outcome: found[outcome] for outcome in GRADED if found[outcome]}


def _outcome(verdict: Outcome) -> str:
    """Of ``GRADED``; an environment of a user's own may name no outcome."""
    if verdict.how in GRADED:
        return verdict.how
    if not verdict.format_valid:
        return "malformed"
    return "right" if verdict.correctness >= 1.0 else "partial" if verdict.correctness else "wrong"


def _kept(
    spec: BenchmarkSpec,
    problems: Sequence[Problem],
    texts: Sequence[str],
    whole: Sequence[bool],
    verdicts: Mapping[int, Outcome],
    lengths: Sequence[int],
) -> tuple[KeptCompletion, ...]:
    """A few completions to read: right, wrong, malformed, longest."""
    scores = [verdicts[j].correctness if j in verdicts else 0.0 for j in range(len(texts))]
    valid = [j in verdicts and verdicts[j].format_valid for j in range(len(texts))]
    return tuple(
        KeptCompletion(
            spec.name,
            -1,
            kind,
            cut(problems[j // spec.samples].prompt, PROMPT_CHARACTERS),
            cut(texts[j], COMPLETION_CHARACTERS),
            scores[j],
            valid[j],
            not whole[j],
            int(lengths[j]),
        )
        for kind, j in kept_rows(scores, valid, lengths).items()
    )
