"""The DeepSpeed engine, with one code path for one process or many, on CPU (gloo) or CUDA (nccl).

Importing this module is cheap; DeepSpeed itself takes seconds and is imported when an engine is made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from poise_core.config import ResourceSpec
from poise_core.config.protocol import TrainingSpec
from poise_core.files import write_atomically
from poise_core.policies.libraries import quiet_deepspeed

_LATEST = "latest.json"  # in a folder of checkpoints, names the newest whole one


def start_processes() -> tuple[int, int, torch.device]:
    """Join the process group that torchrun describes, or make one with this process alone.

    Returns:
        Rank, world size, device of this process.
    """
    deepspeed = quiet_deepspeed()
    cuda = torch.cuda.is_available()
    if not dist.is_initialized():
        if "RANK" not in os.environ:  # a single process needs no port and no agent
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
            dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo", verbose=False)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    return dist.get_rank(), dist.get_world_size(), device


def deepspeed_config(training: TrainingSpec, resources: ResourceSpec, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration of one training; micro-batches of a minibatch are its accumulation steps."""
    rows = training.batch_size // training.minibatches // world_size
    micro_batches = micro_batch_count(rows, resources.micro_batch_size)
    # ZeRO 2 on gloo needs all-reduce, because the backend does not implement reduce-scatter
    plain = {"overlap_comm": False, "reduce_scatter": False} if resources.zero_stage == 2 else {}
    return {
        "train_batch_size": micro_batches * world_size,
        "train_micro_batch_size_per_gpu": 1,  # counted in micro-batches; the trainer scales the loss itself
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": training.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": training.learning_rate,
                "betas": [0.9, 0.95],
                "eps": 1e-8,
                "weight_decay": training.weight_decay,
                "torch_adam": True,
                "fused": True,  # one kernel per update instead of about ten for every parameter
            },
        },
        "zero_optimization": {"stage": resources.zero_stage, **plain},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def micro_batch_count(rows: int, micro_batch_size: int) -> int:
    """Return the number of micro-batches per minibatch and process."""
    return -(-rows // micro_batch_size)


class Engine:
    """A model under DeepSpeed, with backward, step, gathered weights and checkpoints for the trainer."""

    def __init__(self, model: torch.nn.Module, training: TrainingSpec, resources: ResourceSpec) -> None:
        deepspeed = quiet_deepspeed()
        self.world_size = dist.get_world_size()
        self.stage = resources.zero_stage
        self._training = training
        self._updates = 0
        config = deepspeed_config(training, resources, self.world_size)
        self._engine, _, _, _ = deepspeed.initialize(
            model=model, model_parameters=[p for p in model.parameters() if p.requires_grad], config=config
        )
        self._engine.eval()  # dropout off; gradients are unaffected

    @property
    def model(self) -> Any:
        """The engine as a callable model; forward passes must go through it under ZeRO 3."""
        return self._engine

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of this process's share of the global loss; shares add up over processes."""
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)  # DeepSpeed averages over processes

    def step(self) -> float:
        """Finish a micro-batch, and update after the last one of a minibatch; return the unclipped gradient norm, or NaN."""
        boundary = self._engine.is_gradient_accumulation_boundary()
        if boundary:
            for group in self._engine.optimizer.param_groups:
                group["lr"] = self.learning_rate
            self._updates += 1
        norm = self._plain_norm() if boundary and self.stage == 0 else float("nan")
        self._engine.step()
        return float(self._engine.get_global_grad_norm()) if boundary and self.stage > 0 else norm

    def _plain_norm(self) -> float:
        """Compute the gradient norm where DeepSpeed, without ZeRO, keeps none; gradients are summed over processes already."""
        gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next update, with linear warm-up and then constant."""
        warmup = self._training.warmup_steps * self._training.minibatches * self._training.inner_epochs
        return self._training.learning_rate * min(1.0, (self._updates + 1) / (warmup + 1))

    @contextmanager
    def whole_model(self) -> Iterator[Any]:
        """Yield the module with all weights on every process (gathered under ZeRO 3), for sampling and saving."""
        module = self._engine.module
        if self.stage < 3:
            yield module
            return
        with quiet_deepspeed().zero.GatheredParameters(list(module.parameters()), modifier_rank=None):
            yield module

    def save_checkpoint(self, folder: Path, step: int, state: dict[str, Any]) -> None:
        """Write weights and optimizer of every process with the caller's ``state``, and remove the previous checkpoint.

        ``latest.json`` is replaced when the new checkpoint is whole, and the old one is removed after that. So the file names
        a whole checkpoint whenever a process is killed.
        """
        tag = f"step-{step}"
        content = {"state": state, "updates": self._updates}
        self._engine.save_checkpoint(str(folder), tag=tag, client_state=content, save_latest=False)
        dist.barrier()
        if dist.get_rank() == 0:
            write_atomically(folder / _LATEST, json.dumps({"tag": tag, **self._layout()}))
            for old in folder.glob("step-*"):
                if old.name != tag:
                    shutil.rmtree(old)

    def load_checkpoint(self, folder: Path) -> dict[str, Any] | None:
        """Restore the latest checkpoint and return its state; None where no checkpoint fits.

        Every process stores its own part of weights and optimizer, so a checkpoint fits only the same number of processes
        and the same ZeRO stage.
        """
        latest = folder / _LATEST
        if not latest.exists():
            return None
        found = json.loads(latest.read_text())
        if found != {"tag": found["tag"], **self._layout()}:
            return None
        _, content = self._engine.load_checkpoint(str(folder), tag=found["tag"])
        self._updates = int(content["updates"])
        state: dict[str, Any] = content["state"]
        return state

    def _layout(self) -> dict[str, int]:
        return {"processes": self.world_size, "zero_stage": self.stage}

    def close(self) -> None:
        """Release the engine's hooks and buffers, so that another engine can be made in this process."""
        self._engine.destroy()
