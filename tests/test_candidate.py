"""Loading candidate files: what is accepted, and what their authors are told otherwise."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch

from poise_core.algorithms import algorithm_path
from poise_core.candidate import budget
from poise_core.candidate.budget import CallTimedOut
from poise_core.candidate.identity import MAX_BYTES, UnreadableCandidate, candidate_name, read_candidate, same_program
from poise_core.candidate.loading import CandidateError, load_candidate, load_candidate_source, source_digest
from poise_core.contract import Dynamics, LossInputs, RolloutBatch

SOURCE = '''
"""Two: every advantage is a constant."""

from dataclasses import dataclass

import torch

from poise_core.contract import Advantages, LossOutputs

LOSS_AGGREGATION = "token-mean"
MECHANISMS = {"size": {"size": 0.0}}


@dataclass(frozen=True)
class Hyperparameters:
    size: float = 2.0


def compute_advantages(batch, hp, dynamics):
    return Advantages(values=torch.full(batch.completion_mask.shape, hp.size))


def compute_loss(inputs, hp, dynamics):
    return LossOutputs(token_loss=-inputs.logprobs * inputs.advantages)
'''

CONTROLLER = """

def update_controller(state, dynamics, hp):
    return {"calls": state.get("calls", 0.0) + hp.size}
"""

DYNAMICS = Dynamics(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 16)


def batch() -> RolloutBatch:
    flags, tokens = torch.zeros(2, dtype=torch.bool), torch.zeros(2, 3)
    mask = torch.ones(2, 3, dtype=torch.bool)
    return RolloutBatch(torch.zeros(2), flags, flags, torch.zeros(2, dtype=torch.int64), mask, tokens, tokens, tokens)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_file_has_one_text_whoever_reads_it(end: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_bytes(SOURCE.replace("\n", end).encode(encoding))
    assert read_candidate(path) == SOURCE
    assert load_candidate(path).source == SOURCE
    link = tmp_path / "link.py"
    link.symlink_to(path)
    assert read_candidate(link) == SOURCE


@pytest.mark.parametrize("coding", ["latin-1", "cp1252", "iso-8859-15", "shift_jis"])
def test_a_coding_line_is_read_as_python_reads_it(coding: str, tmp_path: Path) -> None:
    said = "\u30ab" if coding == "shift_jis" else "é"
    path = tmp_path / "two.py"
    path.write_bytes(f"#!/usr/bin/python\r\n# -*- coding: {coding} -*-\r\n# {said}\r\n{SOURCE}".encode(coding))
    text = read_candidate(path)
    assert text == f"#!/usr/bin/python\n# -*- coding: utf-8 -*-\n# {said}\n{SOURCE}"
    path.write_text(text, encoding="utf-8")  # as the archive's copy of it is read
    assert read_candidate(path) == text
    # what is UTF-8 is read as it, whatever a comment says: no archived text changes
    path.write_text(f"# coding: latin-1\n# é\n{SOURCE}", encoding="utf-8")
    assert read_candidate(path).startswith("# coding: latin-1\n# é\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("é".encode("latin-1"), "not UTF-8 text (byte 0)"), (b"# coding: utf-7\n\xff", "not UTF-8 text (byte 16)"),
        (b"# coding: unicode_escape\n\xff", "not UTF-8 text (byte 25)"), (b"x = 1\n# coding: latin-1\n\xff", "not UTF-8"),
        (b"\xef\xbb\xbfab\xff", "not UTF-8 text (byte 5)"),
        (SOURCE.encode("utf-16"), "not UTF-8 text (byte 0)"), (b"#" * (MAX_BYTES + 1), "more than 1048576 bytes"),
        ("\ud800".encode("utf-8", "surrogatepass"), "not UTF-8 text (byte 0)"),
    ],
    ids=range(8),
)  # fmt: skip
def test_what_is_no_text_is_refused_by_every_reader(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_bytes(content)
    with pytest.raises(UnreadableCandidate, match=re.escape(message)) as unreadable:
        read_candidate(path)
    assert unreadable.value.content == content
    with pytest.raises(CandidateError, match=re.escape(message)):
        load_candidate(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a pipe", "endless link"])
def test_what_is_no_file_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    if "pipe" in kind:
        os.mkfifo(tmp_path / "pipe")
    match kind:
        case "pipe":
            path = tmp_path / "pipe"
        case "device":
            path = Path("/dev/zero")
        case "folder":
            path.mkdir()
        case "link to a pipe":
            path.symlink_to(tmp_path / "pipe")
        case "endless link":
            path.symlink_to(path)
    with pytest.raises(OSError, match=r"not a regular file|symbolic links|directory"):
        read_candidate(path)


def test_a_name_of_a_file_becomes_a_plain_name() -> None:
    assert candidate_name("vm_av-2.1") == "vm_av-2.1"
    assert candidate_name("[red]<b>\x1b[2J my file (2)") == "red-b-2J-my-file-2"
    assert candidate_name("алгоритм") == "алгоритм"
    assert candidate_name("\u202e..") == "unnamed"
    assert len(candidate_name("x" * 300)) == 60


def test_loading_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else bounds what stands at the top level of a file, where the check `language` was got past."""
    monkeypatch.setattr(budget, "CALL_SECONDS", 0.2)
    busy = f"{SOURCE}\nLENGTHS = [sum(range(1000)) for _ in range(10**5) for _ in range(10**5)]\n"
    begun = time.process_time()
    with pytest.raises(CallTimedOut, match=r"loading the file takes longer than 0\.2 seconds"):
        load_candidate_source(busy, "busy")
    hidden = SOURCE.replace(
        "    size: float = 2.0",
        "    size: float = 2.0\n\n    def __post_init__(self):\n        [0 for _ in range(10**5) for _ in range(10**5)]",
    )
    with pytest.raises(CallTimedOut, match=r"Hyperparameters\(\) takes longer"):
        load_candidate_source(hidden, "hidden")
    assert time.process_time() - begun < 20
    assert load_candidate_source(SOURCE, "two").name == "two"


