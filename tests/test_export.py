"""Exported algorithms compute what POISE computes, without it, and through the methods of the trainers."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import real_verl
import torch
from algorithm_batches import DYNAMICS, LIMIT, current_policy, loss_inputs, random_batch
from exported import champion, load, source_of
from gate_fixtures import WITH_TUPLES
from kept_packages import kept_packages
from typer.testing import CliRunner

from poise_core.algorithms import algorithm_path, list_algorithms
from poise_core.candidate import calls
from poise_core.candidate.loading import load_candidate_source
from poise_core.cli import app
from poise_core.contract import LossInputs
from poise_core.export import TARGETS, ExportError, export_candidate
from poise_core.export.paper import paper
from poise_core.reductions import aggregate_loss

TESTS = Path(__file__).parent
TRL = "1.16.0"
TRL_PACKAGES = (f"trl=={TRL}", "accelerate==1.15.0")


def test_tuples_of_hyperparameters_and_their_switches_are_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openrlhf", "openrlhf.models", "openrlhf.models.loss"):
        stub = types.ModuleType(name)
        stub.__path__, stub.__spec__ = [], importlib.util.spec_from_loader(name, None)
        stub.PolicyLoss = type("PolicyLoss", (), {"forward": PolicyLoss.forward})
        monkeypatch.setitem(sys.modules, name, stub)
    for to in TARGETS:
        without = ["clip", "advantages"] if to == "openrlhf" else ["clip"]
        module = load(export_candidate(WITH_TUPLES, "tuples", to, without=without).text)
        assert (module._POISE_HP.clip, module._POISE_HP.weights) == ((1.0, 1e6), (-0.05, 0.02)), to
    assert "clip: tuple[float, float] = (0.2, 0.28)" in paper(WITH_TUPLES, "tuples")


def theirs(module: types.ModuleType, ours: object) -> object:
    """The same dataclass of the exported file's own contract."""
    kind = getattr(module, type(ours).__name__)
    return kind(**{one.name: getattr(ours, one.name) for one in dataclasses.fields(ours)})


@pytest.mark.slow
@pytest.mark.parametrize("name", list_algorithms())
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exported_file_computes_the_same_numbers_to_the_last_bit(name: str, seed: int) -> None:
    source = source_of(name)
    candidate, batch = load_candidate_source(source, name), random_batch(seed)
    module = load(export_candidate(source, name, "trl").text)
    expected = calls.call_advantages(candidate, batch, DYNAMICS)
    mask = calls.train_mask(expected, batch.completion_mask)
    values, trained, carry = module.poise_advantages(theirs(module, batch), theirs(module, DYNAMICS))
    assert torch.equal(trained, mask)
    assert torch.equal(values, torch.where(mask, expected.values, 0.0))
    assert carry.keys() == expected.carry.keys()

    logprobs, entropies = current_policy(batch)
    inputs = calls.handed_inputs(candidate, loss_inputs(batch, expected, logprobs, entropies), batch.completion_mask)
    inputs = dataclasses.replace(inputs, mask=mask)
    counts = {"token_count": 91.0, "sequence_count": 23.0, "max_length": LIMIT}
    call = calls.call_loss(candidate, inputs, DYNAMICS, **counts)
    leaves = [one.detach().clone().requires_grad_() for one in (logprobs, entropies)]
    given = dataclasses.replace(
        theirs(module, inputs),
        logprobs=leaves[0],
        entropies=leaves[1],
        old_logprobs=batch.old_logprobs,
        ref_logprobs=batch.ref_logprobs,
    )
    loss, metrics = module.poise_loss(
        given, batch.completion_mask, theirs(module, DYNAMICS), module.poise_reduction(91.0, 23.0, LIMIT)
    )
    loss.backward()
    assert torch.equal(loss.detach(), call.total)
    assert torch.equal(leaves[0].grad, call.grad_logprobs)
    assert torch.equal(leaves[1].grad, call.grad_entropies)
    assert metrics.keys() == call.outputs.metrics.keys()


