"""What agents are told: reports to an author, the task card, the archive as a table, calibration, the reflector's evidence."""

import dataclasses
import datetime as dt
import difflib
import json
import math
import re
from pathlib import Path
from typing import Any, cast

import pytest
from call_samples import place, reflection
from gate_fixtures import WITH_TUPLES
from laboratory import Laboratory, evolve, make_preset, open_evolution

from poise_core.agents.briefing import (
    ARCHIVE_TOKENS,
    IDEAS_TOKENS,
    Calibration,
    Line,
    TaskCard,
    archive_table,
    open_ideas,
)
from poise_core.agents.catalogue.random_search import RandomProposer
from poise_core.agents.llm.context import fit, slot_sections
from poise_core.agents.llm.faults import CallFailed, Outcome
from poise_core.agents.llm.literature import load_notes
from poise_core.agents.llm.prompts import estimate_tokens, load_prompt
from poise_core.agents.llm.proposer import ModelProposer
from poise_core.agents.llm.reflector import ModelReflector
from poise_core.agents.reports import STEPS_SHOWN, gate_report, training_report, without_folders
from poise_core.agents.roles import (
    CandidateRecord,
    Expectation,
    Measured,
    Proposal,
    ProposalContext,
    ReflectionEvidence,
    Tried,
)
from poise_core.agents.rules.reflector import RuleReflector
from poise_core.agents.variants import promising, variants
from poise_core.algorithms import algorithm_path
from poise_core.candidate.identity import source_digest
from poise_core.candidate.switches import Switches
from poise_core.config import load_preset, read_preset
from poise_core.config.agents import AgentSettings
from poise_core.environments.registry import described, described_problems
from poise_core.evidence.ablation import limits
from poise_core.evidence.intervals import Interval
from poise_core.evidence.noise import SeedNoise, floor_with_prior
from poise_core.evolution import ChildSlot
from poise_core.evolution.briefs import lessons
from poise_core.evolution.stages.select import select_parents
from poise_core.failures import CandidateFailure, FailureKind
from poise_core.mechanisms.catalogue import SLOTS
from poise_core.render.markdown import render_nightly_report
from poise_core.verification import CheckResult, VerificationReport
from poise_core.verification.gate import run_checks
from poise_core.views.nightly import NightlyRun, nightly_report
from studies.simulation import FIRST_TESTBED


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('File "/home/me/runs/a/candidates/x/candidate.py", line 3', 'File "candidate.py", line 3'),
        ("see /tmp/run/train.log: killed", "see train.log: killed"),
        ("a ratio of 3/4 and log/exp", "a ratio of 3/4 and log/exp"),
        ("https://arxiv.org/abs/1707.06347", "https://arxiv.org/abs/1707.06347"),
        ("divide by /, then go on", "divide by /, then go on"),
    ],
)
def test_folders_are_cut_off(text: str, told: str) -> None:
    assert without_folders(text) == told


def test_the_gates_sentences_stand_word_for_word_and_its_durations_do_not() -> None:
    checks = (CheckResult("language", "it is plain", False, "line 3: no <lambda>", 1.25),)
    report = VerificationReport("X", "0" * 64, False, checks, seconds=7.5, failure=FailureKind.REJECTED)
    slower = dataclasses.replace(report, seconds=99.0, confinement={"network": "refused"}, probe_seed=5)

    def told(one: VerificationReport) -> str:
        return gate_report(CandidateFailure(FailureKind.REJECTED, "verify", one.message, one.to_json()))

    assert told(report) == told(slower)
    (check,) = json.loads(told(report))["checks"]
    assert check == {"name": "language", "proves": "it is plain", "passed": False, "message": "line 3: no <lambda>"}


def test_without_a_report_the_failure_itself_is_told() -> None:
    for detail, told in (("", "it hung"), ("Traceback: x", "Traceback: x"), ("[1]", "[1]")):
        assert gate_report(CandidateFailure(FailureKind.TIMED_OUT, "verify", "it hung", detail)) == told


