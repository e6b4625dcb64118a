"""The check `direction`: following the candidate's gradient raises the reward.

The check trains on two problems that take a fraction of a second: a contextual bandit whose completions are one token,
and a game of several tokens with an end token, a length limit and malformed completions. Both run the loop of the real
trainer: group rollouts, two updates per rollout (so that ratios leave 1), running dynamics, and the controller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from poise_core.candidate.calls import ContractViolation, call_advantages, call_controller, handed_inputs, train_mask
from poise_core.candidate.loading import Candidate
from poise_core.contract import Dynamics, LossInputs, RolloutBatch
from poise_core.reductions import aggregate_loss, group_max, group_mean, masked_mean, to_tokens
from poise_core.verification.drawn import Draw
from poise_core.verification.harness import loss_and_gradient, run_candidate

ROLLOUTS = 150  # at most; a game ends as soon as the reward has risen enough
UPDATES_PER_ROLLOUT = 2
REQUIRED_GAIN = 0.2
LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Game:
    """A toy problem; ``sample`` returns tokens and outcomes, ``score`` log-probabilities and entropies with gradient."""

    name: str
    logits: Callable[[], Tensor]  # the untrained policy's parameters
    sample: Callable[[Tensor, torch.Generator], tuple[Tensor, RolloutBatch]]  # parameters -> tokens (B, T), batch
    score: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # parameters, tokens -> logprobs, entropies, both (B, T)
    limit: int  # completion length limit, tokens
    seed: int  # of the completions that are sampled


def check_direction(candidate: Candidate, draw: Draw) -> None:
    """Check that the reward of both games rises, and that at ratio 1 the gradient agrees with REINFORCE's.

    Raises:
        ContractViolation: with the message for the author.
    """
    cosine = reinforce_cosine(candidate, draw)
    if cosine is not None and cosine <= 0.0:
        raise ContractViolation(
            f"where groups are mixed the gradient points away from REINFORCE's (cosine {cosine:.2f}): it makes wrong "
            "completions likelier than correct ones; check the signs of the advantage and of token_loss, which is minimized"
        )
    for game in (bandit(draw), token_game(draw)):
        before, after = play(candidate, game)
        if after < before + REQUIRED_GAIN:
            raise ContractViolation(
                f"{UPDATES_PER_ROLLOUT * ROLLOUTS} updates on {game.name} move the reward from {before:.2f} to {after:.2f}, a gain "
                f"of less than {REQUIRED_GAIN}; the gradient does not teach what is rewarded"
            )


def reinforce_cosine(candidate: Candidate, draw: Draw) -> float | None:
    """Return the cosine between the candidate's and REINFORCE's ascent direction on mixed groups at ratio 1.

    The result is None where the candidate gives those groups no gradient, which the check `gradient` reports.
    """
    rng = draw.rng("direction")
    sizes, length = [draw.group(rng, 7, 9)] * rng.randint(7, 9), rng.randint(6, 10)
    probe = draw.rollout("mixed groups", "direction", sizes, length, drift=0.0)
    batch = replace(probe.batch, truncated=torch.zeros_like(probe.batch.truncated))
    dynamics = replace(probe.dynamics, max_completion_length=1000)  # out of reach, so that no length is punished
    probe = replace(probe, batch=batch, dynamics=dynamics)
    run = run_candidate(candidate, probe)
    baseline = group_mean(batch.correctness, batch.group_ids)
    logprobs = probe.logprobs.clone().requires_grad_()
    loss = -to_tokens(batch.correctness - baseline, batch.completion_mask) * logprobs
    total = aggregate_loss(loss, batch.completion_mask, candidate.loss_aggregation)
    (wanted,) = torch.autograd.grad(total, logprobs)
    found = run.grad_logprobs
    if not bool(found.any()):
        return None
    return float((found * wanted).sum() / (found.norm() * wanted.norm()))


def play(candidate: Candidate, game: Game) -> tuple[float, float]:
    """Train the toy policy, and return the mean reward of the first and of the last four rollouts."""
    generator = torch.Generator().manual_seed(game.seed)
    parameters = game.logits().requires_grad_()
    initial = parameters.detach().clone()
    moments = (torch.zeros_like(initial), torch.zeros_like(initial))
    rewards: list[float] = []
    dynamics = Dynamics(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, game.limit)
    updates = 0
    for rollout in range(ROLLOUTS):
        with torch.no_grad():
            tokens, batch = game.sample(parameters, generator)
            old_logprobs, old_entropies = game.score(parameters, tokens)
            ref_logprobs, _ = game.score(initial, tokens)
        batch = replace(batch, old_logprobs=old_logprobs, entropies=old_entropies, ref_logprobs=ref_logprobs)
        rewards.append(float(batch.correctness.mean()))
        if len(rewards) > 8 and _mean(rewards[-4:]) >= _mean(rewards[:4]) + REQUIRED_GAIN:
            break
        advantages = call_advantages(candidate, batch, dynamics)
        mask = train_mask(advantages, batch.completion_mask)
        norm = 0.0
        for _ in range(UPDATES_PER_ROLLOUT):
            logprobs, entropies = game.score(parameters, tokens)
            inputs = LossInputs(
                logprobs=logprobs.detach(),
                entropies=entropies.detach(),
                old_logprobs=old_logprobs,
                ref_logprobs=ref_logprobs,
                advantages=advantages.values,
                mask=mask,
                carry=dict(advantages.carry),
                correctness=batch.correctness,
                format_valid=batch.format_valid,
            )
            inputs = handed_inputs(candidate, inputs, batch.completion_mask)
            call = loss_and_gradient(candidate, inputs, dynamics, mask)
            # the chain rule by hand: autograd.grad with several outputs would import sympy, half a second
            pulled_back = (logprobs * call.grad_logprobs + entropies * call.grad_entropies).sum()
            (gradient,) = torch.autograd.grad(pulled_back, parameters)
            updates += 1
            norm = float(gradient.norm())
            _adam(parameters, gradient, moments, updates)
        dynamics = _next_dynamics(candidate, dynamics, batch, rollout, norm)
    return _mean(rewards[:4]), _mean(rewards[-4:])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _adam(parameters: Tensor, gradient: Tensor, moments: tuple[Tensor, Tensor], updates: int) -> None:
    first, second = moments
    with torch.no_grad():
        gradient = torch.nan_to_num(gradient)
        first.mul_(0.8).add_(gradient, alpha=0.2)
        second.mul_(0.95).addcmul_(gradient, gradient, value=0.05)
        scale = (second / (1 - 0.95**updates)).sqrt() + 1e-8
        parameters.sub_(LEARNING_RATE * (first / (1 - 0.8**updates)) / scale)


def _next_dynamics(candidate: Candidate, before: Dynamics, batch: RolloutBatch, rollout: int, norm: float) -> Dynamics:
    mask = batch.completion_mask
    drift = torch.where(mask, batch.ref_logprobs - batch.old_logprobs, torch.zeros_like(batch.old_logprobs))
    controller: Mapping[str, float] = call_controller(candidate, before.controller, before)
    return Dynamics(
        step=rollout + 1,
        progress=(rollout + 1) / ROLLOUTS,
        entropy=float(masked_mean(batch.entropies, mask)),
        kl=float(masked_mean(drift.exp() - drift - 1.0, mask)),
        reward_mean=float(batch.correctness.mean()),
        completion_length=float(mask.sum(-1).float().mean()),
        clip_fraction=0.05,
        all_fail_fraction=float((group_max(batch.correctness, batch.group_ids) == 0).float().mean()),
        grad_norm=norm,
        max_completion_length=before.max_completion_length,
        controller=controller,
    )


def _batch(correct: Tensor, valid: Tensor, truncated: Tensor, groups: Tensor, mask: Tensor) -> RolloutBatch:
    zeros = torch.zeros(mask.shape)
    return RolloutBatch(correct.float(), valid, truncated, groups, mask, zeros, zeros, zeros)


def _unequal(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Logits moved a little, because no real policy finds tokens exactly as likely as one another."""
    return logits + 0.1 * torch.randn(logits.shape, generator=generator)


