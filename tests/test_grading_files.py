"""Grading a unit of two notebooks, two answer files, hidden tests and prose; and marks that a person gives."""

import csv
import io
import json
import subprocess
import zipfile

import pytest
from nbformat import from_dict
from notebook_factory import at, cell, code, text
from test_grading import ROOT, TOML, command, hand_in, make_course, stored, submission

from common.grading import collect, marks, output
from common.grading.pool import AnswerResult, Row
from common.notebooks import anatomy

UNIT = "phase9_made/hw1_made"
SEED = 3

UNIT_TOML = """
[[unit]]
folder = "phase9_made/hw1_made"
title = "Homework"
hours = "2"
builds = "Something."
notebooks = [
    { file = "theory.ipynb", title = "Theory", hours = "1" },
    { file = "practice.ipynb", title = "Practice", hours = "1", answer_files = ["mlp.py", "sgd.py"] },
]
"""

CHECKS = """
import torch
from common.checks import check

@check("square-slope", points=2, part="theory", autograd=False)
def square_slope(answer, case):
    x = case.randn(3)
    with case("2 x", points=2, hint="the power rule"):
        case.close(answer(x), 2 * x)

@check("mlp-forward", points=2, hidden=3, part="practice")
def mlp_forward(answer, case):
    x, w = case.randn(4, 3), case.randn(2, 3)
    with case("x Wᵀ", points=2, hint="transpose W"):
        model = answer(3, 2)
        model.fill("parameters", {"W": w})
        case.close(model.call("forward", x), x @ w.T)

@check("mlp-backward", points=3, part="practice", autograd=False)
def mlp_backward(answer, case):
    x, g = case.randn(4, 3), case.randn(4, 2)
    with case("gᵀ x", points=3, hint="sum over the batch"):
        model = answer(3, 2)
        model.call("forward", x)
        model.call("backward", g)
        case.close(model.read("grads")["W"], g.T @ x)

@check("mse-loss", points=1, part="practice")
def mse_loss(answer, case):
    y, z = case.randn(4), case.randn(4)
    with case("the mean", points=1, hint="over all elements"):
        case.close(answer(y, z), ((y - z) ** 2).mean())

@check("descend", points=2, part="practice")
def descend(answer, case):
    x = case.randn(2)
    with case("a step", points=2, hint="against the slope"):
        case.close(answer(x, 0.25), x / 2)

@check("use-mlp", points=1, part="practice")
def use_mlp(answer, case):
    with case("a zero model gives 0", points=1, hint="call forward"):
        case.close(answer(case.randn(4, 3)), torch.zeros(4, 2))
"""
HIDDEN = """
from common.checks import check

@check("mlp-forward", points=3)
def mlp_forward(answer, case):
    model = answer(3, 2)
    with case("one row", points=1, hint="keep the batch axis"):
        case.shape(model.call("forward", case.randn(1, 3)), (1, 2))
    with case("large numbers", points=2, hint="no clamping"):
        x, w = 1000 * case.randn(4, 3), case.randn(2, 3)
        model.fill("parameters", {"W": w})
        case.close(model.call("forward", x), x @ w.T, mistakes={"THE SECRET": lambda: (x @ w.T).clamp(-10, 10)})
"""
MLP_STUB = '''"""The model."""
import torch

SCALE = 1


class MLP:
    """A layer."""

    def __init__(self, n_in, n_out):
        self.parameters = {"W": torch.zeros(n_out, n_in)}
        self.grads, self.cache = {}, None

    # TODO mlp-forward  (5 points, ~5 min)
    def forward(self, x):
        """Return x Wᵀ."""
        raise NotImplementedError("mlp-forward")

    # TODO mlp-backward  (3 points, ~5 min)
    def backward(self, g):
        """Keep the gradient."""
        raise NotImplementedError("mlp-backward")


# TODO mse-loss  (1 points, ~5 min)
def mse_loss(y, y_hat):
    """Return the loss."""
    raise NotImplementedError("mse-loss")
'''
MLP = (
    MLP_STUB.replace(
        'raise NotImplementedError("mlp-forward")',
        'self.cache = x\n        return x @ self.parameters["W"].T * SCALE',
    )
    .replace('raise NotImplementedError("mlp-backward")', 'self.grads["W"] = g.T @ self.cache')
    .replace('raise NotImplementedError("mse-loss")', "return ((y - y_hat) ** 2).mean()")
)
SGD_STUB = '''def given(x):
    return 2 * x


# TODO descend  (2 points, ~5 min)
def descend(x, lr):
    """Take a step down x²."""
    raise NotImplementedError("descend")
'''
SGD = SGD_STUB.replace('raise NotImplementedError("descend")', "return x - lr * given(x)")
SLOPE = "# TODO square-slope  (2 points, ~5 min)\ndef square_slope(x):\n    "
USE = "# TODO use-mlp  (1 points, ~5 min)\ndef use_mlp(x):\n    "
PROSE = {
    "why-chain": "<!-- TODO why-chain (4 points, ~5 min) -->\n\n",
    "why-relu": "<!-- TODO why-relu (3 points, ~5 min) -->\n\n",
}
ANSWERS = {"why-chain": "Because of the chain rule.", "why-relu": "It is cheap."}
SLUGS = ["square-slope", "why-chain", "why-relu", "use-mlp", "mlp-forward", "mlp-backward", "mse-loss", "descend"]
POINTS = [2, 4, 3, 1, 5, 3, 1, 2]