def test_exported_file_imports_torch_and_the_standard_library_only() -> None:
    for to, without in (("trl", []), ("verl", ["reference_kl"]), ("openrlhf", ["reference_kl", "advantages"])):
        tree = ast.parse(export_candidate(source_of("grpo"), "GRPO", to, without=without).text)
        top = {a.name.partition(".")[0] for node in tree.body if isinstance(node, ast.Import) for a in node.names}
        top |= {str(node.module).partition(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert top <= {"torch", "math", "collections", "dataclasses", "types", "__future__", "importlib"}


@pytest.mark.parametrize(
    ("name", "to", "without", "message"),
    [
        ("grpo", "verl", [], "no ref_logprobs.*--without"),
        ("grpo", "verl", ["nonsense"], "no mechanism 'nonsense'; it has group_std_scale"),
        ("grpo", "prime-rl", ["reference_kl"], "cannot average as sequence-mean"),
        ("grpo", "openrlhf", ["reference_kl"], "no place for compute_advantages"),
        ("dr_grpo", "openrlhf", ["advantages"], "no length limit to divide by"),
        ("vm_av", "verl", ["reference_kl", "entropy_control"], "no format_valid"),
        ("dace", "verl", [], "no entropies"),
        ("dapo", "verl", [], "no place for a train_mask|no "),
    ],
)
def test_what_a_trainer_cannot_carry_is_refused_in_one_line(
    name: str, to: str, without: list[str], message: str
) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        export_candidate(source_of(name), name, to, without=without)
    assert "\n" not in str(caught.value)


def test_import_is_refused_where_a_mechanism_was_left_out_and_its_input_still_matters() -> None:
    text = export_candidate(source_of("grpo"), "GRPO", "verl", without=["ratio_clip"]).text
    with pytest.raises(ImportError, match="still depends on ref_logprobs"):
        load(text)


def test_what_was_left_out_stands_in_the_header() -> None:
    exported = export_candidate(source_of("dace"), "DACE", "verl", without=["reference_kl", "annealed_entropy"])
    header = exported.text.partition("from __future__")[0]
    for words in (
        "left out: reference_kl",
        "left out: annealed_entropy",
        "not given to the loss: entropies, ref_logprobs",
    ):
        assert words in header
    assert "update_controller is never called" in header
    load(exported.text)


def test_no_text_of_a_candidate_leaves_its_comment() -> None:
    hostile = "x\nimport os\r\x0b\x0c\u2028\u2029\x85raise SystemExit  # -*- coding: utf-7 -*-"
    plain = export_candidate(source_of("grpo"), "GRPO", "trl", evidence=["e"]).text
    text = export_candidate(source_of("grpo"), hostile, "trl", evidence=[hostile], module="grpo_trl").text
    assert ast.dump(ast.parse(text)) == ast.dump(ast.parse(plain))
    assert "coding" not in "".join(text.split("\n")[:2])


def test_names_that_the_exported_file_has_itself_are_refused() -> None:
    source = source_of("grpo").replace(
        "\n\n\ndef compute_loss", "\n\n\ndef masked_mean(x):\n    return x\n\n\ndef compute_loss", 1
    )
    with pytest.raises(ExportError, match="defines masked_mean"):
        export_candidate(source, "GRPO", "trl")


def test_a_file_outside_the_candidate_language_is_refused() -> None:
    with pytest.raises(ExportError, match="outside the candidate language"):
        export_candidate(source_of("grpo") + "\nimport os\n", "GRPO", "trl")
    named = source_of("grpo").replace("MECHANISMS = {", "OFF = 1e6\nMECHANISMS = {").replace('": 1e6', '": OFF')
    with pytest.raises(ExportError, match="MECHANISMS must be written out"):
        export_candidate(named, "GRPO", "trl")
    flat = source_of("grpo").replace('{"kl_coef": 0.0}', "0.0")
    with pytest.raises(ExportError, match="GRPO cannot be read: MECHANISMS does not map names to dicts"):
        export_candidate(flat, "GRPO", "trl")


def test_an_annotated_table_of_mechanisms_is_read_like_another() -> None:
    source = source_of("grpo").replace("MECHANISMS = {", "MECHANISMS: dict = {")
    module = load(export_candidate(source, "GRPO", "verl", without=["reference_kl"]).text)
    assert module._POISE_HP.kl_coef == 0.0
    assert '"reference_kl"' in paper(source, "GRPO").partition("switched off")[2].partition("## Code")[0]


# ---- TRL: a stub of its trainer for what the adapter keeps (TRL itself is below)


class StubTrainer:
    """What the adapter's state needs of a trainer: one update per generation."""

    reward_func_names = ("correct", "format_valid")
    num_iterations, beta, max_completion_length = 1, 1e-3, 4
    mask_truncated_completions, top_entropy_quantile, off_policy_mask_threshold = False, 1.0, None

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.args = types.SimpleNamespace(
            steps_per_generation=1, gradient_accumulation_steps=1, logging_steps=1, should_save=True
        )
        self.state = types.SimpleNamespace(global_step=0, max_steps=6)
        self.accelerator = types.SimpleNamespace(
            device="cpu", is_main_process=True, reduce=lambda values, reduction: values
        )

    def _get_output_dir(self, trial: object) -> str:
        return self.folder

    def _save_checkpoint(self, model: object, trial: object) -> None:
        os.makedirs(f"{self.folder}/checkpoint-{self.state.global_step}", exist_ok=True)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None: ...

    def log(self, logs: dict[str, float]) -> None: ...


def test_a_training_of_trl_that_is_resumed_has_the_controller_of_one_that_is_not(tmp_path: Path) -> None:
    """The end of a generation is reckoned when the next begins, so a checkpoint lies between the two."""
    module = load(export_candidate(source_of("vm_av"), "VM-AV", "trl").text)
    trainer_class = type("Trainer", (module.PoiseTrainerMixin, StubTrainer), {})

    def generation(trainer: StubTrainer, number: int) -> object:
        mask = torch.ones(4, 4, dtype=torch.bool)
        entropies = mask * (2.0, 1.0, 0.6, 0.3, 0.2, 0.1)[number]
        batch = module.RolloutBatch(
            correctness=torch.tensor([1.0, 0.0, 0.0, 1.0]), format_valid=mask[:, 0], truncated=~mask[:, 0],
            group_ids=torch.zeros(4, dtype=torch.long), completion_mask=mask, old_logprobs=-mask.float(),
            ref_logprobs=-mask.float(), entropies=entropies,
        )  # fmt: skip
        trainer._poise_end_step()
        now = trainer._poise_begin_step(batch, True)
        trainer._poise_clips = [0.1 * number, 1]
        trainer.log({"grad_norm": 1.0 + number})
        trainer.state.global_step = number + 1
        return now

    whole, first = trainer_class(tmp_path), trainer_class(tmp_path)
    expected = [generation(whole, number) for number in range(6)]
    for number in range(3):
        generation(first, number)
    first._save_checkpoint(None, None)
    again = trainer_class(tmp_path)
    again.state.global_step = 3
    again._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-3"))
    assert [dataclasses.asdict(generation(again, number)) for number in (3, 4, 5)] == [
        dataclasses.asdict(one) for one in expected[3:]
    ]
    assert expected[3].controller != expected[4].controller
    # of several processes only the first takes the clips, which are those of all
    other = trainer_class(tmp_path)
    other.accelerator.is_main_process = False
    other._load_optimizer_and_scheduler(str(tmp_path / "checkpoint-3"))
    assert (other._poise_clips, first._poise_clips) == ([0.0, 0], [0.2, 1])
    fresh = trainer_class(tmp_path)
    fresh._load_optimizer_and_scheduler(None)
    assert fresh._poise_now is None


# ---- verl, prime-rl and OpenRLHF: stubs with the documented signatures (verl itself is below)


def agg_loss(
    loss_mat, loss_mask, loss_agg_mode, dp_size=1, batch_num_tokens=None, global_batch_size=None, loss_scale_factor=None
):
    """What the docstring of verl 0.9.1's agg_loss says: global denominators, gradients averaged over dp_size."""
    mask = loss_mask.float()
    sums, lengths = (loss_mat * mask).sum(-1), mask.sum(-1)
    if loss_agg_mode == "token-mean":
        return sums.sum() / (batch_num_tokens or lengths.sum()) * dp_size
    rows = global_batch_size or (lengths > 0).sum()
    if loss_agg_mode == "seq-mean-token-mean":
        return (sums / (lengths + 1e-8)).sum() / rows * dp_size
    return sums.sum() / rows * dp_size / (loss_scale_factor or mask.shape[-1])


@pytest.fixture
def stub_verl(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    core = types.ModuleType("verl.trainer.ppo.core_algos")
    core.advantages, core.losses, core.agg_loss = {}, {}, agg_loss
    core.register_adv_est = lambda name: lambda f: core.advantages.setdefault(name, f)
    core.register_policy_loss = lambda name: lambda f: core.losses.setdefault(name, f)
    for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
        package = types.ModuleType(name)
        package.__path__, package.__spec__ = [], importlib.util.spec_from_loader(name, None)
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, "verl.trainer.ppo.core_algos", core)
    return core


def dense_batch() -> tuple[object, torch.Tensor]:
    """A batch whose masks begin at the left and end before the last column, and whose completions are all valid."""
    batch = random_batch(4)
    lengths = batch.completion_mask.sum(-1, keepdim=True)
    mask = torch.arange(batch.completion_mask.shape[1]) < lengths
    old = torch.where(mask, torch.nan_to_num(batch.old_logprobs, nan=-0.7), 0.0)
    everything = torch.ones_like(batch.format_valid)
    return dataclasses.replace(
        batch, completion_mask=mask, old_logprobs=old, ref_logprobs=old, entropies=torch.zeros_like(old),
        format_valid=everything, truncated=~everything,
    ), mask  # fmt: skip


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo", "reinforce_group_baseline", "dr_grpo"])
def test_verl_gets_the_numbers_of_poise(name: str, stub_verl: types.ModuleType) -> None:
    source = source_of(name)
    candidate = load_candidate_source(source, name)
    without = [one for one in candidate.mechanisms if "reference_kl" in one]
    load(export_candidate(source, name, "verl", without=without, module=f"{name}_verl").text)
    for one in without:
        candidate = candidate.with_overrides(**candidate.mechanisms[one])
    batch, mask = dense_batch()
    expected = calls.call_advantages(
        candidate, batch, dataclasses.replace(DYNAMICS, max_completion_length=mask.shape[1])
    )
    rewards = torch.zeros(mask.shape).scatter(1, mask.sum(-1, keepdim=True) - 1, batch.correctness.unsqueeze(-1))
    values, returns = stub_verl.advantages[f"{name}_verl"](
        token_level_rewards=rewards, response_mask=mask.float(), config={"max_response_length": mask.shape[1] + 1},
        index=[f"uid {int(i)}" for i in batch.group_ids],
    )  # fmt: skip
    assert torch.equal(values, torch.where(mask, expected.values, 0.0))
    assert torch.equal(values, returns)
    logprobs = (batch.old_logprobs + 0.3 * torch.randn(mask.shape)).requires_grad_()
    mode = {"token-mean": "token-mean", "sequence-mean": "seq-mean-token-mean"}.get(
        candidate.loss_aggregation, "seq-mean-token-sum-norm"
    )
    info = {"dp_size": 2, "batch_num_tokens": 300, "global_batch_size": 54}
    config = types.SimpleNamespace(global_batch_info=info, loss_scale_factor=mask.shape[1])
    loss, metrics = stub_verl.losses[f"{name}_verl"](
        batch.old_logprobs, logprobs, values, mask.float(), mode, config, None
    )
    loss.backward()
    inputs = calls.handed_inputs(candidate, loss_inputs(batch, expected, logprobs, batch.entropies), mask)
    call = calls.call_loss(
        candidate, inputs, DYNAMICS, token_count=300.0, sequence_count=54.0, max_length=mask.shape[1]
    )
    torch.testing.assert_close(loss.detach(), 2 * call.total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logprobs.grad, 2 * call.grad_logprobs, rtol=1e-5, atol=1e-7)
    assert all(key.startswith("actor/") for key in metrics)
    if candidate.loss_aggregation == "sequence-sum":
        config.loss_scale_factor = None
        with pytest.raises(ValueError, match="loss_scale_factor"):
            stub_verl.losses[f"{name}_verl"](batch.old_logprobs, logprobs, values, mask.float(), mode, config, None)
    with pytest.raises(ValueError, match="loss_agg_mode"):
        stub_verl.losses[f"{name}_verl"](batch.old_logprobs, logprobs, values, mask.float(), "token-sum", None, None)


def test_a_right_answer_that_is_cut_off_earns_nothing_under_verl(stub_verl: types.ModuleType) -> None:
    source = source_of("reinforce_group_baseline")  # A = R - mean
    load(export_candidate(source, "R", "verl", module="r_verl").text)
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])  # both are right, the first fills the limit of 3

    def advantages(config: object) -> torch.Tensor:
        return stub_verl.advantages["r_verl"](rewards, mask, config=config, index=["a", "a"])[0]

    assert advantages({"max_response_length": 3}).tolist() == [[-0.5, -0.5, -0.5], [0.5, 0.5, 0.0]]
    assert not advantages({"max_response_length": 4}).any()
    for config in (None, {}, {"max_response_length": 2}):
        with pytest.raises(ValueError, match=r"the length limit is needed: set \+algorithm.max_response_length"):
            advantages(config)


