"""Checks 3 to 8: what a candidate computes, on probe batches."""

from __future__ import annotations

import torch
from torch import Tensor

from poise_core.candidate import Candidate
from poise_core.verification.harness import ContractViolation, run_candidate
from poise_core.verification.probes import Probe, edge_probes


def check_finite(candidate: Candidate) -> None:
    """Check 3: shapes, dtypes and finite values on every edge.

    Raises:
        ContractViolation: with the sentence for the author.
    """
    for probe in edge_probes():
        try:
            run = run_candidate(candidate, probe)
        except ContractViolation as violation:
            raise ContractViolation(f"on {probe.name}: {violation}") from violation
        if bool((run.mask & ~probe.batch.completion_mask).any()):
            raise ContractViolation(f"on {probe.name}: train_mask is True outside completion_mask; combine them with &")
        _expect_finite("Advantages.values", run.advantages.values, run.mask, probe)
        _expect_finite("token_loss", run.outputs.token_loss.detach(), run.mask, probe)
        _expect_finite("the gradient of logprobs", run.grad_logprobs, run.mask, probe)
        _expect_finite("the gradient of entropies", run.grad_entropies, run.mask, probe)


def _expect_finite(what: str, values: Tensor, mask: Tensor, probe: Probe) -> None:
    bad = ~torch.isfinite(values) & mask
    if bool(bad.any()):
        row, position = (int(index) for index in bad.nonzero()[0])
        raise ContractViolation(
            f"on {probe.name}: {what} is {float(values[row, position])} at completion {row}, token {position}; guard "
            "divisions with a positive epsilon, bound exponents with log_ratio and use torch.where on both branches"
        )