def notebook(cells):
    metadata = {"course": {"unit": UNIT, "hours": "1"}}
    return from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def theory(slope="return 2 * x", **prose):
    stub = slope.startswith("raise")
    return notebook(
        [
            text("# Theory", "title"),
            code("import torch\n\nimport checks", "imports", "setup"),
            code(SLOPE + slope, "square-slope", "answer"),
            cell("code", "checks.square_slope(square_slope)", "check-square-slope", ("check",), "all\n"),
            text("Why is <it> so?\n\n<details><summary>Hint 1</summary>A hint.</details>", "text-why"),
            *(
                text(
                    PROSE[slug] + prose.get(slug.replace("-", "_"), "*Your answer.*" if stub else right), slug, "answer"
                )
                for slug, right in ANSWERS.items()
            ),
        ]
    )


def practice(use="return MLP(3, 2).forward(x)"):
    setup = (
        "%load_ext autoreload\n%autoreload 2\nimport torch\nfrom mlp import MLP, mse_loss\nfrom sgd import descend\n"
    )
    return notebook(
        [
            text("# Practice", "title"),
            code(f"{setup}\nimport checks", "imports", "setup"),
            *(
                cell("code", f"checks.{slug.replace('-', '_')}({name})", f"check-{slug}", ("check",), "all\n")
                for slug, name in (
                    ("mlp-forward", "MLP"),
                    ("mlp-backward", "MLP"),
                    ("mse-loss", "mse_loss"),
                    ("descend", "descend"),
                )
            ),
            code("again = given + 1", "training"),
            code(USE + use, "use-mlp", "answer"),
            cell("code", "checks.use_mlp(use_mlp)", "check-use-mlp", ("check",), "all\n"),
        ]
    )


