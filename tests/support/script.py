"""Scripted answers of a helpful model: enough for a whole evolution against the loopback server."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from laboratory import Laboratory, make_preset
from llm_server import LoopbackServer, asked_form, prompt_of

from poise_core.candidate.identity import source_digest
from poise_core.config import Preset
from poise_core.failures import CandidateFailure, FailureKind

SOFT = 0.75
"""Bound of the file that answers a failed training."""

CLIPPED = '''"""GRPO with advantages bounded to +-{bound}.   A = clip((R - mean_g) / (std_g + eps), -{bound}, {bound})"""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.reductions import group_mean, group_std, log_ratio, to_tokens

LOSS_AGGREGATION = "sequence-mean"
MECHANISMS = {{"bounded_advantage": {{"bound": 100.0}}}}


@dataclass(frozen=True)
class Hyperparameters:
    bound: float = {bound}
    clip_eps: float = 0.2


def compute_advantages(batch: RolloutBatch, hp: Hyperparameters, dynamics: Dynamics) -> Advantages:
    centred = batch.correctness - group_mean(batch.correctness, batch.group_ids)  # (B,)
    scaled = centred / (group_std(batch.correctness, batch.group_ids) + 1e-4)
    return Advantages(values=to_tokens(torch.clamp(scaled, -hp.bound, hp.bound), batch.completion_mask))


def compute_loss(inputs: LossInputs, hp: Hyperparameters, dynamics: Dynamics) -> LossOutputs:
    ratio = torch.exp(log_ratio(inputs.logprobs, inputs.old_logprobs, inputs.mask))  # (B, T)
    clipped = torch.clamp(ratio, 1.0 - hp.clip_eps, 1.0 + hp.clip_eps)
    return LossOutputs(token_loss=-torch.minimum(ratio * inputs.advantages, clipped * inputs.advantages))
'''
"""A candidate that the gate admits; the bound is filled in, so that children differ."""

LINE = "return Advantages(values=to_tokens(torch.clamp(scaled, -hp.bound, hp.bound), batch.completion_mask))"


def proposal(direction: str, number: int, generation: str) -> dict[str, Any]:
    touches = ["compute_advantages", "compute_loss"] if generation == "G1" else ["Hyperparameters"]
    return {
        "direction": direction,
        "name": f"{direction.upper()[:4]}-{generation}{number}",
        "addresses": "nothing grave was diagnosed; the largest advantages dominate an update",
        "hypothesis": f"Bounding advantages steadies the update ({direction}).",
        "mechanism_change": f"advantages are clamped; variant {number} for {direction} in {generation}",
        "equations": ["A = clip((R - mean_g) / (std_g + eps), -b, b)"],
        "mechanisms": ["bounded_advantage"],
        "touches": touches,
        "expectations": [{"metric": "Overall", "direction": "increase", "why": "steadier updates"}],
    }


def implementation(bound: float) -> dict[str, Any]:
    return {
        "plan": ["keep the parent", "clamp the advantages"],
        "source": CLIPPED.format(bound=bound),
        "equations": [{"number": 1, "code": LINE}],
    }


def good_answers() -> Callable[[dict[str, Any]], Any]:
    """Answers to every form; the same prompt gets the same answer."""

    return lambda body: answer_to(asked_form(body), prompt_of(body))


def answer_to(form: str, prompt: str) -> Any:
    """The answer to one form."""
    if form == "ProposalsForm":
        directions = re.findall(
            r"^- (\w+): ", prompt.split("These families are offered")[1].split("Metrics")[0], re.MULTILINE
        )
        generation = re.search(r"generation: (\d+)", prompt)
        mark = f"G{int(generation.group(1)) + 1}" if generation else "G"
        return {"proposals": [proposal(one, number, mark) for number, one in enumerate(directions)]}
    if form == "ScreeningForm":
        count = len(re.findall(r'<data name="proposal_\d+">', prompt))
        return {"judgements": [judgement(index, 9.0 - index) for index in range(count)]}
    if form == "ImplementationForm":
        name = re.search(r"Write the candidate (\S+)\.", prompt)
        assert name is not None
        return implementation(1.0 + sum(map(ord, name.group(1))) % 97 / 50)
    assert form == "ReflectionForm", form
    return {
        "summary": "The bound took the edge off large advantages.",
        "diagnoses": [],
        "claims": [
            {"text": "Overall is what it is.", "cites": ["E1"]},
            {"text": "The moon is full.", "cites": []},
        ],
        "try_next": ["a softer bound"],
        "avoid": ["a bound below one"],
    }


def judgement(index: int, mark: float) -> dict[str, Any]:
    return {
        "index": index,
        "logic": mark,
        "feasibility": mark,
        "novelty": mark,
        "expected_gain": mark,
        "admissible": True,
        "reason": f"proposal {index} is sound",
    }


def preset_for(server: LoopbackServer, search: dict[str, Any] | None = None, **agents: Any) -> Preset:
    return preset_at(server.base_url, search, **agents)


def preset_at(base_url: str, search: dict[str, Any] | None = None, **agents: Any) -> Preset:
    given = {"model": "openai:test-model", "base_url": base_url, "timeout_seconds": 20, "retries": 0, **agents}
    chosen = search or {"generations": 1, "parents": 1, "proposals": 2}
    document = make_preset(**chosen).model_dump(mode="json")
    return Preset.model_validate({**document, "agents": given})


def diverging_at_first(laboratory: Laboratory) -> None:
    """The first file of every idea leaves the finite numbers at step 3, with a traceback that names the run's folder."""

    def step(name: str, digest: str, seed: int, step: int) -> dict[str, float]:
        if step == 3 and name != "GRPO" and digest not in mended:
            detail = f'Traceback:\n  File "{Path.cwd()}/candidates/{name}/candidate.py", line 30, in compute_loss'
            raise CandidateFailure(FailureKind.DIVERGED, "train", "the loss is not finite at step 3", detail)
        return {**Laboratory._noise_step(name, digest, seed, step), "kl": 0.01 * 10.0**step}

    mended = {source_digest(CLIPPED.format(bound=SOFT))}
    laboratory.step = step


def softened_when_told() -> Callable[[dict[str, Any]], Any]:
    """Good answers; a report on a training is answered with a softer bound."""
    good = good_answers()

    def script(body: dict[str, Any]) -> Any:
        told = asked_form(body) == "ImplementationForm" and "_train_report" in prompt_of(body)
        return implementation(SOFT) if told else good(body)

    return script
