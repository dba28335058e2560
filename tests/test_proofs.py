"""Each check of the course against the stored answers of its TODO; and the proofs against a tiny unit."""

import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from common.grading import proofs
from common.notebooks import anatomy, branch
from common.notebooks.anatomy import NotebookError

ROOT = Path(__file__).resolve().parents[1]
MINIMUM = {"right": 2, "wrong": 8}


# -- the course ----------------------------------------------------------------------------------------------


def todos():
    for notebook in branch.unit_notebooks(ROOT):
        unit = notebook.parent.relative_to(ROOT).as_posix()
        for answer in anatomy.answers(anatomy.read(notebook)):
            if answer.kind == "code":
                yield pytest.param(notebook.relative_to(ROOT), answer.slug, id=f"{unit}/{answer.slug}")


@pytest.fixture(scope="session")
def proven(tmp_path_factory):
    """Prove a unit the first time it is asked for."""
    folder, known = tmp_path_factory.mktemp("proofs") / "solutions", {}

    def outcomes(notebook):
        if not folder.exists():
            branch.make_solutions(ROOT, folder)
        if notebook not in known:
            known[notebook] = proofs.prove(folder / notebook)
        return known[notebook]

    return outcomes


@pytest.mark.parametrize(("notebook", "slug"), list(todos()))
def test_stored_answers(proven, notebook, slug):
    outcomes = proven(notebook)[slug]
    problems = [f"{one.kind} answer {one.title!r} {one.problem}" for one in outcomes if one.problem]
    assert not problems, "\n".join(problems)
    assert not proofs.shortages(outcomes, MINIMUM)


# -- the proofs ----------------------------------------------------------------------------------------------

CHECKS = """from common.checks import check


@check("double", points=3)
def double(answer, case):
    with case("doubles", points=2, hint="twice"):
        x = case.randn(3)
        case.close(answer(x), x + x, mistakes={"this is the square": x * x})
    with case("doubles zero", points=1, hint="twice"):
        case.equal(answer(0), 0)


@check("quadruple", points=1)
def quadruple(answer, case):
    with case("quadruples", points=1, hint="twice twice"):
        case.equal(answer(2), 8)
"""
DOUBLE = """# Notes of the author.
# %% right: a sum
def double(x):
    return x + x

# %% wrong: squared  [says: Square | power]
def double(x):
    return x * x
"""
ENDLESS = """
# %% wrong: endless  [says: seconds]
def double(x):
    while True:
        pass
"""
QUADRUPLE = """# %% right: by the one before
def quadruple(x):
    return double(double(x))
# %% wrong: once  [says: is 4]
def quadruple(x):
    return double(x)
"""


@pytest.fixture
def unit(tmp_path, monkeypatch):
    monkeypatch.setattr(proofs, "SECONDS", 6.0)  # enough on a loaded machine

    def cell(source, role, slug):
        return new_code_cell(source, id=slug, metadata={"tags": [role]})

    notebook = new_notebook(
        cells=[
            cell("%matplotlib inline\nimport checks\nimport helper\nprint('noise')\nTWO = helper.TWO", "setup", "s"),
            cell("# TODO double  (3 points, ~5 min)\ndef double(x):\n    return TWO * x", "answer", "double"),
            cell("checks.double(double)", "check", "check-double"),
            new_code_cell("raise SystemExit('this cell trains for hours')"),
            cell("# TODO quadruple  (1 points, ~5 min)\ndef quadruple(x):\n    return 4 * x", "answer", "quadruple"),
            new_markdown_cell(
                "<!-- TODO why (1 points, ~5 min) -->\nBecause.", id="why", metadata={"tags": ["answer"]}
            ),
        ]
    )
    folder = tmp_path / "unit"
    anatomy.write(notebook, folder / "unit.ipynb")
    (folder / "answers").mkdir()
    (folder / "helper.py").write_text("TWO = 2\n")
    (folder / "checks.py").write_text(CHECKS)
    (folder / "answers/double.py").write_text(DOUBLE)
    (folder / "answers/quadruple.py").write_text(QUADRUPLE)
    return folder / "unit.ipynb"