UNTOUCHED = {
    "theory.ipynb": theory('raise NotImplementedError("square-slope")'),
    "practice.ipynb": practice('raise NotImplementedError("use-mlp")'),
    "mlp.py": MLP_STUB,
    "sgd.py": SGD_STUB,
}
BRANCH = {
    "hidden_checks.py": HIDDEN,
    "rubrics/why-chain.md": "# why-chain\n- 3 points: names the <chain> rule\n- 1 point: an example\n\nNotes & more.\n",
    "rubrics/why-relu.md": "# why-relu\n- 3 points: says anything\n",
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    else:
        anatomy.write(content, path)


def homework(root, bundle=True):
    """The tiny course of test_grading with a homework, and the branch `solutions` in a bundle."""
    make_course(root)
    (root / "common" / "course.toml").write_text(TOML + UNIT_TOML)
    given = {"checks.py": CHECKS, "test_mlp.py": "from mlp import MLP, mse_loss\n"}
    for name, content in (UNTOUCHED | given).items():
        write(root / UNIT / name, content)
    if bundle:
        source = root.parent / "branch"
        for name, content in BRANCH.items():
            write(source / UNIT / name, content)
        me = ["-c", "user.name=a", "-c", "user.email=a@example.invalid"]
        for arguments in (
            ["init", "--quiet", "--initial-branch=solutions"],
            ["add", "."],
            [*me, "commit", "--quiet", "-m", "Publish"],
            ["bundle", "create", "--quiet", str(root / "solutions.bundle"), "solutions"],
        ):
            subprocess.run(["git", *arguments], cwd=source, check=True)
    return root


RIGHT = {"theory.ipynb": theory(), "practice.ipynb": practice(), "mlp.py": MLP, "sgd.py": SGD}


def handed_in():
    """Each student's files, and what must come of it: points in the order of SLUGS, words of remarks."""
    cases = {}
    full = [2, 0, 0, 1, 5, 3, 1, 2]

    def add(student, files, points, *remarks):
        cases[student] = (files, points, remarks)

    def without(*slugs):
        return [0 if slug in slugs else points for slug, points in zip(SLUGS, full, strict=True)]

    in_file = ("mlp-forward", "mlp-backward", "mse-loss")

    def mlp(student, source, points, *remarks):
        add(student, RIGHT | {"mlp.py": source}, points, *remarks)

    add("right", RIGHT, full)
    add("untouched", UNTOUCHED, [0] * 8)
    add(
        "renamed",
        {"HW (1).ipynb": theory(), "x/Kopie.ipynb": practice(), "x/mlp (1).py": MLP, "y/alice_sgd-2.py": SGD},
        full,
    )
    add(
        "by_its_names",
        {"a.ipynb": theory(), "b.ipynb": practice(), "homework.py": MLP, "sgd.py": SGD},
        full,
        "homework.py was taken as mlp.py, since it defines MLP, mse_loss",
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in RIGHT.items():
            archive.writestr(f"hw/{name}", content if isinstance(content, str) else stored(content))
    add("zipped", {"all.zip": packed.getvalue()}, full)
    add(
        "only_practice",
        {"practice.ipynb": practice(), "mlp.py": MLP},
        without("square-slope", "descend"),
        "theory.ipynb was not found: its 9 points are missing",
        "sgd.py was not found: its 2 points are missing",
    )
    add("only_theory", {"theory.ipynb": theory()}, [2, 0, 0, 0, 0, 0, 0, 0], "practice.ipynb was not found")
    add("only_files", {"mlp.py": MLP, "sgd.py": SGD}, without("square-slope", "use-mlp"), "theory.ipynb was not found")
    loose = {"loose_mlp.py": MLP, "loose-theory.ipynb": theory(), "loose_practice (1).ipynb": practice()}
    add("loose", loose, without("descend"), "sgd.py was not found")
    canvas = {"456_mlp.py": MLP, "457_sgd-1.py": SGD, "458_theory.ipynb": theory(), "459_x.ipynb": practice()}
    add("smith_123", {f"smith_123_{name}": content for name, content in canvas.items()}, full)
    add("in", RIGHT, full)  # the folder holds one student's files, called as the course calls them
    half = MLP.split("# TODO mse-loss")[0]
    tests = {"test_mlp (1).py": "from mlp import MLP, mse_loss\n", "x_460_test_mlp.py": "from mlp import MLP\n"}
    add("own_tests", RIGHT | {"mlp.py": half} | tests, without("mse-loss"), "mlp.py does not define mse_loss")
    mlp("syntax", MLP.replace("= x\n", "= = x\n"), without(*in_file, "use-mlp"), "mlp.py cannot be imported")
    mlp(
        "raises",
        MLP + "\nimport matplotlib\n1 / 0\n",
        without(*in_file, "use-mlp"),
        "ZeroDivisionError",
        "line 32 of mlp.py",
    )
    absent = "mlp.py cannot be imported: ModuleNotFoundError: No module named 'not_there', line 1 of mlp.py"
    mlp("import_error", "import not_there\n" + MLP, without(*in_file, "use-mlp"), absent)
    mlp(
        "exits",
        MLP + "\nimport os\nos._exit(0)\n",
        without(*in_file, "use-mlp"),
        "mlp.py ends Python (exit code 0), line 32 of",
    )
    mlp(
        "hangs", MLP + "\nwhile True: pass\n", without(*in_file, "use-mlp"), "5 s (an endless loop?), line 31 of mlp.py"
    )
    in_backward = MLP.replace('self.grads["W"] =', "while True: pass #")
    mlp("hangs_inside", in_backward, without("mlp-backward"), "mlp-backward takes longer than 5 s")
    mlp("no_loss", MLP.split("# TODO mse-loss")[0], without("mse-loss"), "mlp.py does not define mse_loss; the course")
    needs_sgd = {"mlp.py": "import os\nfrom sgd import given\nos.chdir('/')\n" + MLP, "sgd.py": SGD}
    add("one_needs_another", RIGHT | needs_sgd, full)
    broken = {"sgd.py": SGD.replace("2 * x", "2 * * x")}
    add("one_breaks_itself_only", RIGHT | needs_sgd | broken, without("descend"), "sgd.py cannot be imported: Syntax")
    in_a_ring = {"mlp.py": "import sgd\n" + MLP, "sgd.py": "import mlp\n" + SGD}
    add("in_a_ring", RIGHT | in_a_ring, full)
    own_import = practice("from mlp import MLP as Model\n    return Model(3, 2).forward(x)")
    add("imports_in_a_cell", RIGHT | {"practice.ipynb": own_import}, full)
    mlp("empty", "", without(*in_file, "use-mlp"), "does not define SCALE, MLP, mse_loss")
    add("no_given", RIGHT | {"sgd.py": "# TODO descend" + SGD.split("# TODO descend")[1]}, full, "define given")
    clamped = MLP.replace("return x @", "return (x @").replace(".T * SCALE", ".T).clamp(-10, 10)")
    mlp("hidden_only", clamped, [2, 0, 0, 1, 3, 3, 1, 2])
    interrupts = MLP.replace(
        "self.cache = x", "self.cache = x\n        if len(x) == 1: raise KeyboardInterrupt('TOLD')"
    )
    mlp("interrupts", interrupts, [2, 0, 0, 1, 4, 3, 1, 2])
    mlp("autograd", MLP.replace("g.T @ self.cache", "torch.func.grad(lambda w: w.sum())(g)"), without("mlp-backward"))
    mlp("latin", b"# -*- coding: latin-1 -*-\n" + MLP.replace("Wᵀ", "Ä").encode("latin-1"), full)
    mlp("windows", MLP.replace("Wᵀ", "Ä").replace("\n", "\r\n").encode("cp1252"), full)
    mlp("utf16", MLP.encode("utf-16"), full)
    mlp("nul", b"\0" + MLP.encode(), without(*in_file, "use-mlp"), "mlp.py cannot be imported")
    mlp("huge", MLP + "#" * 2**20, without(*in_file, "use-mlp"), "larger than 1 MB", "mlp.py was not found")
    add("drafts", RIGHT | {"old/mlp.py": MLP_STUB, "mlp-final.py": "MLP = None"}, full, "graded mlp.py; not graded")
    many = {f"a/{number}.py": "x = 1" for number in range(60)}
    add(
        "many",
        {name: RIGHT[name] for name in RIGHT if name != "mlp.py"} | many | {"z/mlp.py": MLP},
        full,
        "more than 50",
    )
    evil = "raise SystemExit\n"
    names = ("checks.py", "checks (1).py", "torch.py", "random.py", "json.py", "common/__init__.py", "common.py")
    shadows = dict.fromkeys((*names, "hidden_checks.py"), evil)
    add("shadows", RIGHT | shadows | {"test_mlp.py": MLP, "IPython.py": evil}, full)
    prose = theory(why_chain="<script>alert(1)</script>\n\nline two", why_relu="It  is\ncheap.")
    add("prose", RIGHT | {"theory.ipynb": prose}, full)
    add("=1+1", RIGHT, full)
    add("007", RIGHT, full)
    return cases


CASES = handed_in()
UNANSWERED = {"untouched", "only_practice", "only_files"}
LOOSE = {"loose", "smith_123", "in"}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("homework")
    homework(tmp / "course")
    made = {}
    for student, (files, *_) in CASES.items():
        for name, content in files.items():
            path = name if student in LOOSE else f"{student}/{name}"
            made[path] = content if isinstance(content, str | bytes) else stored(content)
    made["lab/lab1_made.ipynb"] = stored(submission())
    made["lab/helper.py"] = "class MLP: pass"  # not the homework's
    hand_in(tmp / "in", made)
    done = run(tmp)
    assert done.returncode == 0, done.stdout + done.stderr
    return {"tmp": tmp, "out": tmp / "out", "done": done, "rows": rows_of(tmp)}


def run(tmp, *more):
    arguments = ("--course", tmp / "course", "--out", tmp / "out", "--seed", SEED, "--timeout", 20)
    return subprocess.run(command(tmp / "in", *arguments, *more), cwd=ROOT, capture_output=True, text=True, timeout=300)


def rows_of(tmp):
    return {row["student"]: row for row in json.loads((tmp / "out" / "rows.json").read_text())["rows"]}


def page_of(graded, student):
    return (graded["out"] / "feedback" / f"{output.file_names(list(graded['rows']))[student]}.html").read_text()


@pytest.mark.parametrize("student", CASES)
def test_one_row_with_all_parts(graded, student):
    row, (_, points, remarks) = graded["rows"][student], CASES[student]
    assert row["unit"] == UNIT
    assert [answer["slug"] for answer in row["answers"]] == SLUGS
    assert [answer["out_of"] for answer in row["answers"]] == POINTS
    assert [answer["points"] for answer in row["answers"]] == points
    assert (row["points"], row["out_of"]) == (sum(points), 21)
    assert row["unmarked"] == (0 if student in UNANSWERED else 2)
    said = " | ".join(row["remarks"])
    for remark in remarks:
        assert remark in said
    if not remarks:
        assert said == ""


def test_nobody_else_has_a_row(graded):
    assert graded["rows"].keys() == {*CASES, "lab"}
    assert graded["rows"]["lab"]["unit"] == "phase9_made/lab1_made"


def answer_of(graded, student, slug):
    return next(answer for answer in graded["rows"][student]["answers"] if answer["slug"] == slug)


@pytest.mark.parametrize(
    ("student", "slug", "state", "words"),
    [
        ("syntax", "mlp-forward", "broken", ["mlp.py does not run: SyntaxError", "line 17: self.cache = = x"]),
        ("raises", "mse-loss", "broken", ["ZeroDivisionError", "line 32 of mlp.py: 1 / 0"]),
        ("syntax", "use-mlp", "graded", ["mlp-forward is still to do"]),
        ("hangs", "mlp-forward", "stopped", ["takes longer", "line 31 of mlp.py"]),
        ("hangs_inside", "mlp-backward", "stopped", ["takes longer", "line 23 of mlp.py"]),
        ("no_loss", "mse-loss", "todo", []),
        ("autograd", "mlp-backward", "graded", ["automatic differentiation (torch.func.grad)"]),
        ("untouched", "mlp-forward", "todo", []),
        ("only_theory", "mlp-forward", "missing", []),
        ("only_files", "why-chain", "missing", []),
        ("only_files", "use-mlp", "missing", []),
        ("right", "why-chain", "unchecked", ["Because of the chain rule."]),
        ("untouched", "why-chain", "todo", []),
    ],
)
def test_states_and_messages(graded, student, slug, state, words):
    answer = answer_of(graded, student, slug)
    assert answer["state"] == state
    said = answer["message"] + " ".join(case["message"] for case in answer["cases"])
    for word in words:
        assert word in said


def test_hidden_tests_show_name_and_hint_only(graded):
    answer = answer_of(graded, "hidden_only", "mlp-forward")
    assert [(case["name"], case["points"], case["hidden"]) for case in answer["cases"]] == [
        ("x Wᵀ", 2, False),
        ("one row", 1, True),
        ("large numbers", 0, True),
    ]
    page = page_of(graded, "hidden_only")
    assert page.index("x Wᵀ") < page.index("Hidden tests") < page.index("large numbers")
    assert "SECRET" not in json.dumps(graded["rows"])
    assert "SECRET" not in page
    assert "instead of" not in page
    assert "Hint: no clamping" in page
    assert "TOLD" not in page_of(graded, "interrupts")


def test_which_files_were_graded_is_said(graded):
    files = ["HW (1).ipynb as theory.ipynb", "x/Kopie.ipynb as practice.ipynb"]
    files += ["x/mlp (1).py as mlp.py", "y/alice_sgd-2.py as sgd.py"]
    assert f"Graded: {', '.join(files)}." in page_of(graded, "renamed")
    assert "Graded: theory.ipynb, practice.ipynb, mlp.py, sgd.py." in page_of(graded, "own_tests")
    table = {line["student"]: line["files"] for line in lines_of(graded["out"] / "grades.csv")}
    assert table["renamed"] == " | ".join(files)


def test_a_page_has_a_section_for_each_file(graded):
    page = page_of(graded, "right")
    places = [
        page.index(f'<p class="file">{name}</p>') for name in ("theory.ipynb", "practice.ipynb", "mlp.py", "sgd.py")
    ]
    assert places == sorted(places)
    assert "14 of 21 points</strong>, so far: 2 answers still to be marked" in page
    assert "Not handed in." in page_of(graded, "only_files")


def test_lost_hidden_tests_are_said_aloud(tmp_path):
    homework(tmp_path / "course", bundle=False)
    hand_in(tmp_path / "in", {f"a/{name}": x if isinstance(x, str) else stored(x) for name, x in RIGHT.items()})
    done = run(tmp_path)
    assert "THE SOLUTIONS CANNOT BE READ" in done.stderr
    assert f"HIDDEN TESTS NOT FOUND: {UNIT} lacks 3 points" in done.stdout
    row = rows_of(tmp_path)["a"]
    assert (row["points"], row["out_of"]) == (11, 21)
    assert "the hidden tests were not found: 3 points cannot be earned" in row["remarks"]
    assert "could not be read" in (tmp_path / "out" / "marking.html").read_text()


@pytest.mark.parametrize(
    ("name", "student"),
    [
        ("smithalice_123_456_mlp", "smithalice_123"),
        ("smithalice_LATE_123_457_theory", "smithalice_123"),
        ("Alice Smith_99_assignsubmission_file_mlp", "Alice Smith_99"),
        ("alice_theory", "alice"),
        ("Ä. Ö - practice (2)", "Ä. Ö"),
        ("mlp", "in"),
        ("mlp (1)", "mlp (1)"),
        ("lab1_made", "lab1_made"),
        ("my_theory_notes", "my_theory_notes"),
    ],
)
def test_whose_a_loose_file_is(tmp_path, name, student):
    bases = collect.load_units(homework(tmp_path / "course", bundle=False))
    hand_in(tmp_path / "in", {f"{name}.py": MLP})
    (task,) = collect.collect(collect.students(tmp_path / "in", bases), bases)
    assert task.student == student


def test_whose_a_folder_is(tmp_path):
    bases = collect.load_units(homework(tmp_path / "course", bundle=False))
    for name in ("Alice_99_assignsubmission_file_", "Alice_99_assignsubmission_onlinetext", "b_1_2_mlp"):
        hand_in(tmp_path / "in", {f"{name}/mlp.py": MLP})
    assert [task.student for task in collect.collect(collect.students(tmp_path / "in", bases), bases)] == [
        "Alice_99",
        "b_1_2_mlp",
    ]


def test_a_file_of_another_units_name_is_no_submission_for_it(tmp_path):
    bases = collect.load_units(homework(tmp_path / "course", bundle=False))
    hand_in(tmp_path / "in", {"a/lab1_made.ipynb": stored(submission()), "a/sgd.py": "lr = 1"})
    (task,) = collect.collect(collect.students(tmp_path / "in", bases), bases)
    assert (task.unit, task.files, task.remarks) == ("phase9_made/lab1_made", ("lab1_made.ipynb",), [])


# Marking.


def test_the_page_for_marking(graded):
    page = (graded["out"] / "marking.html").read_text()
    for part in (
        "Why is &lt;it&gt; so?",
        "names the &lt;chain&gt; rule",
        "Notes &amp; more.",
        "&lt;script&gt;alert(1)&lt;/script&gt;\n\nline two",
        "prefers-color-scheme: dark",
        "The branch `solutions` has no rubric for this question.",
    ):
        assert part in page
    assert "A hint." not in page
    assert "<script" not in page
    assert "http:" not in page
    assert "https:" not in page
    assert page.count("Because of the chain rule.") == 1  # the same answers stand together
    assert page.count("It is cheap.") + page.count("It  is\ncheap.") == 1
    assert page.count("Not answered (0 points): only_files, only_practice, untouched") == 2


def lines_of(path, delimiter=","):
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def test_a_line_for_each_student_and_question(graded):
    lines = lines_of(graded["out"] / "marks.csv")
    assert len(lines) == 2 * len(CASES) + 1
    assert {line["mark"] for line in lines} == {""}
    assert {"student": "'=1+1", "unit": UNIT, "question": "why-relu", "mark": "", "out_of": "3", "comment": ""} in lines


def test_marks_reach_totals_pages_and_later_runs(tmp_path):
    homework(tmp_path / "course")
    hand_in(tmp_path / "in", {f"a/{name}": x if isinstance(x, str) else stored(x) for name, x in RIGHT.items()})
    run(tmp_path)
    sheet = tmp_path / "out" / "marks.csv"
    filled = sheet.read_text(encoding="utf-8-sig").replace("why-chain,,4,", 'why-chain,"2,5",4,"Good, <b>but</b>"')
    sheet.write_text(filled)
    assert marks.main([str(tmp_path / "out")]) == 0
    for row in (rows_of(tmp_path)["a"], run(tmp_path) and rows_of(tmp_path)["a"]):
        assert (row["points"], row["unmarked"]) == (16.5, 1)
        assert row["answers"][1]["state"] == "marked"
        page = (tmp_path / "out" / "feedback" / "a.html").read_text()
        assert "Comment: Good, &lt;b&gt;but&lt;/b&gt;" in page
        assert "2.5 / 4" in page
        (line,) = lines_of(tmp_path / "out" / "grades.csv")
        assert (line["total"], line["why-chain"], line["why-relu"], line["unmarked"]) == ("16.5", "2.5", "", "1")
    assert sheet.read_text() == filled
    sheet.write_text(filled.replace('"2,5"', ""))  # taken back
    assert marks.main([str(tmp_path / "out")]) == 0
    assert rows_of(tmp_path)["a"]["points"] == 14


def test_marks_need_grades(tmp_path, capsys):
    assert marks.main([str(tmp_path)]) == 2
    assert "run `make grade` first" in capsys.readouterr().err


def row(student="ann", slug="why", out_of=4, text="So."):
    state = "unchecked" if text else "todo"
    return Row(student, "u", ["n"], [AnswerResult(slug, out_of, state=state, message=text, prose=True)], [])


HEAD = "student,unit,question,mark,out_of,comment\n"


@pytest.mark.parametrize(
    ("mark", "points"),
    [
        ("3", 3), ("3.5", 3.5), ('"3,5"', 3.5), (" 4 ", 4), ("'2", 2), ("0", 0), (".5", 0.5), ("4.0", 4),
        ("4.5", None), ("-1", None), ("nan", None), ("inf", None), ("1e0", None), ("x", None), ("1_0", None),
        ("3/4", None), ("03. Mai", None), ("=1+1", None), ("٣", None), ("9" * 400, None),
    ],
)  # fmt: skip
def test_a_mark_is_a_number_of_points(tmp_path, mark, points):
    (tmp_path / "marks.csv").write_text(f"{HEAD}bob,u,why,1,4,\nann,u,why,{mark},4,fine\n", encoding="utf-8")
    ann, bob = row(), row("bob")
    problems = marks.update(tmp_path, [ann, bob])
    answer = ann.answers[0]
    assert (answer.points, answer.comment) == (points or 0, "fine")
    assert answer.state == ("unchecked" if points is None else "marked")
    assert bob.points == 1
    if points is None:
        assert "line 3" in problems[0]
        assert "no number from 0 to 4; it was not taken" in problems[0]
    else:
        assert problems == []


@pytest.mark.parametrize(
    "data",
    [
        f"{HEAD}zoë,u,why,3,4,naïve\n".encode(),
        f"\ufeff{HEAD}zoë,u,why,3,4,naïve\n".encode(),
        f"{HEAD}zoë,u,why,3,4,naïve\n".replace(",", ";").replace("\n", "\r\n").encode("cp1252"),
        f"{HEAD}zoë,u,why,3,4,naïve\n".replace(",", "\t").encode("utf-16"),
        f"{HEAD}zoë,u,why,3,4,naïve\n,,,,,\n".replace("\n", "\r").encode(),
        "Mark,Comment,Question,Extra,Student,Unit\n3,naïve,why,x,zoë,u\n".encode(),
        f'{HEAD}"zoe\u0308","u","why","3","4","naïve"\n'.encode(),
    ],
)
def test_a_sheet_as_spreadsheets_save_it(tmp_path, data):
    path = tmp_path / "marks.csv"
    path.write_bytes(data)
    first, new = row("zoë"), row("Ωmega")
    assert marks.update(tmp_path, [first]) == []
    assert (first.points, first.answers[0].comment) == (3, "naïve")
    assert path.read_bytes() == data
    marks.update(tmp_path, [first, new])  # a line is added, whatever the encoding can hold
    filled = path.read_bytes()
    again, added = row("zoë"), row("Ωmega")
    assert marks.update(tmp_path, [again, added]) == []
    assert (again.points, added.unmarked) == (3, 1)
    assert path.read_bytes() == filled


def test_what_is_odd_in_a_sheet_is_said_and_kept(tmp_path):
    path = tmp_path / "marks.csv"
    path.write_text(
        f"{HEAD}ghost,u,why,3,4,\n7,u,why,2,4,\nann,u,why,1,4,first\nann,u,why,2,4,second\nann,u,why,,4,\n"
        "eve,u,other,1,4,\nbob,u,why,x,4,\n"
    )
    before = path.read_text()
    rows = [row("007"), row(), row("bob"), row("new"), row("idle", text="")]
    problems = marks.update(tmp_path, rows)
    assert [one.points for one in rows] == [2, 2, 0, 0, 0]
    assert [one.unmarked for one in rows] == [0, 0, 1, 1, 0]
    assert rows[1].answers[0].comment == "second"
    assert len(problems) == 3
    assert "line 5: '2' for why of ann stands in line 4 too; the later line counts" in problems[0]
    assert "line 8: 'x' for why of bob" in problems[1]
    assert "2 lines (line 2, 7) are of no question or student" in problems[2]
    assert path.read_text() == f"{before}new,u,why,,4,\nidle,u,why,,4,\n"


def test_marks_of_another_unit_stay_without_a_word(tmp_path):
    path = tmp_path / "marks.csv"
    path.write_text(f"{HEAD}ann,u,why,3,4,\nann,another,why,2,4,\n")
    before, ann = path.read_text(), row()
    assert marks.update(tmp_path, [ann]) == []
    assert (ann.points, path.read_text()) == (3, before)


def test_a_sheet_with_quotes_that_do_not_match(tmp_path):
    (tmp_path / "marks.csv").write_text(f'{HEAD}ann,u,why,3,4,"open\nbob,u,why,2,4,\n')
    ann, bob = row(), row("bob")
    problems = marks.update(tmp_path, [ann, bob])
    assert (ann.points, bob.points) == (3, 2)
    assert "line 2: its quotes do not match" in problems[0]


def test_a_sheet_without_its_heading(tmp_path):
    path = tmp_path / "marks.csv"
    path.write_text("ann,u,why,3,4,\n")
    ann = row()
    assert "line 1: must name the columns" in marks.update(tmp_path, [ann])[0]
    assert ann.unmarked == 1
    assert path.read_text() == "ann,u,why,3,4,\n"


def test_two_students_whom_only_their_writing_tells_apart(tmp_path):
    (tmp_path / "marks.csv").write_text(f"{HEAD}007,u,why,3,4,\n7,u,why,1,4,\n")
    spy, seven = row("007"), row("7")
    assert marks.update(tmp_path, [spy, seven]) == []
    assert (spy.points, seven.points) == (3, 1)


def test_answers_of_the_course_are_found_again():
    assert [answer["points"] for answer in map(vars, anatomy.answers_in_file(MLP, "mlp.py"))] == [5, 3, 1]
    assert at(theory(), "why-relu") == 6
