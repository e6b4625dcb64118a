"""The preset, which describes one run completely."""

from __future__ import annotations

from pydantic import Field, model_validator

from poise_core.config.agents import AgentSettings
from poise_core.config.ladder import HealthSpec, LadderSpec
from poise_core.config.protocol import TUNED_TRAINING, FrozenModel, Protocol
from poise_core.config.resources import ResourceSpec
from poise_core.config.search import BaselineSpec, SearchSpec


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
    resources: ResourceSpec = ResourceSpec()
    agents: AgentSettings = AgentSettings()

    @model_validator(mode="after")
    def _combinations(self) -> Preset:
        training, processes = self.protocol.training, self.resources.processes_per_training
        if training.batch_size // training.minibatches % processes:
            raise ValueError(
                f"resources.processes_per_training is {processes}, which does not divide the "
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
        again = f"'poise tune --preset {self.name}' does that."
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
