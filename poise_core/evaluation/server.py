"""The sampler's process: it holds the weights and the answers, and runs outside every confinement.

``poise_core.evaluation.slots`` starts it as ``python -I -m poise_core.evaluation.server CONFIG`` and gives it orders as lines of
JSON. For a training it watches the folder of the rendezvous (``poise_core/sampling/handover.py``): it takes the weights of a step,
derives the prompts from (seed, step) itself, samples, grades, and writes completions with verdicts, so that no answer enters the
process of a candidate. An evaluation it carries out whole. The engine behind it is any ``Sampler``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch

from poise_core.config.protocol import EnvironmentSpec, Protocol, SamplerSpec, TrainingSpec
from poise_core.config.resources import SamplerResources
from poise_core.environments import Environment, Problem, get_environment, verify_all
from poise_core.environments.prompts import step_problems, training_problems
from poise_core.evaluation.evaluate import evaluate_policy
from poise_core.failures import FaultKind, SamplerFault
from poise_core.files import UntrustedFileError, read_untrusted, write_atomically
from poise_core.policies.libraries import load_transformers
from poise_core.policies.model import PromptCodec, load_model, text_configuration
from poise_core.policies.prompt import ModelSpec, PromptSpec
from poise_core.randomness import ROLLOUT
from poise_core.sampling import handover
from poise_core.sampling.base import Requests, Sampled, Sampler
from poise_core.sampling.handover import RefusedWeights
from poise_core.sampling.local import Completions, padded_left, prompt_tokens
from poise_core.sampling.scripted import ScriptedSampler
from poise_core.sampling.vllm import VllmSampler

POLL_SECONDS = 0.005
ASKED_BYTES = 1 << 20


def make_sampler(
    spec: SamplerSpec, resources: SamplerResources, policy: Path, home: Path, *, stops: bool = False
) -> Sampler:
    """Return the sampler of a protocol, without a policy; with ``stops``, one that knows the words of its tokens.

    Raises:
        SamplerFault: it does not start, or has another version than the protocol asks for.
    """
    if spec.name == "vllm":
        context = resources.context or int(text_configuration(policy).max_position_embeddings)
        return VllmSampler(spec, resources, home, context=context, stops=stops)
    scripted = ScriptedSampler(memory_gib=resources.memory_gib, dtype=spec.dtype)
    if spec.version and scripted.identity()["version"] != spec.version:
        raise SamplerFault(
            FaultKind.OTHER_ENGINE,
            f"this is version {scripted.identity()['version']} and the protocol asks for {spec.version}",
        )
    return scripted


class _Training:
    """The training whose rollouts are served."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.folder = Path(document["exchange"])
        self.environment_spec = EnvironmentSpec.model_validate(document["environment"])
        self.environment: Environment = get_environment(self.environment_spec)
        self.training = TrainingSpec.model_validate(document["training"])
        self.seeds: list[int] = document["seeds"]
        prompt = document["prompt"]
        self.codec = PromptCodec.load(Path(document["policy"]), PromptSpec.model_validate(prompt) if prompt else None)
        self._problems: dict[int, list[Problem]] = {}

    def problems(self, seed: int, step: int) -> list[Problem]:
        """Return the problems of one step, of which the training's process knows the prompts only."""
        if seed not in self._problems:
            self._problems = {seed: training_problems(self.environment_spec, seed)}
        return step_problems(self._problems[seed], self.training, step)


