"""The protocol: everything that must be equal for two numbers to be compared, frozen and hashed.

Every evaluation row of the archive carries ``Protocol.digest``; numbers with different digests are never ranked
together. Settings that only change speed (processes, micro-batch size, time limits) are no part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from poise_core.config.environment_file import EnvironmentFile
from poise_core.policies.prompt import ModelSpec, PromptSpec


class FrozenModel(BaseModel):
    """A base class for settings: unknown keys are refused and fields cannot be assigned."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EnvironmentSpec(FrozenModel):
    """The problems on which the policy trains."""

    name: str = Field("arithmetic", description="a name from poise_core.environments, or FILE.py:CLASS of your own")
    mixture: dict[str, PositiveFloat] = Field(description="share of each kind of problem in the training prompts")
    train_problems: PositiveInt = Field(4096, description="size of the training set; prompts repeat after one pass")

    @property
    def files(self) -> list[Path]:
        """Return the files beside the package that a process must read to make the environment: a user's file, or none."""
        file = EnvironmentFile.parse(self.name)
        return [file.path.resolve()] if file else []

    def absolute(self) -> EnvironmentSpec:
        """Return the same specification with an absolute path, for a process with another working directory."""
        file = EnvironmentFile.parse(self.name)
        if file is None:
            return self
        name = EnvironmentFile(file.path.resolve(), file.class_name, file.digest).name
        return self.model_copy(update={"name": name})


class BenchmarkSpec(FrozenModel):
    """One benchmark: problems of given kinds and the metric by which they are scored."""

    name: str
    kinds: tuple[str, ...] = Field(min_length=1)
    problems: PositiveInt
    metric: Literal["pass", "accuracy"] = Field(description="pass: pass@k at temperature 1; accuracy: greedy acc@1")
    k: PositiveInt = 1
    samples: PositiveInt = Field(1, description="completions per problem; 1 for accuracy")
    weight: PositiveFloat

    @model_validator(mode="after")
    def _k_fits_samples(self) -> BenchmarkSpec:
        if self.k > self.samples:
            raise ValueError(f"k is {self.k} but samples is {self.samples}; pass@k needs k <= samples")
        if self.metric == "accuracy" and (self.k, self.samples) != (1, 1):
            raise ValueError("greedy accuracy takes k = 1 and samples = 1")
        return self

    @property
    def single_sample(self) -> bool:
        """Whether it scores the share of single completions that are right, as the training reward does."""
        return self.metric == "accuracy" or self.k == 1

    @property
    def metric_name(self) -> str:
        """The metric's name, for example ``pass@32`` or ``acc@1``."""
        return f"pass@{self.k}" if self.metric == "pass" else "acc@1"


class TrainingSpec(FrozenModel):
    """The training budget that every candidate gets."""

    steps: PositiveInt
    prompts_per_step: PositiveInt
    group_size: PositiveInt
    minibatches: PositiveInt = Field(1, description="optimizer updates per inner epoch")
    inner_epochs: PositiveInt = Field(1, description="passes over one rollout")
    learning_rate: PositiveFloat
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    max_completion_length: PositiveInt
    temperature: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainingSpec:
        batch = self.prompts_per_step * self.group_size
        if self.group_size < 2:
            raise ValueError("group_size must be at least 2; a group of one has no baseline")
        if batch % self.minibatches:
            raise ValueError(
                f"minibatches is {self.minibatches}, which does not divide prompts_per_step * group_size = {batch}"
            )
        return self

    @property
    def batch_size(self) -> int:
        """Completions per rollout."""
        return self.prompts_per_step * self.group_size


class SamplerSpec(FrozenModel):
    """A sampler in a process of its own, and how its numbers are reconciled with the trainer's."""

    name: Literal["vllm", "scripted"] = Field(
        description="vllm: the engine of that name, in an environment of its own; scripted: for tests of the rendezvous"
    )
    version: str = Field("", description="version that the engine must have; by default any, and one for each training")
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="type of the weights that are handed over, and in which the engine computes"
    )
    importance: Literal["token", "sequence", "off"] = Field(
        "token",
        description="gradients are multiplied by exp(trainer - sampler) of each token's log-probability, or of the completion's",
    )
    cap: PositiveFloat = Field(2.0, description="largest importance weight")