def test_a_failed_training_is_told_with_its_last_steps_and_digest() -> None:
    steps = [{"step": float(n), "kl": 0.1 * n, "entropy": 0.3, "tokens": 100.0, "seconds_update": n} for n in range(15)]
    failure = CandidateFailure(FailureKind.KL_BLOWUP, "train", "KL is 1.4 nats per token", 'File "/a/b/candidate.py"')
    report = training_report(failure, {0: steps})
    lines = report.splitlines()
    assert lines[0] == "kl_blowup in train: KL is 1.4 nats per token"
    assert 'File "candidate.py"' in report
    assert "step entropy kl" in lines
    assert "14 0.3 1.4" in lines
    assert f"{14 - STEPS_SHOWN} 0.3 {0.1 * (14 - STEPS_SHOWN):.4g}" not in lines  # the last ones only
    assert "kl_peak = 1.4" in lines
    assert "seconds" not in report


def test_a_training_that_did_no_step_says_so() -> None:
    report = training_report(CandidateFailure(FailureKind.CRASHED, "train", "boom"), {})
    assert report == "crashed in train: boom\n\nNo step was finished."


# what the roles are told beside the candidate: task card, table, calibration


def card(**changes: Any) -> TaskCard:
    noise = {"Overall": SeedNoise(1.44, 8.0), "long-chains": SeedNoise(9.0, 8.0), "kl_end": SeedNoise(0.0004, 8.0)}
    given: dict[str, Any] = {
        "protocol": load_preset(FIRST_TESTBED).protocol,
        "seeds": 3,
        "problems": described("arithmetic", ["add3", "chain5"])[0],
        "form": described("arithmetic", [])[1],
        "untrained": {"Overall": 55.9, "long-chains": 52.5},
        "baseline": {"Overall": Interval(72.84, 71.0, 74.7, 3), "long-chains": Interval(22.5, 19.0, 26.0, 3)},
        "baseline_name": "GRPO",
        "baseline_runs": {"kl_end": 0.21},
        "noise": noise,
        "measured": 7,
        "generation": 2,
        "generations": 5,
        "children_left": 8,
        "calls_left": "Of the language models' budget 3.2 dollars are left.",
    }
    return TaskCard(**{**given, **changes})


def test_the_card_says_what_rows_of_a_data_set_are_and_quotes_none() -> None:
    protocol = read_preset("math-1x80").protocol
    problems, form = described_problems(protocol, [])
    text = card(protocol=protocol, problems=problems, form=form, sizes={"aime24": 15}).text()
    for part in (
        "Training prompts: 5000 problems of DigitalLearningGmbH/MATH-lighteval, rows where level >= 3, of at most 1800 "
        "characters; an answer counts that is equal as mathematics, in the last \\boxed{}.",
        "as: <|im_start|>system Please reason step by step, and put your final answer within \\boxed{}.<|im_end|>",
        "length limit 2048 tokens, of benchmarks 3072.",
        "aime24 | math-ai/aime24 | pass@32, 32 completions each at temperature 1 | 0.175 | 15 |",
        "math500 | HuggingFaceH4/MATH-500 | acc@1, greedy | 0.15 | all |",
        "fresh | reasoning-gym (gsm_symbolic, polynomial_equations, prime_factorization, simple_equations) | acc@1, greedy | 0.1 "
        "| 256 |",
    ):
        assert part in text
    assert "scratchpad" not in text  # of the shipped environment
    drawn = described_problems(read_preset("smol-cpu").protocol, [])[1]
    assert "64 problems of reasoning-gym (chain_sum) with chain_sum {'min_terms': 2," in drawn
    assert "right by reasoning-gym's own score" in drawn
    assert "in the chat template of the policy as: {problem} Answer with the number only." in drawn
    own = "protocol.environment.source={environment: 'examples/03_your_own_prompts/change.py:ChangeEnvironment'}"
    told = described_problems(read_preset("smoke", [own]).protocol, [])[1]
    assert told.startswith("Training prompts: 128 problems of ChangeEnvironment.\n")
    assert len(told.splitlines()) > 1  # the class says the rest
    assert described_problems(load_preset(FIRST_TESTBED).protocol, ["add3"]) == described("arithmetic", ["add3"])


