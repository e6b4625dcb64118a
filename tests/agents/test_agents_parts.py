"""The parts of the roles that need no server: consistency, evidence, directions, steering, forecast, settings."""

import hashlib
import json
import math
import os
import sys
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from call_samples import GOOD, Colour, place, reflection
from script import CLIPPED, LINE

from poise_core.agents.briefing import Line
from poise_core.agents.llm.answers import answer_schema, read_answer
from poise_core.agents.llm.consistency import contradictions
from poise_core.agents.llm.faults import CallFailed
from poise_core.agents.llm.forms import (
    ClaimForm,
    DiagnosisForm,
    EquationUse,
    ExpectationForm,
    ImplementationForm,
    ProposalForm,
    ProposalsForm,
    ReflectionForm,
    ScreeningForm,
)
from poise_core.agents.llm.ledger import price_table
from poise_core.agents.llm.preflight import AgentSettingsError, check_agents, forecast
from poise_core.agents.llm.proposer import DIRECTIONS, merged, telling_diagnoses, wanted_directions
from poise_core.agents.llm.question import Answer
from poise_core.agents.llm.reflector import evidence_rows, merge
from poise_core.agents.llm.secrets import redact
from poise_core.agents.llm.wire import Reply
from poise_core.agents.roles import Expectation, Measured, Proposal, Reflection, ReflectionEvidence
from poise_core.agents.rules.reflector import RuleReflector
from poise_core.agents.steering import steering_bonus
from poise_core.candidate.identity import name_fault
from poise_core.config.agents import AgentSettings, Choices, Steering
from poise_core.evidence.intervals import Interval
from poise_core.evolution.history import with_bonus
from poise_core.search.selection import NodeRecord

PARENT = CLIPPED.format(bound=1.0)


def a_proposal(**changes: Any) -> Proposal:
    given: dict[str, Any] = {
        "name": "X", "hypothesis": "h", "mechanism_change": "m", "parent_ids": ("p",), "direction": "bound",
        "proposer": "llm", "mechanisms": ("bounded_advantage",), "equations": ("A = clip(...)",),
        "touches": ("compute_advantages",),
    }  # fmt: skip
    return Proposal(**{**given, **changes})


USES = [EquationUse(number=1, code=LINE)]
CHANGED = PARENT.replace("+ 1e-4", "+ 1e-3")


def test_a_file_that_does_what_its_proposal_says_has_no_contradiction() -> None:
    assert contradictions(CHANGED, a_proposal(), PARENT, USES) == []
    annotated = CHANGED.replace("MECHANISMS =", "MECHANISMS: dict =").replace("AGGREGATION =", "AGGREGATION: str =")
    assert contradictions(annotated, a_proposal(), PARENT, USES) == []


@pytest.mark.parametrize(
    ("source", "changes", "uses", "sentence"),
    [
        (CHANGED, {"mechanisms": ("other",)}, USES, "MECHANISMS lacks 'other'"),
        (CHANGED, {}, [], "equation 1 (A = clip(...)): no line of the file is named"),
        (CHANGED, {}, [EquationUse(number=1, code="advantage = magic(batch)")], "does not stand in the file"),
        (PARENT, {}, USES, "the same as the parent's"),
        (CHANGED, {"touches": ("compute_loss",)}, USES, "compute_advantages differs from the parent's"),
        (CHANGED, {"touches": ("compute_advantages", "compute_loss")}, USES, "compute_loss is as in the parent"),
        ("def broken(:", {}, USES, "does not parse"),
        (CHANGED.replace("MECHANISMS =", "MECHANISMS: dict ="), {"mechanisms": ("other",)}, USES, "lacks 'other'"),
        (
            CHANGED.replace('LOSS_AGGREGATION = "sequence', 'LOSS_AGGREGATION: str = "token'),
            {},
            USES,
            "LOSS_AGGREGATION differs",
        ),
    ],
)
def test_each_contradiction_is_told(source: str, changes: Any, uses: list[EquationUse], sentence: str) -> None:
    found = contradictions(source, a_proposal(**changes), PARENT, uses)
    assert any(sentence in one for one in found), found


