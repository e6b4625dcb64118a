"""Graders on answers of every kind, and the pool on what hangs, dies and lies."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from poise_core.config.problems import GraderSpec
from poise_core.grading import GradingPool, Row, grade, outcome_counts
from poise_core.grading.answers import find_answer, last_box
from poise_core.grading.equality import Rules, answers_equal
from poise_core.grading.expressions import Unreadable
from poise_core.grading.graders import judge, read_choice, read_number, wrapped_gold

# gold | answer | 1 where it is the same. Siblings stand together: what is right beside what only looks like it.
CASES = r"""
42 | 42. | 1
42 | 42.0 | 1
42 | +42 | 1
42 | 042 | 1
42 | $42$ | 1
42 | \(42\) | 1
42 | −42 | 0
-42 | −42 | 1
42 | \mathbf{42} | 1
42 | \text{42} | 1
\frac12 | 1/2 | 1
\frac{1}{2} | \dfrac{1}{2} | 1
\frac{1}{2} | \frac{2}{4} | 1
\frac{1}{2} | .5 | 1
\frac{1}{3} | 0.333333 | 1
\frac{1}{3} | 0.333 | 0
\sqrt{2} | 1.41421356 | 1
\sqrt{2} | 1.41 | 0
0.33 | \frac13 | 0
3.14 | \pi | 0
\pi | 3.14159 | 1
\pi | \frac{22}{7} | 0
(3,-2) | (-2,3) | 0
(3,-2) | 3, -2 | 1
(3,-2) | x=3, y=-2 | 1
\{1,2,3\} | 1,2,3 | 1
\{1,2,3\} | \{1,2\} | 0
\{1,2,3\} | \{1,2,3,4\} | 0
\{1,2\} | \{1,1,2\} | 1
\{1,2\} | (1,2) | 0
[2,5) | (2,5) | 0
[2,5) | [2, 5) | 1
[2,5) | 2 \le x < 5 | 1
[2,5) | 2 \leq x \leq 5 | 0
[2,5) | 5 > x \geq 2 | 1
[2,5) | x \in [2,5) | 1
(2,\infty) | x > 2 | 1
(2,\infty) | x \ge 2 | 0
(-\infty,2)\cup(3,\infty) | x<2 \text{ or } x>3 | 1
(-\infty,2)\cup(3,\infty) | (3,\infty)\cup(-\infty,2) | 1
(-\infty,2)\cup(3,\infty) | (-\infty,2)\cup[3,\infty) | 0
(-\infty,2)\cup(2,\infty) | x \neq 2 | 1
(1,3) | \{1,3\} | 0
(1,3) | 1 < x \le 3 | 0
(1,3) | [1,3] | 0
\mathbb{R} | (-\infty,\infty) | 1
\mathbb{R} | \text{all real numbers} | 1
\emptyset | \text{no solution} | 1
\text{Monday} | Monday | 1
\text{Monday} | \textbf{monday} | 1
\text{even} | even | 1
\text{east} | east | 1
even | even | 1
even | \text{even} | 1
even | odd | 0
\text{yes} | yes | 1
\text{yes} | sye | 0
ab | ba | 1
x^2+2x+1 | (x+1)(x+1) | 1
x^2+2x+1 | x^2+2x-1 | 0
x^2+2x+1 | y^2+2y+1 | 0
x^2-1 | (x-1)(x+1) | 1
\sqrt{x^2} | x | 0
\sqrt{x^2} | |x| | 1
\sin^2 x | 1-\cos^2 x | 1
\sin 2x | 2\sin x\cos x | 1
18 | $18 | 1
18 | \$18.00 | 1
18 | 18 \text{ dollars} | 1
18 | 18 dollars | 1
\$18.90 | 18.90 | 1
\$18.90 | 18.9 | 1
\$0.50 | 50 \text{ cents} | 1
60^\circ | 60 | 1
60 | 60 \text{ degrees} | 1
60 | 60 degrees | 1
60 | 60° | 1
60^\circ | \frac{\pi}{3} | 1
\frac{\pi}{3} | 60 | 0
\frac{\pi}{3} | 30^\circ | 0
\frac{\pi}{3} | \frac{\pi}{3} \text{ radians} | 1
60^\circ | 61^\circ | 0
60 | 60 \text{ radians} | 1
60^\circ | 60 \text{ radians} | 0
\text{(C)} | C | 1
\text{(C)} | (C) | 1
\text{(C)} | \textbf{(C)} | 1
\text{(C)} | \text{(C) } 12 | 1
\text{(C)} | \text{D} | 0
\text{(C)} | (A) \text{ or } (C) | 0
\text{(C)} | \mathrm{C} | 1
C | \text{(C)} | 1
C | \text{D} | 0
1234567 | 1{,}234{,}567 | 1
1234567 | 1\,234\,567 | 1
1234567 | 1,234,568 | 0
58,500 | 58500 | 1
58,500 | 58, 500 | 0
1, 234 | 1234 | 0
1,234 | 1234 | 1
25\% | 25% | 1
25\% | 0.25 | 1
25\% | \frac14 | 1
25\% | 0.25\% | 0
25 | 25\% | 1
0.25 | 25\% | 1
0.25 | 25 | 0
25\% | 26 | 0
25 | 25 \text{ percent} | 1
\frac{7}{2} | 3 1/2 | 1
\frac{7}{2} | 3.5 | 1
-\frac{7}{2} | -3\frac{1}{2} | 1
\frac{3}{2} | 3\frac{1}{2} | 0
3\frac{1}{2} | 3.5 | 1
137 \frac{1}{2} | 137.5 | 1
\pm 4 | 4, -4 | 1
\pm 4 | \pm4 | 1
\pm 4 | x = \pm 4 | 1
\pm 4 | \{-4, 4\} | 1
\pm 4 | -4 \text{ and } 4 | 1
\pm 4 | -4 | 0
4 | \pm 4 | 0
1 \pm \sqrt{19} | 1+\sqrt{19}, 1-\sqrt{19} | 1
\{1\pm\sqrt{5},-2\} | -2, 1+\sqrt5, 1-\sqrt5 | 1
\frac{1}{3^{60}} | 3^{-60} | 1
10^{-30} | 10^{-31} | 0
10^{-30} | 0 | 0
0 | 10^{-30} | 0
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix} | 1
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | (1,2) | 1
\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix} | \begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix} | 1
\begin{pmatrix} 1 & 2 \end{pmatrix} | \begin{pmatrix} 1 \\ 2 \end{pmatrix} | 0
10 | 12 \text{ or } 10 | 0
10 | 10, 12 | 0
10 | 10 \text{ and } 12 | 0
12 | \text{The answer is } 12 | 1
12 | \text{Answer: } 12 | 1
12 | The answer is 12 | 1
12 | x = 12 | 1
12 | 12 \text{ cm} | 1
12 | 12 \text{ apples} | 1
12 | 12 halves | 0
12 | 12 \text{ thirds} | 0
12 | 12 tenths | 0
12 | 12 \text{ squared} | 0
12 | 12 cubed | 0
12 | 12 factorial | 0
12 | 12 \text{ plus three} | 0
12 | 12 \text{ million dollars} | 0
12000000 | 12 million dollars | 1
12000000 | 12 \text{ millions} | 1
12 | 12 \text{ cm squared} | 1
12 | 12 \text{ third graders} | 1
12 | \text{not } 12 | 0
12 | \text{at least } 12 | 0
12 | 12 \text{ or more} | 0
12 | \text{less than } 12 | 0
12 | \text{approximately } 12 | 0
12 | \approx 12 | 0
12 | > 12 | 0
12 | x > 12 | 0
y=2x+1 | 2x+1 | 1
y=2x+1 | y = 1 + 2x | 1
y=2x+1 | 2x - y + 1 = 0 | 1
y=2x+1 | y-2x = 1 | 1
y=2x+1 | x=2y+1 | 0
y=2x+1 | 2x+2 | 0
5x - 7y + 11z + 4 = 0 | 10x - 14y + 22z + 8 = 0 | 1
5x - 7y + 11z + 4 = 0 | 5x - 7y + 11z - 4 = 0 | 0
x=5 | 5 | 1
x=5 | x=6 | 0
5 | 2+3=5 | 1
5 | x = 2+3 = 5 | 1
5 | x^2 = 5 | 0
10 | 2x = 10 | 0
3 | f(2) = 3 | 1
3 | f(f(2)) = 3 | 1
3 | f(2) + f(1) = 3 | 0
3 | f(2) = 4 | 0
f(2)=3 | 3 | 1
1/2 | P(X=2)=1/2 | 1
1/2 | P(A \cap B) = \frac12 | 1
5 | x(x-4) = 5 | 0
5 | N(N-4) = 5 | 0
5 | \sin(x+1) = 5 | 0
(3,4) | (x,y)=(3,4) | 1
(3,4) | (x,y)=(4,3) | 0
(x,y)=(3,4) | (3,4) | 1
(1,2), (3,4) | (x,y)=(1,2),(3,4) | 1
\frac{\sqrt3}{2} | \sin 60^\circ | 1
\frac{\sqrt3}{2} | \sin 60 \text{ degrees} | 1
0.5 | \sin 30^\circ | 1
0.5 | \sin 30 | 0
\sin 30^\circ | 30 | 0
6 | 2+3=6 | 0
f(x)=2x | f(x)=x+x | 1
f(x)=2x | 2x | 1
f(x)=2x | f(x)=3x | 0
k=2 n-1 | 2n-1 | 1
4, 9, \text{ and } 11 | 11, 9, 4 | 1
4, 9, \text{ and } 11 | 4, 9 | 0
4, 9, \text{ and } 11 | 4, 9, 12 | 0
4, 9, \text{ and } 11 | 4 and 9 and 11 | 1
3{:}45 | 3:45 | 1
3:45 | 3:45 \text{ p.m.} | 1
3:45 | 3:46 | 0
3:45 \text{ a.m.} | 3:45 \text{ p.m.} | 0
3:4 | 6:8 | 1
3:4 | \frac34 | 1
3:4 | 4:3 | 0
1101_2 | 1101 | 1
1101_2 | 1101_3 | 0
1101_2 | 1100_2 | 0
1101_2 | 13 | 0
1101_2 | 1101_{\text{two}} | 1
204_5 | (204)_5 | 1
2A_{16} | 2A_{16} | 1
\text{east} | \text{ East } | 1
0.\overline{3} | 0.333 | 0
0.\overline{3} | 0.333\ldots | 1
0.\overline{3} | 0.333... | 1
0.\overline{36} | \frac{4}{11} | 1
1.2\overline{3} | \frac{37}{30} | 1
\log_2 3 | \log_3 2 | 0
\log_2 8 | 3 | 1
\ln 2 | \log 2 | 0
\binom{10}{3} | \binom{10}{7} | 1
\binom{10}{3} | {10 \choose 3} | 1
120 | 5! | 1
6 | 2^{2^{2^{100}}} | 0
2^{1009} | 2^{1009} | 1
2^{1009} | 2\cdot 2^{1008} | 1
2^{2^{1009}} | 2^{2^{1009}} | 1
2 - \frac{5}{\mathrm{e}} | 2-5e^{-1} | 1
2 - \frac{5}{\mathrm{e}} | 2 - \frac{5}{e} | 1
1, 2, \ldots, n | 1,2,\dots,n | 1
1, 2, \ldots, n | n, \ldots, 2, 1 | 0
3+4i | 4i+3 | 1
3+4i | 3-4i | 0
-8-8 \sqrt{3} i | -8-8i\sqrt{3} | 1
\frac{-1+\sqrt{3}i}{2} | -\frac12+\frac{\sqrt3}{2}i | 1
15\mbox{ cm}^2 | 15 | 1
15\mbox{ cm}^2 | 15 \text{ cm}^2 | 1
15\mbox{ cm}^2 | 15 \text{ square centimeters} | 1
15\mbox{ cm}^2 | 15 \text{ cm} | 0
10 \text{ cm} | 0.1 \text{ m} | 1
10 \text{ cm} | 10 \text{ m} | 0
120 \text{ minutes} | 2 \text{ hours} | 1
864 \mbox{ inches}^2 | 864 | 1
864 \mbox{ inches}^2 | 6 \text{ square feet} | 1
\frac{270}7\text{ degrees} | \frac{270}{7}^\circ | 1
36 \text{ km/h} | 10 \text{ m/s} | 1
5 | five | 1
5 | \text{five} | 1
2000000 | 2 \text{ million} | 1
4.5e33 | 4.5\times 10^{33} | 1
4.5e33 | 4.5 \cdot 10^{32} | 0
5 | \boxed{5} | 1
p - q | -q+p | 1
3R^2 | 3r^2 | 0
\cot x | \frac{\cos x}{\sin x} | 1
\frac{\sqrt{3}}{3} | \frac{1}{\sqrt{3}} | 1
11\sqrt2 | \sqrt{242} | 1
\sqrt[3]{-8} | -2 | 1
8 | 2^3 | 1
(15,-29) | \left(15,-29\right) | 1
\left( 3, \frac{\pi}{2} \right) | (3, 90^\circ) | 1
\frac 59 | \frac{5}{9} | 1
x^{2}y | yx^2 | 1
2\sqrt{113} | 2 \sqrt {113} | 1
5 |  | 0
5 | ? | 0
5 | \text{None} | 0
5 | x | 0
\sqrt{2}+\sqrt{3} | \sqrt{5+2\sqrt{6}} | 1
\frac{2005}{2} | 1002.5 | 1
62.5% | \frac58 | 1
\angle B E A_{1}=90,\angle A E B_{1}=90 | 90, 90 | 1
$10^{100}$,$10^{1 / 100}$ | 10^{1/100}, 10^{100} | 1
$(1,2)$, $(3,4)$ | (3,4),(1,2) | 1
$(1,2)$, $(3,4)$ | (2,1),(3,4) | 0
k \geqslant 2 | [2,\infty) | 1
m \frac{d v}{d t}+b v=f | m \frac{d v}{d t}+b v=f | 1
\alpha | \alpha | 1
\alpha | \beta | 0
\frac{d !}{2 k(d-k) !} | \frac{d!}{2k(d-k)!} | 1
x=1 or x=2 | 1, 2 | 1
x=1 \text{ or } x=2 | x=2 or x=1 | 1
(2,3] | ]2,3] | 0
7 | 7 (or 9) | 0
7 | 7\text{ (or 9)} | 0
7 | \{7\} | 1
7 | (7) | 1
7 | 7 \text{ units} | 1
7 | 7^{\circ} | 1
7 | 7x | 0
7 | \frac{7}{1} | 1
7 | 07.00 | 1
7 | 7\% | 1
7 | 7! | 0
5040 | 7! | 1
7 | 6.999999999 | 0
7 | 7.0000001 | 0
100 | 1e2 | 1
100 | 10^2 | 1
\infty | +\infty | 1
\infty | -\infty | 0
\text{undefined} | undefined | 1
2k\pi | 2\pi k | 1
\frac{\pi}{4}+k\pi | \frac{\pi}{4}+n\pi | 0
\sum_{k=1}^{10} k | 55 | 1
\int_0^1 x\,dx | \frac12 | 1
1 + \frac{1}{2} + \ldots | 1 + \frac13 + \ldots | 0
AB=5 | 5 | 1
\text{Area}=5 | 5 | 1
5 | \text{Area} = 5 | 1
5 | A = 5 | 1
n=5 | m=5 | 0
5 \text{ and } 6 | 5,6 | 1
5 | 5 \text{ or } 5 | 0
3 | 3 \pmod{5} | 0
(2,12) \cup (12,102) | (12,102)\cup(2,12) | 1
p-q | -q+p | 1
\text{two-thirds} | two-thirds | 1
(12,102) | (12, 102) | 1
0 | \sqrt{5+2\sqrt6}-\sqrt2-\sqrt3 | 1
0 | e^{-100} | 0
I(0) | 0 | 0
78\% | 78\%+1 | 0
927.5 | 928 | 0
9^{9^{9^9}} | 9^{9^{9^9}} | 1
3 | 9^{9^{9^9}} | 0
6 | (((5!)!)!)! | 0
21 | \sum_{k=1}^{10^{9}} \frac{1}{k} | 0
\text{A,D} | \text{D, A} | 1
\text{A,D} | \text{A} | 0
\text{(A)} | (A), (C) | 0
\text{(A)} | (A) \text{ or } (C) | 0
\text{(A)} | \text{A or C} | 0
\text{(A)} | \text{A}, \text{C} | 0
\text{(A)} | \text{A. } 12 | 1
\frac{12}{5,\!525} | \frac{12}{5525} | 1
\text{1:03 PM} | 1:03 \text{ p.m.} | 1
"""
MATH = GraderSpec()


def cases() -> list[tuple[str, str, bool]]:
    rows = []
    for line in CASES.strip().splitlines():
        rest, _, verdict = line.rpartition(" | ")
        gold, _, answer = rest.partition(" | ")
        rows.append((gold, answer.strip(), verdict == "1"))
    return rows


@pytest.mark.slow
def test_answers_are_equal_where_they_are_and_only_there() -> None:
    wrong = []
    for gold, answer, expected in cases():
        try:
            found = bool(answer) and answers_equal(gold, answer)
        except Unreadable:
            found = False
        if found != expected:
            wrong.append((gold, answer, found))
    assert not wrong


def test_every_gold_of_the_table_is_its_own_answer_and_no_order_of_sides_raises() -> None:
    for gold, answer, _ in cases():
        assert answers_equal(gold, gold), gold
        if answer:
            with contextlib.suppress(Unreadable):
                answers_equal(answer, gold)


def test_the_last_box_counts_alone() -> None:
    assert last_box(r"\boxed{7} or else \boxed{9}") == "9"
    assert last_box(r"\boxed{\{3, 1\}}") == r"\{3, 1\}"
    assert last_box(r"\boxed{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert last_box(r"$\boxed 7$") == "7"
    assert last_box(r"\boxed{x = \boxed{5}}") == "5"
    assert last_box(r"\boxed{7} and then \boxed{9") is None  # cut off: what was meant is unknown
    assert last_box("5 of them") is None
    assert last_box("\\boxed") is None
    started = time.process_time()
    assert last_box("$x = 2 + 3 + " * 20_000 + r"\boxed{8}") == "8"
    assert time.process_time() - started < 1


def test_other_places_of_an_answer() -> None:
    assert find_answer("so\n#### 1,234\nbye", "hash") == "1,234"
    assert find_answer("<answer> \\boxed{4} </answer>", "tag") == "4"
    assert find_answer("<answer> 4 </answer>", "tag") == "4"
    assert find_answer("<answer> 4", "tag") is None
    assert wrapped_gold("long\n#### 72") == "72"
    assert wrapped_gold(r"Thus $x=\boxed{72}$.") == "72"


def test_a_tolerance_is_relative_and_only_where_it_is_asked_for() -> None:
    loose = Rules(tolerance=0.01)
    assert answers_equal("4.5e33", r"4.52 \times 10^{33}", loose)  # off by 0.4 %
    assert not answers_equal("4.5e33", r"4.6 \times 10^{33}", loose)  # off by 2.2 %
    assert not answers_equal("4.5e33", r"4.52 \times 10^{33}")
    assert not answers_equal("0", "0.001", loose)


def test_exact_numeric_choice_and_regex() -> None:
    def right(spec: dict[str, object], gold: str, completion: str) -> str:
        return judge(GraderSpec.model_validate(spec), Row(gold, completion)).outcome

    exact = {"name": "exact", "answer": "whole"}
    assert right(exact, "New  York", " new york. ") == "right"
    assert right(exact, "York", "New York") == "wrong"
    numeric = {"name": "numeric", "answer": "whole"}
    assert right(numeric, "1234", "12 apples cost $1,234.00 in all") == "right"
    assert right(numeric, "1/2", "0.5") == "right"
    assert right(numeric, "3", "no idea") == "unreadable"
    assert right({**numeric, "tolerance": 0.01}, "100", "100.9") == "right"
    assert right(numeric, "100", "100.9") == "wrong"
    assert [read_number(text) for text in ("1e999999999", "12 or -2E+1000", "1e3")] == [None, None, 1000]  # at once
    assert right(numeric, "999999", "1e999999999") == "unreadable"  # no part of it
    choice = {"name": "choice"}
    assert right(choice, "C", r"\boxed{(C) 12}") == "right"
    assert right(choice, "C", r"\boxed{\text{c}}") == "right"
    assert right(choice, "C", r"\boxed{A or C}") == "unreadable"
    assert read_choice("The answer is (B)") == "B"
    regex = {"name": "regex", "pattern": r"#(-?\d+)$"}
    assert right(regex, "33", ":50-17#33") == "right"
    assert right(regex, "33", "33") == "no_answer"


GRADER = """
import os, sys, time

