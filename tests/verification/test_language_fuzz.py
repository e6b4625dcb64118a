"""Programs written at random around what is not allowed: whatever the language check lets through finds none of it.

The grammar is in ``tests/support/fuzz_grammar.py``, what watches the programs in ``tests/support/fuzz_oracle.py``. The exhaustive
test writes programs for ``POISE_FUZZ_MINUTES`` (by default one; a night finds more) from the seed ``POISE_FUZZ_SEED`` (by default
the time).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator

import fuzz_oracle
import pytest
from fuzz_grammar import Writer, program
from fuzz_oracle import Calls, Campaign, bytecode_findings, judged, numbered_program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poise_core.candidate import budget, loading
from poise_core.candidate.calls import ContractViolation
from poise_core.verification.harness import run_candidate
from poise_core.verification.language import vocabulary
from poise_core.verification.language.check import check_language
from poise_core.verification.language.vocabulary import LanguageError
from poise_core.verification.probes import ordinary

PROBE, CALLS = ordinary(), Calls()
MINUTES = float(os.environ.get("POISE_FUZZ_MINUTES", "1"))


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Calls that end after two seconds, and no warnings of Python about the odd text of a program."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(budget, "CALL_SECONDS", 2.0)
        yield


@st.composite
def programs(draw: st.DrawFn) -> str:
    return Writer(lambda options: draw(st.sampled_from(options)), calm=draw(st.sampled_from((7, 8, 9)))).program()


@pytest.mark.slow
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=12)
@given(source=programs())
def test_no_program_that_passes_does_what_is_not_allowed(source: str) -> None:
    assert judged(source, PROBE, CALLS).findings == (), source


@pytest.mark.slow
def test_numbered_programs() -> None:
    """A part of the long run, always the same: enough of it passes the check for the witnesses to have something to see."""
    campaign = Campaign(seed=3)
    campaign.go_on(60.0, most=200)
    assert campaign.finds == []
    assert campaign.admitted >= 2
    assert numbered_program(3, 7) == numbered_program(3, 7) != numbered_program(3, 8)


@pytest.mark.exhaustive
@pytest.mark.timeout(int(60 * MINUTES) + 300)
def test_the_fuzzer_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    seed = os.environ.get("POISE_FUZZ_SEED", str(int(time.time())))
    command = [sys.executable, "-W", "ignore", fuzz_oracle.__file__, "--minutes", str(MINUTES), "--seed", seed]
    ended = subprocess.run(command, capture_output=True, text=True)
    with capsys.disabled():
        print("\n" + "\n".join(line for line in ended.stdout.splitlines() if "written" in line))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert f"seed {seed}: " in ended.stdout


def at(body: str, module: str = "", where: str = "advantages", imports: str = "") -> str:
    return program(body, module, where, imports=imports)


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        (at("z = [eval for eval in (1,)]\ny = eval('1')"), "the name eval"),
        (at("y = torch.load('x')"), "the attribute load"),
        (at("y = batch.correctness.numpy()"), "the attribute numpy"),
        (at("y = torch.nn.functional.__builtins__"), "the attribute __builtins__"),
        (at("f = lambda: 1"), "a function in compute_advantages"),
        (at("y = f'{batch}'"), "the instruction FORMAT_VALUE"),
        (at("try:\n    pass\nexcept Exception:\n    pass"), "a try statement"),
        (at("try:\n    pass\nfinally:\n    y = 1"), "a try statement"),
        (at("batch.correctness = 1"), "the instruction STORE_ATTR"),
        (at("class A:\n    pass"), "a class in a function"),
        (at("", "async def more():\n    pass"), "more is no plain function"),
        (at("", "import os"), "the import of os"),
        (at("match batch:\n    case dict(a=1):\n        pass"), "the instruction MATCH_CLASS"),
        (at("", "LIMIT = sorted((2, 1))"), "the module value LIMIT can change"),
        (at("", "LIMIT = zip((2, 1))"), "the module value LIMIT can change"),
        (at("y = r(batch.old_logprobs, True)", imports="from torch.nn.functional import relu as r"), "a call of relu in place"),
        (at("torch.bool.to = 1"), "the instruction STORE_ATTR"),
        (at("y = torch.where.is_floating_point"), ""),
    ],
)  # fmt: skip
def test_the_witnesses_see_what_the_check_does_not(source: str, seen: str) -> None:
    """Without the check, what it refuses is seen by one of them."""
    found = judged(source, PROBE, CALLS, check=lambda source: None).findings
    assert any(one == seen for one in found) if seen else not found, found
    if seen:
        with pytest.raises(LanguageError):
            check_language(source)


def test_a_sound_program_is_run_to_its_end_and_nothing_is_seen() -> None:
    verdict = judged(at("y = batch.correctness.exp().clone()"), PROBE, CALLS)
    assert (verdict.admitted, verdict.executed, verdict.findings) == (True, True, ())


def test_the_witness_of_audit_events_and_the_one_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """What got past the bytecode too would be seen when it runs."""
    monkeypatch.setattr("fuzz_oracle.bytecode_findings", lambda source: set())
    found = judged(at("y = torch.os.listdir('/')"), PROBE, CALLS, check=lambda source: None).findings
    assert {one.partition(" (")[0] for one in found} == {"the event os.listdir", "a call of listdir of module"}
    found = judged(at("y = torch.manual_seed(3)"), PROBE, CALLS, check=lambda source: None).findings
    assert "a change of torch's random state" in found
    found = judged(at("y = eval('1')"), PROBE, CALLS, check=lambda source: None).findings
    assert found == ("the built-in eval",)
    assert bytecode_findings(at("pass")) == set()


def test_check_and_loader_know_the_same_modules() -> None:
    assert {name for name in vocabulary.MODULES if not name.startswith("torch.")} == set(loading.IMPORTABLE)


def test_what_gets_past_the_check_finds_a_name_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for payload in ("open('x', 'w')", "exec('1')", "type(batch)", "__import__('os')"):
        candidate = loading.load_candidate_source(at(f"y = {payload}"), "hostile")
        with pytest.raises(Exception, match=r"NameError|cannot import os"):
            run_candidate(candidate, ordinary())
    with pytest.raises(loading.CandidateError, match="a candidate cannot import os"):
        loading.load_candidate_source(at("pass", "import os"), "hostile")


@pytest.mark.parametrize(
    "use", ["y = sum(range(n))", "for i in range(0, n, 1):\n    pass", "y = list(range(n, 0, -1))"]
)
def test_a_range_through_a_name_is_bounded_when_it_runs(use: str) -> None:
    source = at(f"n = 1000\nn = n * n * n * n\n{use}")
    check_language(source)  # whose promise ends at what is written
    with pytest.raises(ContractViolation, match="this range has more than 100000 numbers; use torch operations"):
        run_candidate(loading.load_candidate_source(source, "hostile"), PROBE)
    assert loading.bounded_range(3, 0, -1) == range(3, 0, -1)
    assert len(loading.bounded_range(loading.MAX_RANGE)) == loading.MAX_RANGE