def test_docstrings_comments_and_layout_are_no_change() -> None:
    same = PARENT.replace('"""GRPO', '"""Another text, GRPO').replace("# (B,)", "# other")
    assert contradictions(same, a_proposal(), PARENT, USES) == ["the file does the same as the parent's"]


def form(direction: str, name: str, change: str, **changes: Any) -> ProposalForm:
    expectations = [
        ExpectationForm(metric="Overall", direction="increase", why="w"),
        ExpectationForm(metric="happiness", direction="increase", why="w"),
    ]
    return ProposalForm(
        direction=direction, name=name, addresses="a", hypothesis="h", mechanism_change=change, equations=["A = B"],
        mechanisms=["Bounded Advantage!"], touches=["compute_loss"], expectations=expectations, **changes,
    )  # fmt: skip


def test_duplicates_are_merged_names_are_freed_and_unmeasurable_expectations_dropped() -> None:
    forms = [
        form("bound", "PARENT", "advantages are clamped between minus b and plus b"),
        form("scale", "OTHER", "advantages are clamped between minus b and plus b"),
        form("KL: to the reference", "new idea", "a penalty on the divergence from the reference that fades"),
    ]
    first, second = merged(Answer(ProposalsForm(proposals=forms), "call", "proposer.md v1 @0", "m"), place())
    assert (first.name, second.name) == ("PARENT-2", "new-idea")
    assert (first.direction, second.direction) == ("bound", "kl")
    assert first.mechanisms == ("bounded_advantage",)
    assert first.expectations == (Expectation(metric="Overall", direction="increase", why="w"),)
    assert (first.call_id, first.prompt, first.proposer) == ("call", "proposer.md v1 @0", "llm")


def test_mechanisms_get_names_that_a_candidate_may_use() -> None:
    named = form("scale", "new", "another scale").model_copy(
        update={"mechanisms": ["σ-norm", "β decay", "λ·Δ", "écart", "x" * 80, "平均"]}
    )
    (proposal,) = merged(Answer(ProposalsForm(proposals=[named]), "call", "proposer.md v1 @0", "m"), place())
    assert proposal.mechanisms == ("sigma_norm", "beta_decay", "lambda_delta", "ecart", "x" * 60, "mechanism")
    assert not name_fault("mechanism", proposal.mechanisms)


def test_directions_are_different_and_begin_with_the_diagnosis() -> None:
    wanted = wanted_directions(place(reflection("entropy_collapse")), 4, 0)
    assert wanted[:2] == ["entropy", "clip"]
    assert len(set(wanted)) == 4
    assert wanted == wanted_directions(place(reflection("entropy_collapse")), 4, 0)
    assert wanted_directions(place(), 4, 0) != wanted_directions(place(), 4, 1)
    assert sorted(wanted_directions(place(), 99, 0)) == sorted(DIRECTIONS)


def test_the_limits_of_a_form_are_in_its_schema_and_what_is_too_long_is_cut() -> None:
    schema = answer_schema(ProposalsForm)
    one = schema["properties"]["proposals"]["items"]["properties"]
    assert one["equations"]["description"].endswith("at most 12 entries")
    assert one["name"]["description"].endswith("at most 40 characters")
    judgement = answer_schema(ScreeningForm)["properties"]["judgements"]["items"]["properties"]
    assert judgement["logic"]["description"].endswith("from 0 to 10")
    long = form("bound", "X", "m").model_dump()
    long |= {
        "mechanism_change": "m" * 5000,
        "equations": [f"A = {n}" for n in range(40)],
        "mechanisms": list("abcdefghijkl"),
    }
    read = read_answer(Reply(json.dumps({"proposals": [long] * 20})), ProposalsForm)
    assert len(read.proposals) == 16
    assert len(read.proposals[0].mechanism_change) == 2000
    assert read.proposals[0].equations == [f"A = {n}" for n in range(12)]
    assert len(read.proposals[0].mechanisms) == 8
    with pytest.raises(CallFailed):  # a file that is cut is no file
        read_answer(Reply(json.dumps({"plan": ["p"], "source": "x" * 60_001, "equations": []})), ImplementationForm)


