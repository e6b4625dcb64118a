"""The evaluation process, which scores trained policies and writes one file per seed.

``poise_core.evaluation.launcher`` starts it. It never imports or reads candidate code. Of a trained policy it reads
only the weights, as safetensors; architecture and tokenizer are those of the policy from which every training starts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from poise_core.config.protocol import Protocol
from poise_core.evaluation.evaluate import evaluate_policy
from poise_core.files import write_atomically
from poise_core.policies.libraries import leave, load_transformers


def warm_up() -> None:
    """Import the libraries of an evaluation."""
    load_transformers()


def run(arguments: Sequence[str]) -> int:
    """Evaluate the job in the file that the only argument names."""
    return main(arguments[0])


def main(job_file: str) -> int:
    """Evaluate every policy of a job that has no result yet."""
    document = json.loads(Path(job_file).read_text())
    torch.set_num_threads(int(document["threads"]))
    protocol = Protocol.model_validate(document["protocol"])
    base, key = Path(document["base"]), bytes.fromhex(document["key"])
    for seed, folder, result in document["policies"]:
        if not Path(result).exists():
            evaluation = evaluate_policy(
                Path(folder),
                protocol,
                document["split"],
                seed,
                base=base,
                key=key,
                memory_gib=document["memory_gib"],
                parts=Path(result).with_suffix(".parts"),
            )
            write_atomically(Path(result), evaluation.to_json())
    return 0


if __name__ == "__main__":
    leave(run(sys.argv[1:]))
