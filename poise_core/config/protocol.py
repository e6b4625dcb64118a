"""The protocol: everything that must be equal for two numbers to be compared, frozen and hashed.

Every evaluation row of the archive carries ``Protocol.digest``; numbers with different digests are never ranked
together. Settings that only change speed (processes, micro-batch size, time limits) are no part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from poise_core.config.environment_file import EnvironmentFile, pinned
from poise_core.config.problems import SourceSpec
from poise_core.policies.prompt import ModelSpec, PromptSpec


class FrozenModel(BaseModel):
    """A base class for settings: unknown keys are refused and fields cannot be assigned."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EnvironmentSpec(FrozenModel):
    """The problems on which the policy trains."""

    name: str = Field("arithmetic", description="a name from poise_core.environments, or FILE.py:CLASS of your own")
    source: SourceSpec | None = Field(
        None, description="problems of a data set or library, in place of a named environment"
    )
    split: Literal["hash", "all"] = Field(
        "hash",
        description="of a source: hash trains on 70 % and leaves 15 % each to the search and report splits of benchmarks "
        "without a source of their own; all trains on every row",
    )
    mixture: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="share of each kind of problem in the training prompts; a source needs none"
    )
    train_problems: PositiveInt = Field(4096, description="size of the training set; prompts repeat after one pass")

    @model_validator(mode="after")
    def _problems(self) -> EnvironmentSpec:
        if self.source is None and not self.mixture:
            raise ValueError("mixture is missing: give the share of each kind of problem, for example {add2: 1.0}")
        if self.source is not None and self.name != "arithmetic":
            raise ValueError(f"name is {self.name!r} and there is a source; give one of them")
        if self.source is None and self.split != "hash":
            raise ValueError("split belongs to a source")
        return self

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), ("source", "split") if self.source is None else ())

    @property
    def files(self) -> list[Path]:
        """Return the files beside the package that a process must read to make the environment: a user's files, or none."""
        file = EnvironmentFile.parse(self.name)
        return self.source.files if self.source else [file.path.resolve()] if file else []

    @property
    def shares(self) -> dict[str, float]:
        """The mixture; one kind where a source is given without any."""
        return self.mixture or {ALL: 1.0}

    def absolute(self) -> EnvironmentSpec:
        """Return the same specification with an absolute path, for a process with another working directory."""
        if self.source is not None:
            return self.model_copy(update={"source": self.source.absolute()})
        file = EnvironmentFile.parse(self.name)
        if file is None:
            return self
        name = EnvironmentFile(file.path.resolve(), file.class_name, file.digest).name
        return self.model_copy(update={"name": name})

    def pinned(self) -> EnvironmentSpec:
        """Return the same specification with the digests of the files that it names.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file is not what the specification says.
        """
        if self.source is not None:
            return self.model_copy(update={"source": self.source.pinned()})
        return self.model_copy(update={"name": pinned(self.name)})


ALL = "all"
"""The kind of all problems of a source without kinds."""


