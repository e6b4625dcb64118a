"""The preset, which describes one run completely."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from poise_core.config.agents import AgentSettings
from poise_core.config.ladder import HealthSpec, LadderSpec
from poise_core.config.protocol import TUNED_TRAINING, BenchmarkSpec, FrozenModel, Protocol
from poise_core.config.resources import ResourceSpec
from poise_core.config.search import BaselineSpec, SearchSpec
from poise_core.escaping import shell_command


class ExaminationSpec(FrozenModel):
    """The conditions under which a champion candidate is examined beside the baseline; docs/evidence.md says what each asks.

    It is no part of the protocol: an examination keeps the settings that it was begun with, and their digest, in its own record.
    """

    seeds: int = Field(10, ge=2, description="fresh seeds of every comparison on the sealed split")
    choice_seeds: PositiveInt = Field(
        2, description="further fresh seeds with which each side's best learning rate is chosen, on the search split"
    )
    rates: tuple[PositiveFloat, ...] = Field(
        (1 / 3, 1.0, 3.0),
        description="factors on protocol.training.learning_rate of which each side gets its best; none: one rate only",
    )
    policies: tuple[str, ...] = Field(
        (),
        description="other base policies to compare on, as protocol.policy names one; the protocol's own is left out",
    )
    passes: tuple[PositiveInt, ...] = Field(
        (1, 8, 32), description="k at which the sampled benchmarks are compared, where they draw so many completions"
    )
    greedy: bool = Field(True, description="whether the greedy benchmarks are compared by themselves")
    procedural: tuple[BenchmarkSpec, ...] = Field(
        (),
        description="benchmarks of reasoning_gym whose problems are drawn for the examination, so that nobody can have memorised "
        "them; compared by themselves, with the trainings of the primary condition",
    )
    collapse_points: PositiveFloat = Field(
        10.0,
        description="a training collapsed where its Overall is by more points below the baseline's mean, or it failed",
    )
    collapse_limit: float = Field(
        0.3, gt=0, lt=1, description="upper 95 % limit of the chance of a collapse that a candidate may have"
    )

    @model_validator(mode="after")
    def _distinct(self) -> ExaminationSpec:
        if self.rates and (1.0 not in self.rates or len(self.rates) < 2):
            raise ValueError(f"rates are {list(self.rates)}; list 1 and at least one other factor, or none")
        names = [PurePath(policy).name for policy in self.policies]
        for what, values in (("rates", self.rates), ("policies", names), ("passes", self.passes)):
            if len(set(values)) != len(values):
                raise ValueError(f"{what} repeat; every one may stand once")
        return self

    @model_validator(mode="after")
    def _drawn_anew(self) -> ExaminationSpec:
        for one in self.procedural:
            if one.source is None or one.source.reasoning_gym is None or one.sealed == "same":
                raise ValueError(
                    f"procedural {one.name} needs a source of reasoning_gym, in halves; others can be memorised"
                )
        total = sum(one.weight for one in self.procedural)
        if self.procedural and abs(total - 1.0) > 1e-9:
            raise ValueError(f"the weights of procedural add up to {total:g}; they must add up to 1")
        return self

    @model_serializer(mode="wrap")
    def _lean(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is younger than digests of examinations that must stay."""
        return {key: value for key, value in handler(self).items() if key != "procedural" or value}


class Preset(FrozenModel):
    """The complete description of one run."""

    name: str
    protocol: Protocol
    archive: str | None = Field(
        None,
        description="URI of the archive, such as s3://bucket/runs/laptop; without it the run directory's folder `archive`",
    )
    search: SearchSpec = SearchSpec()
    baseline: BaselineSpec = BaselineSpec()
    ladder: LadderSpec = LadderSpec()
    health: HealthSpec = HealthSpec()
    examination: ExaminationSpec = ExaminationSpec()
    resources: ResourceSpec = ResourceSpec()
    agents: AgentSettings = AgentSettings()

    @model_validator(mode="after")
    def _combinations(self) -> Preset:
        training, processes = self.protocol.training, self.resources.training_processes
        if training.batch_size // training.minibatches % processes:
            said = "resources.processes_per_training" + (" x resources.nodes" if self.resources.nodes > 1 else "")
            raise ValueError(
                f"{said} is {processes}, which does not divide the "
                f"{training.batch_size // training.minibatches} completions of a minibatch"
            )
        if self.search.seeds_per_candidate > len(self.protocol.seeds):
            raise ValueError(
                f"search.seeds_per_candidate is {self.search.seeds_per_candidate} but protocol.seeds lists "
                f"{len(self.protocol.seeds)}; list more seeds or use fewer"
            )
        if self.ladder.enabled and self.ladder.proxy_steps >= training.steps:
            raise ValueError(
                f"ladder.proxy_steps is {self.ladder.proxy_steps}, but a whole training has {training.steps} steps; "
                "use fewer, or 0 for no proxy"
            )
        if self.ladder.enabled and self.ladder.proxy_steps and self.ladder.proxy_window > self.ladder.proxy_steps:
            raise ValueError(
                f"ladder.proxy_window is {self.ladder.proxy_window}, but the proxy has {self.ladder.proxy_steps} steps"
            )
        names = [one.name for one in (*self.protocol.benchmarks, *self.examination.procedural)]
        if len(set(names)) != len(names):
            raise ValueError("a benchmark of examination.procedural has the name of another one; each needs its own")
        return self

    @property
    def baseline_numbers(self) -> dict[str, float]:
        """Hyperparameters of the baseline in place of its file's; those tuned for another algorithm are none."""
        record = self.baseline.tuning
        return {} if record and record.algorithm != self.search.baseline else dict(self.baseline.hyperparameters)

    @property
    def untuned(self) -> str:
        """Why the baseline does not count as tuned under this protocol, as a sentence; empty where it is.

        A candidate that beats an untuned baseline may owe that to numbers which suit it and not the baseline.
        """
        name, record = self.search.baseline, self.baseline.tuning
        again = f"'{shell_command(['poise', 'tune', '--preset', self.name])}' does that."
        if record is None or record.algorithm != name:
            return f"The baseline {name} was never tuned under this protocol; {again}"
        if record.digest != self.protocol.tuning_digest:
            return (
                f"The baseline {name} was tuned under another protocol ({record.digest}, this is "
                f"{self.protocol.tuning_digest}), not under this one; {again}"
            )
        training = self.protocol.training
        own = {**{key: float(getattr(training, key)) for key in TUNED_TRAINING}, **self.baseline_numbers}
        for key, tuned in record.numbers.items():
            if key in own and own[key] != tuned:
                return f"The baseline {name} has {key} = {own[key]:g} here, but {tuned:g} was found by tuning; {again}"
        if record.open:
            return f"The tuning of the baseline {name} left its optimum open: {', '.join(record.open)}."
        return ""
