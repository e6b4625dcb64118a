"""verl itself, in packages of its own that are made once and kept in the user's cache, and the process that runs it.

verl needs other versions than this package, so that its packages go into a folder that only that process has on its path; torch,
numpy and transformers are those of this interpreter. Only what verl's advantages, losses and configuration import is installed.
As a program, ``real_verl.py FOLDER``, this file answers the cases of ``FOLDER/cases.pt``; it imports nothing of this package then.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from kept_packages import kept_packages

VERSION = "0.9.1"
PACKAGES = (
    "hydra-core==1.3.2", "omegaconf==2.3.0", "antlr4-python3-runtime==4.9.3", "tensordict==0.10.0", "pyvers==0.1.0",
    "torchdata==0.11.0", "codetiming==1.4.0", "accelerate==1.15.0", "peft==0.19.1", "ray==2.55.1", f"verl=={VERSION}",
)  # fmt: skip


def packages() -> Path:
    """The folder with verl and what it needs; the test is skipped where the package index cannot be had."""
    return kept_packages(f"verl-{VERSION}", PACKAGES)


def run(folder: Path) -> None:
    """Answer ``folder/cases.pt`` in ``folder/answers.pt``; ``folder/plugins`` holds modules with their entry points."""
    path = [str(packages()), str(folder / "plugins")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1", "HYDRA_FULL_ERROR": "1"}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]


def answer(case: dict[str, Any], config: Any) -> dict[str, Any]:
    """Advantages, losses and gradients of a case through verl's own calls, as its default trainer makes them.

    ``compute_advantage`` and ``response_to_nested`` are called as in ``PPOTrainer._compute_advantage``, and ``ppo_loss`` as by the
    engines: with jagged rows and with the numbers of tokens and rows of the whole batch.
    """
    import numpy as np
    from tensordict import TensorDict
    from verl.protocol import DataProto
    from verl.trainer.ppo.ray_trainer import compute_advantage
    from verl.utils import omega_conf_to_dataclass, tensordict_utils
    from verl.workers.utils.losses import ppo_loss
    from verl.workers.utils.padding import response_to_nested

    def jagged(rows: list[Any]) -> Any:
        return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)

    masks = jagged(case["masks"])
    given = TensorDict({"response_mask": masks, "rm_scores": jagged(case["rewards"])}, batch_size=len(case["uids"]))
    data = DataProto(batch=given.to_padded_tensor())
    data.batch["token_level_rewards"] = data.batch["rm_scores"]
    data.non_tensor_batch["uid"] = np.array(case["uids"], dtype=object)
    data = compute_advantage(data, adv_estimator=config.algorithm.adv_estimator, config=config.algorithm)
    advantages = response_to_nested(data.batch["advantages"], masks).unbind()

    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    losses, gradients, metrics = [], {}, []
    for rows in case["micro_batches"]:
        prompts = [torch.zeros(2 + row % 3, dtype=torch.long) for row in rows]
        # the model's outputs: one number per token of prompt and completion, about the token that comes next
        leaves = [case["logprobs"][row].clone().requires_grad_() for row in rows]
        pairs = list(zip(prompts, leaves, strict=True))
        outputs = [torch.cat([one.float()[1:], leaf, torch.zeros(1)]) for one, leaf in pairs]
        fields = {
            "prompts": jagged(prompts),
            "responses": jagged([torch.zeros(len(leaf), dtype=torch.long) for leaf in leaves]),
            "response_mask": jagged([case["masks"][row] for row in rows]),
            "old_log_probs": jagged([case["old"][row] for row in rows]),
            "advantages": jagged([advantages[row] for row in rows]),
            "rollout_is_weights": jagged([case["weights"][row] for row in rows]),
        }
        batch = TensorDict(fields, batch_size=len(rows))
        tensordict_utils.assign_non_tensor(batch, **case["counts"])
        loss, told = ppo_loss(actor, {"log_probs": jagged(outputs)}, batch)
        loss.backward()
        losses.append(loss.detach())
        gradients.update({row: leaf.grad for row, leaf in zip(rows, leaves, strict=True)})
        metrics.append({key: float(value.aggregate()) for key, value in told.items()})
    return {"advantages": list(advantages), "losses": losses, "gradients": gradients, "metrics": metrics}


def main(folder: Path) -> None:
    """Answer the cases; a ``ValueError`` of a case is its answer."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn

    torch.set_num_threads(1)
    answers = []
    with initialize_config_module("verl.trainer.config", version_base=None):
        for case in torch.load(folder / "cases.pt"):
            config = compose("ppo_trainer", overrides=case["overrides"])
            OmegaConf.resolve(config)
            for found in (get_adv_estimator_fn(case["module"]), get_policy_loss_fn(case["module"])):
                assert found.__module__ == case["module"]
            try:
                answers.append(answer(case, config))
            except ValueError as error:
                answers.append({"refused": str(error)})
    torch.save(answers, folder / "answers.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
