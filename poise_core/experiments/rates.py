"""What a policy needs on a machine: bytes of a GPU by part, and seconds of a training step and of an evaluation.

Everything is computed from the preset, the policy's ``config.json`` and data sheets; the seconds may be measured instead, in two
training steps. Nothing else here needs a network or the policy's weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from poise_core.config import Preset
from poise_core.config.protocol import BenchmarkSpec, Protocol
from poise_core.environments.registry import benchmark_environment
from poise_core.environments.sources import is_prepared
from poise_core.policies.locate import resolve_policy

T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """The shape of a policy, of its ``config.json``."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, configuration: Mapping[str, Any]) -> Shape:
        """Read the keys of Llama and its descendants (Qwen2, Mistral, OLMo, SmolLM); those of GPT-2 stand for the same.

        Raises:
            ValueError: a key is missing.
        """
        found = configuration.get("text_config", configuration)

        def number(*names: str) -> int:
            value = next((found[name] for name in names if found.get(name) is not None), None)
            if value is None:
                raise ValueError(f"config.json of the policy has no {names[0]}; its memory and speed cannot be planned")
            return int(value)

        hidden, heads = number("hidden_size", "n_embd"), number("num_attention_heads", "n_head")
        return cls(
            hidden,
            number("num_hidden_layers", "n_layer"),
            heads,
            int(found.get("num_key_value_heads") or heads),
            int(found.get("head_dim") or hidden // heads),
            int(found.get("intermediate_size") or found.get("n_inner") or 4 * hidden),
            number("vocab_size"),
            bool(found.get("tie_word_embeddings", True)),
        )

    @property
    def parameters(self) -> int:
        """Weights without biases: per layer attention, a gated network and two norms; embeddings, twice where they are not tied."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def cache_bytes(self, width: int) -> int:
        """Keys and values of one token, bytes; ``width`` is that of a number."""
        return 2 * self.layers * self.kv_heads * self.head_size * width

    def forward(self, context: float) -> float:
        """Floating-point operations of a forward pass per token: 2 per weight, and the products of causal attention."""
        return 2.0 * self.parameters + 2.0 * self.layers * self.heads * self.head_size * context


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet, or two cores; rates are dense, without sparsity."""

    memory: float | None  # bytes
    bandwidth: float  # bytes a second
    half: float  # operations a second in bfloat16
    single: float  # the same in float32


GPUS = {
    "h100": Device(80e9, 3.35e12, 989e12, 67e12),
    "h200": Device(141e9, 4.8e12, 989e12, 67e12),
    "a100": Device(80e9, 2.04e12, 312e12, 19.5e12),
    "l40s": Device(48e9, 0.864e12, 362e12, 91.6e12),
    "rtx4090": Device(24e9, 1.01e12, 165e12, 82.6e12),
    "l4": Device(24e9, 0.3e12, 121e12, 30.3e12),
    "cpu": Device(None, 20e9, 60e9, 60e9),
}
USE = 0.4
"""Share of the operations on the data sheet that an update reaches."""
READ = 0.5
"""Share of the bandwidth that decoding reaches."""
DECODE_SECONDS = 0.012
"""Time of a decoding step besides its reading and computing."""
RUNNING = 256
"""Completions that are decoded at once, at most."""
START_SECONDS = 60.0
"""Start of a training, or of an evaluation: processes, weights, the engine."""
LENGTH_SHARE = 1 / 3
"""Mean length of a completion as a share of its limit; 2 M tokens in 2,048 completions of at most 3,000 is a third."""
PROMPT_TOKENS = 160
"""Mean length of a prompt with its template."""
BUCKET = 500_000_000
"""Numbers of the buffer through which DeepSpeed reduces gradients; under stage 3 it is there all the time."""
SIZES = {
    "math-ai/aime24": 30, "math-ai/aime25": 30, "math-ai/amc23": 40, "HuggingFaceH4/MATH-500": 500, "math-ai/minervamath": 272,
    "math-ai/olympiadbench": 674, "openai/gsm8k": 1319,
}  # fmt: skip
"""Problems in the test splits of data sets that shipped presets name, for a plan before they are fetched."""


@dataclass(frozen=True)
class Rates:
    """Seconds of the parts of a candidate's measurement, of one seed."""

    start: float  # of a training
    step: float
    evaluation: float  # with its start
    gate: float  # once a candidate
    how: str
    length: float  # tokens of a completion in training


def shape_of(policy: str) -> Shape:
    """Return the shape of a policy that is here.

    Raises:
        poise_core.policies.locate.PolicyNotFoundError: it is not.
        ValueError: its ``config.json`` does not say what is needed.
    """
    return Shape.of(json.loads((resolve_policy(policy) / "config.json").read_text(encoding="utf-8")))


def problems_of(protocol: Protocol, benchmark: BenchmarkSpec) -> int:
    """Return how many problems of a benchmark the search asks: as the preset says, counted, or before a fetch by the known size.

    Raises:
        ValueError: the data set is not here and its size is not known; or see ``poise_core.environments.sources.prepared``.
    """
    if benchmark.problems:
        return benchmark.problems
    source = benchmark.source or protocol.environment.source
    if source is not None and source.dataset is not None and not is_prepared(source) and not source.is_file:
        if source.dataset not in SIZES:
            raise ValueError(f"benchmark {benchmark.name}: {source.dataset} is not here; run poise fetch first")
        return SIZES[source.dataset] if benchmark.sealed == "same" else round(SIZES[source.dataset] / 2)
    return len(benchmark_environment(protocol, benchmark).problems("search", benchmark.kinds, 0, "plan"))


def completions_of(protocol: Protocol) -> dict[str, int]:
    """Return the completions of an evaluation by benchmark."""
    return {one.name: problems_of(protocol, one) * one.samples for one in protocol.benchmarks}


# memory


def memory_parts(preset: Preset, shape: Shape, available: float | None) -> tuple[dict[str, float], float]:
    """Return bytes on one GPU by part while weights are updated, and in all while completions are sampled.

    Weights, gradients and optimizer as in docs/real-models.md; activations of a micro-batch: the inputs of all layers and what one
    layer keeps with checkpointing, otherwise what every layer keeps (14 hidden and 3 intermediate vectors a token).
    """
    protocol, resources, training = preset.protocol, preset.resources, preset.protocol.training
    half = protocol.model is not None and protocol.model.dtype == "bfloat16"
    processes, count = resources.training_processes, float(shape.parameters)
    stage = max(resources.zero_stage, 1) if half else resources.zero_stage
    share = {level: 1 / processes if stage >= level else 1.0 for level in (1, 2, 3)}
    width = 2 if half else 4
    parts = {
        "weights": width * count * share[3],
        "gradients": ((4 * share[2] + 2 * share[3]) if half else 4 * share[2]) * count,
        # stages 1 and 2 keep a float32 original of every weight, whatever the weights' own type
        "optimizer": (12 if half or stage in (1, 2) else 8) * count * share[1],
        "reference": width * count,
        # none where DeepSpeed has an optimizer of its own for bfloat16; stage 2 sums in the type of the weights
        "gradient bucket": 0.0 if stage == 0 or (half and stage == 1) else float(BUCKET * (width if stage == 2 else 4)),
    }
    sequence = PROMPT_TOKENS + training.max_completion_length
    tokens = max(resources.micro_batch_tokens or resources.micro_batch_size * sequence, sequence)
    layer = (14 * shape.hidden + 3 * shape.intermediate) * width * tokens
    kept = shape.layers * shape.hidden * width * tokens
    parts["activations"] = kept + layer if resources.gradient_checkpointing else shape.layers * layer
    tile = (4096 * 32768 if available else 256 * 8192) * 4.0
    plain = 4.0 * tokens * shape.vocabulary
    parts["logits tile"] = plain if tokens * shape.vocabulary <= 2**24 else tile
    if protocol.sampler is not None and available:
        parts["KV cache"] = (
            resources.sampler.memory_share * available
        )  # of the engine, its weights among them; it never sleeps
        cache = parts["KV cache"]
    else:
        cache = min(
            resources.sampler.memory_gib * 2**30, training.batch_size * sequence * float(shape.cache_bytes(width))
        )
        parts["KV cache"] = 0.0  # freed before the update
    whole = width * count * (1 - share[3])  # under stage 3 the weights are gathered
    moments = 8 * count * share[1] if resources.offload_optimizer else 0.0
    standing = sum(parts[name] for name in ("weights", "gradients", "optimizer", "reference"))
    standing += parts["gradient bucket"] if stage == 3 else 0.0
    return parts, standing - moments + whole + cache


# rates


def stated_rates(preset: Preset, shape: Shape, gpu: str, evaluated: Mapping[str, int]) -> Rates:
    """Return rates from the data sheet and the constants above."""
    protocol, resources, training = preset.protocol, preset.resources, preset.protocol.training
    device, width = GPUS[gpu], 2 if protocol.model is not None and protocol.model.dtype == "bfloat16" else 4
    operations = (device.half if width == 2 else device.single) * USE
    length = training.max_completion_length * LENGTH_SHARE
    tokens = training.batch_size * (PROMPT_TOKENS + length)
    passes = 3 * training.inner_epochs * (4 / 3 if resources.gradient_checkpointing else 1) + 1  # and the reference
    passes += 1 if protocol.sampler is not None or width == 2 else 0  # log-probabilities anew
    processes = resources.training_processes
    update = tokens * passes * shape.forward(PROMPT_TOKENS + length) / (operations * processes)
    engines = resources.sampler.parallel if protocol.sampler is not None else processes

    def sampling(completions: int, mean: float, spread: int) -> float:
        at_once = min(completions, RUNNING)
        reading = width * (shape.parameters + at_once * (PROMPT_TOKENS + mean / 2) * shape.cache_bytes(1))
        computing = at_once * shape.forward(PROMPT_TOKENS + mean / 2) / operations
        step = DECODE_SECONDS + (reading / (device.bandwidth * READ) + computing) / spread
        return completions * mean / at_once * step

    rollout = sampling(training.batch_size, length, engines)
    evaluation = START_SECONDS
    for benchmark in protocol.benchmarks:
        mean = protocol.length_limit(benchmark) * LENGTH_SHARE
        evaluation += sampling(evaluated[benchmark.name], mean, resources.sampler.parallel)
    how = (
        f"data sheet of {gpu}; updates at {USE:.0%} of its operations, decoding at {READ:.0%} of its bandwidth and "
        f"{DECODE_SECONDS * 1000:g} ms a step, {RUNNING} completions at once, completions of a third of their limit"
    )
    return Rates(START_SECONDS, rollout + update, evaluation, 30.0, how, length)


def measured_rates(preset: Preset, folder: Path, evaluated: Mapping[str, int]) -> Rates:
    """Return rates of this machine: the baseline is trained for three steps, of which the last two count, and scored.

    An evaluation of more than 4,096 completions is measured with 16 problems a benchmark and scaled.

    Raises:
        poise_core.failures.CandidateFailure, poise_core.failures.InfrastructureError: the training failed.
    """
    from poise_core.algorithms import algorithm_path
    from poise_core.evolution import Trials
    from poise_core.run_directory import RunDirectory

    protocol = preset.protocol
    asked = protocol.benchmarks
    if sum(evaluated.values()) > 4096:
        asked = tuple(one.model_copy(update={"problems": min(16, evaluated[one.name] // one.samples)}) for one in asked)
    changed = protocol.model_copy(
        update={"training": protocol.training.model_copy(update={"steps": 3}), "benchmarks": asked}
    )
    short = preset.model_copy(
        update={
            "protocol": changed,
            "archive": None,
            "ladder": preset.ladder.model_copy(update={"enabled": False}),
            "resources": preset.resources.model_copy(update={"checkpoint_steps": 0}),
        }
    )
    with RunDirectory.open(folder, short) as run:
        trials = Trials(run)
        candidate = trials.adopt(algorithm_path(preset.search.baseline))
        gate, _ = _timed(partial(trials.verify, candidate, must_be_new=False))
        for seed in (protocol.seeds[0], protocol.seeds[0] + 1):
            training, _ = _timed(partial(trials.train, candidate, [seed]))
            steps = run.archive.trajectory(candidate.candidate_id, changed.digest)[seed]
            seconds = [row["seconds_rollout"] + row["seconds_update"] for row in steps]
            if training < 2 * sum(seconds):
                break  # otherwise again: the first training of a process starts cold, and the start decides
        evaluation, (score,) = _timed(partial(trials.evaluate, candidate, [seed]))
    counted = seconds[1:] or seconds
    measured = sum(completions_of(changed).values())
    scaled = evaluation + score.seconds * (sum(evaluated.values()) / max(measured, 1) - 1)
    length = sum(row["tokens"] for row in steps) / len(steps) / protocol.training.batch_size
    return Rates(
        training - sum(seconds), sum(counted) / len(counted), scaled, gate, "two measured training steps", length
    )


def _timed(call: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result