def verl(data_source, solution_str, ground_truth, extra_info):
    print("noise on standard output must not get between the answers")
    if solution_str == "die": os._exit(0)
    if solution_str == "exit": sys.exit(3)
    if solution_str == "spin":
        while True: pass
    if solution_str == "sleep": time.sleep(100)
    if solution_str == "raise": raise KeyError("x")
    if solution_str == "large": return len("x" * (1 << 40))
    given = {"none": None, "nan": float("nan"), "two": 2.0, "text": "1.0", "half": 0.5, "dict": {"score": 1.0}}
    return given.get(solution_str, solution_str == ground_truth)

def trl(prompts, completions, answer, level, **columns):
    return [float(c == a and p == "ask") if l else None for p, c, a, l in zip(prompts, completions, answer, level)]
"""


@pytest.mark.slow
def test_a_function_that_dies_hangs_or_lies_costs_its_own_row_only(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(GRADER)
    spec = GraderSpec(name="function", function=f"{file}:verl", threshold=0.6)
    asked = [
        "die",
        "ok",
        "exit",
        "spin",
        "sleep",
        "raise",
        "large",
        "none",
        "nan",
        "two",
        "text",
        "half",
        "dict",
        "bad",
    ]
    with GradingPool(2, cpu_seconds=0.5, wall_seconds=3) as pool:
        verdicts = dict(zip(asked, pool.grade(spec, [Row("ok", text) for text in asked]), strict=True))
        assert pool.grade(spec, [Row("ok", "ok")])[0].outcome == "right"  # the pool goes on
    expected = dict.fromkeys(asked, "failed") | {
        "ok": "right", "dict": "right", "bad": "wrong", "half": "wrong", "spin": "timed_out", "sleep": "timed_out",
    }  # fmt: skip
    assert {name: verdict.outcome for name, verdict in verdicts.items()} == expected
    assert "processor" in verdicts["spin"].message
    assert "wall" in verdicts["sleep"].message
    assert all(verdict.correctness == float(verdict.outcome == "right") for verdict in verdicts.values())
    assert outcome_counts(list(verdicts.values()))["timed_out"] == 2
    trl = GraderSpec(name="function", function=f"{file}:trl", shape="trl")
    rows = [Row("5", "5", {"prompt": "ask", "level": 1}), Row("5", "5", {"prompt": "ask", "level": 0})]
    assert [verdict.outcome for verdict in grade(trl, rows, workers=1)] == ["right", "failed"]
    partial = spec.model_copy(update={"threshold": None})
    assert grade(partial, [Row("", "half")], workers=1)[0].correctness == 0.5


@pytest.mark.slow
def test_a_busy_machine_fails_no_right_answer() -> None:
    """An alarm by the clock fails right answers under load; the limit here is of processor time, and ends what hangs."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(6)]
    try:
        rows = [Row(rf"\sqrt{{{n}}}", rf"\boxed{{\sqrt{{{4 * n}}}/2}}") for n in range(2, 62)]
        # an integral on which SymPy computes for minutes
        hangs = r"\boxed{\int_0^\infty \frac{x^{3} \sin(x^{2}) e^{-\sqrt{x}}}{\ln(1+x^{5}) + \tan(x)} dx}"
        with GradingPool(2, cpu_seconds=1.0) as pool:
            verdicts = pool.grade(MATH, [*rows[:30], Row("4", hangs), *rows[30:]])
            assert outcome_counts(verdicts) == {"right": 60, "timed_out": 1}
        assert (verdicts[30].outcome, verdicts[30].correctness) == ("timed_out", 0.0)
        assert "processor" in verdicts[30].message
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


