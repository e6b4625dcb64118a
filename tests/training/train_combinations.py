"""Run by torchrun: trains one policy for every combination of algorithm and ZeRO stage and saves the weights.

Arguments: policy folder, output folder, comma-separated algorithms, comma-separated stages.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from poise_core.algorithms import algorithm_path
from poise_core.candidate import load_candidate
from poise_core.config import ResourceSpec
from poise_core.environments import get_environment
from poise_core.evaluation.protocol import EnvironmentSpec, TrainingSpec
from poise_core.training.engine import Engine, start_processes
from poise_core.training.policy import PromptCodec, load_model
from poise_core.training.prompts import training_problems
from poise_core.training.trainer import Trainer

TRAINING = TrainingSpec(
    steps=3,
    prompts_per_step=3,  # with groups of 4 the boundary between two processes, row 6, splits the second group
    group_size=4,
    minibatches=2,
    inner_epochs=2,
    learning_rate=1e-3,
    max_completion_length=8,
    weight_decay=0.01,
)


def train(policy: Path, algorithm: str, stage: int, rank: int, device: torch.device) -> dict[str, torch.Tensor]:
    resources = ResourceSpec(zero_stage=stage, micro_batch_size=2)
    codec = PromptCodec.load(policy)
    engine = Engine(load_model(policy).to(device), TRAINING, resources)
    trainer = Trainer(
        load_candidate(algorithm_path(algorithm)),
        engine,
        load_model(policy).to(device),
        codec,
        get_environment("arithmetic"),
        training_problems(EnvironmentSpec(mixture={"mod": 1.0, "add3": 1.0}, train_problems=64), seed=0),
        TRAINING,
        resources,
        seed=0,
        rank=rank,
        device=device,
    )
    rows = list(trainer.steps())
    with engine.whole_model() as model:
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    weights.pop("lm_head.weight", None)  # tied to the embedding
    weights["loss"] = torch.tensor([row["loss"] for row in rows])
    weights["grad_norm"] = torch.tensor([row["grad_norm"] for row in rows])
    weights["tokens"] = torch.tensor([row["tokens"] for row in rows])
    engine.close()
    return weights


def main() -> None:
    policy, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    rank, world, device = start_processes()
    for algorithm in sys.argv[3].split(","):
        for stage in sys.argv[4].split(","):
            weights = train(policy, algorithm, int(stage), rank, device)
            if rank == 0:
                save_file(weights, out / f"{algorithm}-zero{stage}-{world}.safetensors")


if __name__ == "__main__":
    main()