def bandit(draw: Draw) -> Game:
    """Return a game with one token per completion; every context has a correct arm of its own, and the last arm is malformed."""
    rng, arms = draw.rng("bandit"), 5
    contexts = rng.randint(5, 7)
    groups = torch.arange(contexts).repeat_interleave(draw.group(rng, 7, 9))  # (B,)
    wanted = torch.tensor([rng.randrange(arms - 1) for _ in range(contexts)])[groups]  # (B,)

    def sample(parameters: Tensor, generator: torch.Generator) -> tuple[Tensor, RolloutBatch]:
        chances = parameters.softmax(-1)[groups]
        tokens = torch.multinomial(chances, 1, generator=generator)  # (B, 1)
        arm = tokens.squeeze(-1)
        mask = torch.ones(tokens.shape, dtype=torch.bool)
        return tokens, _batch(arm == wanted, arm != arms - 1, torch.zeros_like(mask[:, 0]), groups, mask)

    def score(parameters: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = parameters.log_softmax(-1)[groups]  # (B, arms)
        return logprobs.gather(-1, tokens), -(logprobs.exp() * logprobs).sum(-1, keepdim=True)

    far = 8  # one token ends a completion
    start = _unequal(torch.zeros((contexts, arms)), draw.generator("start of the bandit"))
    return Game("a bandit with five arms", start.clone, sample, score, far, rng.getrandbits(62))


def token_game(draw: Draw) -> Game:
    """Return a game with completions of up to five tokens and a table policy (position, prompt -> token).

    Token 0 ends a completion. A completion is correct where it ends before the limit and contains the token that its
    prompt wants, one of 1 to 3, and malformed where it contains token 4 or hits the limit.
    """
    rng, words, limit = draw.rng("token game"), 5, 5
    prompts = rng.randint(4, 5)
    groups = torch.arange(prompts).repeat_interleave(draw.group(rng, 11, 13))
    wanted = torch.tensor([rng.randint(1, 3) for _ in range(prompts)])[groups].unsqueeze(-1)

    logits = torch.zeros((prompts, limit, words))
    logits[:, 0, 0] = -1.0
    logits[:, 1:, 0] = 0.7
    logits = _unequal(logits, draw.generator("start of the token game"))

    def sample(parameters: Tensor, generator: torch.Generator) -> tuple[Tensor, RolloutBatch]:
        chances = parameters.softmax(-1)[groups]  # (B, T, words)
        rows = groups.shape[0]
        tokens = torch.multinomial(chances.reshape(rows * limit, words), 1, generator=generator).reshape(rows, limit)
        ended = (tokens == 0).cumsum(-1)
        mask = (ended - (tokens == 0).long()) == 0  # up to and including the end token
        truncated = ended[:, -1] == 0
        valid = ~truncated & ~((tokens == 4) & mask).any(-1)
        correct = valid & ((tokens == wanted) & mask).any(-1)
        return tokens, _batch(correct, valid, truncated, groups, mask)

    def score(parameters: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logprobs = parameters.log_softmax(-1)[groups]  # (B, T, words)
        return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), -(logprobs.exp() * logprobs).sum(-1)

    return Game("a game of several tokens", logits.clone, sample, score, limit, rng.getrandbits(62))
