"""What a candidate can hand to the trainer, and what it can do to what it is handed: at worst it fails itself."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_samples import candidate_with

from poise_core.candidate import budget
from poise_core.candidate.budget import CallTimedOut, within_budget
from poise_core.candidate.calls import handed_batch, handed_inputs
from poise_core.candidate.loading import Candidate
from poise_core.contract import Advantages, LossInputs, LossOutputs
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.training import worker
from poise_core.training.algorithm import Algorithm, MicroLoss, TrainingSignal
from poise_core.verification.harness import loss_inputs
from poise_core.verification.probes import MIDDLE, Probe, make_probe

DTYPES = (
    torch.float32, torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.int64,
    torch.uint8, torch.complex64,
)  # fmt: skip


class Label(str):
    """A text that is not quite one."""

    __slots__ = ()

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        raise ValueError("labels are not compared \ud800")


class Unspeakable(Exception):
    """An error that does not say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class Sub(Tensor):
    """A tensor of a class of its own."""


def tensors(rows: int, length: int) -> st.SearchStrategy[Tensor]:
    """Tensors of right and wrong shapes, dtypes, devices, layouts and contents."""
    shapes = st.sampled_from(
        [(rows, length), (rows, length), (rows, length), (rows,), (), (length, rows), (0,), (rows, length, 1)]
    )
    fills = st.sampled_from([0.0, 1.0, -3.0, math.nan, math.inf, -math.inf, 1e38, 1e-45])
    made = st.builds(_tensor, shapes, st.sampled_from(DTYPES), fills)
    return st.builds(lambda tensor, change: change(tensor), made, st.sampled_from(CHANGES))


def _tensor(shape: tuple[int, ...], dtype: torch.dtype, fill: float) -> Tensor:
    if not dtype.is_floating_point and not dtype.is_complex:
        fill = 1.0
    return torch.full(shape, fill, dtype=torch.float64).to(dtype)


def _nested(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.is_floating_point() or tensor.is_complex())


def _quantized(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(torch.zeros(tensor.shape), 0.1, 0, torch.quint8)


CHANGES: tuple[Callable[[Tensor], Tensor], ...] = (
    *(6 * [lambda tensor: tensor]),
    lambda tensor: tensor.to("meta"),
    lambda tensor: tensor.to_sparse(),
    lambda tensor: tensor.as_subclass(Sub),
    lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
    lambda tensor: tensor[..., :1].expand(tensor.shape) if tensor.dim() and tensor.shape[-1] else tensor,
    _leaf,
    _nested,
    _quantized,
)

names = st.one_of(
    st.text(max_size=80),
    st.sampled_from(
        ["ok", "..", "clip_fraction", "\ud800", "a\x00b", "../x", "[red]", "x" * 10_000, "\u202e", Label("label"), ""]
    ),
    st.integers(),
    st.none(),
    st.tuples(st.integers()),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5),
    st.sampled_from([10**400, 10**4000, -(10**13), math.nan, 1e300, "\ud800", object, print]),
)  # fmt: skip