def test_prime_rl_gets_a_sum_per_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of("grpo").replace('LOSS_AGGREGATION = "sequence-mean"', 'LOSS_AGGREGATION = "token-mean"')
    module = load(export_candidate(source, "GRPO", "prime-rl", without=["reference_kl"]).text)
    for name, kind in (
        ("prime_rl.trainer.rl.loss", "LossOutputs"),
        ("prime_rl.orchestrator.advantage", "AdvantageOutputs"),
    ):
        stub = types.ModuleType(name)
        setattr(stub, kind, types.SimpleNamespace)
        monkeypatch.setitem(sys.modules, name, stub)
    logprobs = torch.tensor([-0.5, -1.0, -0.2], requires_grad=True)
    inputs = types.SimpleNamespace(
        trainer_logprobs=logprobs, inference_logprobs=torch.tensor([-0.5, -1.0, -0.2]), teacher_logprobs=None,
        advantages=torch.tensor([2.0, 2.0, 2.0]), loss_mask=torch.tensor([True, True, False]),
    )  # fmt: skip
    found = module.poise_prime_rl_loss(inputs)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(-4.0)  # the ratio is 1 on both tokens
    assert logprobs.grad.tolist() == pytest.approx([-2.0, -2.0, 0.0])
    rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    given = types.SimpleNamespace(rewards=rewards, completion_lengths=torch.tensor([[3, 1], [2, 2]]))
    scale = 0.5 / (0.5**0.5 + 1e-4)
    advantages = module.poise_prime_rl_advantage(given).advantages
    torch.testing.assert_close(advantages, torch.tensor([[scale, -scale], [0.0, 0.0]]))