def table(count: int = 63) -> tuple[Line, ...]:
    change = "normalises the advantage by the spread of the group and softens what negative completions pull down by a quarter"
    measured = [
        Line(
            f"AM-HT-S{n}", change, "evaluated", Interval(n / 10 - 3, n / 10 - 4.5, n / 10 - 1.5, 3),
            (f"long-chains {n / 10 - 2:+.1f}", f"kl {0.01 * n:+.2g}"),
        )
        for n in range(count - 3)
    ]  # fmt: skip
    return (
        *measured,
        Line("HALF-DONE", change, "stopped at the proxy", reason="P(better) 0.02; its last policy scored Overall 61.3"),
        Line("BROKEN", change, "failed: diverged", reason="the loss is not finite at step 7"),
        Line("REFUSED", change, "failed: rejected", reason="padding: columns of padding change the loss"),
        Line("IDEA-1", "weighs every group by the variance of its reward", "not taken"),
        Line("IDEA-2", "lets the bound of the ratio follow the entropy", "not taken"),
    )  # fmt: skip


def proposers_prompt(context: ProposalContext, tokens: int = 24_000) -> str:
    """All that the proposer is told, system part and user part."""
    told: list[str] = []

    class Silent:
        settings = AgentSettings(model="openai:x")

        def ask(self, question: Any) -> Any:
            told.extend(question.build(tokens))
            raise CallFailed(Outcome.REFUSED, "no")

    proposer = ModelProposer(cast(Any, Silent()), load_prompt("proposer"), load_notes(), None, 0)
    with pytest.raises(CandidateFailure):
        proposer.propose(context, 4, 0)
    return "\n\n".join(told)


def test_a_quiz_on_the_task_can_be_answered_from_the_proposers_prompt_alone() -> None:
    text = proposers_prompt(
        place(reflection("entropy_collapse"), task=card(), table=table(), calibration=Calibration(((0.8, 0.3),)))
    )
    quiz = {
        "What does long-chains ask for?": "chain5: five numbers from 1 to 9 added and subtracted from the left",
        "How is long-chains scored, and how much does it count?": (
            "long-chains | chain5 | pass@32, 64 completions each at temperature 1 | 0.2 | 120"
        ),
        "What is it all?": "Overall = 0.2 products + 0.2 long-chains + 0.15 remainders + 0.15 sums + 0.15 differences",
        "What does the untrained policy score there, and GRPO?": "52.5 | 22.5 [19.0,26.0]",
        "How many completions has a group?": "16 prompts with group size 8 = 128 completions",
        "How many updates has a batch?": "optimizer updates per batch",
        "What is the learning rate?": f"learning rate {load_preset(FIRST_TESTBED).protocol.training.learning_rate:g}",
        "How long may a completion be?": "length limit 32 tokens",
        "How much does Overall differ between seeds?": "72.8 [71.0,74.7] | 1.2",
        "What is left of the budget?": "generation 2 of 5; 8 children are left to train",
        "And of the models'?": "3.2 dollars are left",
        "How must an answer look?": "then '#' and the number",
    }
    for question, fact in quiz.items():
        assert fact in text, question


def test_63_children_fit_into_the_table_with_every_number() -> None:
    shown = archive_table(table())
    assert estimate_tokens(shown) <= ARCHIVE_TOKENS
    rows = [line.split("|") for line in shown.splitlines()[1:]]
    assert len(rows) == 63
    assert len({row[0] for row in rows}) == 63
    for name, change, delta, moved, fate in rows:
        assert 3 <= len(change.removesuffix(" ...").split()) <= 15, name
        assert fate
        if fate == "evaluated":
            assert re.fullmatch(r"[+-]\d\.\d \[[+-]\d\.\d,[+-]\d\.\d\]", delta), name
            assert moved.count(",") == 1, name
    assert rows[0][0] == "AM-HT-S59"  # the best
    assert {"HALF-DONE", "BROKEN", "REFUSED"} <= {row[0] for row in rows[:12]}  # the most instructive early
    assert "61.3" in shown
    assert "step 7" in shown
    few = archive_table(table(6))
    assert "and softens what negative" in few  # all of its fifteen words
    ideas = open_ideas(table())
    assert "IDEA-2: lets the bound of the ratio follow the entropy" in ideas
    assert estimate_tokens(ideas) <= IDEAS_TOKENS
    crowd = tuple(Line(f"X{n}", "w " * 20, "evaluated", Interval(0.0, -1.0, 1.0, 2), ("a", "b")) for n in range(400))
    assert estimate_tokens(archive_table(crowd)) <= ARCHIVE_TOKENS
    assert re.search(r"and \d+ more$", archive_table(crowd))