def test_binds_functions_to_hyperparameters() -> None:
    candidate = load_candidate_source(SOURCE, "two")
    assert candidate.name == "two"
    assert candidate.source == SOURCE
    assert candidate.loss_aggregation == "token-mean"
    assert candidate.mechanisms == {"size": {"size": 0.0}}
    values = candidate.compute_advantages(batch(), DYNAMICS).values
    assert values.tolist() == [[2.0] * 3] * 2
    mask, zeros = batch().completion_mask, torch.zeros(2, 3)
    inputs = LossInputs(zeros - 1.0, zeros, zeros, zeros, values, mask, {}, torch.zeros(2), mask[:, 0])
    assert candidate.compute_loss(inputs, DYNAMICS).token_loss.tolist() == [[2.0] * 3] * 2


def test_overrides_make_another_candidate() -> None:
    candidate = load_candidate_source(SOURCE, "two")
    halved = candidate.with_overrides(size=1.0)
    assert halved.compute_advantages(batch(), DYNAMICS).values[0, 0] == 1.0
    assert candidate.compute_advantages(batch(), DYNAMICS).values[0, 0] == 2.0
    with pytest.raises(TypeError, match="sise"):
        candidate.with_overrides(sise=1.0)


def test_controller_is_optional() -> None:
    assert load_candidate_source(SOURCE, "two").update_controller({"calls": 1.0}, DYNAMICS) == {}
    controlled = load_candidate_source(SOURCE + CONTROLLER, "two")
    assert controlled.update_controller({"calls": 1.0}, DYNAMICS) == {"calls": 3.0}


def test_costs_follow_what_the_source_reads() -> None:
    plain = load_candidate_source(SOURCE, "two")
    assert not plain.reads_reference
    assert not plain.reads_entropies
    # in advantages or in the loss alike; a mention in a comment or a string costs nothing
    both = SOURCE.replace("-inputs.logprobs", "inputs.ref_logprobs - inputs.entropies")
    assert load_candidate_source(both, "two").reads_reference
    assert load_candidate_source(both, "two").reads_entropies
    comment = SOURCE + "\n# inputs.ref_logprobs\nNOTE = 'batch.entropies'\n"
    assert not load_candidate_source(comment, "two").reads_reference
    assert not load_candidate_source(comment, "two").reads_entropies


