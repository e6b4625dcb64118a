"""Presets and the specifications that they consist of, as Pydantic models."""

from poise_core.config.ladder import HealthSpec, LadderSpec
from poise_core.config.loading import PresetError, load_preset, read_preset, shipped_presets, tuned_file, with_overrides
from poise_core.config.preset import ExaminationSpec, Preset
from poise_core.config.resources import ResourceSpec
from poise_core.config.search import SearchSpec

__all__ = [
    "ExaminationSpec",
    "HealthSpec",
    "LadderSpec",
    "Preset",
    "PresetError",
    "ResourceSpec",
    "SearchSpec",
    "load_preset",
    "read_preset",
    "shipped_presets",
    "tuned_file",
    "with_overrides",
]