def test_the_whole_prompt_keeps_its_budget_and_holds_task_and_table() -> None:
    context = place(reflection("entropy_collapse", "kl_spike"), task=card(), table=table(), directive="raise pass@32")
    for budget in (6000, 24_000):
        fitted = fit(slot_sections(context, load_notes()), budget)
        assert fitted.tokens <= budget
        assert '<data name="task">' in fitted.text
        assert '<data name="archive">' in fitted.text


def test_the_golden_prompt_shows_every_number_of_task_and_archive_within_its_budget() -> None:
    """A simulated archive of 63 children; what has to stand there is computed from protocol and lines, not from the text."""
    task, lines = card(), table()
    text = proposers_prompt(place(reflection("kl_spike"), task=task, table=lines, directive="raise pass@32"))
    assert estimate_tokens(text) <= 24_000
    told = data_of(text)
    training, protocol = task.protocol.training, task.protocol
    numbers = {
        "group size": f"group size {training.group_size} = {training.prompts_per_step * training.group_size} completions",
        "updates": f"= {training.minibatches * training.inner_epochs} optimizer updates per batch",
        "learning rate": f"learning rate {training.learning_rate:g},",
        "steps": f"Training: {training.steps} steps; per step {training.prompts_per_step} prompts",
        "length limit": f"length limit {training.max_completion_length} tokens",
        "prompts": f"{protocol.environment.train_problems} of them",
        "budget": f"generation {task.generation} of {task.generations}; {task.children_left} children are left",
        "the seeds of a child": f"each trains with {task.seeds} seeds",
        "what the noise rests on": f"learned from {task.measured} candidates",
        "baseline's KL and its noise": "kl_end 0.21 (SD 0.02)",  # the root of 0.0004
    }
    for what, sign in numbers.items():
        assert sign in told["task"], what
    for one in protocol.benchmarks:
        (row,) = [line.split(" | ") for line in told["task"].splitlines() if line.startswith(f"{one.name} | ")]
        assert row[1:5] == ["+".join(one.kinds), row[2], f"{one.weight:g}", f"{one.problems}"]
        assert one.metric_name in row[2]
        assert f"{one.weight:g} {one.name}" in told["task"].split("Overall = ")[1].splitlines()[0]
    overall = next(line for line in told["task"].splitlines() if line.startswith("Overall | ")).split(" | ")
    assert overall[-3:] == ["55.9", "72.8 [71.0,74.7]", "1.2"]  # untrained, baseline, root of 1.44
    chains = next(line for line in told["task"].splitlines() if line.startswith("long-chains | ")).split(" | ")
    assert chains[-3:] == ["52.5", "22.5 [19.0,26.0]", "3"]
    rows = {line.split("|")[0]: line.split("|")[1:] for line in told["archive"].splitlines()[1:]}
    for one in lines:
        if one.fate == "not taken":
            assert one.change.split()[0] in told["ideas_not_taken"].split(f"{one.name}: ")[1]
            continue
        change, delta, moved, fate = rows.pop(one.name)
        assert one.change.startswith(change.removesuffix(" ..."))
        if one.delta is not None:
            assert delta == f"{one.delta.estimate:+.1f} [{one.delta.low:+.1f},{one.delta.high:+.1f}]"
            assert moved == ", ".join(one.telling)
        assert fate == (f"{one.fate}, {one.reason}" if one.reason else one.fate)
    assert rows == {}


def data_of(text: str) -> dict[str, str]:
    """The blocks of data of a prompt, by name."""
    return dict(re.findall(r'<data name="(\w+)">\n(.*?)\n</data>', text, re.DOTALL))