@pytest.mark.parametrize(
    ("name", "reference", "entropies"),
    [("grpo", True, False), ("dr_grpo", False, False), ("sa", True, True), ("rloo", True, False)],
)
def test_costs_of_shipped_algorithms(name: str, reference: bool, entropies: bool) -> None:
    candidate = load_candidate(algorithm_path(name))
    assert (candidate.reads_reference, candidate.reads_entropies) == (reference, entropies)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def broken(:\n", "line 1: "),
        (SOURCE + "\nreturn 1\n", "fails when it is imported: SyntaxError: 'return' outside function"),
        ("\0", "null bytes"),
        ("-" * 200_000 + "1", "too deeply"),
        (
            SOURCE.replace("import torch", "import torch_does_not_exist"),
            "fails when it is imported: ImportError: a candidate cannot import torch_does_not_exist",
        ),
        (SOURCE.replace("LOSS_AGGREGATION =", "AGGREGATION ="), "LOSS_AGGREGATION is missing"),
        (SOURCE.replace("MECHANISMS =", "SWITCHES ="), "MECHANISMS is missing"),
        (SOURCE.replace("class Hyperparameters", "class Settings"), "Hyperparameters is missing"),
        (SOURCE.replace("def compute_loss", "def loss"), "compute_loss is missing"),
        (SOURCE + "\ncompute_advantages = 3\n", "compute_advantages is 3; it must be a function"),
        (SOURCE + "\nMECHANISMS = ['size']\n", "MECHANISMS must be a dict"),
        (SOURCE.replace('"token-mean"', '"mean"'), "LOSS_AGGREGATION is 'mean'; use one of token-mean, sequence-mean"),
        (SOURCE.replace("size: float = 2.0", "size: float"), "give every field a default"),
        (SOURCE + "\nraise SystemExit(0)\n", "fails when it is imported: NameError"),
        (SOURCE + "\n1 / 0\n", "fails when it is imported: ZeroDivisionError"),
    ],
)
def test_says_what_is_wrong_with_a_file(source: str, message: str) -> None:
    with pytest.raises(CandidateError) as caught:
        load_candidate_source(source, "broken")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_exits_does_not_end_the_process_that_loads_it() -> None:
    with pytest.raises(CandidateError, match="fails when it is imported: SystemExit"):
        load_candidate_source(SOURCE + "\nraise SystemExit(0)\n", "exits", wall=False)


def test_hyperparameters_are_an_ordinary_frozen_dataclass_behind_the_wall() -> None:
    hp = load_candidate_source(SOURCE, "two").hyperparameters
    again = load_candidate_source(SOURCE, "two").hyperparameters
    assert repr(hp) == "Hyperparameters(size=2.0)"
    assert hash(hp) == hash(dataclasses.replace(hp))
    assert hp == dataclasses.replace(hp)
    assert hp != dataclasses.replace(hp, size=3.0)
    assert dataclasses.asdict(again) == {"size": 2.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        hp.size = 1.0


def test_file_name_is_the_name(tmp_path: Path) -> None:
    path = tmp_path / "two_point_one.py"
    path.write_text(SOURCE, encoding="utf-8")
    assert load_candidate(path).name == "two_point_one"
    assert load_candidate(str(path), name="other").name == "other"
    with pytest.raises(FileNotFoundError):
        load_candidate(tmp_path / "absent.py")
    path.write_bytes(b'"""caf\xe9"""')
    with pytest.raises(CandidateError, match="UTF-8"):
        load_candidate(path)


def test_loading_leaves_no_module_behind_and_files_do_not_mix() -> None:
    before = set(sys.modules)
    first = load_candidate_source(SOURCE, "same")
    second = load_candidate_source(SOURCE.replace("2.0", "5.0"), "same")
    assert set(sys.modules) == before
    assert dataclasses.asdict(first.hyperparameters) == {"size": 2.0}
    assert dataclasses.asdict(second.hyperparameters) == {"size": 5.0}


def test_tracebacks_show_the_candidates_lines() -> None:
    source = SOURCE.replace("    return Advantages", "    1 / dynamics.step\n    return Advantages")
    with pytest.raises(ZeroDivisionError) as failure:
        load_candidate_source(source, "divides").compute_advantages(batch(), DYNAMICS)
    assert "    1 / dynamics.step\n" in "".join(traceback.format_exception(failure.value))


def test_digest_ignores_line_endings_and_trailing_blanks_only() -> None:
    digest = source_digest(SOURCE)
    assert source_digest(SOURCE.replace("\n", "\r\n")) == digest
    assert source_digest("\n\n" + SOURCE.replace("\n", "  \n") + "\n\n") == digest
    assert source_digest(SOURCE.replace("2.0", "2.5")) != digest
    assert source_digest(SOURCE.replace("    return", "  return")) != digest  # indentation counts
    assert len(digest) == 64
    ast.parse(SOURCE)  # the example itself is sound


def test_programs_are_the_same_whatever_their_comments_say() -> None:
    one = '"""Doc."""\n\ndef f(x):\n    """Adds."""\n    return x + 1  # one\n'
    assert same_program(one, "def f(x):\n    return (x + 1)\n")
    assert not same_program(one, "def f(x):\n    return x + 2\n")
