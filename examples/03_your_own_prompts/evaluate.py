"""Train and score a policy on prompts of your own: those of change.py beside this file.

    python examples/03_your_own_prompts/evaluate.py [RUN_DIR]

It measures GRPO on them. A whole evolution on them is `poise evolve --preset examples/03_your_own_prompts/preset.yaml`.
"""

import sys
from pathlib import Path

from poise_core.algorithms import algorithm_path
from poise_core.config import load_preset
from poise_core.environments import get_environment
from poise_core.evolution import Trials
from poise_core.run_directory import RunDirectory

ENVIRONMENT = f"{Path(__file__).with_name('change.py')}:ChangeEnvironment"


def main(folder: str) -> None:
    """Print three prompts, and how a policy answers them after four training steps."""
    overrides = [f"protocol.environment.name={ENVIRONMENT}"]
    preset = load_preset(Path(__file__).with_name("preset.yaml"), overrides)
    environment = get_environment(preset.protocol.environment.name)
    for problem in environment.problems("train", ["one-item", "two-items"], 3, "a look"):
        print(f"{problem.prompt}  wants #{problem.answer}")
    with RunDirectory.open(folder, preset) as run:
        trials = Trials(run)
        grpo = trials.adopt(algorithm_path("grpo"))
        trials.verify(grpo, must_be_new=False)
        trials.train(grpo, preset.protocol.seeds)
        (evaluation,) = trials.evaluate(grpo, preset.protocol.seeds)
    scores = ", ".join(f"{one.name} {one.metric} {one.score:.1f}" for one in evaluation.benchmarks)
    print(f"grpo: Overall {evaluation.overall:.1f} ({scores})")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/example-03")