def test_calibration_by_hand() -> None:
    found = Calibration(((0.9, 1.0), (0.9, 0.0), (0.5, 0.5)))
    # (0.1^2 + 0.9^2 + 0.25) / 3
    assert found.brier == pytest.approx((0.01 + 0.81 + 0.25) / 3)
    assert found.bins() == [("40% to 60%", 1, 0.5, 0.5), ("80% to 100%", 2, 0.9, 0.5)]
    assert "3 forecasts" in found.text()
    assert Calibration(()).text() == ""


@pytest.mark.parametrize(
    ("direction", "size", "delta", "outcome"),
    [
        ("increase", 2.0, (3.0, 2.2, 3.8), "met"),
        ("increase", 2.0, (0.1, -0.5, 0.7), "not met"),  # a tight null refutes
        ("increase", 2.0, (1.0, -1.0, 3.0), "undecidable"),
        ("decrease", 1.0, (-3.0, -4.0, -2.0), "met"),
        ("no_fall", 3.0, (-1.0, -2.0, 0.0), "met"),  # non-inferior by the margin
        ("no_fall", 3.0, (-5.0, -6.0, -4.0), "not met"),
        ("no_rise", 0.1, (0.3, 0.2, 0.4), "not met"),
        ("increase", 0.0, (2.0, 0.5, 3.5), "met"),
    ],
)
def test_expectations_have_a_size_and_a_margin(
    direction: Any, size: float, delta: tuple[float, float, float], outcome: str
) -> None:
    claim = Expectation(metric="Overall", direction=direction, size=size, why="w", probability=0.7)
    proposal = Proposal(
        name="X", hypothesis="h", mechanism_change="m", parent_ids=("p",), direction="d", proposer="llm",
        expectations=(claim,),
    )  # fmt: skip
    evidence = ReflectionEvidence(
        Measured("x", "X", proposal=proposal), Measured("p", "P"), overall_delta=Interval(*delta, 3)
    )
    (found,) = RuleReflector().reflect(evidence).expectations
    assert found.outcome == outcome
    assert found.chance is not None
    assert Expectation.model_validate({"metric": "m", "direction": "increase", "why": "w"}).size == 0.0  # an old row


def test_a_floor_has_a_prior_from_the_first_candidate_on() -> None:
    prior = SeedNoise(4.0, 4.0)
    assert floor_with_prior({}, prior).typical == prior
    # one candidate with 1 and 3: variance 2 with one degree of freedom; (4 * 4 + 1 * 2) / 5
    assert floor_with_prior({"a": {0: 1.0, 1: 3.0}}, prior).typical == SeedNoise(pytest.approx(3.6), 5.0)
    assert floor_with_prior({"a": {0: 7.0}}, prior).candidates == 0
    level = Interval(79.1, 31.5, 126.8, 2).within(0.0, 100.0)
    assert (level.low, level.high) == (31.5, 100.0)


@pytest.mark.slow
def test_one_seed_is_told_as_what_it_is(laboratory: Laboratory, tmp_path: Path) -> None:
    """No width of zero, no percentage beyond 100, and no reflection that says both that Overall moved and that nothing did."""
    preset = make_preset(generations=1, parents=2, seeds_per_candidate=1)
    evolution = open_evolution(tmp_path / "run", preset)
    laboratory.counts = lambda owner, job, seed, spec: [0 if "grpo" in owner else spec.samples] * spec.problems
    evolve(evolution)
    child = evolution.run.archive.rows("candidates", generation=1)[0]
    record = evolution.history.record(child["candidate_id"])
    for interval in (record.overall, *record.benchmark_intervals.values()):
        assert interval is not None
        assert 0.0 <= interval.low < interval.high <= 100.0
    told = record.reflection
    assert told is not None
    assert "better" in told.summary
    assert told.benchmarks_up
    assert not [claim for claim in told.claims if "No benchmark moved" in claim.text]
    context = evolution.context(ChildSlot(2, 0, child["candidate_id"], child["name"]))
    assert [line.fate for line in context.table].count("evaluated") == 2
    assert context.task is not None
    assert context.task.baseline["Overall"].estimate == 0.0
    assert "seed SD" in context.task.text()


# ten planted faults


