"""The DeepSpeed engine, with one code path for one process or many, on CPU (gloo) or CUDA (nccl).

Importing this module is cheap; DeepSpeed itself takes seconds and is imported when an engine is made.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from poise_core.config import ResourceSpec
from poise_core.config.protocol import TrainingSpec
from poise_core.files import write_atomically
from poise_core.policies.libraries import quiet_deepspeed

_LATEST = "latest.json"  # in a folder of checkpoints, names the newest whole one


def start_processes(timeout_seconds: float = 1800.0) -> tuple[int, int, torch.device]:
    """Join the process group that torchrun describes, or make one with this process alone.

    The process should end by :func:`~poise_core.policies.libraries.leave`: in a regular end the group's threads may still run
    when their objects are destroyed, which aborts the process (seen with gloo, rarely) after all its work is done.

    Args:
        timeout_seconds: how long a process waits for the others in a collective operation.

    Returns:
        Rank, world size, device of this process.
    """
    deepspeed = quiet_deepspeed()
    cuda = torch.cuda.is_available()
    if not dist.is_initialized():
        if "RANK" not in os.environ:  # a single process needs no port and no agent
            os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
            dist.init_process_group("nccl" if cuda else "gloo", store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed(
            dist_backend="nccl" if cuda else "gloo", verbose=False, timeout=timedelta(seconds=timeout_seconds)
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    return dist.get_rank(), dist.get_world_size(), device


def deepspeed_config(
    training: TrainingSpec, resources: ResourceSpec, world_size: int, *, half: bool = False
) -> dict[str, Any]:
    """Return DeepSpeed's configuration of one training; micro-batches of a minibatch are its accumulation steps.

    With ``half``, for weights in bfloat16, DeepSpeed keeps weights and optimizer in float32 and sums and reduces gradients in
    float32, which it does from ZeRO 1 on. With a budget of tokens the trainer itself says which micro-batch is the last.
    """
    rows = training.batch_size // training.minibatches // world_size
    micro_batches = 1 if resources.micro_batch_tokens else micro_batch_count(rows, resources.micro_batch_size)
    stage = zero_stage(resources, half=half)
    # ZeRO 2 on gloo needs all-reduce, because the backend does not implement reduce-scatter
    plain = {"overlap_comm": False, "reduce_scatter": False} if stage == 2 else {}
    precision = {
        "bf16": {"enabled": True, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
    }
    return {
        **(precision if half else {}),
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
        "zero_optimization": {"stage": stage, **plain},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def zero_stage(resources: ResourceSpec, *, half: bool) -> int:
    """Return DeepSpeed's stage; ZeRO 0 would keep weights in half precision without their float32 originals."""
    return max(1, resources.zero_stage) if half else resources.zero_stage


def micro_batch_count(rows: int, micro_batch_size: int) -> int:
    """Return the number of micro-batches per minibatch and process."""
    return -(-rows // micro_batch_size)


class Engine:
    """A model under DeepSpeed, with backward, step, gathered weights and checkpoints for the trainer."""

    def __init__(self, model: torch.nn.Module, training: TrainingSpec, resources: ResourceSpec) -> None:
        deepspeed = quiet_deepspeed()
        self.world_size = dist.get_world_size()
        half = next(model.parameters()).dtype == torch.bfloat16
        self.stage = zero_stage(resources, half=half)
        self._training, self._resources = training, resources
        self._updates = 0
        self._recomputing: list[torch.nn.Module] = []
        if resources.gradient_checkpointing:
            self._recomputing = _recomputing_layers(model)
        config = deepspeed_config(training, resources, self.world_size, half=half)
        self._engine, _, _, _ = deepspeed.initialize(
            model=model, model_parameters=[p for p in model.parameters() if p.requires_grad], config=config
        )
        self._engine.eval()  # dropout off; gradients are unaffected
        self._recompute(True)

    @property
    def model(self) -> Any:
        """The engine as a callable model; forward passes must go through it under ZeRO 3."""
        return self._engine

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulate the gradient of this process's share of the global loss; shares add up over processes.

        Args:
            loss: the share.
            last: whether it belongs to the last micro-batch of a minibatch; where their number is fixed, DeepSpeed counts itself.
        """
        if self._resources.micro_batch_tokens:
            self._engine.set_gradient_accumulation_boundary(last)
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

    @property
    def skipped_updates(self) -> int:
        """Updates that DeepSpeed has left out because a gradient was not finite; it says so nowhere else."""
        return int(self._engine.skipped_steps)

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
        """Yield the module with all weights on every process (gathered under ZeRO 3), for sampling and saving.

        Meanwhile the moments of the optimizer are in main memory where the resources say so.
        """
        module = self._engine.module
        self._recompute(False)  # a layer that recomputes keeps no cache
        with self._parked_optimizer():
            if self.stage < 3:
                yield module
            else:
                with (
                    quiet_deepspeed().zero.GatheredParameters(list(module.parameters()), modifier_rank=None),
                    self._unhooked(),
                ):
                    yield module
        self._recompute(True)

    @contextmanager
    def _unhooked(self) -> Iterator[None]:
        """Take DeepSpeed's hooks off the modules, and put them back afterwards.

        In a forward pass they gather the weights of each module and part them again. Processes that decode different numbers of
        tokens would wait for each other in vain.
        """
        offload = self._engine.optimizer.parameter_offload
        taken = []
        for handle in (offload.fwd_pre_hook, *offload.forward_hooks, *offload.backward_hooks):
            hooks = handle.hooks_dict_ref()
            taken.append((hooks, handle.id, hooks.pop(handle.id)))
        yield
        for hooks, number, hook in taken:  # of each module in their order
            hooks[number] = hook

    def _recompute(self, on: bool) -> None:
        for layer in self._recomputing:
            layer.training = on  # of the layer alone, not of the modules inside, whose dropout stays off

    @contextmanager
    def _parked_optimizer(self) -> Iterator[None]:
        """Move the optimizer's moments to main memory, and back afterwards.

        DeepSpeed's own ``offload_states`` knows its fused Adam only; here the moments, 8 bytes a weight, lie in torch's optimizer
        below that of DeepSpeed.
        """
        if not self._resources.offload_optimizer:
            yield
            return
        optimizer = self._engine.optimizer if self.stage == 0 else self._engine.optimizer.optimizer
        moments = [(state, name) for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        moments = [(state, name) for state, name in moments if name in state]
        devices = [state[name].device for state, name in moments]
        for state, name in moments:
            state[name] = state[name].to("cpu")
        yield
        for (state, name), device in zip(moments, devices, strict=True):
            state[name] = state[name].to(device)

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


def _recomputing_layers(model: Any) -> list[torch.nn.Module]:
    """Have a model compute its layers' activations anew in the backward pass, and return these layers."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