@pytest.mark.slow
def test_equal_rows_are_judged_once_and_keep_their_places() -> None:
    rows = [Row(r"\frac12", r"\boxed{0.5}"), Row("3", "none"), Row("3", r"\boxed{4}")] * 5
    assert [verdict.outcome for verdict in grade(MATH, rows, workers=1)] == ["right", "no_answer", "wrong"] * 5


@pytest.mark.slow
def test_the_command_judges_a_file_and_tells_what_was_expected_otherwise(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from poise_core.cli import app

    file = tmp_path / "rows.jsonl"
    rows = [
        {"id": "a", "gold": r"\frac12", "completion": r"\boxed{0.5}", "expected": True},
        {"id": "b", "answer": 7, "completion": "seven", "expected": False},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    done = CliRunner().invoke(app, ["grade", str(file), "--json"])
    assert done.exit_code == 0, done.output
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(row["id"], row["outcome"], row["extracted"]) for row in found] == [
        ("a", "right", "0.5"),
        ("b", "no_answer", None),
    ]
    file.write_text(json.dumps({**rows[0], "expected": False}))
    assert CliRunner().invoke(app, ["grade", str(file)]).exit_code == 1
    for bad, told in (
        ("[1]", "expected an object"),
        ("{", "not JSON"),
        ('{"gold": "1"}', "needs gold"),
        ("", "no rows"),
    ):
        file.write_text(bad)
        done = CliRunner().invoke(app, ["grade", str(file)])
        assert (done.exit_code, told in done.output) == (2, True), done.output
    assert CliRunner().invoke(app, ["grade", str(file), "--grader", "{name: regex}"]).exit_code == 2
    file.write_text(json.dumps(rows[0]))
    mine = tmp_path / "mine.py"
    mine.write_text("def raises(**asked):\n    raise RuntimeError('one\\ntwo')\n")
    done = CliRunner().invoke(app, ["grade", str(file), "--grader", f"{{name: function, function: '{mine}:raises'}}"])
    assert "failed" in done.stdout
    assert "(RuntimeError: one two)" in done.stdout  # of a row, one line
    done = CliRunner().invoke(app, ["grade", str(file), "--grader", f"{{name: function, function: '{mine}:raise'}}"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "mine.py has no raise; its names are raises" in done.stderr