GOOD_FILE = "ENTROPY = 0.01\n\n\ndef compute_loss(x):\n    return x + ENTROPY\n"
BAD_FILE = GOOD_FILE.replace("ENTROPY = 0.01", "ENTROPY = 0.0")


def steps(count: int = 60, **curves: Any) -> list[dict[str, float]]:
    given = {"reward_mean": lambda s: 0.3 + 0.005 * s, "entropy": lambda s: 0.5, "kl": lambda s: 0.01, "grad_norm": lambda s: 0.2,
             "completion_length": lambda s: 10.0, "truncated": lambda s: 0.01, "clip_fraction": lambda s: 0.01,
             "format_valid": lambda s: 0.97, **curves}  # fmt: skip
    return [{"step": s, **{name: read(s) for name, read in given.items()}} for s in range(count)]


def seen(mine: dict[int, Any], **changes: Any) -> str:
    """Everything that the reflector is shown of a candidate."""
    parent = Measured(
        "p", "PARENT", {0: steps(), 1: steps()}, Interval(72.0, 70.0, 74.0, 2), source=GOOD_FILE,
        levels={"sums": Interval(95.0, 94.0, 96.0, 2), "long-chains": Interval(22.0, 20.0, 24.0, 2)},
    )  # fmt: skip
    given: dict[str, Any] = {"source": GOOD_FILE, **changes.pop("candidate", {})}
    evidence = ReflectionEvidence(Measured("c", "CHILD", mine, **given), parent, task=card(), **changes)
    told: list[str] = []

    class Silent:
        def ask(self, question: Any) -> Any:
            told.extend(question.build(24_000))
            raise CallFailed(Outcome.REFUSED, "no")

    ModelReflector(cast(Any, Silent()), load_prompt("reflector"), RuleReflector()).reflect(evidence)
    return "\n".join(told)


@pytest.mark.slow
def test_ten_planted_faults_are_visible_to_the_reflector() -> None:
    both = {0: steps(), 1: steps()}
    spiked = steps(kl=lambda s: 0.9 if s == 31 else 0.01)
    fine = Interval(22.0, 20.0, 24.0, 2)
    faults = {
        "the mechanism is switched off by its number": (seen(both, candidate={"source": BAD_FILE}), "+ENTROPY = 0.0"),
        "entropy collapses": (seen({0: steps(entropy=lambda s: 0.5 * 0.9**s)}), "Entropy collapsed"),
        "KL spikes in one step": (seen({0: spiked, 1: steps()}), "KL spiked to 0.9 at step 31 of seed 0"),
        "one seed alone goes wrong": (seen({0: steps(), 1: steps(reward_mean=lambda s: 0.05)}), "0 0.05/0.3"),
        "completions grow": (seen({0: steps(completion_length=lambda s: 10.0 + s)}), "Completions grew from"),
        "most tokens are clipped": (seen({0: steps(clip_fraction=lambda s: 0.6)}), "60.0% of the tokens were clipped"),
        "a step is not a number": (seen({0: steps(loss=lambda s: math.nan if s == 5 else 0.1)}), "not a number at steps 5"),
        "the format is lost": (seen({0: steps(format_valid=lambda s: 0.97 - 0.005 * s)}), "Format validity fell"),
        "one benchmark pays for another": (
            seen(both, candidate={"levels": {"sums": Interval(60.0, 58.0, 62.0, 2), "long-chains": fine}}),
            "sums | 60.0 [58.0,62.0] | 95.0 [94.0,96.0]",
        ),
        "it was stopped while it was ahead of its parent": (
            seen({0: steps(30, reward_mean=lambda s: 0.4 + 0.005 * s)}, run_noise={"reward_end": SeedNoise(0.0001, 9.0)},
                 stopped_overall=61.3, failure={"kind": "stopped", "stage": "rung proxy", "message": "P(better) is 0.02"}),
            "reward at the end, at the step where it was stopped, against PARENT: +0.1 (95 % interval +0.0774 to +0.123",
        ),
    }  # fmt: skip
    assert len(faults) == 10
    sound = seen(both)
    for fault, (shown, sign) in faults.items():
        assert sign in shown, fault
        assert sign not in sound, fault  # it is the fault that shows, not the form


# children without a model call


