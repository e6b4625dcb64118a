"""A candidate as one self-contained file for another trainer, with what it rests on and what was left out in its header.

Nothing of the candidate is run here: it is read, checked against the candidate language, and copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from poise_core.candidate.identity import candidate_name, source_digest
from poise_core.escaping import one_line
from poise_core.export import adapters, trl_adapter
from poise_core.export.candidate_source import PRELUDE, ExportError, Reading, inlined, read_source
from poise_core.verification.language.check import check_language
from poise_core.verification.language.vocabulary import LanguageError

__all__ = ["TARGETS", "ExportError", "Exported", "export_candidate"]

ADVANTAGES = "advantages"
"""Stands for compute_advantages in ``without``, where a trainer has no place for it."""

_NEVER = ("old_logprobs", "ref_logprobs", "entropies", "format_valid", "controller", "carry")


@dataclass(frozen=True)
class Target:
    """A trainer: what it is called, what was tested, what it cannot give, and how the file is used there."""

    title: str
    tested: str
    adapter: str
    notes: tuple[str, ...]
    usage: str
    everything: bool = False  # whether the adapter can give all that the contract names


TARGETS = {
    "trl": Target(
        "TRL",
        "TRL 1.16.0: advantages, losses and gradients through the methods of GRPOTrainer",
        trl_adapter.TRL,
        (
            "loss_type, scale_rewards and epsilon of GRPOConfig do not count; the loss and the reduction are the file's own",
            "without a reward function named format_valid, every completion that was not cut off counts as valid",
            "the correctness of a completion that was cut off or is not valid is 0, whatever its reward, as in POISE",
            "one step of the algorithm's dynamics and controller is one generation batch; their state lies in each checkpoint",
        ),
        """\
from {module} import PoiseGRPOTrainer   # instead of trl.GRPOTrainer, with the same arguments
trainer = PoiseGRPOTrainer(model, reward_funcs=[{rewards}], args=GRPOConfig({beta}), train_dataset=problems)
trainer.train()""",
        everything=True,
    ),
    "verl": Target(
        "verl",
        "verl 0.9.1: advantages, losses and gradients through its compute_advantage and ppo_loss",
        adapters.VERL,
        (
            "a completion counts as cut off where it fills max_response_length, and its correctness is 0 then; all others count as "
            "valid",
            "verl's padding, prompts of which no completion has a token, is not shown to the algorithm",
            "the ratio is to verl's old_log_prob; sampler corrections come as rollout_is_weights and multiply token losses",
        ),
        """\
# pyproject.toml of the package that holds {module}.py (an environment variable would not reach Ray's workers):
[project.entry-points."verl.plugins"]
{name} = "{module}"

python -m verl.trainer.main_ppo algorithm.adv_estimator={name} algorithm.use_kl_in_reward=False \\
  actor_rollout_ref.actor.policy_loss.loss_mode={name} actor_rollout_ref.actor.loss_agg_mode={mode} \\
  actor_rollout_ref.actor.entropy_coeff=0 actor_rollout_ref.actor.use_kl_loss=False \\
  '+algorithm.max_response_length=${{data.max_response_length}}' \\
  'actor_rollout_ref.actor.loss_scale_factor=${{data.max_response_length}}'""",
    ),
    "prime-rl": Target(
        "prime-rl",
        "no version was run: written against docs/bring-your-own-algorithms.md of prime-rl",
        adapters.PRIME_RL,
        (
            "the ratio is to inference_logprobs, the sampler's, and not to the trainer's own",
            "the hook for advantages is that of the page; a version without [orchestrator.advantage] cannot use this file",
            "statistics over the batch see the examples of one call",
            "every completion counts as valid and as not cut off; in POISE the correctness of one that was cut off is 0",
        ),
        """\
[trainer.loss]
type = "custom"
import_path = "{module}.poise_prime_rl_loss"

