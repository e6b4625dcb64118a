"""Parameters of deployed flows, as Prefect's UI shows them: what each means, what it may be, what it is if left alone."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from poise_core.config import shipped_presets

RunDir = Annotated[
    str,
    Field(
        title="Run directory",
        description="Where everything goes: absolute, or relative to the clone. Made where it is missing; a run that is "
        "there goes on where it stopped.",
        min_length=1,
    ),
]
PresetName = Annotated[
    str,
    Field(
        title="Preset",
        description=f"{', '.join(shipped_presets())}, or the path of a YAML file. Only for a new run directory: a run that "
        "is there keeps its own.",
        min_length=1,
    ),
]
Overrides = Annotated[
    list[str],
    Field(
        title="Changes to the preset",
        description="KEY=VALUE, one each: search.parents=3, resources.dispatch=pool, agents.model=openai:NAME, "
        "agents.steering.directive=shorter answers.",
    ),
]
Generations = Annotated[
    int | None,
    Field(title="Generations", description="How many the run shall hold in the end. Empty: as the preset says.", ge=1),
]
Candidate = Annotated[
    str,
    Field(
        title="Candidate",
        description="Name or id of a candidate of the run, or the path of a candidate file such as "
        "poise_core/algorithms/dapo.py.",
        min_length=1,
    ),
]
Seeds = Annotated[
    int | None,
    Field(title="Training seeds", description="How many of the protocol's seeds. Empty: as the run.", ge=1),
]
FreshSeeds = Annotated[
    int | None,
    Field(title="Fresh seeds", description="How many seeds that the search has not used. Empty: all of them.", ge=2),
]
Undeclared = Annotated[
    bool,
    Field(
        title="Also undeclared", description="Replicate a candidate that is no champion candidate; the record says so."
    ),
]
Hours = Annotated[
    float,
    Field(
        title="Time budget, hours",
        description="Then trainings stop at their checkpoints; the next night goes on from there.",
        gt=0,
    ),
]
Dollars = Annotated[
    float | None,
    Field(
        title="Cost budget, US dollars",
        description="Of language models. The call that could pass it is not made; what needs no further call is finished, "
        "the rest waits for the next night. Empty: no limit.",
        ge=0,
    ),
]
Replicate = Annotated[
    bool,
    Field(title="Replicate a champion", description="Put a new champion candidate to the proof with fresh seeds."),
]
