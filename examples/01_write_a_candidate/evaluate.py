"""Verify, train and score the candidate beside this file, as the evolution does with a child.

    python examples/01_write_a_candidate/evaluate.py [RUN_DIR]

The same on the command line, where a refused file is told what to change:

    poise verify examples/01_write_a_candidate/gentle_on_failures.py
    poise evaluate examples/01_write_a_candidate/gentle_on_failures.py --preset laptop --seeds 3
"""

import sys
from pathlib import Path

from poise_core.config import load_preset
from poise_core.evolution import Trials
from poise_core.run_directory import RunDirectory

CANDIDATE = Path(__file__).with_name("gentle_on_failures.py")


def main(folder: str) -> None:
    """Print the Overall, in percent, of every training seed; what is finished already is read back."""
    preset = load_preset("smoke")  # four steps: use "laptop" for numbers that mean something
    with RunDirectory.open(folder, preset) as run:
        trials = Trials(run)
        candidate = trials.adopt(CANDIDATE)
        trials.verify(candidate, must_be_new=False)  # raises CandidateFailure with a sentence on what to change
        trials.train(candidate, preset.protocol.seeds)
        for evaluation in trials.evaluate(candidate, preset.protocol.seeds):
            print(f"seed {evaluation.seed}: Overall {evaluation.overall:.1f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/example-01")