[orchestrator.advantage]
type = "custom"
import_path = "{module}.poise_prime_rl_advantage\"""",
    ),
    "openrlhf": Target(
        "OpenRLHF",
        "OpenRLHF itself was not run: written against PolicyLoss of openrlhf/models/loss.py of 0.11.2",
        adapters.OPENRLHF,
        (
            "compute_advantages is not used: OpenRLHF's own estimator gives the advantages",
            "losses are divided by the tokens or completions of the whole update, which OpenRLHF 0.11 counts; where an older one "
            "hands over no counts, each micro-batch is reduced by itself",
            "eps_clip, eps_clip_low_high, dual_clip, policy_loss_type and loss_agg_mode do not count in the loss",
            "is_correction_level must be off; kl.use_loss and entropy_coef would add OpenRLHF's own terms",
        ),
        """\
python -c "import {module}, runpy; runpy.run_module('openrlhf.cli.train_ppo_ray', run_name='__main__')" ...
# every Ray worker has to import {module}: put `import {module}` into a sitecustomize.py of its environment""",
    ),
}


@dataclass(frozen=True)
class Exported:
    """The text of an exported file and how to use it."""

    text: str
    usage: str
    notes: tuple[str, ...]


def export_candidate(
    source: str, name: str, to: str, *, without: Sequence[str] = (), evidence: Sequence[str] = (), module: str = ""
) -> Exported:
    """Write the candidate as one file for a trainer.

    Args:
        source: text of the candidate file.
        name: of the candidate, for people.
        to: a key of ``TARGETS``.
        without: mechanisms of the file that are switched off, or ``advantages``.
        evidence: lines for the header; texts of candidates in them are made harmless here.
        module: name under which the file will be imported; by default made of the candidate's.

    Raises:
        ExportError: the target cannot carry it, or the text is no candidate; one line.
    """
    target = TARGETS[to]
    try:
        tree = check_language(source)
    except LanguageError as error:
        raise ExportError(f"{name} is outside the candidate language: {error}") from error
    try:
        reading = read_source(tree)
    except ValueError as error:
        raise ExportError(f"{name} cannot be read: {error}") from error
    overrides: dict[str, Any] = {}
    for one in without:
        if one in reading.mechanisms:
            overrides.update(reading.mechanisms[one])
        elif one != ADVANTAGES:
            raise ExportError(f"{name} has no mechanism {one!r}; it has {', '.join(reading.mechanisms) or 'none'}")
    absent = () if target.everything else _absent(reading, name, to, target, without)
    shim, candidate = inlined(source, tree)
    module = module or candidate_name(name).lower().replace("-", "_").replace(".", "_") + "_" + to.replace("-", "_")
    notes = _notes(reading, target, without, absent)
    usage = target.usage.format(
        module=module,
        name=module,
        rewards="correct, format_valid" if "format_valid" in reading.advantages | reading.loss else "correct",
        beta="beta=1e-3" if "ref_logprobs" in reading.advantages | reading.loss else "",
        mode={"token-mean": "token-mean", "sequence-mean": "seq-mean-token-mean"}.get(
            reading.aggregation, "seq-mean-token-sum-norm"
        ),
    )
    header = _header(name, source, target, evidence, notes, usage)
    constants = _constants(reading, module, overrides, absent)
    parts = [
        header + "\n" + PRELUDE,
        "# ---- the contract and the reductions of POISE that the algorithm uses\n\n\n" + shim,
        f"# ---- the algorithm, as it was measured (SHA-256 {source_digest(source)})\n\n" + candidate,
        f"# ---- the adapter for {target.title}\n\n" + constants + adapters.RUNTIME,
        target.adapter.strip("\n") + "\n",
    ]
    text = "\n\n".join(parts)
    compile(text, "<exported>", "exec", dont_inherit=True)
    return Exported(text, usage, notes)