@pytest.mark.exhaustive
def test_knock_outs_and_sweeps_are_edits_of_the_parents_file_that_the_gate_admits() -> None:
    source = algorithm_path("dapo").read_text()
    parent = CandidateRecord("c", "CHILD", source, generation=1, parent_ids=("p",))
    better = (Line("CHILD", "c", "evaluated", Interval(2.0, 0.5, 3.5, 3)),)
    context = ProposalContext(parent, table=better)
    assert promising(context)
    assert not promising(
        ProposalContext(parent, table=(Line("CHILD", "c", "evaluated", Interval(-1.0, -2.0, 0.0, 3)),))
    )
    found = variants(context, 100)
    outs = [one for one in found if one.direction == "knock-out"]
    sweeps = [one for one in found if one.direction == "sweep"]
    assert outs
    assert sweeps
    for one in found:
        mine = str(one.source)
        changed = [line for line in difflib.ndiff(source.splitlines(), mine.splitlines()) if line[0] == "+"]
        assert changed
        assert run_checks(mine, one.name).admitted or one.direction == "knock-out", one.name
    assert any(run_checks(str(one.source), one.name).admitted for one in outs)
    tried = tuple(Tried(one.name, "evaluated", source_digest=source_digest(str(one.source))) for one in found)
    assert variants(dataclasses.replace(context, avoid=tried), 5) == []


def test_a_tuple_is_switched_off_by_a_knock_out_and_left_alone_by_sweeps() -> None:
    parent = CandidateRecord("c", "CHILD", WITH_TUPLES, generation=1, parent_ids=("p",))
    found = variants(ProposalContext(parent), 100)
    assert [one.direction for one in found] == ["knock-out", "knock-out"]
    assert "clip = (1.0, 1000000.0)" in found[0].mechanism_change
    assert "weights: tuple[float, ...] = (0.0,)\n" in str(found[1].source)
    said = limits(Switches.of(WITH_TUPLES))  # by poise ablate
    assert said == "numbers within the tuples clip, weights are left alone"
    shown = load_prompt("implementer").fill(name="X", turns="0", mechanisms="m", data="")[0]
    assert "clip: tuple[float, float] = (0.2, 0.28)" in shown


@pytest.mark.slow
def test_the_last_place_of_a_generation_can_be_for_a_variant(laboratory: Laboratory, tmp_path: Path) -> None:
    evolution = open_evolution(tmp_path / "run", make_preset(generations=2, parents=1, variants=1))
    laboratory.counts = lambda owner, job, seed, spec: [0 if "grpo" in owner else spec.samples] * spec.problems
    evolve(evolution)
    first, second = (evolution.run.archive.rows("candidates", generation=number) for number in (1, 2))
    assert len(first) == 1  # the baseline has no variants that are worth it
    (row,) = second
    (proposal,) = [one for one in evolution.run.archive.rows("proposals", generation=2) if one["taken"]]
    assert json.loads(proposal["content"])["direction"] in ("knock-out", "sweep")
    assert row["written_by"] == "catalogue"


@pytest.mark.slow
def test_some_places_of_a_generation_can_be_for_immigrants(laboratory: Laboratory, tmp_path: Path) -> None:
    """Before the promise of compositions is known they are those that the random proposer draws, whoever else proposes."""
    preset = make_preset(generations=2, parents=3, variants=1, immigrants=1)
    evolution = open_evolution(tmp_path / "run", preset)
    evolve(evolution)
    search = evolution.search
    for generation in (1, 2):
        last = select_parents(search, generation)[-1]
        assert (last.number, last.parent_name) == (2, "GRPO")
        context = search.context(last)
        assert (context.immigrant, context.variant) == (True, False)
        drawn = RandomProposer(promise=preset.search.promise).propose(
            context, preset.search.proposals, search.seed("propose", generation, 2)
        )
        stored = json.loads((search.folder(last) / "proposals.json").read_text())
        assert [one["composition"] for one in stored] == [one.composition for one in drawn]
        bred = [search.context(one) for one in select_parents(search, generation)[:2]]
        assert [(one.immigrant, one.variant) for one in bred] == [(False, False), (False, True)]
    rows = evolution.run.archive.rows("selections", generation=2, selected=True)
    (root,) = [row for row in rows if 2 in row["slots"]]
    assert "immigrants from the whole catalogue" in root["reason"]
    assert make_preset(arm="random", immigrants=1, opening=9).search.bred(1) == 2, "control arms have none"


