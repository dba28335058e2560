"""What the benchmark gives to other graders, and what it makes of their results. None of them is run."""

import json
import subprocess
import sys

import pytest
from notebook_factory import ADD, ADD_SOLVED, SCALER_SOLVED, WHY, answered, at, course_notebook

from common.grading import benchmark
from common.grading.benchmark import Timing

ADD_WRONG = "def add_two(x):\n    return x + 3\n"
RIGHT = {"add-two": [ADD_SOLVED], "scaler-layer": [SCALER_SOLVED]}


def test_submissions_mix_right_and_wrong_answers_and_a_larger_number_begins_alike():
    few = benchmark.submissions(course_notebook(), RIGHT, {"add-two": [ADD_WRONG]}, 5)
    many = benchmark.submissions(course_notebook(), RIGHT, {"add-two": [ADD_WRONG]}, 60)
    assert list(few) == [f"student{number}" for number in range(1, 6)]
    assert few == {student: many[student] for student in few}
    sources = [made.cells[at(made, "add-two")].source for made in many.values()]
    assert sources[0] == ADD_SOLVED
    wrong = ADD.split("\n")[0] + "\n" + ADD_WRONG.rstrip()  # the TODO line stays
    assert set(sources) == {ADD_SOLVED, wrong}
    assert 3 < sources.count(wrong) < 25
    assert {made.cells[at(made, "scaler-layer")].source for made in many.values()} == {SCALER_SOLVED}
    assert {made.cells[at(made, "why-two")].source for made in many.values()} == {WHY}


def test_only_setup_answers_and_checks_are_left():
    left = [cell.id for cell in benchmark.only_answers(course_notebook()).cells]
    assert left == ["colab", "imports", "add-two", "check-add-two", "scaler-layer", "check-scaler-layer"]


def test_a_check_is_a_test_of_nbgraders():
    marked = benchmark.for_nbgrader(answered())
    marks = {cell.id: cell.metadata["nbgrader"] for cell in marked.cells if "nbgrader" in cell.metadata}
    assert list(marks) == ["add-two", "check-add-two", "scaler-layer", "check-scaler-layer"]
    tests = {slug: mark["points"] for slug, mark in marks.items() if mark["grade"]}
    assert tests == {"check-add-two": 3, "check-scaler-layer": 5}
    assert [mark["solution"] for mark in marks.values()] == [True, False, True, False]
    assert [mark["locked"] for mark in marks.values()] == [False, True, False, True]


def test_a_check_is_a_test_of_otters():
    marked = benchmark.for_otter(answered())
    assert "check-add-two" not in [cell.id for cell in marked.cells]
    assert marked.cells[at(marked, "add-two")].metadata["otter"] == {"tests": ["add-two"]}
    assert "otter" not in marked.cells[at(marked, "why-two")].metadata

    tests = benchmark.otter_tests(answered())
    assert list(tests) == ["add-two", "scaler-layer"]
    scope: dict = {}
    exec(
        tests["add-two"].replace("from otter.test_files import test_case", "def test_case(): return lambda f: f"), scope
    )
    assert (scope["OK_FORMAT"], scope["name"], scope["points"]) == (False, "add-two", 3)
    given = []

    class Checks:
        add_two = given.append

    scope["test"](add_two="the answer", checks=Checks)  # by name, as otter does
    assert given == ["the answer"]


def test_an_answer_that_is_partly_right_has_no_points():
    row = {
        "student": "student1",
        "answers": [{"slug": "a", "points": 2, "out_of": 3}, {"slug": "b", "points": 4, "out_of": 4}],
    }
    journal = "\n".join(json.dumps(line) for line in ({"seed": 0}, row, {"done": True}))
    assert benchmark.all_or_nothing(journal) == {"student1": {"a": 0, "b": 4}}


def test_graders_that_disagree_are_told():
    ours = {"student1": {"a": 3, "b": 0.0}, "student2": {"a": 3}}
    assert (
        benchmark.disagreements({"ours": ours, "theirs": {"student1": {"a": 3.0, "b": 0}, "student2": {"a": 3}}}) == []
    )
    theirs = {"student1": {"a": 3.0, "b": 4.0}}
    assert benchmark.disagreements({"ours": ours, "theirs": theirs}) == [
        "student1, b: ours 0.0, theirs 4.0",
        "student2, a: ours 3, theirs None",
    ]


def test_the_table_has_the_ratio_to_the_first():
    timings = [Timing("ours", "answers", 8, 0.5, 0.75), Timing("nbgrader", "whole notebook", 8, 30.0, 45.0)]
    *_, first, second = benchmark.table(timings).split("\n")
    assert first == "| ours | answers | 8 | 0.50 | 0.75 | 1.0 | 0% |"
    assert second == "| nbgrader | whole notebook | 8 | 30.00 | 45.00 | 60.0 | 0% |"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans on")
def test_a_watched_command_is_waited_for_with_what_it_leaves_behind(tmp_path):
    orphan = f"import time; time.sleep(0.3); open({str(tmp_path / 'ended')!r}, 'w')"
    leave = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {orphan!r}]); print('said'); sys.exit(3)"
    done = subprocess.run(
        [sys.executable, "-c", benchmark.WATCH, sys.executable, "-c", leave],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("said\n", 3)
    assert (tmp_path / "ended").is_file()