def tables(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Dicts, and what passes for one."""
    plain = st.builds(_table, st.lists(st.tuples(names, values), max_size=3))
    huge = st.builds(lambda value: {f"m{i}": value for i in range(1000)}, values)
    proper = st.builds(lambda value: {"ok": value}, values)
    return st.one_of(
        proper, proper, plain, huge, st.builds(MappingProxyType, proper), scalars, st.lists(values, max_size=2)
    )


def _table(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    for name, value in pairs:
        if not any(isinstance(other, Label) for other in (*table, name)) or not table:
            table[name] = value
    return table


def anything(rows: int, length: int) -> st.SearchStrategy[Any]:
    """Values of any kind at any place."""
    leaves = st.one_of(scalars, tensors(rows, length))
    return st.recursive(leaves, lambda inner: st.one_of(st.lists(inner, max_size=2), tables(inner)), max_leaves=4)


def advantages(rows: int, length: int) -> st.SearchStrategy[Any]:
    """What compute_advantages might return."""
    good = st.just(torch.ones(rows, length))
    some = anything(rows, length)
    return st.one_of(
        some,
        st.builds(Advantages, some),
        st.builds(Advantages, st.one_of(good, tensors(rows, length)), st.one_of(st.none(), some)),
        st.builds(Advantages, good, st.none(), tables(tensors(rows, length))),
        st.builds(Advantages, good, st.none(), tables(some)),
    )


def outputs(rows: int, length: int) -> st.SearchStrategy[Any]:
    """What compute_loss might return; True stands for a sound loss."""
    some = anything(rows, length)
    return st.one_of(
        some,
        st.builds(LossOutputs, some),
        st.builds(LossOutputs, tensors(rows, length)),
        st.builds(LossOutputs, st.just(True), tables(tensors(rows, length))),
        st.builds(LossOutputs, st.just(True), tables(some)),
    )


errors = st.sampled_from(
    [
        ValueError("\ud800 \x1b[2J \u202e"), KeyError("\ud800"), Unspeakable(), SystemExit(1), GeneratorExit(), RecursionError(),
        StopIteration(), RuntimeError("not enough memory"), MemoryError("\ud800"), torch.OutOfMemoryError("CUDA out of memory"),
        TimeoutError(), UnicodeDecodeError("utf-8", b"x", 0, 1, "x"), ExceptionGroup("several", [ValueError("x")]),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Hyperparameters:
    """None."""


def candidate_returning(
    advantages: Callable[..., Any], loss: Callable[..., Any], controller: Callable[..., Any] | None = None
) -> Candidate:
    """A candidate of three Python functions, without a file."""
    return Candidate(
        name="junk",
        source="",
        loss_aggregation="token-mean",
        mechanisms={},
        hyperparameters=Hyperparameters(),
        advantages_function=advantages,
        loss_function=loss,
        controller_function=controller,
        reads=frozenset({"ref_logprobs", "entropies"}),
    )


PROBE = make_probe("a batch", (2, 3), 4, 1)
KINDS = (FailureKind.CRASHED, FailureKind.DIVERGED, FailureKind.OUT_OF_MEMORY, FailureKind.TIMED_OUT)
ROWS, LENGTH = PROBE.batch.completion_mask.shape
MANY = settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def sound_advantages(batch: Any, hp: Any, dynamics: Any) -> Advantages:
    return Advantages(values=torch.ones(ROWS, LENGTH))


def sound_loss(inputs: Any, hp: Any, dynamics: Any) -> LossOutputs:
    return LossOutputs(token_loss=-inputs.advantages * inputs.logprobs)


def handed(candidate: Candidate, probe: Probe = PROBE) -> LossInputs:
    """All rows as one micro-batch."""
    return loss_inputs(
        candidate, probe, Advantages(torch.ones(probe.logprobs.shape)), torch.arange(len(probe.logprobs))
    )


def loss_of(candidate: Candidate) -> MicroLoss:
    return Algorithm(candidate, LENGTH).loss(handed(candidate), MIDDLE, 10.0, 5.0)


def signal_of(candidate: Candidate) -> TrainingSignal:
    return Algorithm(candidate, LENGTH).signal(PROBE.batch, MIDDLE)


def state_of(candidate: Candidate) -> dict[str, float]:
    return Algorithm(candidate, LENGTH).controller({"k": 1.0}, MIDDLE)


def expect_failure_or(call: Callable[[], Any]) -> Any:
    """The result; a failure has to be one of the candidate, and of a text that can be stored and shown."""
    try:
        return call()
    except CandidateFailure as error:
        failure = error
    assert failure.kind in KINDS
    assert failure.message.encode()
    assert failure.message.isprintable()
    assert len(failure.message) < 1000
    return None


# ---- whatever is returned


@pytest.mark.slow
@MANY
@given(found=advantages(ROWS, LENGTH))
def test_any_advantages_are_taken_or_are_the_candidates_failure(found: Any) -> None:
    signal = expect_failure_or(lambda: signal_of(candidate_returning(lambda *_: found, sound_loss)))
    if signal is not None:
        assert signal.advantages.shape == signal.mask.shape == (ROWS, LENGTH)
        assert signal.advantages.isfinite().all()
        assert not signal.advantages[~signal.mask].any()
        assert not (signal.mask & ~PROBE.batch.completion_mask).any()
        rows = torch.arange(2)
        inputs = handed_inputs(
            candidate_returning(sound_advantages, sound_loss),
            replace(handed(candidate_returning(sound_advantages, sound_loss)), carry=signal.carry),
            PROBE.batch.completion_mask,
        )
        assert all(type(value[rows]) is torch.Tensor for value in inputs.carry.values())


@pytest.mark.slow
@MANY
@given(found=outputs(ROWS, LENGTH))
def test_any_loss_is_taken_or_is_the_candidates_failure(found: Any) -> None:
    def compute_loss(inputs: LossInputs, hp: Any, dynamics: Any) -> Any:
        if isinstance(found, LossOutputs) and found.token_loss is True:
            return replace(found, token_loss=-inputs.advantages * inputs.logprobs)
        return found

    loss = expect_failure_or(lambda: loss_of(candidate_returning(sound_advantages, compute_loss)))
    if loss is not None:
        numbers = [loss.value, *loss.metrics.values()]
        assert all(type(number) is float and math.isfinite(number) for number in numbers)
        assert loss.grad_logprobs.isfinite().all()
        assert json.dumps(loss.metrics).encode()
        assert len(loss.metrics) <= 64


@pytest.mark.slow
@MANY
@given(found=st.one_of(tables(scalars), anything(ROWS, LENGTH)))
def test_any_state_is_taken_or_is_the_candidates_failure(found: Any) -> None:
    state = expect_failure_or(lambda: state_of(candidate_returning(sound_advantages, sound_loss, lambda *_: found)))
    if state is not None:
        assert all(type(name) is str and type(value) is float and abs(value) <= 1e12 for name, value in state.items())
        assert json.dumps(state).encode()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(error=errors, place=st.sampled_from(["signal", "loss", "controller"]))
def test_any_error_is_the_candidates_failure(error: BaseException, place: str) -> None:
    def fail(*_: Any) -> Any:
        raise error

    candidate = candidate_returning(fail, fail, fail)
    call = {"signal": signal_of, "loss": loss_of, "controller": state_of}[place]
    assert expect_failure_or(lambda: call(candidate)) is None


@pytest.mark.parametrize(
    ("returned", "kind", "message"),
    [
        ({"\ud800": 1}, FailureKind.CRASHED, "the metric name '\\ud800' is not allowed"),
        ({"a\0b": 1}, FailureKind.CRASHED, "the metric name 'a\\x00b' is not allowed"),
        ({"..": 1}, FailureKind.CRASHED, "the metric name '..' is not allowed; use not only dots"),
        ({"x" * 61: 1}, FailureKind.CRASHED, "use 1 to 60 of the characters"),
        ({f"m{i}": 1 for i in range(65)}, FailureKind.CRASHED, "there are 65 names of the kind metric; at most 64"),
        ({3: 1}, FailureKind.CRASHED, "name each metric with a string"),
        ({"m": math.nan}, FailureKind.DIVERGED, "metric 'm' is nan at completion 0, token 0"),
        ({"m": 3e38}, FailureKind.DIVERGED, "the mean of metric 'm' is not finite"),
    ],
)
def test_metrics(returned: dict[Any, float], kind: FailureKind, message: str) -> None:
    def compute_loss(inputs: LossInputs, hp: Any, dynamics: Any) -> LossOutputs:
        metrics = {name: torch.full((ROWS, LENGTH), float(value)) for name, value in returned.items()}
        return LossOutputs(-inputs.advantages * inputs.logprobs, metrics)

    with pytest.raises(CandidateFailure) as failure:
        loss_of(candidate_returning(sound_advantages, compute_loss))
    assert (failure.value.kind, message in failure.value.message) == (kind, True), failure.value.message


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (Advantages(torch.ones(ROWS, LENGTH, device="meta")), "on meta; it must be a float32 tensor"),
        (Advantages(torch.ones(ROWS, LENGTH).to_sparse()), "is a sparse_coo float32 tensor"),
        (Advantages(torch.ones(ROWS, LENGTH, requires_grad=True)), "Advantages.values carries gradient"),
        (Advantages(torch.nn.Parameter(torch.ones(ROWS, LENGTH))), "is a Parameter"),
        (Advantages(torch.ones(ROWS, LENGTH), torch.ones(ROWS, LENGTH, dtype=torch.bool, device="meta")), "train_mask is a bool"),
        (Advantages(torch.ones(ROWS, LENGTH), None, {"a/b": torch.ones(ROWS)}), "the carried signal name 'a/b' is not allowed"),
        (Advantages(torch.ones(ROWS, LENGTH), None, {"a": torch.ones(ROWS, dtype=torch.complex64)}), "must be a tensor of real"),
        (Advantages(torch.ones(ROWS, LENGTH), None, {"a": torch.full((ROWS,), math.inf)}), "carry['a'] is inf at completion 0"),
    ],
)  # fmt: skip
def test_advantages(found: Advantages, message: str) -> None:
    with pytest.raises(CandidateFailure) as failure:
        signal_of(candidate_returning(lambda *_: found, sound_loss))
    assert message in failure.value.message


def test_numbers_that_only_stand_outside_the_mask_harm_nobody() -> None:
    outside = torch.where(PROBE.batch.completion_mask, 1.0, math.nan)
    signal = signal_of(candidate_returning(lambda *_: Advantages(outside, None, {"c": outside}), sound_loss))
    assert torch.equal(signal.advantages, PROBE.batch.completion_mask.float())


@pytest.mark.parametrize(
    "value", [1e12 + 1e6, -1e300, 10**400, 10**6000, math.inf, math.nan, True, "1", None], ids=range(9)
)
def test_states_that_grow_out_of_bounds(value: Any) -> None:
    with pytest.raises(CandidateFailure, match="map names to finite floats, at most 1e\\+12 in size") as failure:
        state_of(candidate_returning(sound_advantages, sound_loss, lambda *_: {"k": value}))
    assert failure.value.kind is FailureKind.CRASHED


def test_a_state_may_be_large_and_whole() -> None:
    assert state_of(candidate_returning(sound_advantages, sound_loss, lambda *_: {"k": 10**12})) == {"k": 1e12}


# ---- what is handed over


def test_what_a_candidate_writes_into_reaches_nobody() -> None:
    """All of it overwritten, past the graph too; the trainer goes on with its own."""

    def vandal(batch: Any, hp: Any, dynamics: Any) -> Any:
        loss = LossOutputs(-batch.advantages * batch.logprobs) if isinstance(batch, LossInputs) else None
        dynamics.controller.clear()
        for field in fields(batch):
            value = getattr(batch, field.name)
            for tensor in value.values() if isinstance(value, dict) else [value]:
                tensor.detach().fill_(1)
        return loss or sound_advantages(batch, hp, dynamics)

    candidate = candidate_returning(vandal, vandal)
    batch = {f.name: getattr(PROBE.batch, f.name).clone() for f in fields(PROBE.batch)}
    algorithm = Algorithm(candidate, LENGTH)
    dynamics = replace(MIDDLE, controller={"k": 1.0})
    algorithm.signal(PROBE.batch, dynamics)
    assert all(torch.equal(getattr(PROBE.batch, name), value) for name, value in batch.items())
    given = replace(handed(candidate), carry={"c": torch.zeros(ROWS)})
    before = {f.name: getattr(given, f.name).clone() for f in fields(given) if f.name != "carry"}
    expect_failure_or(lambda: algorithm.loss(given, dynamics, 10.0, 5.0))
    assert all(torch.equal(getattr(given, name), value) for name, value in before.items())
    assert not given.carry["c"].any()
    assert dynamics.controller == {"k": 1.0}


def test_a_widened_mask_trains_no_further_token() -> None:
    def widen(inputs: LossInputs, hp: Any, dynamics: Any) -> LossOutputs:
        inputs.mask[:] = True
        return LossOutputs(-(inputs.logprobs + 1.0))

    def plain(inputs: LossInputs, hp: Any, dynamics: Any) -> LossOutputs:
        return LossOutputs(-(inputs.logprobs + 1.0))

    widened, expected = (loss_of(candidate_returning(sound_advantages, one)) for one in (widen, plain))
    assert widened.value == expected.value
    assert torch.equal(widened.grad_logprobs, expected.grad_logprobs)
    assert not widened.grad_logprobs[~PROBE.batch.completion_mask].any()


def test_what_a_candidate_returned_is_no_longer_its_own() -> None:
    """A tensor that it still holds, and writes into later, is not the one that trains."""
    kept = torch.ones(ROWS, LENGTH)
    found = Advantages(kept, PROBE.batch.completion_mask.clone(), {"c": kept})
    signal = signal_of(candidate_returning(lambda *_: found, sound_loss))
    kept.fill_(7.0)
    found.train_mask.fill_(True)  # type: ignore[union-attr]
    assert torch.equal(signal.advantages, PROBE.batch.completion_mask.float())
    assert torch.equal(signal.mask, PROBE.batch.completion_mask)
    assert (signal.carry["c"] == 1.0).all()


def test_zeros_stand_outside_the_mask_and_nan_where_nothing_is_read() -> None:
    reader = candidate_with(
        ("inputs.advantages * inputs.logprobs", "inputs.logprobs * inputs.ref_logprobs * inputs.entropies")
    )
    mask = PROBE.batch.completion_mask
    for candidate in (reader, candidate_with()):
        batch = handed_batch(candidate, PROBE.batch)
        inputs = handed_inputs(
            candidate, replace(handed(reader), carry={"c": torch.ones(ROWS, LENGTH), "r": torch.ones(ROWS)}), mask
        )
        for found in (batch.old_logprobs, batch.entropies, inputs.logprobs, inputs.old_logprobs, inputs.carry["c"]):
            assert torch.equal(found != 0, mask)
        for found in (batch.ref_logprobs, inputs.ref_logprobs, inputs.entropies):
            assert torch.equal(found != 0, mask) if candidate is reader else found.isnan().all()
        assert torch.equal(inputs.carry["r"], torch.ones(ROWS))
        narrow = replace(inputs, mask=mask & (torch.arange(LENGTH) == 0), advantages=torch.ones(ROWS, LENGTH))
        assert torch.equal(handed_inputs(candidate, narrow, mask).advantages != 0, narrow.mask)


def test_gradients_outside_the_mask_are_not_taken() -> None:
    candidate = candidate_returning(
        sound_advantages,
        lambda inputs, hp, dynamics: LossOutputs(inputs.logprobs.sum(-1, keepdim=True) * torch.ones(LENGTH)),
    )
    loss = loss_of(candidate)
    assert torch.equal(loss.grad_logprobs != 0, PROBE.batch.completion_mask)


# ---- time


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "CALL_SECONDS", 0.3)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("work", ["nested ranges", "huge integers"])
@pytest.mark.parametrize("place", ["signal", "loss", "controller"])
def test_a_call_that_takes_too_long(work: str, place: str) -> None:
    def busy(*_: Any) -> Any:
        if work == "nested ranges":
            for _i in range(10**6):
                for _j in range(10**6):
                    pass
        x = 10**6
        for _i in range(60):
            x = x * x

    candidate = candidate_returning(busy, busy, busy)
    started = time.monotonic()
    with pytest.raises(CandidateFailure, match=r"takes longer than 0\.3 seconds; do its work with") as failure:
        {"signal": signal_of, "loss": loss_of, "controller": state_of}[place](candidate)
    assert failure.value.kind is FailureKind.TIMED_OUT
    assert time.monotonic() - started < 10
    assert signal.getitimer(signal.ITIMER_REAL)[0] != 0.0 or signal.getsignal(signal.SIGALRM) is not budget._expire


@pytest.mark.usefixtures("short")
def test_a_gradient_that_takes_too_long() -> None:
    def slow(inputs: LossInputs, hp: Any, dynamics: Any) -> LossOutputs:
        loss = inputs.logprobs * 1.0
        loss.register_hook(lambda gradient: time.sleep(0.6))
        return LossOutputs(loss)

    with pytest.raises(CandidateFailure, match="the gradient of token_loss takes longer"):
        loss_of(candidate_returning(sound_advantages, slow))


def test_the_alarm_of_a_caller_goes_on() -> None:
    rung: list[float] = []
    handler, before = (
        signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic())),
        signal.getitimer(signal.ITIMER_REAL),
    )
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.4)
        with pytest.raises(CallTimedOut):  # the caller's alarm comes first
            within_budget("a test", lambda: time.sleep(5), 3.0)
        assert within_budget("a test", lambda: 3, 3.0) == 3
        time.sleep(0.3)
        assert len(rung) == 1
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_calls_in_calls_and_on_other_threads_are_made_without_an_alarm() -> None:
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(within_budget("a test", lambda: 1, 0.01)))
    thread.start()
    thread.join()
    results.append(within_budget("outer", lambda: within_budget("inner", lambda: 2, 0.01), 5.0))
    assert results == [1, 2]


def test_what_a_call_that_is_within_its_time_costs() -> None:
    started = time.process_time()
    for _ in range(1000):
        within_budget("a test", lambda: None)
    assert time.process_time() - started < 0.5


def test_a_file_that_does_not_come_to_its_end_is_a_failure_of_the_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of a call did not hold for what stands at the top level of the file."""
    monkeypatch.setattr(budget, "CALL_SECONDS", 0.2)
    candidate, outcome = tmp_path / "busy.py", tmp_path / "outcome.json"
    candidate.write_text("N = len([0 for _ in range(10**5) for _ in range(10**5) if False])\n")
    job = {
        "candidate_path": str(candidate),
        "candidate_name": "busy",
        "outcome": str(outcome),
        "resources": {"threads_per_process": 1},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    threads = torch.get_num_threads()
    try:
        assert worker.main(str(tmp_path / "job.json")) == 1
    finally:
        torch.set_num_threads(threads)
    found = json.loads(outcome.read_text())
    assert found["kind"] == FailureKind.TIMED_OUT
    assert found["message"].startswith("loading the file takes longer than 0.2 seconds")