class PolicyLoss(torch.nn.Module):
    """The signature of OpenRLHF 0.11.2."""

    is_correction_level = "off"

    def forward(
        self,
        log_probs,
        old_log_probs,
        advantages,
        action_mask=None,
        rollout_log_probs=None,
        dp_size=1,
        batch_num_tokens=None,
        global_batch_size=None,
    ):
        return torch.tensor(123.0), torch.tensor(0.25)


class OldPolicyLoss(torch.nn.Module):
    """That of before the counts."""

    def forward(self, log_probs, old_log_probs, advantages, action_mask=None):
        return torch.tensor(123.0), torch.tensor(0.25)


def openrlhf_loss(monkeypatch: pytest.MonkeyPatch, kind: type[torch.nn.Module], aggregation: str) -> torch.nn.Module:
    """``kind`` in the place of OpenRLHF's, with the loss of GRPO in this aggregation."""
    loss = type(kind.__name__, (kind,), {"forward": kind.forward})
    for name in ("openrlhf", "openrlhf.models", "openrlhf.models.loss"):
        stub = types.ModuleType(name)
        stub.__path__, stub.__spec__ = [], importlib.util.spec_from_loader(name, None)
        stub.PolicyLoss = loss
        monkeypatch.setitem(sys.modules, name, stub)
    source = source_of("grpo").replace('"sequence-mean"', f'"{aggregation}"')
    load(export_candidate(source, "GRPO", "openrlhf", without=["reference_kl", "advantages"]).text)
    return loss()


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean"])
def test_micro_batches_of_openrlhf_add_up_to_the_update(monkeypatch: pytest.MonkeyPatch, aggregation: str) -> None:
    policy_loss = openrlhf_loss(monkeypatch, PolicyLoss, aggregation)
    old, mask = torch.full((2, 4), -1.0), torch.arange(4) < torch.tensor([[4], [1]])
    counts = {"dp_size": 2, "batch_num_tokens": torch.tensor(5.0), "global_batch_size": torch.tensor(2.0)}
    logprobs = old.clone().requires_grad_()
    for row in (slice(0, 1), slice(1, 2)):  # four tokens, then one
        policy_loss(logprobs[row], old[row], torch.ones(1, 4), action_mask=mask[row], rollout_log_probs=None, **counts)[
            0
        ].backward()
    # 2 processes * 1 / 5 at every token, or 2 * 1 / 2 spread over the tokens of a row
    expected = [*[-0.4] * 5] if aggregation == "token-mean" else [*[-0.25] * 4, -1.0]
    assert logprobs.grad[mask].tolist() == pytest.approx(expected)
    policy_loss.is_correction_level = "token"
    with pytest.raises(ValueError, match="is_correction_level=off"):
        policy_loss(logprobs, old, torch.ones(2, 4), mask, old, **counts)


