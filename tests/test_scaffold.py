import importlib.util
import json

import pytest
from notebook_factory import course_notebook, text

from common import course
from common.grading import proofs
from common.notebooks import anatomy, normal, rules, scaffold
from common.notebooks.__main__ import main
from common.notebooks.anatomy import NotebookError

UNIT = "phase1_made/lab2_new"
TOML = """repository = ""
branch = "main"

[[phase]]
folder = "phase1_made"
title = "Made"

[[unit]]
folder = "phase1_made/lab1_listed"
title = "Lab 1: Listed"
hours = "3-4"
builds = "Something."

[[unit]]
folder = "phase1_made/hw1_two"
title = "Homework 1: Two"
hours = "3-4"
builds = "Something."
notebooks = [
    { file = "hw1_theory.ipynb", title = "Theory", hours = "1" },
    { file = "hw1_nets.ipynb", title = "Nets", hours = "2-3" },
]
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "course.toml").write_text(TOML)
    return tmp_path


@pytest.fixture
def made(root):
    scaffold.new(root, UNIT, 'A "new" lab', lambda line: None)
    return root


def test_the_new_notebook_keeps_the_rules(made):
    path = made / UNIT / "lab2_new.ipynb"
    assert rules.problems(path, path.parent, made) == []
    assert anatomy.read(path).cells[1].source.startswith('# A "new" lab\n')
    assert [unit.folder for unit in course.load(made).ready()] == [UNIT]


def test_a_listed_unit_needs_no_title(root):
    path = scaffold.new(root, "phase1_made/lab1_listed/", say=lambda line: None)
    assert rules.problems(path, path.parent, root) == []
    assert anatomy.read(path).cells[1].source.startswith("# Lab 1: Listed\n")
    assert (root / "common" / "course.toml").read_text() == TOML


def test_a_unit_of_several_notebooks_is_started_one_by_one(root):
    unit = root / "phase1_made/hw1_two"
    path = scaffold.new(root, "phase1_made/hw1_two", say=lambda line: None)
    assert path == unit / "hw1_theory.ipynb"
    checks = (unit / "checks.py").read_bytes()
    assert b'@check("mean-squared-error", points=4, part="theory")' in checks
    with pytest.raises(NotebookError, match="is there already"):
        scaffold.new(root, "phase1_made/hw1_two")
    with pytest.raises(NotebookError, match=r"lists no notebook hw1_x.ipynb"):
        scaffold.new(root, "phase1_made/hw1_two", notebook="hw1_x.ipynb")
    assert run(root, "new", "phase1_made/hw1_two", "--notebook", "hw1_nets.ipynb") == 0
    for name, title, answers in (
        ("hw1_theory.ipynb", "# Homework 1: Theory\n\n**4 points** · **1 hour**", 1),
        ("hw1_nets.ipynb", "# Homework 1: Nets\n\n**0 points** · **2–3 hours**", 0),
    ):
        assert rules.problems(unit / name, unit, root) == []
        nb = anatomy.read(unit / name)
        assert nb.cells[1].source.startswith(title)
        assert len(anatomy.answers(nb)) == answers
        assert (root / "solutions/phase1_made/hw1_two" / name).is_file()
    assert 'progress(checks, "nets")' in [cell.source for cell in nb.cells]
    assert (unit / "checks.py").read_bytes() == checks


def test_checks_solution_and_stored_answers_fit_together(made, capsys):
    unit, solved = made / UNIT, made / "solutions" / UNIT
    nb = anatomy.read(solved / "lab2_new.ipynb")
    assert not any(answer.is_stub for answer in anatomy.answers(nb))
    (solved / "checks.py").write_bytes((unit / "checks.py").read_bytes())
    outcomes = proofs.prove(solved / "lab2_new.ipynb")["mean-squared-error"]
    assert [one.problem for one in outcomes] == [""] * len(outcomes)
    assert proofs.shortages(outcomes) == []

    spec = importlib.util.spec_from_file_location("made_checks", unit / "checks.py")
    checks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checks)
    space: dict = {}
    exec(anatomy.answers(nb)[0].source, space)
    checks.mean_squared_error(space["mean_squared_error"])
    stored = next(cell.outputs[0].text for cell in nb.cells if anatomy.role(cell) == "check")
    assert capsys.readouterr().out == stored


def test_next_steps_are_told(root):
    said: list[str] = []
    scaffold.new(root, UNIT, "New", said.append)
    for word in ("checks.py", "make solutions", f"solutions/{UNIT}", "wrong answers", "make publish"):
        assert word in said[0]


@pytest.mark.parametrize(
    ("unit", "title", "says"),
    [
        ("phase7/lab1", "T", "the phases are phase1_made"),
        ("phase1_made", "T", "<phase>/<name>"),
        ("phase1_made/Lab 1", "T", "<phase>/<name>"),
        ("phase1_made/a/b", "T", "<phase>/<name>"),
        (UNIT, None, "TITLE="),
    ],
)
def test_bad_wishes_are_refused_and_leave_nothing(root, unit, title, says):
    with pytest.raises(NotebookError, match=says):
        scaffold.new(root, unit, title)
    assert (root / "common" / "course.toml").read_text() == TOML
    assert [path.name for path in root.iterdir()] == ["common"]


def test_nothing_is_overwritten(made):
    before = (made / UNIT / "checks.py").read_bytes()
    with pytest.raises(NotebookError, match="is there already"):
        scaffold.new(made, UNIT, "Again")
    assert (made / UNIT / "checks.py").read_bytes() == before


# The commands


def run(root, *arguments):
    return main(["--root", str(root), *arguments])


def test_format(made, capsys):
    path = made / UNIT / "lab2_new.ipynb"
    good = path.read_bytes()
    assert run(made, "format", "--check") == 0
    path.write_bytes(good.replace(b'\n "nbformat": 4', b'\n\n "nbformat": 4'))
    assert run(made, "format", "--check") == 1
    assert "not in normal form" in capsys.readouterr().err
    assert run(made, "format") == 0
    assert path.read_bytes() == good
    other = made / "other.ipynb"
    nb = course_notebook()
    nb.cells.append(text("  trailing  "))
    other.write_text(json.dumps(nb))
    assert run(made, "format", str(other)) == 0
    assert other.read_bytes() == normal.to_bytes(nb)


def test_rules(made, capsys):
    assert run(made, "rules") == 0
    path = made / UNIT / "lab2_new.ipynb"
    nb = anatomy.read(path)
    nb.cells[1].source = "# No hours"
    anatomy.write(nb, path)
    assert run(made, "rules") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{UNIT}/lab2_new.ipynb: Cell title: ") for line in lines)


def test_new(root, capsys):
    assert run(root, "new", UNIT, "New") == 0
    assert "make publish" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("new", "x"), ("update",), ("format", "none.ipynb"), ("publish",)])
def test_errors_are_one_line(root, arguments, capsys):
    assert run(root, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"{arguments[0]}: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_stamp(made):
    assert run(made, "stamp", "--check") == 0
