"""Each check of the course against the stored answers of its TODO; and the proofs against a tiny unit."""

import sys
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from common import course
from common.grading import mutants, proofs
from common.notebooks import anatomy, branch
from common.notebooks.anatomy import NotebookError

ROOT = Path(__file__).resolve().parents[1]
MINIMUM = {"right": 2, "wrong": 8}


# -- the course ----------------------------------------------------------------------------------------------


def todos():
    syllabus = course.load(ROOT)
    for notebook in syllabus.notebooks():
        for answer in syllabus.answers(notebook):
            if answer.kind != "markdown":
                yield pytest.param(notebook.path, answer.slug, id=f"{notebook.unit}/{answer.slug}")


@pytest.fixture(scope="session")
def proven(tmp_path_factory):
    """Prove a notebook the first time it is asked for."""
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
# %% wrong: endless  [says: endless loop]
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
        ("# %% wrong: w  [says: x]\nwhile True: pass", "its code does not run: your code takes longer than 6 s"),
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


# A file with three TODOs, two of them methods of one class, and hidden tests.

SHAPES = """import math

UNIT = 1

# TODO circle-area  (2 points, ~5 min)
class Circle:
    def __init__(self, radius):
        self.radius = radius

    def area(self):
        return math.pi * self.radius**2 * UNIT

    # TODO circle-scaled  (3 points, ~5 min)
    def scaled(self, factor):
        return factor * self.area()


# TODO half-area  (1 points, ~5 min)
def half_area(radius):
    return Circle(radius).area() / 2
"""
SHAPES_CHECKS = """import math

from common.checks import check


@check("circle-area", points=2, autograd=False)
def circle_area(answer, case):
    r = case.randn(1).abs().item() + 1
    with case("π r²", points=2, hint="square the radius"):
        case.true(abs(answer(r).call("area") - math.pi * r * r) < 1e-9, "not π r²")


@check("circle-scaled", points=1, hidden=2)
def circle_scaled(answer, case):
    with case("twice", points=1, hint="times the factor"):
        case.true(abs(answer(1.0).call("scaled", 2.0) - 2 * math.pi) < 1e-9, "not twice the area")


@check("half-area", points=1)
def half_area(answer, case):
    with case("half", points=1, hint="half of the area"):
        case.true(abs(answer(2.0) - 2 * math.pi) < 1e-9, "not half the area")
"""
SHAPES_HIDDEN = """from common.checks import check


@check("circle-scaled", points=2)
def circle_scaled(answer, case):
    with case("a factor below zero", points=2, hint="no abs"):
        case.true(answer(1.0).call("scaled", -2.0) < 0, "a secret")
"""
AREA = """# %% right: pow
class Circle(Circle):
    def area(self):
        return math.pow(self.radius, 2) * math.pi
# %% wrong: the circumference  [says: r²]
def circumference(self):
    return 2 * math.pi * self.radius
Circle.area = circumference
# %% wrong: by another constant  [says: r²]
UNIT = 2
assert Circle
# %% wrong: autograd  [says: differentiation]
import torch
class Circle(Circle):
    def area(self):
        r = torch.tensor(self.radius, requires_grad=True)
        return torch.autograd.grad(math.pi * r**3 / 3, r)[0].item()
"""
SCALED = """# %% wrong: abs  [says: below | zero]
class Circle(Circle):
    def scaled(self, factor):
        return abs(factor) * self.area()
# %% wrong: abs again  [says: secret]
class Circle(Circle):
    def scaled(self, factor):
        return abs(factor) * self.area()
# %% right: not there
def scaled(self, factor):
    pass
"""


@pytest.fixture
def shapes(tmp_path):
    cells = [
        new_code_cell(
            "%load_ext autoreload\n%autoreload 2\nimport checks\nfrom shapes import Circle",
            id="s",
            metadata={"tags": ["setup"]},
        ),
        new_code_cell("checks.circle_area(Circle)", id="check-circle-area", metadata={"tags": ["check"]}),
    ]
    folder = tmp_path / "unit"
    anatomy.write(new_notebook(cells=cells), folder / "unit.ipynb")
    (folder / "answers").mkdir()
    for name, text in {
        "shapes.py": SHAPES,
        "checks.py": SHAPES_CHECKS,
        "hidden_checks.py": SHAPES_HIDDEN,
        "answers/circle-area.py": AREA,
        "answers/circle-scaled.py": SCALED,
    }.items():
        (folder / name).write_text(text)
    return folder / "unit.ipynb"