def test_openrlhf_policy_loss_is_replaced_and_its_other_results_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    policy_loss = openrlhf_loss(monkeypatch, OldPolicyLoss, "sequence-mean")
    logprobs = torch.full((2, 2), -1.0, requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    loss, clipped = policy_loss(logprobs, torch.full((2, 2), -1.0), torch.tensor([[1.0, 3.0], [4.0, 9.0]]), mask)
    assert loss.item() == pytest.approx(-3.0)  # the mean of the row means 2 and 4
    assert clipped.item() == 0.25
    loss.backward()
    assert logprobs.grad.flatten().tolist() == pytest.approx([-0.25, -0.75, -2.0, 0.0])


@pytest.mark.slow
def test_header_of_an_exported_champion_says_what_it_rests_on(tmp_path: Path) -> None:
    header = champion(tmp_path).partition("from __future__")[0]
    for words in (
        "Source digest (SHA-256): 63e7c4842e9f3adc65dea5819e4702450d796ca0204408d9abae234c3b24eb42",
        "Candidate nb-fx-hw-63e7c4842e, generation 9, replicated",
        "Overall 90.8 [88.9, 92.6], 3 seeds",
        "Difference to GRPO: +7.8 [+6.1, +9.5] points",
        "Examination, rates: holds +9.4 [+6.2, +12.6] points",
        "Examination, pass@32: not distinguishable -2.0 [-5.0, +1.0] points",
        "Replication with fresh seeds on sealed problems: replicated",
    ):
        assert words in header
    assert all(line.startswith("#") for line in header.splitlines() if line)


# ---- TRL itself, in packages of its own that are made once


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
def test_trl_itself_trains_as_poise(capfd: pytest.CaptureFixture[str]) -> None:
    """``tests/test_export_trl.py``, in a process that finds TRL."""
    environment = {**os.environ, "PYTHONPATH": str(kept_packages(f"trl-{TRL}", TRL_PACKAGES))}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--durations=0",
        str(TESTS / "test_export_trl.py"),
    ]
    ended = subprocess.run(command, env=environment, cwd=TESTS.parent)
    told = capfd.readouterr().out
    assert ended.returncode == 0, told
    assert re.search(r"^25 passed", told, re.MULTILINE), told