class BenchmarkSpec(FrozenModel):
    """One benchmark: its problems and the metric by which they are scored."""

    name: str
    kinds: tuple[str, ...] = Field((), description="kinds of problems, in equal shares; a source may leave them out")
    problems: int = Field(0, ge=0, description="how many; 0, for a source only: all that the split holds")
    metric: Literal["pass", "accuracy"] = Field(description="pass: pass@k at temperature 1; accuracy: greedy acc@1")
    k: PositiveInt = 1
    samples: PositiveInt = Field(1, description="completions per problem; 1 for accuracy")
    weight: PositiveFloat
    source: SourceSpec | None = Field(
        None, description="problems of its own; by default those of the training environment"
    )
    sealed: Literal["halves", "same"] = Field(
        "halves",
        description="of a source of its own: halves divides its problems by hash into search and report; same asks all of "
        "them in both, so that nothing is sealed, and every page says so",
    )
    prompt: PromptSpec | None = Field(None, description="a template of its own; by default the protocol's")
    max_completion_length: PositiveInt | None = Field(None, description="tokens; by default the protocol's")

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unsaid = [name for name in ("source", "prompt", "max_completion_length") if getattr(self, name) is None]
        return _without(handler(self), [*unsaid, *(["sealed"] if self.source is None else [])])

    @model_validator(mode="after")
    def _k_fits_samples(self) -> BenchmarkSpec:
        if self.k > self.samples:
            raise ValueError(f"k is {self.k} but samples is {self.samples}; pass@k needs k <= samples")
        if self.metric == "accuracy" and (self.k, self.samples) != (1, 1):
            raise ValueError("greedy accuracy takes k = 1 and samples = 1")
        if self.source is None and self.sealed != "halves":
            raise ValueError("sealed belongs to a benchmark with a source of its own")
        if self.source is not None and self.source.reasoning_gym and not self.problems:
            raise ValueError("problems is missing: a procedural source has no end")
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
    head: Literal["float32"] | None = Field(
        None, description="type in which the engine's output head computes; by default the engine's own choice"
    )
    importance: Literal["token", "sequence", "off"] = Field(
        "token",
        description="gradients are multiplied by exp(trainer - sampler) of each token's log-probability, or of the completion's",
    )
    cap: PositiveFloat = Field(2.0, description="largest importance weight")

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(handler(self), ["head"] if self.head is None else [])


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
        "",
        description="SHA-256 of tokenizer and chat template; filled in where there is a ``prompt``, or one of a benchmark",
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
        for benchmark in self.benchmarks:
            if benchmark.source is None and self.environment.source is None:
                if not benchmark.kinds:
                    raise ValueError(f"benchmark {benchmark.name}: kinds is missing; name at least one kind of problem")
                if not benchmark.problems:
                    raise ValueError(f"benchmark {benchmark.name}: problems is missing; it must be at least 1")
            if benchmark.source is None and self.environment.source is not None and self.environment.split == "all":
                raise ValueError(
                    f"benchmark {benchmark.name} has no source and environment.split is all, which leaves it no problems"
                )
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
    def has_sources(self) -> bool:
        """Whether problems come from a data set, a library or a class of the user's."""
        return bool(self.environment.source or any(benchmark.source for benchmark in self.benchmarks))

    @property
    def stops_sampling(self) -> bool:
        """Whether texts end completions of the training or of a benchmark while they are sampled."""
        prompts = (self.prompt, *(benchmark.prompt for benchmark in self.benchmarks))
        return any(prompt.ends_sampling for prompt in prompts if prompt)

    @property
    def problem_files(self) -> list[Path]:
        """The files beside the package that a process must read to ask and to judge the benchmarks."""
        sources = [benchmark.source for benchmark in self.benchmarks if benchmark.source]
        return [*self.environment.files, *(file for source in sources for file in source.files)]

    def absolute(self) -> Protocol:
        """The same protocol with absolute paths, for a process with another working directory."""
        benchmarks = [
            benchmark.model_copy(update={"source": benchmark.source.absolute()}) if benchmark.source else benchmark
            for benchmark in self.benchmarks
        ]
        return self.model_copy(update={"environment": self.environment.absolute(), "benchmarks": tuple(benchmarks)})

    @property
    def unsealed(self) -> list[str]:
        """Names of the benchmarks that ask the same problems in the search and in the report, as the paper does."""
        return [benchmark.name for benchmark in self.benchmarks if benchmark.sealed == "same"]

    @property
    def unsealed_note(self) -> str:
        """What that means, as a sentence for every page; empty where all reports are sealed."""
        if not self.unsealed:
            return ""
        return (
            f"Not sealed: the search reads the report's problems of {', '.join(self.unsealed)}, as in the paper, so that a report "
            "on them is no independent evidence."
        )

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
        if self.prompt is None:
            unsaid |= {"prompt"} if self.tokenizer_digest else {"prompt", "tokenizer_digest"}
        return unsaid

    @property
    def evaluation_length(self) -> int:
        """The longest completion of a benchmark that names no limit of its own, in tokens."""
        own = self.evaluation.max_completion_length if self.evaluation else None
        return own or self.training.max_completion_length

    def length_limit(self, benchmark: BenchmarkSpec | None = None) -> int:
        """The longest completion of a benchmark, by default of the training, in tokens."""
        if benchmark is None:
            return self.training.max_completion_length
        return benchmark.max_completion_length or self.evaluation_length

    @property
    def tuning_digest(self) -> str:
        """Sixteen hex digits that identify what the baseline's numbers are tuned under: all of this protocol but the two numbers
        that are tuned themselves, and the list of seeds, of which a tuning uses none."""
        younger = dict.fromkeys(self._younger, True)
        document = self.model_dump(mode="json", exclude={"seeds": True, "training": set(TUNED_TRAINING), **younger})
        return _digest(document)


def _without(document: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Leave out fields that say nothing and are younger than digests that must stay."""
    return {key: value for key, value in document.items() if key not in keys}


TUNED_TRAINING = ("learning_rate", "inner_epochs")
"""Keys of ``TrainingSpec`` that are tuned for the baseline and then hold for every candidate."""


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(_placeless(document), sort_keys=True).encode()).hexdigest()[:16]


def _placeless(value: Any) -> Any:
    """The document without the places of a source's files, whose digests it holds."""
    if isinstance(value, Mapping):
        document = {key: _placeless(inner) for key, inner in value.items() if key != "prepared"}
        if document.get("digest") and isinstance(document.get("dataset"), str):
            document["dataset"] = document["dataset"].rpartition("/")[2]
        return document
    return [_placeless(inner) for inner in value] if isinstance(value, list | tuple) else value