def _absent(reading: Reading, name: str, to: str, target: Target, without: Sequence[str]) -> tuple[str, ...]:
    """What the loss names and the target cannot give; an exported file checks when it is imported that it does not matter."""

    def refuse(what: str, hint: str) -> ExportError:
        return ExportError(f"{target.title} {what}, which {name} needs; {hint}")

    mechanisms = ", ".join(reading.mechanisms) or "it names none"
    off = f"leave out the mechanism that reads it with --without NAME (of {mechanisms}), or use --to trl"
    if to == "openrlhf" and ADVANTAGES not in without:
        raise refuse("has no place for compute_advantages", "add --without advantages to take its own estimator")
    if ADVANTAGES in without and to != "openrlhf":
        raise ExportError(f"{target.title} has a place for compute_advantages; drop --without advantages")
    if to == "prime-rl" and reading.aggregation != "token-mean":
        raise refuse(f"divides by tokens and so cannot average as {reading.aggregation}", "use --to trl or --to verl")
    if to == "openrlhf" and reading.aggregation == "sequence-sum":
        raise refuse("gives no length limit to divide by", "use --to trl or --to verl")
    if ADVANTAGES not in without:
        for field in _NEVER:
            if field in reading.advantages and field != "carry":
                raise refuse(f"gives compute_advantages no {field}", "use --to trl")
        if to == "prime-rl" and "truncated" in reading.advantages:
            raise refuse("gives compute_advantages no truncated", "use --to trl")
        if reading.masks and not without:
            raise refuse("has no place for a train_mask", off)
    for field in ("carry", "correctness", "format_valid"):
        if field in reading.loss:
            raise refuse(f"gives compute_loss no {field}", "use --to trl")
    used = reading.loss if ADVANTAGES in without else reading.loss | reading.advantages
    known = {"controller", "max_completion_length"} if to == "verl" else {"controller"}
    scalars = sorted((reading.dynamics & used) - known)
    if scalars:
        raise refuse(f"has no dynamics.{scalars[0]}", "use --to trl")
    absent = tuple(field for field in ("entropies", "ref_logprobs", "controller") if field in reading.loss)
    if absent and not [one for one in without if one != ADVANTAGES]:
        raise refuse(f"gives compute_loss no {absent[0]}", off)
    return absent


def _notes(reading: Reading, target: Target, without: Sequence[str], absent: Sequence[str]) -> tuple[str, ...]:
    notes = list(target.notes)
    notes += [f"left out: {one}" for one in without]
    if absent:
        notes.append(
            f"not given to the loss: {', '.join(absent)}; the file refuses to be imported where that would matter"
        )
    if reading.controller and not target.everything:
        notes.append("update_controller is never called")
    return tuple(notes)


def _header(name: str, source: str, target: Target, evidence: Sequence[str], notes: Sequence[str], usage: str) -> str:
    lines = [
        "Exported by POISE; it needs torch and, to train, the trainer. It runs without the confinement of POISE: read it first.",
        "",
        f"Algorithm: {one_line(name, 100)}",
        f"Trainer: {target.title}. Tested with: {target.tested}.",
        f"Source digest (SHA-256): {source_digest(source)}",
        "",
        "Evidence:",
        *[f"  {one_line(line, 400)}" for line in evidence or ("none: exported from a file and not from a run",)],
        "",
        "What is different here:",
        *[f"  - {one_line(note)}" for note in notes],
        "",
        "Use:",
        *[f"  {line}" for line in usage.splitlines()],
    ]
    return "\n".join(f"# {line}".rstrip() for line in lines) + "\n"


def _constants(reading: Reading, module: str, overrides: dict[str, Any], absent: Sequence[str]) -> str:
    read = reading.advantages | reading.loss
    values = {
        "POISE_NAME": module,
        "POISE_OVERRIDES": overrides,
        "POISE_ABSENT": tuple(absent),
        "POISE_CONTROLLER_KEYS": reading.controller_keys if "controller" in absent else (),
        "POISE_CONTROLLER": reading.controller,
        "POISE_NEEDS_REFERENCE": "ref_logprobs" in read or "kl" in reading.dynamics,
        "POISE_NEEDS_FORMAT": "format_valid" in read,
        "POISE_NEEDS_SCORING": bool({"old_logprobs", "entropies"} & reading.advantages)
        or bool({"entropy", "kl"} & reading.dynamics)
        or reading.controller,
        "POISE_NEEDS_GRAD_NORM": "grad_norm" in read or reading.controller,
        "POISE_LOSS_NEEDS_LIMIT": "max_completion_length" in reading.loss or reading.aggregation == "sequence-sum",
    }
    return "".join(f"{key} = {value!r}\n" for key, value in values.items())
