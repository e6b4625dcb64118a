"""Run by torchrun: trains one policy for every combination of algorithm and ZeRO stage and saves the weights.

Arguments: policy folder, output folder, comma-separated algorithms, comma-separated stages and, where the weights shall
be in bfloat16 or micro-batches have a budget of tokens, ``bfloat16`` or the budget.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from training_samples import make_trainer, weights_of

from poise_core.config import ResourceSpec
from poise_core.policies.libraries import leave
from poise_core.policies.prompt import ModelSpec
from poise_core.training.engine import start_processes


def train(
    policy: Path, algorithm: str, stage: int, rank: int, device: torch.device, extra: str
) -> dict[str, torch.Tensor]:
    # 3 groups of 4: the boundary between two processes, row 6, splits the second group
    budget = int(extra) if extra.isdigit() else None
    resources = ResourceSpec(zero_stage=stage, micro_batch_size=2, micro_batch_tokens=budget)
    model = ModelSpec(dtype="bfloat16") if extra == "bfloat16" else None
    trainer = make_trainer(policy, algorithm, device, resources=resources, rank=rank, model=model)
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
    extra = sys.argv[5] if len(sys.argv) > 5 else ""
    for algorithm in sys.argv[3].split(","):
        for stage in sys.argv[4].split(","):
            result = train(policy, algorithm, int(stage), rank, device, extra)
            if rank == 0:
                kind = f"-{extra}" if extra else ""
                save_file(result, out / f"{algorithm}-zero{stage}-{world}{kind}.safetensors")
    leave(0)


if __name__ == "__main__":
    main()
