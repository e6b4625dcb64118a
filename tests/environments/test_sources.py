"""Problems from data sets and libraries: what is read, what is refused in one line, and who gets which problem."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from poise_core.cli import app
from poise_core.cli.problems import _rows
from poise_core.config import PresetError, load_preset, read_preset, shipped_presets
from poise_core.config.problems import SourceSpec, row_filter
from poise_core.environments import Problem, benchmark_environment, get_environment
from poise_core.environments.prompts import training_problems
from poise_core.environments.sources import CACHE, HALVES, SAME, SourceEnvironment, cache, prepared, read_rows
from poise_core.environments.validate import overlaps
from poise_core.policies.prompt import TEMPLATES, PromptSpec
from studies.simulation import FIRST_TESTBED
from tasks.session import chosen_preset

ROOT = Path(__file__).parents[2]
SIX = ("aime24", "aime25", "amc23", "math500", "minerva", "olympiad")
EXAMPLE = "examples/03_your_own_prompts/jsonl.yaml"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)


def test_prepared_problems_lie_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache() == tmp_path / "cache", "the folder that was named for them comes first"
    monkeypatch.delenv(CACHE)
    assert cache() == tmp_path / "elsewhere" / "poise"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache() == Path.home() / ".cache" / "poise"


def rows_of(count: int = 40, **more: Any) -> list[dict[str, Any]]:
    return [
        {"problem": f"What is {n} + {n}?", "answer": str(2 * n), "level": f"Level {n % 5 + 1}", **more}
        for n in range(count)
    ]


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_are_filtered_deduplicated_and_drawn_by_the_seed(tmp_path: Path) -> None:
    rows = rows_of(40)
    rows.append({**rows[4], "problem": "  What is 4  + 4? "})  # the same but for spaces; level 5
    file = written(tmp_path, rows)
    read = read_rows(SourceSpec(dataset=file, where="level >= 3"))
    assert (len(read.rows), read.total, read.filtered, read.repeated) == (24, 41, 16, 1)  # levels 3, 4, 5 of 40
    assert len(read_rows(SourceSpec(dataset=file, max_characters=14)).rows) == 10  # "What is 9 + 9?" has 14
    drawn = [read_rows(SourceSpec(dataset=file, draw=7, draw_seed=seed)).rows for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 7


def test_a_line_of_jsonl_ends_at_a_newline_alone(tmp_path: Path) -> None:
    rows = rows_of(2)
    rows[1]["problem"] = "a\u2028b\x85c\fd?"  # which str.splitlines takes for ends of lines
    file = tmp_path / "rows.jsonl"
    file.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    assert [row["prompt"] for row in read_rows(SourceSpec(dataset=str(file))).rows] == [one["problem"] for one in rows]
    graded = tmp_path / "graded.jsonl"
    graded.write_text(
        json.dumps({"gold": "4", "completion": "x\u2028\\boxed{4}"}, ensure_ascii=False), encoding="utf-8"
    )
    _, (row,) = _rows(graded)
    assert row.completion == "x\u2028\\boxed{4}"


def test_the_language_of_filters_compares_and_never_evaluates() -> None:
    row = {"level": "Level 4", "subject": "Algebra", "n": 3, "meta": {"year": 2024}, "none": None}
    for text, expected in (
        ("level >= 3", True), ("3 <= level < 4", False), ("subject in ['Algebra', 'Geometry'] and n == 3", True),
        ("not subject == 'Algebra'", False), ("meta.year > 2023 or n > 5", True), ("none > 3", False), ("missing == 1", False),
        ("'gebra' in subject", True), ("n == -3", False), ("subject > 3", False),
    ):  # fmt: skip
        assert row_filter(text)[0](row) is expected, text
    for text in (
        "__import__('os').system('x')",
        "n + 1 > 2",
        "len(subject) > 3",
        "subject[0] == 'A'",
        "lambda: 1",
        "n ==",
        "(" * 500,
    ):
        with pytest.raises(ValueError, match="where is"):
            row_filter(text)


@pytest.mark.slow
def test_rows_of_verl_are_read_as_they_are(tmp_path: Path) -> None:
    import datasets

    rows = [
        {
            "data_source": "mine", "extra_info": {"index": n}, "ability": "math",
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{n} + 1?"}],
            "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
        }
        for n in range(3)
    ]  # fmt: skip
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    (first, *_) = read_rows(SourceSpec(dataset=str(path))).rows
    assert (first["prompt"], first["answer"]) == ("Be brief.\n\n0 + 1?", "1")
    assert json.loads(first["data"]) == {"data_source": "mine", "extra_info": {"index": 0}}


@pytest.mark.slow
def test_whole_solutions_csv_and_columns_by_other_names(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('task,solution\n"1+1?","so\n#### 2"\n"2+2?","thus $\\boxed{4}$."\n')
    read = read_rows(SourceSpec(dataset=str(file), columns={"problem": "task", "answer": "solution"}))
    assert [(row["prompt"], row["answer"]) for row in read.rows] == [("1+1?", "2"), ("2+2?", "4")]


@pytest.mark.parametrize(
    ("rows", "spec", "told"),
    [
        (rows_of(3), {"columns": {"answer": "gold"}}, "has no column gold; set columns.answer to one of problem, answer, level"),
        ([*rows_of(2), {"problem": "?", "answer": None}], {}, "1 rows have no answer (the first is row 3)"),
        ([*rows_of(2), {"problem": "", "answer": "3"}], {}, "row 3 has no problem"),
        (rows_of(3), {"where": "level > 9"}, "none of 3 rows is left: 3 filtered by where"),
        (rows_of(3), {"max_characters": 13}, "none of 3 rows is left: 3 longer than max_characters"),
        (rows_of(3, answer=None), {"unanswered": "drop"}, "none of 3 rows is left: 3 without answer"),
        (
            [*rows_of(2), {"problem": "1?", "answer": " ", "level": "5"}],  # of levels 1, 2 and 5; the second has 14 characters
            {"where": "level > 1", "max_characters": 13, "unanswered": "drop"},
            "none of 3 rows is left: 1 filtered by where, 1 longer than max_characters, 1 without answer",
        ),
        (rows_of(3), {"where": "levl > 2"}, "has no column levl"),
        (rows_of(3, year=None), {"where": "year > 2"}, "has no value of year in any row"),
        (rows_of(3), {"draw": 4}, "draw is 4, but only 3 of 3 rows are left"),
        (rows_of(3), {"draw": 4, "where": "level > 1"}, "draw is 4, but only 2 of 3 rows are left: 1 filtered by where"),
        ([], {}, "holds no rows"),
    ],
)  # fmt: skip
def test_bad_rows_are_told_in_one_line(
    tmp_path: Path, rows: list[dict[str, Any]], spec: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl|where") as caught:
        read_rows(SourceSpec(dataset=written(tmp_path, rows), **spec))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_file_that_changed_is_refused_and_its_digest_is_the_protocols(tmp_path: Path) -> None:
    file = written(tmp_path, rows_of(40))
    overrides = [f"protocol.environment.source.dataset={file}"]
    before = load_preset(EXAMPLE, overrides).protocol
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = written(elsewhere, rows_of(40))
    assert load_preset(EXAMPLE, [f"protocol.environment.source.dataset={moved}"]).protocol.digest == before.digest
    written(tmp_path, rows_of(41))
    assert load_preset(EXAMPLE, overrides).protocol.digest != before.digest
    with pytest.raises(ValueError, match="has changed"):
        get_environment(before.environment)
    os.unlink(file)
    with pytest.raises(PresetError, match=r"protocol\.environment\.source: .*rows\.jsonl: No such file"):
        load_preset(EXAMPLE, overrides)


def test_presets_say_what_a_source_lacks() -> None:
    for override, told in (
        ("protocol.environment.source={dataset: someone/set}", "needs a revision"),
        ("protocol.environment.source={dataset: a.jsonl, reasoning_gym: {chain_sum: {}}}", "give one of"),
        ("protocol.environment.source.grader={name: regex}", "needs one"),
        ("protocol.environment.split=all", "leaves it no problems"),
        ("protocol.environment.name=arithmetic2", "give one of them"),
        ("protocol.benchmarks=[{name: own, metric: pass, k: 8, samples: 4, weight: 1}]", "k <= samples"),
    ):
        with pytest.raises(PresetError, match=told):
            load_preset(EXAMPLE, [override])


def test_splits_are_disjoint_and_whole(tmp_path: Path) -> None:
    source = prepared(SourceSpec(dataset=written(tmp_path, rows_of(200))))
    three = SourceEnvironment(source)
    parts = {split: {p.prompt for p in three.problems(split, (), 0, "s")} for split in ("train", "search", "report")}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 200
    assert 110 < len(parts["train"]) < 170  # 70 % of 200
    halves = SourceEnvironment(source, HALVES)
    search, report = ({p.prompt for p in halves.problems(split, (), 0, "s")} for split in ("search", "report"))
    assert not search & report
    assert len(search | report) == 200
    same = SourceEnvironment(source, SAME)
    assert len(same.problems("search", (), 0, "s")) == len(same.problems("report", (), 0, "s")) == 200
    drawn = [halves.problems("search", (), 10, seed) for seed in ("a", "a", "b")]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(ValueError, match=r"the search split .* holds"):
        halves.problems("search", (), 150, "a")


@pytest.mark.slow
def test_benchmarks_have_their_own_source_template_and_length(tmp_path: Path) -> None:
    own = written(tmp_path, rows_of(12, kind="x"))
    benchmark = (
        f"{{name: own, metric: accuracy, weight: 1.0, sealed: same, max_completion_length: 7, prompt: {{name: boxed}}, source: "
        f"{{dataset: {own}}}}}"
    )
    protocol = load_preset("smoke", [f"protocol.benchmarks=[{benchmark}]"]).protocol
    (spec,) = protocol.benchmarks
    assert spec.prompt is not None
    assert spec.prompt.template == TEMPLATES["boxed"]["template"]
    assert protocol.unsealed == ["own"]
    environment = benchmark_environment(protocol, spec)
    assert len(environment.problems("report", spec.kinds, spec.problems, "")) == 12
    assert environment.verify(Problem("?", r"\frac12", "all"), r"\boxed{0.5}").how == "right"
    assert get_environment(protocol.environment).name == "arithmetic"
    other = load_preset("smoke", [f"protocol.benchmarks=[{benchmark.replace('boxed', 'none')}]"]).protocol
    assert other.digest != protocol.digest  # the template's text belongs to the protocol


def test_benchmarks_keep_no_partial_credit(tmp_path: Path) -> None:
    own = written(tmp_path, rows_of(12))
    partial = f"{{dataset: {own}, grader: {{threshold: null}}}}"
    head = "protocol.benchmarks=[{name: own, metric: accuracy, weight: 1.0"
    told = r"benchmark own: its grader keeps partial credit \(threshold: null\)"
    with pytest.raises(PresetError, match=told):
        load_preset("smoke", [f"{head}, sealed: same, source: {partial}}}]"])
    with pytest.raises(PresetError, match=told):  # the training's own
        load_preset(EXAMPLE, [f"protocol.environment.source={partial}", f"{head}, kinds: [all], problems: 2}}]"])
    whole = f"{head}, sealed: same, source: {{dataset: {own}}}}}]"
    assert load_preset(EXAMPLE, [f"protocol.environment.source={partial}", whole]).protocol.benchmarks[0].source


def test_templates_by_name_by_file_and_their_stop_texts(tmp_path: Path) -> None:
    file = tmp_path / "template.txt"
    file.write_text("Q: {problem}\nA:")
    assert PromptSpec.model_validate({"file": str(file)}).template == "Q: {problem}\nA:"
    r1 = PromptSpec.model_validate({"name": "r1"})
    assert r1.graded("so </think> <answer> 4 </answer> User: next") == "so </think> <answer> 4 </answer>"
    assert PromptSpec.model_validate({"name": "qwen-math"}).graded("4<|im_end|>5") == "4"
    assert "stop" not in PromptSpec(template="{problem}").model_dump()  # digests of before stay
    for document in (
        {"name": "none", "template": "{problem}"},
        {"name": "r2"},
        {"file": "missing.txt"},
        {"stop": [""]},
    ):
        with pytest.raises(ValueError, match=r"give one of|templates are|cannot be read|empty text"):
            PromptSpec.model_validate(document)


@pytest.mark.slow
def test_reasoning_gym_draws_fresh_problems_that_no_other_split_has() -> None:
    environment = SourceEnvironment(SourceSpec(reasoning_gym={"chain_sum": {"max_terms": 3}, "basic_arithmetic": {}}))
    drawn = {seed: environment.problems("report", (), 12, seed) for seed in ("a", "b")}
    assert environment.problems("report", (), 12, "a") == drawn["a"] != drawn["b"]
    assert sorted(p.kind for p in drawn["a"]) == ["basic_arithmetic"] * 6 + ["chain_sum"] * 6
    train = {p.prompt for p in environment.problems("train", (), 40, "training")}
    assert not train & {p.prompt for part in drawn.values() for p in part}
    asked = drawn["a"]
    right = environment.verify_all(asked, [f"<answer>{p.answer}</answer>" for p in asked])
    wrong = environment.verify_all(asked, [f"\\boxed{{{p.answer}1}}" for p in asked])
    environment.close()
    assert [one.correctness for one in right] == [1.0] * 12
    assert [one.correctness for one in wrong] == [0.0] * 12  # partial credit below 1 is none
    with pytest.raises(ValueError, match="reasoning_gym no_such_set: cannot be made"):
        SourceEnvironment(SourceSpec(reasoning_gym={"no_such_set": {}})).problems("train", (), 1, "s")


def test_a_class_of_ones_own_by_its_module_or_file(tmp_path: Path) -> None:
    change = "examples/03_your_own_prompts/change.py:ChangeEnvironment"
    spec = load_preset(EXAMPLE, [f"protocol.environment.source={{environment: '{change}'}}"]).protocol.environment
    assert spec.source is not None
    assert spec.source.environment is not None
    assert spec.source.environment.startswith(f"{change}#")
    assert get_environment(spec).name == "change"
    with pytest.raises(ValueError, match=r"no entry point of poise\.environments"):
        get_environment(spec.model_copy(update={"source": SourceSpec(environment="nobody")}))
    with pytest.raises(ValueError, match="lacks problems, pool_size, verify"):
        get_environment(spec.model_copy(update={"source": SourceSpec(environment="pathlib:Path")}))


def assert_told_of_the_function(reference: str, told: str) -> None:
    """Reading a preset with this function says what is wrong with it; nothing where ``told`` is empty."""
    change = f"protocol.environment.source.grader={{name: function, function: '{reference}'}}"
    if told:
        with pytest.raises(PresetError, match=told):
            load_preset(EXAMPLE, [change])
    else:
        assert load_preset(EXAMPLE, [change]).protocol.environment.source is not None


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def other():\n    pass\n_own = 1\n", r"mine\.py has no score; its names are other$"),
        ("def score(:\n", r"mine\.py: it is no Python: invalid syntax"),
        ("if True:\n    from math import sqrt as score\n", ""),
        ("from math import *\n", ""),  # what it binds is known where it runs
    ],
)
def test_a_function_that_the_file_lacks_is_told_when_the_preset_is_read(tmp_path: Path, code: str, told: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    assert_told_of_the_function(f"{file}:score", told)


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("made_up_grader:scor", r"made_up_grader has no scor; its names are score$"),
        ("made_up_package.inner:scor", r"made_up_package\.inner has no scor; its names are score$"),
        ("made_up_package.iner:score", r"there is no module made_up_package\.iner here"),
        ("made_up_pakage.inner:score", r"there is no module made_up_pakage here"),
        ("made_up_package.inner:score", ""),
        ("made_up_lazy:score", ""),  # what its __getattr__ makes is known where it runs
        ("math:sqrt", ""),  # has no source
    ],
)
def test_a_function_that_a_module_lacks_is_told_and_nothing_is_imported_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str, told: str
) -> None:
    code = "raise SystemExit('imported')\ndef score():\n    pass\n"
    (tmp_path / "made_up_package").mkdir()
    for name in ("made_up_grader.py", "made_up_package/__init__.py", "made_up_package/inner.py"):
        (tmp_path / name).write_text(code)
    (tmp_path / "made_up_lazy.py").write_text("def __getattr__(name):\n    return print\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert_told_of_the_function(reference, told)


def test_overlap_is_found_through_other_numbers_and_notation() -> None:
    def problem(text: str) -> Problem:
        return Problem(text, "1", "all")

    training = [
        problem("Compute the sum of the first ten positive odd integers and then halve it."),
        problem("What is 2 + 2?"),
    ]
    asked = [
        problem("Compute the sum of the first ten positive odd integers, and then halve it!"),
        problem("A train leaves the station at noon and travels north for three hours."),
        problem("what is 2+2"),
    ]
    assert [(round(share, 2), mine.prompt) for share, mine, _ in overlaps(training, asked)] == [
        (1.0, asked[0].prompt), (1.0, asked[2].prompt),
    ]  # fmt: skip


def test_the_example_is_short_and_its_splits_are_disjoint() -> None:
    assert len((ROOT / EXAMPLE).read_text().splitlines()) <= 15
    preset = load_preset(EXAMPLE)
    train = {p.prompt for p in training_problems(preset.protocol.environment, 0)}
    (spec,) = preset.protocol.benchmarks
    asked = benchmark_environment(preset.protocol, spec).problems("search", spec.kinds, spec.problems, "s")
    assert not train & {p.prompt for p in asked}
    assert len(asked) >= 8


@pytest.mark.slow
def test_validate_finds_a_gold_that_is_wrong_by_its_own_grader(tmp_path: Path) -> None:
    rows = [*rows_of(30), {"problem": "Broken?", "answer": "\\frac{"}]
    file = written(tmp_path, rows)
    benchmark = f"{{name: own, metric: accuracy, weight: 1.0, sealed: same, source: {{dataset: {file}}}}}"
    done = CliRunner().invoke(
        app, ["env", "validate", "smoke", "--json", "--set", f"protocol.benchmarks=[{benchmark}]"]
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("[{"))
    training, own = json.loads(line)
    assert done.exit_code == 1
    assert training["golds_failed"] == []
    assert (own["problems"], own["outcomes"]["right"], len(own["golds_failed"])) == (31, 30, 1)
    assert "Broken?" in own["golds_failed"][0]
    assert own["longest"] <= own["limit"]
    done = CliRunner().invoke(app, ["env", "play", "smoke"], input="#1\n")
    assert done.exit_code == 0, done.output
    assert "the gold answer is" in done.output


@pytest.mark.slow
@pytest.mark.parametrize("command", [["evolve"], ["evaluate", "poise_core/algorithms/grpo.py"], ["tune"]])
def test_a_run_on_prompts_that_do_not_fit_is_not_begun(tmp_path: Path, command: list[str]) -> None:
    """The shipped policy sees 256 tokens; prompts of 17 characters, a token each, and completions of 240 are more."""
    rows = [{"problem": f"{n} + 1000000000000 =", "answer": "7"} for n in range(1, 61)]
    source = f"protocol.environment.source.dataset={written(tmp_path, rows)}"
    run = str(tmp_path / "run")

    def told(*changes: str) -> str:
        options = [part for change in (source, *changes) for part in ("--set", change)]
        done = CliRunner().invoke(app, [*command, "--preset", EXAMPLE, "--run-dir", run, *options])
        assert done.exit_code == 2, done.output
        assert not Path(run).exists()
        (line,) = done.stderr.splitlines()
        return line

    assert "training: completions may have 300 tokens, and the policy sees 256" in told(
        "protocol.training.max_completion_length=300"
    )
    line = told("protocol.training.max_completion_length=240", "protocol.environment.train_problems=1000")
    assert re.search(
        r"training: \d+ of \d+ prompts have more than the 16 tokens that completions of 240 leave of the 256", line
    )
    line = told("protocol.benchmarks.own.max_completion_length=240")
    assert line.startswith("poise: own: ")
    long = '{template: "' + "1" * 240 + '{problem}"}'
    line = told(f"protocol.benchmarks.own.prompt={long}")
    assert line.startswith("poise: own: "), "by the template of its own"
    line = told("protocol.benchmarks.own.prompt={chat: true}")
    assert "benchmark own: prompt.chat: the tokenizer of" in line
    with pytest.raises(PresetError, match=r"own: .* prompts have more than"):  # as the flows begin a run
        chosen_preset(run, EXAMPLE, [source, "protocol.benchmarks.own.max_completion_length=240"])


def test_shipped_presets_pin_what_they_fetch_and_only_the_paper_reads_its_report() -> None:
    presets = {name: read_preset(name) for name in shipped_presets()}
    for name, preset in presets.items():
        sources = [preset.protocol.environment.source, *(one.source for one in preset.protocol.benchmarks)]
        pins = [source.revision for source in sources if source is not None and source.dataset is not None]
        if "/" in preset.protocol.policy:
            pins.append(preset.protocol.policy.partition("@")[2])
        assert all(re.fullmatch("[0-9a-f]{40}", pin or "") for pin in pins), name
        assert bool(preset.protocol.unsealed) == (name == "paper")
        public = any(one.source and one.source.dataset for one in preset.protocol.benchmarks)
        assert bool(preset.examination.procedural) == public, (
            "what anybody may have memorised is examined on drawn problems, too"
        )
    paper = presets["paper"].protocol
    assert {one.name: (one.weight, one.metric_name) for one in paper.benchmarks} == {
        "aime24": (0.2, "pass@32"), "aime25": (0.2, "pass@32"), "amc23": (0.15, "pass@32"),
        "math500": (0.15, "acc@1"), "minerva": (0.15, "acc@1"), "olympiad": (0.15, "acc@1"),
    }  # fmt: skip
    assert len(paper.unsealed) == 6
    assert (paper.training.batch_size, paper.training.steps, paper.training.learning_rate) == (2048, 160, 1e-6)
    shared = presets["math-1x80"].protocol
    assert [one.source for one in shared.benchmarks][:6] == [one.source for one in paper.benchmarks]


def test_digests_of_older_presets_stay() -> None:
    tuned = load_preset(FIRST_TESTBED, ["protocol.training.learning_rate=3.75e-5"])
    found = {"smoke": load_preset("smoke").protocol.digest, "laptop of before": tuned.protocol.digest}
    assert found == {"smoke": "5bf566f8187ec8f5", "laptop of before": "985ed55b06b7af52"}


def test_set_reaches_into_a_benchmark_by_its_name(tmp_path: Path) -> None:
    file = written(tmp_path, rows_of(40))
    own = [
        "protocol.policy=arithmetic-a",
        f"protocol.environment.source={{dataset: {file}}}",
        *(f"protocol.benchmarks.{name}.source={{dataset: {file}}}" for name in SIX),
    ]
    protocol = load_preset("paper", own).protocol
    assert protocol.benchmarks[4].source == SourceSpec(dataset=file, digest=protocol.environment.source.digest)  # type: ignore[union-attr]
    assert len(benchmark_environment(protocol, protocol.benchmarks[0]).problems("search", [], 0, "x")) == 40
    for wrong, told in (
        ("nope.weight=1", "there is no 'nope'; name one of aime24, aime25, amc23"),
        ("aime24=1", "'benchmarks' has no keys below it; name one of aime24"),
        ("aime24.name.x=1", "'name' has no keys below it"),
    ):
        with pytest.raises(PresetError, match=re.escape(told)):
            load_preset("paper", [*own, f"protocol.benchmarks.{wrong}"])


@pytest.mark.exhaustive
def test_a_file_of_rows_becomes_a_running_evolution(tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("poise"), "evolve", "--preset", EXAMPLE, "--run-dir", tmp_path / "run"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "GRPO" in done.stdout
