"""Running a candidate on a probe the way the trainer does.

The trainer computes advantages once on the whole batch without gradients, hands each micro-batch its rows with zeros
outside the mask, and reduces with global denominators; the calls themselves (``poise_core.candidate.calls``) are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poise_core.candidate.calls import LossCall, call_advantages, call_loss, handed_inputs
from poise_core.candidate.loading import Candidate
from poise_core.contract import Advantages, Dynamics, LossInputs, LossOutputs, RolloutBatch
from poise_core.verification.probes import Probe


@dataclass(frozen=True)
class Run:
    """What a candidate did on one probe."""

    advantages: Advantages
    mask: Tensor  # (B, T) bool, the tokens that train
    inputs: LossInputs  # what the candidate was handed; ``logprobs`` and ``entropies`` are the leaves
    outputs: LossOutputs
    total: Tensor  # scalar, detached
    grad_logprobs: Tensor  # (B, T) d total / d logprobs, 0 outside the mask
    grad_entropies: Tensor  # (B, T) d total / d entropies, 0 outside the mask


def run_candidate(candidate: Candidate, probe: Probe, max_length: int | None = None) -> Run:
    """Advantages, loss and gradient of one probe as one micro-batch; ``max_length`` as in ``loss_and_gradient``.

    Raises:
        ContractViolation: the candidate raises, or returns something else than the contract says.
    """
    advantages = call_advantages(candidate, probe.batch, probe.dynamics)
    mask = claimed_mask(advantages, probe.batch)
    inputs = loss_inputs(candidate, probe, advantages)
    call = loss_and_gradient(candidate, inputs, probe.dynamics, mask, max_length)
    return Run(advantages, mask, call.inputs, call.outputs, call.total, call.grad_logprobs, call.grad_entropies)


def claimed_mask(advantages: Advantages, batch: RolloutBatch) -> Tensor:
    """The tokens that train by the candidate's word, inside ``completion_mask`` or not. (B, T) bool."""
    return batch.completion_mask if advantages.train_mask is None else advantages.train_mask


def ties_alone(batch: RolloutBatch, one: Tensor, other: Tensor) -> bool:
    """Whether two train masks differ in nothing but which of several completions with one outcome train.

    The completions of a prompt come in no order, so a candidate that trains some of those with one outcome may take the first
    of them. It may not let their place decide how many train, nor which outcomes.

    Args:
        batch: the rollout.
        one, other: (B, T) bool, in the order of the batch.
    """
    rows, others = one.any(-1), other.any(-1)
    both = (rows & others).unsqueeze(-1)
    if not torch.equal(one & both, other & both):
        return False
    kind = torch.unique(batch.correctness, return_inverse=True)[1]
    group = torch.unique(batch.group_ids, return_inverse=True)[1]
    place = group * (int(kind.max()) + 1) + kind  # of a completion: its group and outcome
    return torch.equal(place[rows].bincount(minlength=1), place[others].bincount(minlength=1))


def loss_inputs(candidate: Candidate, probe: Probe, advantages: Advantages, rows: Tensor | None = None) -> LossInputs:
    """The micro-batch of the given rows, by default of all in their order, as the candidate is handed a copy of it."""
    batch = probe.batch

    def taken(values: Tensor) -> Tensor:
        return values if rows is None else values[rows]

    inputs = LossInputs(
        logprobs=taken(probe.logprobs),
        entropies=taken(probe.entropies),
        old_logprobs=taken(batch.old_logprobs),
        ref_logprobs=taken(batch.ref_logprobs),
        advantages=taken(advantages.values),
        mask=taken(claimed_mask(advantages, batch)),
        carry={key: taken(value) for key, value in advantages.carry.items()},
        correctness=taken(batch.correctness),
        format_valid=taken(batch.format_valid),
    )
    return handed_inputs(candidate, inputs, taken(batch.completion_mask))