def test_a_unit_that_holds(unit, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "checks", proofs)  # another unit's
    (unit.parent / "answers/double.py").write_text(DOUBLE + ENDLESS)
    outcomes = proofs.prove(unit)
    found = {
        slug: [(one.kind, one.title, one.accepted, one.caught, one.named, one.problem) for one in ones]
        for slug, ones in outcomes.items()
    }
    assert found == {
        "double": [
            ("right", "the reference", True, False, False, ""),
            ("right", "a sum", True, False, False, ""),
            ("wrong", "squared", False, True, True, ""),
            ("wrong", "endless", False, True, True, ""),
        ],
        "quadruple": [
            ("right", "the reference", True, False, False, ""),
            ("right", "by the one before", True, False, False, ""),
            ("wrong", "once", False, True, True, ""),
        ],
    }
    assert capsys.readouterr().out == ""
    assert sys.modules["checks"] is proofs
    assert "helper" not in sys.modules
    assert {path.name for path in unit.parent.iterdir()} == {"answers", "checks.py", "helper.py", "unit.ipynb"}


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("# %% right: r\ndef double(x):\n    return x", "is refused: the result: "),
        ("# %% wrong: w  [says: x]\ndef double(x):\n    return x + x", "is accepted"),
        ("# %% wrong: w  [says: cube]\ndef double(x):\n    return x * x", "no message says 'cube': this is the"),
        ("# %% wrong: w  [says: x]\ndef dobule(x):\n    return x", "it does not define double"),
        ("# %% wrong: w  [says: x]\ndef double(x)", "its code does not run: SyntaxError"),
        ("# %% wrong: w  [says: x]\nwhile True: pass", "its code does not run: did not end within 6 seconds"),
    ],
)
def test_proofs_that_fail(unit, cell, problem):
    (unit.parent / "answers/double.py").write_text(cell)
    assert problem in proofs.prove(unit)["double"][1].problem


def test_a_todo_without_a_check(unit):
    (unit.parent / "checks.py").write_text("")
    assert "has no check 'double'" in proofs.prove(unit)["double"][0].problem


def test_a_check_and_a_todo_line_that_disagree_about_points(unit):
    unit.write_text(unit.read_text().replace("TODO double  (3 points", "TODO double  (4 points"))
    assert "its check gives 3 points, its TODO line says 4" in proofs.prove(unit)["double"][0].problem


def test_a_setup_cell_that_fails(unit):
    (unit.parent / "helper.py").write_text("")
    with pytest.raises(NotebookError, match=r"the cell s does not run: AttributeError"):
        proofs.prove(unit)


def test_shortages(unit):
    outcomes = proofs.prove(unit)["double"]
    assert proofs.shortages(outcomes) == ["stored wrong answers: 1, needed: 5"]
    assert proofs.shortages(outcomes, {"right": 1, "wrong": 1}) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import torch\n# %% right: a\n", "code stands before"),
        ("# %% perhaps: a\n", "perhaps"),
        ("# %% wrong: a\n", "wrong: a"),
        ("# %% wrong: a  [says: ]\n", "says"),
        ("# %% right: a  [says: b]\n", "right: a"),
        ("# %%\n", "# %%"),
    ],
)
def test_a_file_that_is_not_understood(tmp_path, text, says):
    (tmp_path / "slug.py").write_text(text)
    with pytest.raises(NotebookError, match=says):
        proofs.parse(tmp_path / "slug.py")


def test_the_command(unit, capsys):
    root = unit.parents[1]
    assert proofs.main(["--folder", str(root)]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[2].split() == ["double", "2", "of", "2", "1", "of", "1", "1", "of", "1"]
    assert "quadruple: stored wrong answers: 1, needed: 5" in out
    assert proofs.main(["--folder", str(root), "nowhere"]) == 1
    assert "no solved notebook in nowhere; there is ['unit']" in capsys.readouterr().err