@pytest.mark.slow
def test_a_search_can_open_with_immigrants_alone(laboratory: Laboratory, tmp_path: Path) -> None:
    evolution = open_evolution(tmp_path / "run", make_preset(generations=2, parents=2, opening=3))
    evolve(evolution)
    search = evolution.search
    first, second = ([search.context(one) for one in select_parents(search, generation)] for generation in (1, 2))
    assert [(one.immigrant, one.parent.name, one.repeat) for one in first] == [(True, "GRPO", 0), (True, "GRPO", 1)]
    assert [one.immigrant for one in second] == [False, False], "the baseline and two children were tried"


@pytest.mark.slow
def test_lessons_of_a_run_are_literature_of_a_later_one(laboratory: Laboratory, tmp_path: Path) -> None:
    evolution = open_evolution(tmp_path / "run", make_preset(generations=1, parents=2))
    laboratory.counts = lambda owner, job, seed, spec: [0 if "grpo" in owner else spec.samples] * spec.problems
    evolve(evolution)
    first, second = sorted(evolution.run.archive.rows("candidates", generation=1), key=lambda row: str(row["name"]))
    root = evolution.history.candidates()[0]
    evolution.run.archive.append(
        "replications",
        [{"protocol": evolution.trials.protocol.digest, "candidate_id": first["candidate_id"],
          "baseline_id": root["candidate_id"], "declared": True, "seeds": [7], "outcome": "refuted", "overall": 43.21,
          "message": "m", "written_by": "poise"}],
    )  # fmt: skip
    briefs = evolution.search.briefs
    text = lessons(briefs, run="laptop", today=dt.date(2026, 3, 1), days=30)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "lessons.md").write_text(text)
    notes = {note.title.split(",")[0]: note for note in load_notes(str(tmp_path / "notes"))}
    refuted, fine = notes[str(first["name"])], notes[str(second["name"])]
    assert "REFUTED on sealed problems" in refuted.text
    assert refuted.title == f"{first['name']}, refuted after an earlier run"
    assert (fine.expires, fine.protocol) == (dt.date(2026, 3, 31), briefs.protocol.digest)
    assert "43.21" not in refuted.text
    assert "Claim: better than the baseline: Overall +100.00" in fine.text
    assert f"Evidence: evaluations of {second['candidate_id']}, protocol {briefs.protocol.digest}" in fine.text
    assert "holds until 2026-03-31" in fine.text
    own, base = (json.loads(row["mechanisms"]) for row in (second, root))
    assert fine.slots == {slot for slot in own if own[slot] != base.get(slot)} != set()
    made = [one for slot in fine.slots for one in SLOTS[slot].choices if one.name == own[slot]]
    assert fine.answers == {code for one in made for code in one.answers}, (
        "what the change is for, not what came with it"
    )
    assert fine.source == f"run laptop, protocol {briefs.protocol.digest}, 2026-03-01"


@pytest.mark.slow
def test_calibration_reaches_the_next_proposer_and_the_report(laboratory: Laboratory, tmp_path: Path) -> None:
    evolution = open_evolution(tmp_path / "run", make_preset(generations=2, parents=1, variants=1))
    laboratory.counts = lambda owner, job, seed, spec: [0 if "grpo" in owner else spec.samples] * spec.problems
    evolve(evolution)  # the second generation's child is a variant, which foretells with a probability
    child = evolution.run.archive.rows("candidates", generation=2)[0]
    told = evolution.context(ChildSlot(3, 0, child["candidate_id"], child["name"])).calibration
    assert told is not None
    assert len(told.pairs) == 1
    now = dt.datetime.now(dt.UTC)
    run = NightlyRun(generation=2, began=now, ended=now, finished=True)
    page = render_nightly_report(nightly_report(evolution.run.evidence(), evolution.preset, run))
    assert "1 forecast of proposals scored so far: Brier score" in page
