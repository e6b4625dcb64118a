"""Run by torchrun: trains one policy for every combination of algorithm and ZeRO stage and saves the weights.

Arguments: policy folder, output folder, comma-separated algorithms, comma-separated stages.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from training_samples import make_trainer, weights_of

from poise_core.config import ResourceSpec
from poise_core.training.engine import start_processes


def train(policy: Path, algorithm: str, stage: int, rank: int, device: torch.device) -> dict[str, torch.Tensor]:
    # 3 groups of 4: the boundary between two processes, row 6, splits the second group
    resources = ResourceSpec(zero_stage=stage, micro_batch_size=2)
    trainer = make_trainer(policy, algorithm, device, resources=resources, rank=rank)
    rows = list(trainer.steps())
    result = weights_of(trainer)
    for key in ("loss", "grad_norm", "tokens", "kl", "clip_fraction", "reward_mean"):
        result[f"trajectory/{key}"] = torch.tensor([row[key] for row in rows])
    trainer.engine.close()
    return result


def main() -> None:
    policy, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    rank, world, device = start_processes()
    for algorithm in sys.argv[3].split(","):
        for stage in sys.argv[4].split(","):
            result = train(policy, algorithm, int(stage), rank, device)
            if rank == 0:
                save_file(result, out / f"{algorithm}-zero{stage}-{world}.safetensors")


if __name__ == "__main__":
    main()
