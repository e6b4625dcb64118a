"""Write the DeepSpeed configurations of this folder from ``examples.yaml``: ``python infra/deepspeed/write.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from poise_core.config import load_preset
from poise_core.training.engine import deepspeed_config

HERE = Path(__file__).parent


def configurations() -> dict[str, dict[str, Any]]:
    """Name of the example -> what the engine makes of its settings.

    Raises:
        poise_core.config.PresetError: an example's settings do not fit together.
    """
    made = {}
    for name, example in yaml.safe_load((HERE / "examples.yaml").read_text()).items():
        preset = load_preset(example["preset"], example.get("set", []))
        half = preset.protocol.model is not None and preset.protocol.model.dtype == "bfloat16"
        made[name] = deepspeed_config(preset.protocol.training, preset.resources, example["processes"], half=half)
    return made


if __name__ == "__main__":
    for name, configuration in configurations().items():
        (HERE / f"{name}.json").write_text(json.dumps(configuration, indent=2) + "\n")