# ---- verl itself, in packages of its own that are made once (tests/support/real_verl.py)

VERL_LIMIT = 12  # longer than any completion of the batches
NOT_FOR_VERL = {"reference_kl", "entropy_bonus", "annealed_entropy", "entropy_controller"}
EXPORTABLE = (
    "bn", "cag", "cispo", "dace", "dcbe", "dr_grpo", "gmpo", "grpo", "gspo", "pass_at_k", "reinforce_group_baseline", "sa",
    "sapo",
)  # fmt: skip


def cut_off_counts_as_wrong(source: str) -> str:
    """An algorithm that reads ``truncated`` and the length limit."""
    changed = source.replace("batch.correctness", "(batch.correctness * ~batch.truncated)").replace(
        "    return LossOutputs(token_loss=",
        "    return LossOutputs(token_loss=float(dynamics.max_completion_length) * ",
    )
    assert changed.count("truncated") >= 2
    assert "max_completion_length" in changed
    return changed


def verl_case(name: str, seed: int, folder: Path, *, cut_off: bool = False, edit: Callable[[str], str] = str) -> dict:
    """A batch as verl has it, the exported algorithm as its plugin, and the same for POISE under ``ours``.

    Rows end where the completion ends, some with tokens that are masked (of a tool, or rejected) in front or after; two rows are
    verl's padding. The command line is the one that the export prints. With ``cut_off`` the longest completions fill the limit.
    """
    source, module, batch = edit(source_of(name)), f"{name}_{seed}_verl", random_batch(seed)
    mask, rows = batch.completion_mask, len(batch.group_ids)
    limit = int(lengths_of(mask).max()) if cut_off else VERL_LIMIT
    candidate = load_candidate_source(source, name)
    without = [one for one in candidate.mechanisms if one in NOT_FOR_VERL]
    exported = export_candidate(source, name, "verl", without=without, module=module)
    for one in without:
        candidate = candidate.with_overrides(**candidate.mechanisms[one])
    plugins = folder / "plugins"
    (plugins / f"{module}-1.dist-info").mkdir(parents=True)
    (plugins / f"{module}.py").write_text(exported.text)
    (plugins / f"{module}-1.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    section, _, command = exported.usage.partition("python -m verl.trainer.main_ppo")
    (plugins / f"{module}-1.dist-info" / "entry_points.txt").write_text(f"[verl.plugins]\n{module} = {module}\n")
    assert f'"verl.plugins"]\n{module} = "{module}"' in section

    lengths = (lengths_of(mask) + torch.arange(rows) % 2).clamp(max=min(limit, mask.shape[1]))
    batch = dataclasses.replace(
        batch, format_valid=torch.ones(rows, dtype=torch.bool), truncated=lengths_of(mask) >= limit,
        old_logprobs=torch.where(mask, batch.old_logprobs, 0.0), ref_logprobs=torch.zeros(mask.shape),
        entropies=torch.zeros(mask.shape),
    )  # fmt: skip
    logprobs, _ = current_policy(batch)
    weights = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) + 0.5
    reward = torch.zeros(mask.shape).scatter(1, lengths.unsqueeze(-1) - 1, batch.correctness.unsqueeze(-1))

    def ragged(values: torch.Tensor, padding: float) -> list[torch.Tensor]:
        cut = [row[:length] for row, length in zip(values, lengths.tolist(), strict=True)]
        return [*cut, *[torch.full((1,), padding, dtype=values.dtype)] * 2]

    return {
        "module": module,
        "overrides": [*shlex.split(command.replace("\\\n", " ")), f"data.max_response_length={limit}",
                      "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"],
        "masks": ragged(mask.long(), 0), "rewards": ragged(reward, 0), "old": ragged(batch.old_logprobs, -0.5),
        "logprobs": ragged(logprobs, -0.7), "weights": ragged(weights, 1.0),
        "uids": [f"uid {int(one)}" for one in batch.group_ids] + ["pad"] * 2,
        "micro_batches": [[*range(0, 5), rows], list(range(5, 19)), [*range(19, rows), rows + 1]],
        "counts": {"dp_size": 2, "batch_num_tokens": int(mask.sum()), "global_batch_size": rows + 2},
        "ours": (candidate, batch, logprobs, weights, limit),
    }  # fmt: skip