class EvaluationSpec(FrozenModel):
    """How trained policies answer the benchmarks, where it differs from the training."""

    max_completion_length: PositiveInt | None = Field(None, description="by default the training's")
    temperature: PositiveFloat = Field(1.0, description="of pass@k; accuracy is greedy")


TRAINER_REVISION = 2
"""Revision of the numerics of rollout, update and evaluation. It is raised whenever they change, so that numbers of before and
after are never ranked together; ``tests/training/test_golden.py`` fails where they change and it is not. Revision 1 is everything
before revisions were counted; revision 2 packs sequences without padding and updates with a fused kernel."""


class Protocol(FrozenModel):
    """Policy, environment, budget, benchmarks, weights and seeds under which candidates are compared."""

    policy: str = Field(
        description="name of a shipped base policy, a folder that transformers can load, or a hub name, with or without @REVISION"
    )
    policy_digest: str = Field("", description="SHA-256 of the policy's weights; filled in when the preset is loaded")
    model: ModelSpec | None = Field(
        None, description="how the policy computes; by default in float32 with the attention that transformers chooses"
    )
    environment: EnvironmentSpec
    prompt: PromptSpec | None = Field(None, description="how problems become prompts; by default they are the prompts")
    tokenizer_digest: str = Field(
        "", description="SHA-256 of tokenizer and chat template; filled in where ``prompt`` is given"
    )
    training: TrainingSpec
    sampler: SamplerSpec | None = Field(None, description="by default the trainer samples itself, exactly")
    evaluation: EvaluationSpec | None = Field(None, description="by default with the training's length limit")
    benchmarks: tuple[BenchmarkSpec, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1, description="training seeds that candidates share, used from the left")
    trainer_revision: PositiveInt = Field(
        TRAINER_REVISION,
        description="of the program that makes the numbers; documents of before revisions were counted have 1",
    )

    @classmethod
    def stored(cls, document: Mapping[str, Any]) -> Protocol:
        """The protocol that a run has kept, which may be of before revisions were counted.

        Raises:
            pydantic.ValidationError: the document is no protocol.
        """
        return cls.model_validate({"trainer_revision": 1, **document})

    @model_validator(mode="after")
    def _weights_and_names(self) -> Protocol:
        total = sum(benchmark.weight for benchmark in self.benchmarks)
        if abs(total - 1.0) > 1e-9:
            raise ValueError(f"the weights of the benchmarks add up to {total:g}; they must add up to 1")
        names = [benchmark.name for benchmark in self.benchmarks]
        if len(set(names)) != len(names):
            raise ValueError("two benchmarks have the same name")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds repeat; every seed may stand once")
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Protocol:
        """A copy with some fields replaced; it computes its own digest, which pydantic would copy along."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("digest", None)
        return copy

    @property
    def scored_by_reward(self) -> bool:
        """Whether Overall counts what the training reward counts. With pass@k it does not: an advantage that keeps answers diverse
        lowers the reward and raises Overall, so that no reward may end it."""
        return all(benchmark.single_sample for benchmark in self.benchmarks)

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that identify this protocol; revision 1 has the digests of before revisions were counted."""
        uncounted = {"trainer_revision"} if self.trainer_revision == 1 else set()
        return _digest(self.model_dump(mode="json", exclude=uncounted | self._younger))

    @property
    def _younger(self) -> set[str]:
        """Fields that say nothing here and are younger than digests that must stay."""
        unsaid = {name for name in ("model", "sampler", "evaluation") if getattr(self, name) is None}
        return unsaid | ({"prompt", "tokenizer_digest"} if self.prompt is None else set())

    @property
    def evaluation_length(self) -> int:
        """The longest completion of a benchmark, in tokens."""
        own = self.evaluation.max_completion_length if self.evaluation else None
        return own or self.training.max_completion_length

    @property
    def tuning_digest(self) -> str:
        """Sixteen hex digits that identify what the baseline's numbers are tuned under: all of this protocol but the two numbers
        that are tuned themselves, and the list of seeds, of which a tuning uses none."""
        younger = dict.fromkeys(self._younger, True)
        document = self.model_dump(mode="json", exclude={"seeds": True, "training": set(TUNED_TRAINING), **younger})
        return _digest(document)


TUNED_TRAINING = ("learning_rate", "inner_epochs")
"""Keys of ``TrainingSpec`` that are tuned for the baseline and then hold for every candidate."""


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]