def test_answers_in_a_file(shapes):
    outcomes = proofs.prove(shapes, ["shapes.py"])
    assert list(outcomes) == ["circle-area", "circle-scaled", "half-area"]
    area, scaled, half = outcomes.values()
    assert [(one.title, one.problem) for one in area] == [
        ("the reference", ""),
        ("pow", ""),
        ("the circumference", ""),
        ("by another constant", ""),  # the file is run anew for each: its functions see what a snippet changes
        ("autograd", ""),
    ]
    assert [one.title for one in half] == ["the reference"]
    assert scaled[0].accepted
    assert scaled[1].caught  # by the hidden test alone, and named by its name and hint ...
    assert scaled[1].named
    assert scaled[2].problem == "is caught, but no message says 'secret': a factor below zero\nno abs"
    assert scaled[3].problem == "it does not define Circle"
    assert "shapes" not in sys.modules
    assert "hidden_checks" not in sys.modules


def test_answer_files_are_those_of_the_course(shapes, monkeypatch):
    made = course.Notebook("unit", "unit.ipynb", "Made", "1", ("shapes.py",))
    unit = course.Unit("unit", "Made", "1", "Something.", (made,))
    monkeypatch.setattr(course, "load", lambda: course.Course(ROOT, "", "", (), (unit,)))
    assert list(proofs.prove(shapes)) == ["circle-area", "circle-scaled", "half-area"]


def test_hidden_points_that_do_not_fit(shapes):
    (shapes.parent / "hidden_checks.py").write_text("")
    problem = proofs.prove(shapes, ["shapes.py"])["circle-scaled"][0].problem
    assert problem == "cannot be scored: hidden_checks.py gives 0 points, checks.py says 2"
    (shapes.parent / "hidden_checks.py").write_text(SHAPES_HIDDEN)
    (shapes.parent / "shapes.py").write_text(SHAPES.replace("(3 points", "(4 points"))
    problem = proofs.prove(shapes, ["shapes.py"])["circle-scaled"][0].problem
    assert problem == "cannot be scored: its check gives 1 + 2 points, its TODO line says 4"


def test_an_answer_file_that_does_not_run(shapes):
    (shapes.parent / "shapes.py").write_text(SHAPES + "\n1 / 0\n")
    with pytest.raises(NotebookError, match=r"the cell s does not run: ZeroDivisionError"):
        proofs.prove(shapes, ["shapes.py"])


def test_checks_of_another_part(shapes):
    checks = shapes.parent / "checks.py"
    checks.write_text(SHAPES_CHECKS.replace("points=1)", 'points=1, part="other")'))
    with pytest.raises(NotebookError, match=r"parts \['', 'other'\] differ"):
        proofs.prove(shapes, ["shapes.py"])
    checks.write_text(SHAPES_CHECKS.replace("half-area", "whole-area"))
    with pytest.raises(NotebookError, match=r"checks \['whole-area'\] of its part have no TODO"):
        proofs.prove(shapes, ["shapes.py"])


def test_a_setup_cell_that_fails(unit):
    (unit.parent / "helper.py").write_text("")
    with pytest.raises(NotebookError, match=r"the cell s does not run: AttributeError"):
        proofs.prove(unit)


def test_further_answers(unit):
    def more(answer, reference):
        sources = {
            "as right": "def double(x):\n    return x + x",
            "ends Python": "import os\ndef double(x):\n    os._exit(3)",
            "does not run": "1 / 0",
            "wrong": "def double(x):\n    return x",
        }
        return [proofs.Snippet("mutant", title, (), source) for title, source in sources.items()]

    outcomes = [one for one in proofs.prove(unit, more=more)["double"] if one.kind == "mutant"]
    assert [(one.title, one.accepted, one.caught, one.problem) for one in outcomes] == [
        ("as right", True, False, ""),
        ("ends Python", False, True, ""),
        ("does not run", False, True, ""),
        ("wrong", False, True, ""),
    ]
    assert proofs.survived(outcomes) == ["as right"]


def test_a_further_answer_may_be_a_whole_file(shapes):
    whole = SHAPES.replace("math.pi", "3")
    outcomes = proofs.prove(shapes, ["shapes.py"], lambda *_: [proofs.Snippet("mutant", "3", (), whole, whole=True)])
    assert [found[-1].caught for found in outcomes.values()] == [True] * 3


def test_the_report_about_mutants(unit, capsys):
    assert mutants.main(["--folder", str(unit.parents[1]), "--most", "1"]) == 1
    out = capsys.readouterr().out
    assert "mutants caught" in out.splitlines()[1]
    assert out.splitlines()[2].split()[-3:] == ["1", "of", "1"]
    assert out.splitlines()[5].split()[-3:] == ["2", "of", "2"]  # all of them
    assert "survive" not in out


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
