"""Presets: the YAML files that say what a run does, validated before anything is written.

A preset is a :class:`Preset`: the protocol, which decides comparability, and the settings of search, resources and
tracking, which do not. A file may say ``extends: NAME`` and give only what differs. ``load_preset`` takes the name of a shipped
preset or a path, applies ``key=value`` overrides and raises :class:`PresetError` with one line that names the key and what is
allowed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from poise_core.config.agents import AgentSettings
from poise_core.config.environment_file import pinned
from poise_core.config.protocol import FrozenModel, Protocol
from poise_core.config.search import AcquisitionSpec, Arm, PlateauSpec


class PresetError(ValueError):
    """The preset cannot be used; the message is one line that names the key."""


class SearchSpec(FrozenModel):
    """How the tree of algorithms grows."""

    generations: PositiveInt = 2
    parents: PositiveInt = Field(3, description="parents per generation; each gets one implemented child")
    proposals: PositiveInt = Field(4, description="proposals per parent, of which the screener takes the best")
    seeds_per_candidate: PositiveInt = Field(
        3, description="how many of the protocol's seeds each candidate trains with"
    )
    ideas_tried: int = Field(
        3, ge=1, le=16, description="proposals of one place that are implemented at most, until the gate admits one"
    )
    revisions: int = Field(
        2, ge=0, le=10, description="inner loop: answers of the implementer to the gate's reports on one file"
    )
    repairs: int = Field(
        1,
        ge=0,
        le=5,
        description="outer loop: how often a child whose first training steps show a clear fault goes back to its author",
    )
    repair_steps: PositiveInt = Field(
        20, description="first steps of the first seed in which a failure of training is a clear fault of the file"
    )
    baseline: str = Field("grpo", description="the algorithm that the tree starts from")
    arm: Arm = Field("evolution", description="how to search: evolution, or a control arm to compare it with")
    acquisition: AcquisitionSpec = AcquisitionSpec()
    plateau: PlateauSpec = PlateauSpec()
    seed: int = Field(0, description="seed of selection and of the catalogue proposer")


class LadderSpec(FrozenModel):
    """Where a child's training may end before its last seed; docs/evidence.md derives the rule and its error rates."""

    enabled: bool = Field(False, description="false: every child trains with all seeds at once")
    proxy_steps: int = Field(
        30, ge=0, description="length of the proxy, the first steps of the first seed's training; 0 for no proxy"
    )
    proxy_window: PositiveInt = Field(10, description="last steps of the proxy over which reward is averaged")
    proxy_stop_below: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="a child ends at the proxy where P(its reward beats that of its parent or the baseline) is below; 0: none "
        "does. For tasks whose reward is what is evaluated; on the testbed it does not predict Overall",
    )
    forecast_stop_below: float = Field(
        0.10,
        ge=0,
        lt=1,
        description="the same of the Overall that the proxy's dynamics forecast, once earlier generations allow a forecast",
    )
    first_stop_below: float = Field(
        0.10, ge=0, lt=1, description="the same after the first whole training and its evaluation"
    )
    leader_stop_below: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="a child ends after the first whole training where P(it beats the best of earlier generations) is below; "
        "0: only parent and baseline count",
    )
    reward_noise: PositiveFloat = Field(
        5.0, description="seed standard deviation of the proxy's reward, percent points, before any was measured"
    )
    overall_noise: PositiveFloat = Field(
        2.0, description="seed standard deviation of Overall, percent points, before any was measured"
    )
    noise_weight: PositiveFloat = Field(
        4.0, description="degrees of freedom that those two count for beside what the run measures"
    )
    shared_noise: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of that variance that seeds do to all candidates alike, before it was measured",
    )


class HealthSpec(FrozenModel):
    """When a child's training is stopped for what it does to the policy; see poise_core.evolution.health."""

    enabled: bool = True
    grace_steps: int = Field(5, ge=0, description="first steps, in which nothing is judged")
    patience: PositiveInt = Field(5, description="steps in a row that have to break a rule; one noisy step does not")
    kl_limit: PositiveFloat = Field(
        3.0, description="nats per token; the worst of the testbed's panel, an algorithm without any brake, reaches 0.7"
    )
    entropy_floor: float = Field(
        0.003,
        ge=0,
        description="nats per token; a sound GRPO on the testbed ends at 0.03, a tenth of it explores nothing",
    )
    truncated_limit: float = Field(
        0.9, gt=0, description="share of completions that hit the length limit; the panel stays below 0.12"
    )
    length_factor: float = Field(
        4.0,
        gt=1,
        description="mean length against the parent's at the same step, either way; learning to reason is 2 to 3",
    )
    clip_limit: float = Field(
        0.7,
        gt=0,
        description="share of clipped tokens; the panel stays below 0.03, above 0.5 most of a rollout is wasted",
    )
    loss_margin: float = Field(
        0.15, gt=0, description="reward below the parent's, mean over the window, from which a loss can be certain"
    )
    loss_window: PositiveInt = Field(15, description="steps, with the parent's prompts, over which the loss is judged")
    loss_errors: PositiveFloat = Field(
        4.0,
        description="standard errors by which the loss must exceed half the margin; 4 over 15 steps is one chance in 1,500 a look",
    )