def lengths_of(mask: torch.Tensor) -> torch.Tensor:
    """Columns up to the last that is True, (B,)."""
    return (mask * torch.arange(1, mask.shape[1] + 1)).amax(-1)


def same_as_verl(case: dict, found: dict) -> None:
    """Advantages to 1e-6, losses and gradients to 1e-5 of POISE's own, which see no padding."""
    candidate, batch, logprobs, weights, limit = case["ours"]
    dynamics = dataclasses.replace(DYNAMICS, max_completion_length=limit)
    expected, mask, counts = calls.call_advantages(candidate, batch, dynamics), batch.completion_mask, case["counts"]
    for row, values in enumerate(found["advantages"]):
        ours = torch.where(mask, expected.values, 0.0)[row, : len(values)] if row < len(mask) else torch.zeros(1)
        torch.testing.assert_close(values, ours, rtol=1e-6, atol=1e-7)
    assert float(expected.values.abs().sum()) > 0
    for rows, loss in zip(case["micro_batches"], found["losses"], strict=True):
        own = torch.tensor([row for row in rows if row < len(mask)])
        inputs = loss_inputs(batch, expected, logprobs, batch.entropies)
        inputs = calls.handed_inputs(candidate, inputs, mask)
        fields = {one.name: getattr(inputs, one.name) for one in dataclasses.fields(inputs) if one.name != "carry"}
        inputs = LossInputs(**{key: value.detach()[own] for key, value in fields.items()}, carry={})
        inputs.logprobs.requires_grad_()
        token_loss = candidate.compute_loss(inputs, dynamics).token_loss * weights[own]
        total = counts["dp_size"] * aggregate_loss(
            token_loss, inputs.mask, candidate.loss_aggregation, token_count=float(counts["batch_num_tokens"]),
            sequence_count=float(counts["global_batch_size"]), max_length=limit,
        )  # fmt: skip
        (grad,) = torch.autograd.grad(total, inputs.logprobs)
        torch.testing.assert_close(loss, total.detach(), rtol=1e-5, atol=1e-6)
        for row, ours in zip(own.tolist(), grad, strict=True):
            theirs = found["gradients"][row]
            torch.testing.assert_close(theirs, ours[: len(theirs)], rtol=1e-5, atol=1e-7)
    assert all(not one.any() for row, one in found["gradients"].items() if row >= len(mask))
    assert all("actor/pg_loss" in one for one in found["metrics"])


