"""The resources that a run may use, which change its duration but not its results."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from poise_core.config.protocol import FrozenModel


class SamplerResources(FrozenModel):
    """What a sampler may use; in a process of its own where ``protocol.sampler`` names one."""

    environment: str | None = Field(
        None, description="folder that 'poise sampler install' has made; by default its own default"
    )
    memory_gib: PositiveFloat = Field(4.0, description="for caches; of a GPU that an engine uses, see memory_share")
    memory_share: PositiveFloat = Field(0.4, le=1.0, description="share of a GPU's memory that an engine takes")
    context: PositiveInt | None = Field(
        None, description="longest prompt with its completion, in tokens; by default the policy's"
    )
    parallel: PositiveInt = Field(1, description="GPUs over which the engine spreads one policy")
    start_seconds: PositiveFloat = Field(600.0, description="limit for the start of an engine")
    timeout_seconds: PositiveFloat = Field(600.0, description="limit for the rollout of one step, or one benchmark")


class ResourceSpec(FrozenModel):
    """The resources that a run may use, which change its duration but not its results."""

    parallel_candidates: PositiveInt = 2
    processes_per_training: PositiveInt = Field(1, description="processes of one training, on each of its nodes")
    nodes: PositiveInt = Field(
        1,
        description="machines over which one training goes; each runs the same command, on storage that all of them share",
    )
    rendezvous: str | None = Field(
        None,
        description="HOST or HOST:PORT of the node where the run lives, as the others reach it; by default MASTER_ADDR and "
        "MASTER_PORT of the scheduler, or its name and a free port",
    )
    rendezvous_seconds: PositiveFloat = Field(300.0, description="within which all nodes must have come")
    threads_per_process: PositiveInt = 1
    micro_batch_size: PositiveInt = Field(128, description="completions per forward pass of the update, per process")
    micro_batch_tokens: PositiveInt | None = Field(
        None,
        description="tokens per forward pass of the update, per process, padding included, in place of micro_batch_size; a longer "
        "sequence has a pass of its own",
    )
    zero_stage: int = Field(
        0, ge=0, le=3, description="what DeepSpeed spreads over the processes; bfloat16 takes 1 where 0 is given"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations anew in the backward pass: less memory, a third more time in the update"
    )
    offload_optimizer: bool = Field(
        False, description="keep the optimizer's states in main memory while completions are sampled"
    )
    group_timeout_seconds: PositiveFloat = Field(
        1800.0,
        description="how long a process of a training waits for the others; longer than their rollouts may differ",
    )
    train_timeout_seconds: PositiveFloat = 600.0
    evaluate_timeout_seconds: PositiveFloat = 600.0
    verify_timeout_seconds: PositiveFloat = 60.0
    memory_gib: PositiveFloat | None = Field(
        None,
        description="main memory of a training process; by default the machine's or its container's, shared equally",
    )
    allow_shared_network: bool = Field(
        False,
        description="train also where the machine grants no network namespace; candidate code then shares the machine's network",
    )
    checkpoint_steps: int = Field(25, ge=0, description="training steps between checkpoints; 0 for none")
    infrastructure_retries: int = Field(2, ge=0)
    dispatch: Literal["inline", "pool"] = Field(
        "inline", description="where candidates train: in the evolution's own process, or each as a flow run of its own"
    )
    dispatch_deployment: str = Field(
        "evaluate-candidate/evaluate-candidate",
        description="flow/deployment that is given the candidates under 'pool'; its work pool is where they train",
    )
    gpus_per_candidate: PositiveInt | None = Field(
        None,
        description="GPUs that a training or evaluation, with its sampler, has for itself; by default all see all of the machine",
    )
    slots_limit: str | None = Field(
        None,
        description="a global concurrency limit of Prefect, such as gpu: a training or evaluation holds one of its slots "
        "per process; none where nothing is given",
    )
    sampler: SamplerResources = Field(default_factory=SamplerResources)

    @model_validator(mode="after")
    def _nodes_fit(self) -> ResourceSpec:
        if self.nodes > 1 and (self.parallel_candidates > 1 or self.dispatch == "pool"):
            raise ValueError(
                f"nodes is {self.nodes}: a training over several nodes has them for itself; set parallel_candidates to 1 and "
                "dispatch to inline"
            )
        if self.gpus_per_candidate and (self.nodes > 1 or self.gpus_per_candidate < self.processes_per_training):
            raise ValueError(
                f"gpus_per_candidate is {self.gpus_per_candidate}: it must be at least processes_per_training, and belongs to "
                "trainings on one node"
            )
        return self

    @property
    def training_processes(self) -> int:
        """Processes of one training on all its nodes, each with a GPU where there are GPUs."""
        return self.nodes * self.processes_per_training

    @property
    def gpus_held(self) -> int:
        """GPUs that a candidate holds while it is trained and scored, where there are GPUs."""
        return self.gpus_per_candidate or self.training_processes