def test_a_diagnosis_that_most_have_points_nowhere_and_no_two_places_of_a_parent_get_the_same() -> None:
    table = tuple(
        Line(f"C{n}", "c", "evaluated", Interval(0.0, -1.0, 1.0, 2), diagnoses=("length_growth",)) for n in range(6)
    )
    context = place(reflection("length_growth", "entropy_collapse"), table=table)
    assert [one.code for one in telling_diagnoses(context)] == ["entropy_collapse"]
    assert wanted_directions(context, 4, 0)[:2] == ["entropy", "clip"]
    assert telling_diagnoses(place(reflection("length_growth"), table=table[:3]))  # too few to compare with
    offered = [wanted_directions(replace(context, repeat=n), 4, 0) for n in range(3)]
    assert len({one for each in offered for one in each}) == 12


def evidence() -> ReflectionEvidence:
    def rows(level: float) -> list[dict[str, float]]:
        return [{"step": step, "reward_mean": level + 0.01 * step, "entropy": 1.0 - 0.08 * step} for step in range(12)]

    expectations = (
        Expectation(metric="Overall", direction="increase", why="w"),
        Expectation(metric="reward_end", direction="decrease", why="w"),
        Expectation(metric="kl_end", direction="decrease", why="w"),
    )
    return ReflectionEvidence(
        candidate=Measured("c", "CHILD", {0: rows(0.5), 1: rows(0.51)}, proposal=a_proposal(expectations=expectations)),
        parent=Measured("p", "PARENT", {0: rows(0.3), 1: rows(0.31)}),
        overall_delta=Interval(2.0, 1.0, 3.0, 2),
        benchmark_deltas={"sums": Interval(0.5, -math.inf, math.inf, 1)},
    )


def test_expectations_are_scored_by_measurements_and_claims_rest_on_rows() -> None:
    ground = RuleReflector().reflect(evidence())
    rows = evidence_rows(evidence(), ground)
    assert rows[0].id == "E1"
    assert "Overall against PARENT" in rows[0].text
    assert all(math.isfinite(value) for row in rows for value in row.numbers.values())
    answer = ReflectionForm(
        summary="told",
        diagnoses=[
            DiagnosisForm(code="entropy_collapse", text="Because the bonus is gone."),
            DiagnosisForm(code="kl_spike", text="A spike that nobody measured."),
        ],
        claims=[
            ClaimForm(text="It is better.", cites=["E1", "E999"]),
            ClaimForm(text="It is beautiful.", cites=["E999"]),
        ],
        try_next=["a"],
        avoid=["b"],
    )
    merged_one: Reflection = merge(ground, Answer(answer, "call", "reflector.md v1 @0", "m"), rows)
    assert [one.outcome for one in merged_one.expectations] == ["met", "not met", "undecidable"]
    assert merged_one.reflector == "llm"
    claims = {claim.text: claim for claim in merged_one.claims}
    assert claims["It is better."].evidence == {"E1 delta": 2.0, "E1 low": 1.0, "E1 high": 3.0}
    assert not claims["It is beautiful."].supported
    assert not claims["kl_spike: A spike that nobody measured."].supported
    (collapse,) = [one for one in merged_one.diagnoses if one.code == "entropy_collapse"]
    assert "collapsed from" in collapse.text  # the measured sentence stays
    assert collapse.text.endswith("Because the bonus is gone.")
    assert "kl_spike" not in {one.code for one in merged_one.diagnoses}
    assert "It is beautiful. (no number behind this)" in merged_one.as_text()


def steering(**changes: Any) -> Steering:
    return Steering(secondary=({"metric": "length_end", "direction": "decrease", "weight": 4.0},), **changes)


def test_secondary_aims_move_the_utility_within_their_constraint() -> None:
    # a quarter shorter: 4 * 0.25 = 1 point
    bonus = steering_bonus(steering(), 50.0, {"length_end": 15.0}, 50.0, {"length_end": 20.0})
    assert bonus == pytest.approx(1.0)
    strict = steering(overall_tolerance=0.5)
    assert steering_bonus(strict, 49.6, {"length_end": 15.0}, 50.0, {"length_end": 20.0}) == pytest.approx(1.0)
    assert steering_bonus(strict, 49.4, {"length_end": 15.0}, 50.0, {"length_end": 20.0}) == 0.0
    assert steering_bonus(strict, 49.4, {"length_end": 25.0}, 50.0, {"length_end": 20.0}) == pytest.approx(-1.0)
    assert steering_bonus(steering(), 50.0, {"length_end": None}, 50.0, {"length_end": 20.0}) == 0.0
    node = NodeRecord("a", "A", overall=Interval(50.0, 49.0, 51.0, 2), seed_overalls=(49.5, 50.5))
    moved = with_bonus(node, 1.0)
    assert (moved.overall, moved.seed_overalls) == (Interval(51.0, 50.0, 52.0, 2), (50.5, 51.5))


