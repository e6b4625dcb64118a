"""Evaluation of trained policies, in a process that never loads candidate code.

The environment draws the problems of a benchmark; the kinds, the number and a seed of the problem set determine them. The set
also determines the random numbers of sampling, so that all policies of a run answer the same problems with the same random
numbers. Problems of the ``search`` and ``report`` splits are disjoint from each other and from training.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from poise_core.config.protocol import BenchmarkSpec, Protocol
from poise_core.environments import Environment, Problem, Split, benchmark_environment, verify_all
from poise_core.evaluation.problems import ProblemSet
from poise_core.evaluation.results import BenchmarkResult, SeedEvaluation
from poise_core.evaluation.scoring import benchmark_score, overall
from poise_core.policies.libraries import skipped_imports
from poise_core.policies.model import PromptCodec, load_model
from poise_core.randomness import uniforms
from poise_core.sampling.local import sample_completions

ROWS_PER_BATCH = 2048


def benchmark_problems(environment: Environment, spec: BenchmarkSpec, problem_set: ProblemSet) -> list[Problem]:
    """Return the problems of one benchmark, which are the same for equal sets."""
    return environment.problems(problem_set.split, spec.kinds, spec.problems, problem_set.seed(spec.name))


def evaluate_policy(
    folder: Path, protocol: Protocol, split: Split, seed: int, *, base: Path | None = None, key: bytes = b""
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
    """
    started = time.perf_counter()
    with skipped_imports("scipy"):  # transformers imports it for a loss of object detection
        model = load_model(folder, configuration=base)
    if torch.cuda.is_available():
        model = model.to("cuda")
    codec = PromptCodec.load(base or folder, protocol.prompt)
    asked = ProblemSet(split, key)
    results = tuple(_benchmark(model, codec, protocol, spec, asked) for spec in protocol.benchmarks)
    return SeedEvaluation(
        seed=seed,
        split=split,
        overall=overall(results, protocol),
        benchmarks=results,
        seconds=time.perf_counter() - started,
        problems=asked.fingerprint,
    )


def _benchmark(
    model: Any, codec: PromptCodec, protocol: Protocol, spec: BenchmarkSpec, asked: ProblemSet
) -> BenchmarkResult:
    environment = benchmark_environment(protocol, spec)
    codec = replace(codec, prompt=spec.prompt) if spec.prompt else codec
    problems = benchmark_problems(environment, spec, asked)
    length = spec.max_completion_length or protocol.training.max_completion_length
    total = len(problems) * spec.samples
    noise = uniforms(total, length, asked.noise_key(spec.name)) if spec.metric == "pass" else None
    correct, valid, tokens = [], 0, 0
    per_batch = max(1, ROWS_PER_BATCH // spec.samples)
    for first in range(0, len(problems), per_batch):
        part = problems[first : first + per_batch]
        ids, mask = codec.encode([problem.prompt for problem in part])
        device = next(model.parameters()).device
        rows = slice(first * spec.samples, (first + len(part)) * spec.samples)
        sampled = sample_completions(
            model,
            ids.to(device),
            mask.to(device),
            torch.full((len(part),), spec.samples, device=device),
            max_length=length,
            eos_ids=codec.eos_ids,
            pad_id=codec.pad_id,
            noise=None if noise is None else noise[rows],
        )
        texts = codec.decode(sampled.ids, sampled.mask)
        whole = (~sampled.truncated).tolist()
        judged = [j for j in range(len(texts)) if whole[j]]
        verdicts = verify_all(environment, [part[j // spec.samples] for j in judged], [texts[j] for j in judged])
        scores = [0.0] * len(part)
        for j, verdict in zip(judged, verdicts, strict=True):
            scores[j // spec.samples] += verdict.correctness
        correct += [round(score) for score in scores]
        valid += sum(verdict.format_valid for verdict in verdicts)
        tokens += int(sampled.mask.sum())
    return BenchmarkResult(
        name=spec.name,
        metric=spec.metric_name,
        score=benchmark_score(correct, spec.samples, spec.k),
        correct=tuple(correct),
        samples=spec.samples,
        format_valid=valid / total,
        completion_length=tokens / total,
    )
