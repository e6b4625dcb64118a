"""Evaluation of trained policies, in a process that never loads candidate code.

The environment draws the problems of a benchmark; the kinds, the number, the benchmark's name and the number of the set determine
them. Benchmark, split and set determine the random numbers of sampling, so that all policies of a protocol answer the same
problems with the same random numbers. Problems of the ``search`` and ``report`` splits are disjoint from each other and from
training; sets of one split are drawn independently from it, so they share problems where a kind has few.
"""

from __future__ import annotations

import time
import zlib
from pathlib import Path
from typing import Any

import torch

from poise_core.config.protocol import BenchmarkSpec, Protocol
from poise_core.environments import Environment, Problem, Split, get_environment
from poise_core.evaluation.results import BenchmarkResult, SeedEvaluation
from poise_core.evaluation.scoring import benchmark_score, overall
from poise_core.policies.libraries import skipped_imports
from poise_core.policies.model import PromptCodec, load_model
from poise_core.randomness import uniforms
from poise_core.sampling.local import sample_completions

ROWS_PER_BATCH = 2048


def benchmark_problems(
    environment: Environment, spec: BenchmarkSpec, split: Split, sealed_set: int = 0
) -> list[Problem]:
    """Return the problems of one benchmark, split and set, which are always the same; set 0 is what the search reads."""
    return environment.problems(split, spec.kinds, spec.problems, f"benchmark/{spec.name}{_set_suffix(sealed_set)}")


def _set_suffix(sealed_set: int) -> str:
    """What the number of a set adds to the seed of its problems and to that of its samples."""
    return f"/set-{sealed_set}" if sealed_set else ""


def evaluate_policy(
    folder: Path, protocol: Protocol, split: Split, seed: int, *, base: Path | None = None, sealed_set: int = 0
) -> SeedEvaluation:
    """Score one policy on every benchmark of the protocol.

    Args:
        folder: the folder of the policy.
        base: folder of the policy from which architecture and tokenizer are taken; by default ``folder`` itself. Of a policy
            trained by candidate code only the weights are trusted.
        protocol: benchmarks, weights, length limit and temperature.
        split: ``search`` or ``report``.
        seed: the training seed under which the result is stored; it does not change the sampling.
        sealed_set: which set of the split's problems.
    """
    started = time.perf_counter()
    with skipped_imports("scipy"):  # transformers imports it for a loss of object detection
        model = load_model(folder, configuration=base)
    if torch.cuda.is_available():
        model = model.to("cuda")
    codec = PromptCodec.load(base or folder, protocol.prompt)
    environment = get_environment(protocol.environment.name)
    results = tuple(
        _benchmark(model, codec, environment, protocol, spec, split, sealed_set) for spec in protocol.benchmarks
    )
    return SeedEvaluation(
        seed=seed,
        split=split,
        overall=overall(results, protocol),
        benchmarks=results,
        seconds=time.perf_counter() - started,
    )


def _benchmark(
    model: Any,
    codec: PromptCodec,
    environment: Environment,
    protocol: Protocol,
    spec: BenchmarkSpec,
    split: Split,
    sealed_set: int,
) -> BenchmarkResult:
    problems = benchmark_problems(environment, spec, split, sealed_set)
    length = protocol.training.max_completion_length
    total = len(problems) * spec.samples
    key = zlib.crc32(f"{spec.name}/{split}{_set_suffix(sealed_set)}".encode())
    noise = uniforms(total, length, key) if spec.metric == "pass" else None
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
        for i, problem in enumerate(part):
            own = range(i * spec.samples, (i + 1) * spec.samples)
            verdicts = [environment.verify(problem, texts[j]) for j in own if whole[j]]
            correct.append(round(sum(verdict.correctness for verdict in verdicts)))
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