def test_a_forecast_says_least_and_most() -> None:
    prices = {"openai:x": {"input": 1.0, "output": 10.0}}
    settings = AgentSettings(model="openai:x", prices=prices, context_tokens=10_000, max_output_tokens=1000)
    found = forecast(settings, generations=2, parents=3, ideas=3, revisions=2)
    # 6 slots: 6 proposers, 6 screeners, 6 to 6 * 3 * 3 * 2 implementers with two turns of tools, 7 reflectors; each asked up to
    # three times
    most = 3 * (19 + 3 * 108)
    assert found.calls == (25, most)
    assert found.tokens == (25 * 1650, most * 11_000)
    assert found.dollars == (pytest.approx(25 * 0.003), pytest.approx(most * 0.02))
    repaired = forecast(settings, generations=2, parents=3, ideas=3, revisions=2, repairs=1)
    assert repaired.calls == (25, most + 3 * 3 * 6 * 3 * 2)
    assert "no price known for openai:local" in str(
        forecast(AgentSettings(model="openai:local"), generations=1, parents=1, ideas=1, revisions=0)
    )


def test_a_forecast_counts_further_models_that_may_propose() -> None:
    prices = {"openai:x": {"input": 1.0, "output": 10.0}, "openai:dear": {"input": 2.0, "output": 20.0}}
    settings = AgentSettings.model_validate(
        {"model": "openai:x", "prices": prices, "context_tokens": 10_000, "max_output_tokens": 1000,
         "choices": {"models": ["openai:dear"]}}
    )  # fmt: skip
    run = {"generations": 1, "parents": 1, "ideas": 1, "revisions": 0}
    alone = forecast(settings.model_copy(update={"choices": Choices()}), **run)
    both = forecast(settings, **run)
    # the cheaper one may propose every time, or the dearer one, three times of 10,000 and 1000 tokens: 3 * 0.02 more
    assert (both.calls, both.tokens) == (alone.calls, alone.tokens)
    assert both.dollars == (pytest.approx(alone.dollars[0]), pytest.approx(alone.dollars[1] + 0.06))
    settings = settings.model_copy(update={"choices": Choices(models=("openai:local",))})
    assert forecast(settings, **run).unpriced == ("openai:local",)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model": "anthropic:some"}, "pip install langchain-anthropic"),
        ({"model": "openai:local", "caps": {"run": {"dollars": 1}}}, "has no price; give one in agents.prices"),
        ({"model": "openai:gpt-4.1", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
        ({"model": "openai:x", "prompts_folder": "/nowhere"}, "/nowhere is not a folder"),
        ({"model": "openai:x", "literature_folder": "/nowhere"}, "/nowhere is not a folder"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "no model is"),
        ({"model": "openai:x", "context_tokens": 200}, "context_tokens is 200 for the proposer"),
        ({"model": "nosuch:x"}, "nosuch:x cannot be set up"),
        ({"model": "openai:gpt-4.1", "choices": {"models": ["nosuch:x"]}}, "nosuch:x cannot be set up"),
        ({"model": "openai:gpt-4.1", "choices": {"models": ["anthropic:some"]}}, "pip install langchain-anthropic"),
        ({"model": "openai:gpt-4.1", "choices": {"models": ["google_genai:some"]}}, "google_genai:some needs a key"),
        (
            {"model": "openai:gpt-4.1", "choices": {"models": ["openai:local"]}, "caps": {"run": {"dollars": 1}}},
            "openai:local has no price",
        ),
        ({"model": "openai:gpt-4.1", "choices": {"prompts_folders": ["/nowhere"]}}, "/nowhere is not a folder"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_call(
    settings: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "langchain_anthropic", None)  # as if it were not installed
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with pytest.raises(AgentSettingsError, match=sentence):
        check_agents(AgentSettings.model_validate(settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "no-provider"},
        {"base_url": "http://user:secret@host/v1"},
        {"base_url": "ftp://host"},
        {"fallbacks": ["bare"]},
        {"steering": {"secondary": [{"metric": "beauty", "direction": "increase"}]}},
        {"api_key": "sk-123"},
    ],
)
def test_settings_that_make_no_sense_or_hold_a_key_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        AgentSettings.model_validate(settings)


def test_roles_fall_back_to_the_common_settings_and_these_to_the_defaults() -> None:
    settings = AgentSettings(model="openai:big", roles={"screener": {"model": "openai:small", "temperature": 0.0}})
    assert settings.for_role("screener").model == "openai:small"
    assert settings.for_role("screener").temperature == 0.0
    assert settings.for_role("proposer").model == "openai:big"
    assert settings.for_role("proposer").retries == 3
    assert not AgentSettings().enabled
    assert AgentSettings(roles={"reflector": {"model": "openai:x"}}).enabled


def test_the_users_price_replaces_the_shipped_one() -> None:
    prices = price_table(AgentSettings(prices={"openai:gpt-4.1": {"input": 9.0, "output": 9.0}}))
    assert prices["openai:gpt-4.1"].input == 9.0
    assert prices["openai:gpt-4o"].output > 0


SECRETS = {
    # the text -> the part that must not stay
    "AKIAIOSFODNN7EXAMPLE": "IOSFODNN7",
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY": "wJalr",
    'AWS_SECRET_ACCESS_KEY="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"': "K7MDENG",
    '{"SecretAccessKey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}': "wJalr",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a": "16C7e42",
    "github_pat_11ABCDEFG0aBcDeFgHiJkL_abcdefghijklmnopqrstuvwxyz": "aBcDeF",
    "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY": "SyD-9",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U": "dozjg",
    "sk-proj-abcdefgh12345678": "abcdefgh",
    "sk-ant-api03-AbCdEfGh-1234567890": "AbCdEfGh",
    "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH": "abcdefgh",
    "xoxb-123456789012-abcdefABCDEF": "1234567",
    "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXX": "B00000000",
    "GET https://host/x?token=s3cr3tvalue&page=1": "s3cr3t",
    "https://bucket/x?X-Amz-Credential=AbCd1234&X-Amz-Signature=abcdef0123": "abcdef0123",
    "postgresql://poise:hunter2@db/x": "hunter2",
    "https://0123456789abcdef0123@git.example/x": "0123456789",
    "PGPASSWORD=hunter2 psql -h db": "hunter2",
    "export MYSQL_PWD='hunter2'": "hunter2",
    "MYSQL_PWD: hunter2": "hunter2",
    "SECRET_KEY = 'abcdefgh'": "abcdefgh",
    "host=db password=correcthorse user=me": "correct",
    "Authorization: Bearer abc.def-123456": "abc.def",
    "Authorization: Basic dXNlcjpwYXNz": "dXNlc",
    "x-api-key: abcdef123456": "abcdef",
    "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----": "b3Blbn",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEcut off": "MIIE",
}


@pytest.mark.parametrize("text", SECRETS)
def test_the_common_shapes_of_keys_are_known(text: str) -> None:
    for around in (text, f"before {text}", f'"{text}" after', f"({text})\nafter"):
        hidden = redact(around)
        assert SECRETS[text] not in hidden
        assert "[secret]" in hidden
        assert redact(hidden).count("[secret]") == hidden.count("[secret]")


@pytest.mark.slow
def test_code_digests_and_prose_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    package = resources.files("poise_core")
    sources = [path.read_text() for path in Path(str(package)).rglob("*.py")]
    sources += [path.read_text() for path in (Path(str(package)).parent / "docs").glob("*.md")]
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(500)]
    prose = [
        "tokens: 4096, key = 'advantages', token_count=tokens, MAX_TOKENS=4096, sk_estimate and rk_integrator of order four",
        "see https://arxiv.org/abs/2402.03300?context=cs and me@host, PASSWORD is a variable, a bearer of news; risk-averse-policy",
        "f2-0123456789 KEY_COUNT: 12 group_ids[key] api_key=settings.api_key password: required",
    ]
    for text in [*sources, *digests, *prose, " ".join(digests)]:
        assert redact(text) == text


@pytest.mark.slow
def test_redaction_takes_time_linear_in_the_length() -> None:
    bombs = ("eyJ-", "eyJ", "sk-", "-----BEGIN PRIVATE KEY-----", "://a:", "a:b@", "?key=", "password=", "PASSWORD_", "A_", "SG.",
             "-----BEGIN A ", "api_key = ", "://a@")  # fmt: skip
    for bomb in bombs:
        seconds = []
        for length in (20_000, 80_000):
            text, begun = (bomb * length)[:length], time.process_time()
            redact(text)
            seconds.append(time.process_time() - begun)
        assert seconds[1] < 12 * seconds[0] + 0.2, bomb  # 16 times, where it is a square


@pytest.mark.parametrize(
    "text", ["[" * 900, '{"a":' * 900 + "1" + "}" * 900, "1" * 5000, '"\\ud800"', "NaN", "null", "[]"]
)
def test_odd_json_is_an_invalid_answer(text: str) -> None:
    with pytest.raises(CallFailed) as failed:
        read_answer(Reply(text), Colour)
    assert failed.value.outcome == "invalid_answer"


@pytest.mark.parametrize(
    "text",
    ["First {blue}? No.\n</think>\nGOOD", "<think>a</think><think>b</think>GOOD",
     "It is:\n```json\nGOOD\n```\nI hope.", "GOOD </think>",
     "So: GOOD."],
)  # fmt: skip
def test_an_answer_is_found_beside_reasoning_and_words(text: str) -> None:
    assert read_answer(Reply(text.replace("GOOD", json.dumps(GOOD))), Colour) == Colour(**GOOD)


def test_reading_takes_time_linear_in_the_length() -> None:
    for bomb in ("<think>", "</think>", "```\n", "\n", " ", "{", "}", '{"a":', "[", '"', "\\"):
        seconds = []
        for length in (100_000, 400_000):
            text, begun = (bomb * length)[:length], time.process_time()
            with pytest.raises(CallFailed):
                read_answer(Reply(text), Colour)
            seconds.append(time.process_time() - begun)
        assert seconds[1] < 12 * seconds[0] + 0.2, bomb


def test_a_file_that_nests_deeply_is_told_so() -> None:
    """Python parses the first; comparing it with the parent's would take more calls within each other than Python makes."""
    for deep in (f"{CHANGED}\nSUM = {'1 + ' * 1500}1\n", f"{CHANGED}\nSUM = {'-' * 30_000}1\n"):
        (fault,) = contradictions(deep, a_proposal(), PARENT, USES)
        assert "levels of nesting; use names" in fault or "does not parse" in fault


@pytest.mark.parametrize(
    "text", ["sk-proj-abcdefgh12345678", "Bearer abcdefgh12345", "value-of-a-key", "http://user:abcdefgh@host/db"]
)
def test_keys_are_recognised_by_value_and_by_shape(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "value-of-a-key")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "ordinary")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "sentence")
    assert text.split()[-1] not in redact(f"before {text} after")
    assert redact("an ordinary sentence about tokens and keys") == "an ordinary sentence about tokens and keys"


@pytest.mark.parametrize("around", ["{}\n", '"{}"', "'{}' ", "\ufeff{}"])
@pytest.mark.parametrize("key", ["d41d8cd98f00b204e9800998ecf8427e", "/q9Zk0sVwLmPuYtR"])
def test_a_key_is_hidden_as_it_is_sent(around: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file it comes with a line end or quotes, and is sent without; one of 64 in base64 begins as a path does."""
    monkeypatch.setenv("OPENAI_API_KEY", around.format(key))
    assert redact(f"Incorrect API key provided: {key}") == "Incorrect API key provided: [secret]"


def test_a_path_to_a_secret_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_CREDENTIALS", str(tmp_path))
    assert redact(f"see {tmp_path}") == f"see {tmp_path}"