class ResourceSpec(FrozenModel):
    """What a run may use; changes how long it takes, not what comes out."""

    parallel_candidates: PositiveInt = 2
    processes_per_training: PositiveInt = 1
    threads_per_process: PositiveInt = 1
    micro_batch_size: PositiveInt = Field(128, description="completions per forward pass of the update, per process")
    zero_stage: int = Field(0, ge=0, le=3)
    train_timeout_seconds: PositiveFloat = 600.0
    evaluate_timeout_seconds: PositiveFloat = 600.0
    verify_timeout_seconds: PositiveFloat = 60.0
    memory_gib: PositiveFloat | None = Field(
        None, description="main memory of a training process; by default the machine's, shared equally"
    )
    checkpoint_steps: int = Field(25, ge=0, description="training steps between checkpoints; 0 for none")
    infrastructure_retries: int = Field(2, ge=0)
    dispatch: Literal["inline", "pool"] = Field(
        "inline", description="where candidates train: in the evolution's own process, or each as a flow run of its own"
    )
    dispatch_deployment: str = Field(
        "evaluate-candidate/evaluate-candidate",
        description="flow/deployment that is given the candidates under 'pool'; its work pool is where they train",
    )
    slots_limit: str | None = Field(
        None,
        description="a global concurrency limit of Prefect, such as gpu: a training or evaluation holds one of its slots "
        "per process; none where nothing is given",
    )


class Preset(FrozenModel):
    """One run, described completely."""

    name: str
    protocol: Protocol
    archive: str | None = Field(
        None,
        description="URI of the archive, such as s3://bucket/runs/laptop; without it the run directory's folder `archive`",
    )
    search: SearchSpec = SearchSpec()
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


def shipped_presets() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("poise_core") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Preset:
    """Read, override and validate a preset.

    Args:
        name_or_path: a name from :func:`shipped_presets`, or the path of a YAML file.
        overrides: ``dotted.key=value`` strings; values are read as YAML.

    Raises:
        PresetError: unknown preset, unknown key, wrong type or impossible combination.
    """
    return _validated(_read_document(name_or_path), overrides)


def with_overrides(preset: Preset, overrides: Sequence[str]) -> Preset:
    """The preset with some keys changed, as :func:`load_preset` would have made it.

    Raises:
        PresetError: see :func:`load_preset`.
    """
    return _validated(preset.model_dump(mode="json"), overrides) if overrides else preset


def _validated(document: dict[str, Any], overrides: Sequence[str]) -> Preset:
    for override in overrides:
        _apply_override(document, override)
    try:
        preset = Preset.model_validate(document)
    except ValidationError as error:
        raise PresetError(_first_error(error)) from error
    from poise_core.policies.model import PolicyNotFoundError, policy_digest

    try:
        digest = policy_digest(preset.protocol.policy)
    except PolicyNotFoundError as error:
        raise PresetError(f"protocol.policy: {error}") from error
    protocol = preset.protocol.model_copy(update={"policy_digest": digest})
    return preset.model_copy(update={"protocol": _with_pinned_environment(protocol)})


def _with_pinned_environment(protocol: Protocol) -> Protocol:
    try:
        name = pinned(protocol.environment.name)
    except OSError as error:
        raise PresetError(
            f"protocol.environment.name: {protocol.environment.name}: {error.strerror or error}"
        ) from error
    return protocol.model_copy(update={"environment": protocol.environment.model_copy(update={"name": name})})


def _read_document(name_or_path: str | Path, heirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """The keys of a preset file, over those of the file that it extends.

    Args:
        name_or_path: see :func:`load_preset`; what a file extends is a shipped name, or a path from its own folder.
        heirs: the files that led here through ``extends``, the first one asked for first.
    """
    name = str(name_or_path)
    if name in heirs:
        raise PresetError(f"extends goes in a circle: {' extends '.join((*heirs, name))}")
    document = _read_yaml(name, f"{heirs[-1]}: extends: " if heirs else "")
    base = document.pop("extends", None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise PresetError(f"{name}: extends takes the name of a shipped preset or the path of a file (given: {base!r})")
    if base not in shipped_presets():
        base = os.path.normpath(Path(name).parent / base)
    return _merged(_read_document(base, (*heirs, name)), document)


def _read_yaml(name: str, where: str) -> dict[str, Any]:
    if name in shipped_presets():
        text = (resources.files("poise_core") / "presets" / f"{name}.yaml").read_text()
    else:
        path = Path(name)
        if not path.is_file():
            raise PresetError(
                f"{where}no preset {name!r}; shipped presets: {', '.join(shipped_presets())}, or give a YAML file"
            )
        text = path.read_text()
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PresetError(f"{where}{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(document, dict):
        raise PresetError(f"{where}{name}: expected keys such as 'protocol' and 'search' at the top level")
    return document


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Both, key by key through all levels; where both have a value, it is the own one."""
    merged = {**base, **own}
    for key in base.keys() & own.keys():
        if isinstance(base[key], dict) and isinstance(own[key], dict):
            merged[key] = _merged(base[key], own[key])
    return merged


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise PresetError(f"--set {override!r}: expected key=value, for example protocol.training.steps=20")
    *parents, leaf = key.split(".")
    target = document
    for part in parents:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise PresetError(f"--set {key}: {part!r} has no keys below it")
    target[leaf] = yaml.safe_load(value)


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(_fields_at(first["loc"][:-1]))
        return f"{key}: unknown key; allowed here: {allowed}"
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first.get("input"), dict) else f" (given: {first.get('input')!r})"
    return f"{key}: {message}{given}" if key else message


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Preset
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments = [a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")]
        model = arguments[0] if arguments else annotation
    return sorted(model.model_fields)