def denominators(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that train, and the completions with one among them; scalars."""
    return mask.sum(), mask.any(-1).sum()


def loss_and_gradient(
    candidate: Candidate,
    inputs: LossInputs,
    dynamics: Dynamics,
    whole_mask: Tensor,
    max_length: int | None = None,
    counts: tuple[Tensor, Tensor] | None = None,
) -> LossCall:
    """The micro-batch's share of the total loss and its gradients, with the denominators of ``whole_mask``.

    Args:
        candidate: the candidate.
        inputs: from ``loss_inputs``.
        dynamics: of the step.
        whole_mask: (B, T) bool, the tokens of the whole batch that train.
        max_length: T of the length limit, by default that of ``whole_mask``.
        counts: ``denominators(whole_mask)``, for a caller that has them already.
    """
    tokens, sequences = counts or denominators(whole_mask)
    return call_loss(
        candidate,
        inputs,
        dynamics,
        token_count=tokens,
        sequence_count=sequences,
        max_length=max_length or whole_mask.shape[1],
    )


def measured_text(source: str, name: str) -> str:
    """What a candidate does on fixed batches, for its author; its fault where it cannot be run. Executes candidate code.

    Shown are advantages by the state of a group, the share of the gradient that tokens get by their entropy, and the gradient's
    norm and its agreement with that at no drift as the current policy moves from the one that sampled.
    """
    from poise_core.candidate.calls import CallTimedOut, ContractViolation
    from poise_core.candidate.loading import CandidateError, load_candidate_source
    from poise_core.verification.language.check import check_language
    from poise_core.verification.language.vocabulary import LanguageError

    try:
        check_language(source)
        return numbers(load_candidate_source(source, name, wall=True))
    except (LanguageError, CandidateError, ContractViolation, CallTimedOut) as error:
        return f"it cannot be measured: {error}"


def numbers(candidate: Candidate) -> str:
    """See ``measured_text``.

    Raises:
        ContractViolation: the candidate raises, or returns something else than the contract says.
    """
    from poise_core.reductions import group_max, group_min
    from poise_core.verification.probes import make_probe, ordinary

    probe = ordinary()
    run = run_candidate(candidate, probe)
    batch = probe.batch
    inside = run.mask & batch.completion_mask
    best, worst = group_max(batch.correctness, batch.group_ids), group_min(batch.correctness, batch.group_ids)
    mixed = (best > 0) & (worst == 0)
    right = batch.correctness > 0
    lines = ["A fixed batch of five groups of six, three mixed, one all wrong, one all right:"]
    for told, rows in (
        ("right completions of mixed groups", mixed & right),
        ("wrong completions of mixed groups", mixed & ~right),
        ("all-wrong group", best == 0),
        ("all-right group", worst == 1),
    ):
        tokens = inside & rows.unsqueeze(-1)
        values = run.advantages.values[tokens]
        share = run.grad_logprobs[tokens].abs().sum() / run.grad_logprobs.abs().sum().clamp(min=1e-12)
        if values.numel():
            lines.append(
                f"{told}: advantage mean {float(values.mean()):+.3g}, from {float(values.min()):+.3g} to "
                f"{float(values.max()):+.3g}; {float(share):.0%} of the gradient on log-probabilities"
            )
        else:
            lines.append(f"{told}: no token trains")
    entropies, weight = probe.entropies[inside], run.grad_logprobs[inside].abs()
    if entropies.numel():
        ordered = weight[entropies.argsort(descending=True)]
        fifth = max(1, ordered.numel() // 5)
        total = ordered.sum().clamp(min=1e-12)
        lines.append(
            f"gradient by token entropy: {float(ordered[:fifth].sum() / total):.0%} on the fifth with the highest, "
            f"{float(ordered[-fifth:].sum() / total):.0%} on the fifth with the lowest"
        )
    bonus = float(run.grad_entropies.norm())
    lines.append(f"total loss {float(run.total):.4g}; norm of the gradient through entropies {bonus:.3g}")
    lines.append("As the policy drifts from the one that sampled and from the reference (SD of the log-ratios):")
    first: Tensor | None = None
    for drift in (0.0, 0.05, 0.15, 0.5, 1.0):
        drifted = run_candidate(candidate, make_probe("drift", (6, 6, 6), 12, 5, drift=drift))
        gradient = drifted.grad_logprobs
        first = gradient if first is None else first
        scale = (gradient.norm() * first.norm()).clamp(min=1e-12)
        lines.append(
            f"{drift:g}: gradient norm {float(gradient.norm()):.3g}, cosine to that without drift "
            f"{float((gradient * first).sum() / scale):.2f}"
        )
    return "\n".join(lines)