@pytest.mark.exhaustive
@pytest.mark.timeout(1500)
def test_verl_itself_gets_the_numbers_of_poise(tmp_path: Path) -> None:
    cases = [verl_case(name, seed, tmp_path) for name in EXPORTABLE for seed in (0, 1, 2)]
    for seed in (3, 4):
        cases.append(verl_case("dr_grpo", seed, tmp_path, cut_off=True, edit=cut_off_counts_as_wrong))
        assert cases[-1]["ours"][1].truncated.any()
    cases.append(verl_case("dr_grpo", 5, tmp_path, edit=cut_off_counts_as_wrong))
    complete = cases[-1]
    for setting in ("+algorithm.max_response_length=", "actor_rollout_ref.actor.loss_scale_factor="):
        kept = [one for one in complete["overrides"] if not one.startswith(setting)]
        assert len(kept) == len(complete["overrides"]) - 1
        cases.append({**complete, "overrides": kept})
    torch.save([{key: value for key, value in one.items() if key != "ours"} for one in cases], tmp_path / "cases.pt")
    real_verl.run(tmp_path)
    answers = torch.load(tmp_path / "answers.pt")
    for case, found in zip(cases[:-2], answers[:-2], strict=True):
        assert "refused" not in found, (case["module"], found)
        same_as_verl(case, found)
    assert "+algorithm.max_response_length=${data.max_response_length}" in answers[-2]["refused"]
    assert "actor_rollout_ref.actor.loss_scale_factor=${data.max_response_length}" in answers[-1]["refused"]


# ---- the command and the page


def test_command_writes_the_file_and_refuses_to_overwrite_it(tmp_path: Path) -> None:
    out, file = tmp_path / "mine.py", str(algorithm_path("grpo"))
    found = CliRunner().invoke(app, ["export", file, "--to", "trl", "--out", str(out)])
    assert found.exit_code == 0
    assert "from mine import PoiseGRPOTrainer" in found.output
    assert "none: exported from a file" in out.read_text()
    assert CliRunner().invoke(app, ["export", file, "--to", "trl", "--out", str(out)]).exit_code == 2
    refused = CliRunner().invoke(app, ["export", file, "--to", "verl", "--out", str(tmp_path / "v.py")])
    assert refused.exit_code == 1
    assert not (tmp_path / "v.py").exists()
    named = tmp_path / "named" / "mine.py"  # by the name of a shipped algorithm
    named.parent.mkdir()
    assert CliRunner().invoke(app, ["export", "grpo", "--to", "trl", "--out", str(named)]).exit_code == 0
    assert named.read_text() == out.read_text()


def test_page_has_the_equations_of_the_docstring_and_no_markup_of_strangers() -> None:
    page = paper(
        source_of("grpo"), "<script>GRPO", evidence=["[x](http://evil)"], proposal='{"equations": ["A = R - 1"]}'
    )
    assert "A_i = (R_i - mean_g R) / (std_g R + eps)" in page
    assert "A = R - 1" in page
    assert "def compute_loss" in page
    assert "<script>" not in page
    assert "[x](http" not in page