class Server:
    """Serves one training or one evaluation at a time with one engine."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._spec = SamplerSpec.model_validate(config["sampler"])
        self._resources = SamplerResources.model_validate(config["resources"])
        self._home, self._policy = Path(config["home"]), Path(config["policy"])
        self._expected = handover.policy_tensors(self._policy, self._spec.dtype)
        self._vocabulary = int(text_configuration(self._policy).vocab_size)
        self._loads = 0
        self._stops = bool(config.get("stops"))
        self._engine: Sampler = self._made()
        self._job: _Training | None = None
        self._engine.load("base", self._policy)  # so that an engine has started before a training's time begins
        _tell(event="ready", identity=dict(self._engine.identity()))

    def _made(self) -> Sampler:
        return make_sampler(self._spec, self._resources, self._policy, self._home, stops=self._stops)

    def obey(self, command: dict[str, Any]) -> None:
        """Carry out a command of the launcher."""
        kind = command["do"]
        if kind == "close":
            self._job = None
            _tell(event="closed")
        elif self._job is not None:
            raise SamplerFault(FaultKind.SLOT_TAKEN, f"it serves {self._job.folder}")
        elif kind == "open":
            self._job = _Training(command)
        else:
            self._evaluate(Path(command["job"]))

    def look(self) -> bool:
        """Serve what the training has asked; return whether there was anything."""
        if self._job is None:
            return False
        found = handover.asked_files(self._job.folder)
        for path in found:
            _tell(event="begin", what=path.stem)
            self._serve(self._job, path)
            _tell(event="end")
        return bool(found)

    def _serve(self, job: _Training, path: Path) -> None:
        try:
            asked = handover.Asked.model_validate_json(read_untrusted(path, ASKED_BYTES))
        except (UntrustedFileError, ValueError) as error:
            raise RefusedWeights(f"{path.name} is no request") from error
        if asked.version != path.stem or asked.seed not in job.seeds or asked.step >= job.training.steps:
            raise RefusedWeights(f"{path.name} asks for a step that is none of this training")
        for earlier in (job.folder / handover.ANSWERED).iterdir():
            earlier.unlink()
        folder = self._version_folder(asked.version)
        weights = path.with_name(asked.weights)
        handover.take_weights(weights, folder / "model.safetensors", asked.digest, self._expected)
        path.unlink()
        weights.unlink()
        self._load(asked.version, folder, asked.canary)
        problems = job.problems(asked.seed, asked.step)
        requests = Requests(
            prompts=prompt_tokens(job.codec, [problem.prompt for problem in problems]),
            samples=job.training.group_size,
            max_length=job.training.max_completion_length,
            eos_ids=job.codec.eos_ids,
            pad_id=job.codec.pad_id,
            key=(asked.seed, asked.step, ROLLOUT),
            temperature=job.training.temperature,
            stops=job.codec.stops,
        )
        sampled = self._sampled(requests, asked.version)
        tensors = _graded(job, requests, problems, sampled.completions)
        about = {"version": sampled.version, "identity": dict(self._engine.identity())}
        handover.answer(job.folder, asked.version, tensors, about)
        shutil.rmtree(folder, ignore_errors=True)

    def _version_folder(self, version: str) -> Path:
        """Make the folder of a version, whose path no other version ever has, with all of the policy but its weights."""
        self._loads += 1
        folder = self._home / "versions" / f"{self._loads}-{version}"
        folder.mkdir(parents=True)
        for file in self._policy.iterdir():
            if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json")):
                (folder / file.name).symlink_to(file.resolve())
        return folder

    def _load(self, version: str, folder: Path, canary: list[float]) -> None:
        """Load a version, with a fresh engine where the first answers as no such weights would.

        Raises:
            RefusedWeights: the weights, or what they compute, are not finite numbers.
            SamplerFault: GARBAGE, the fresh engine answers no better.
        """
        if not all(map(math.isfinite, canary)):
            raise RefusedWeights("the policy's log-probabilities are not finite", finite=False)
        for fresh in (False, True):
            if fresh:
                self._engine.close()
                self._engine = self._made()
            self._engine.load(version, folder)
            found = self._engine.score(handover.canary_ids(self._vocabulary))
            if handover.same_canary(found, canary):
                return
            if not _all_finite(folder / "model.safetensors"):
                raise RefusedWeights("the weights are not finite", finite=False)
        raise SamplerFault(
            FaultKind.GARBAGE,
            f"after loading {version} its log-probabilities are {_mean(found):.3f} a token and not {_mean(canary):.3f}, "
            "also with a fresh engine",
        )

    def _sampled(self, requests: Requests, version: str) -> Sampled:
        sampled = self._engine.sample(requests)
        if sampled.version != version:
            raise SamplerFault(FaultKind.STALE, f"version {sampled.version} answered where {version} was asked")
        return sampled

    def _evaluate(self, job_file: Path) -> None:
        document = json.loads(job_file.read_text())
        protocol = Protocol.model_validate(document["protocol"])
        base, key = Path(document["base"]), bytes.fromhex(document["key"])
        for seed, policy, result in document["policies"]:
            if Path(result).exists():
                continue
            folder = self._version_folder(f"evaluated-{seed}")
            for file in sorted(Path(policy).glob("*.safetensors*")):
                (folder / file.name).symlink_to(file.resolve())
            found = handover.file_tensors(folder.glob("*.safetensors"))
            kinds = {
                name: (kind, self._expected[name][1]) for name, (kind, _) in found.items() if name in self._expected
            }
            handover.refuse_other_tensors(found, {**self._expected, **kinds})
            version = f"{job_file.parent}/{seed}"
            _tell(event="begin", what=f"weights of seed {seed}")
            self._load(version, folder, handover.canary(load_model(folder, ModelSpec(dtype=self._spec.dtype))))
            _tell(event="end")
            evaluation = evaluate_policy(
                Path(policy),
                protocol,
                document["split"],
                seed,
                base=base,
                key=key,
                sampler=_Told(self, version),
                parts=Path(result).with_suffix(".parts"),
            )
            write_atomically(Path(result), evaluation.to_json())
            shutil.rmtree(folder, ignore_errors=True)
        _tell(event="evaluated")


class _Told:
    """The engine of a server as an evaluation sees it: each benchmark is told to the launcher, and versions are compared."""

    def __init__(self, server: Server, version: str) -> None:
        self._server, self._version = server, version

    def sample(self, requests: Requests) -> Sampled:
        """See ``Sampler.sample``."""
        _tell(event="begin", what=f"{requests.rows} completions")
        sampled = self._server._sampled(requests, self._version)
        _tell(event="end")
        return sampled


def _graded(
    job: _Training, requests: Requests, problems: list[Problem], completions: Completions
) -> dict[str, torch.Tensor]:
    """Return what the training gets: prompts, completions and verdicts, as tensors on the processor; rows in group order."""
    texts = job.codec.decode(completions.ids, completions.mask)
    owners = [problem for problem in problems for _ in range(requests.samples)]
    verdicts = verify_all(job.environment, owners, texts)
    prompt_ids, prompt_mask = padded_left(requests.prompts, requests.pad_id)
    tensors = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completions.ids,
        "completion_mask": completions.mask,
        "sampler_logprobs": completions.logprobs,
        "truncated": completions.truncated,
        "correctness": torch.tensor([verdict.correctness for verdict in verdicts]),
        "format_valid": torch.tensor([verdict.format_valid for verdict in verdicts]) & ~completions.truncated.cpu(),
    }
    return {name: value.cpu() for name, value in tensors.items()}


def _all_finite(path: Path) -> bool:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return all(bool(torch.isfinite(file.get_tensor(name)).all()) for name in file.keys())  # noqa: SIM118


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def _tell(**event: Any) -> None:
    _events.write(json.dumps(event) + "\n")
    _events.flush()


_events: Any = sys.stdout


def _listen(commands: SimpleQueue[dict[str, Any]], home: Path) -> None:
    for line in sys.stdin:
        commands.put(json.loads(line))
    shutil.rmtree(home, ignore_errors=True)
    os._exit(0)  # the launcher has gone, also in the middle of a rollout; a driver sees its own input end


def main(config_file: str) -> int:
    """Serve until the input ends; 1 after a fault, which is told in an event."""
    global _events
    _events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries and engines print is no event
    load_transformers()  # the fast way
    config = json.loads(Path(config_file).read_text())
    torch.set_num_threads(int(config["threads"]))
    commands: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(commands, Path(config["home"])), daemon=True).start()
    try:
        server = Server(config)
        while True:
            try:
                server.obey(commands.get_nowait())
            except Empty:
                if not server.look():
                    time.sleep(POLL_SECONDS)
    except RefusedWeights as error:
        _tell(event="refused", message=str(error), finite=error.finite)
    except SamplerFault as fault:
        _tell(event="fault", kind=fault.kind, message=fault.message)
    except torch.OutOfMemoryError as error:
        _tell(event="fault", kind=FaultKind.OUT_OF_MEMORY, message=str(error).splitlines()[0])
    except Exception as error:
        traceback.print_exc()
        _tell_of(error)
    return 1


def _tell_of(error: Exception) -> None:
    """Tell of an error that nothing on its way has named."""
    kind = FaultKind.DISK_FULL if handover.is_full(error) else FaultKind.DIED
    _tell(event="fault", kind=kind, message=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    os._exit(main(sys.argv[1]))
