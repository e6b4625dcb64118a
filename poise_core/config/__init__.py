"""What a run is asked to do: presets and the specifications they are made of. Pydantic only."""

from poise_core.config.preset import (
    HealthSpec,
    LadderSpec,
    Preset,
    PresetError,
    ResourceSpec,
    SearchSpec,
    load_preset,
    shipped_presets,
    with_overrides,
)

__all__ = [
    "HealthSpec",
    "LadderSpec",
    "Preset",
    "PresetError",
    "ResourceSpec",
    "SearchSpec",
    "load_preset",
    "shipped_presets",
    "with_overrides",
]
