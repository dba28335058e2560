import re
from pathlib import Path

import pytest
from notebook_factory import (
    ADD,
    ADD_SOLVED,
    CODE,
    HINTS,
    NET,
    NET_SOLVED,
    SCALER,
    SEVERAL,
    THEORY,
    UNIT,
    WHY_SOLVED,
    answered,
    at,
    code,
    code_notebook,
    course_notebook,
    several,
    solve_several,
    text,
)

from common import course
from common.notebooks import anatomy, branch, rules

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("path", rules.student_notebooks(ROOT), ids=lambda path: path.stem)
def test_student_notebooks_keep_the_rules(path):
    assert rules.problems(path, path.parent, ROOT) == []


@pytest.mark.parametrize("path", rules.files(ROOT, "*.md"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    assert rules.broken_links(path.read_text(encoding="utf-8"), path.parent) == []


def test_no_answer_of_the_branch_is_on_main(tmp_path):
    solutions = branch.make_solutions(ROOT, tmp_path / "solutions", say=lambda line: None)
    own = [path for pattern in ("*.py", "*.ipynb", "*.md") for path in rules.files(ROOT, pattern)]
    files = [Path(one.unit, name) for one in course.load(ROOT).notebooks() for name in one.answer_files]
    assert rules.leaked_answers(own, [*sorted(solutions.rglob("*.ipynb")), *(solutions / file for file in files)]) == []


def test_units_are_in_the_list_of_units():
    listed = {notebook.path for unit in course.load(ROOT).units for notebook in unit.notebooks}
    assert {path.relative_to(ROOT).as_posix() for path in rules.student_notebooks(ROOT)} <= listed


# Each rule fires


@pytest.fixture
def root(tmp_path):
    """An empty course with one unit's folder."""
    (tmp_path / "common").mkdir()
    toml = 'repository = ""\nbranch = "main"\n\n[[phase]]\nfolder = "phase9_made"\ntitle = "Made"\n'
    toml += f'\n[[unit]]\nfolder = "{UNIT}"\ntitle = "Made"\nhours = "1-2"\nbuilds = "Nothing."\n'
    (tmp_path / "common" / "course.toml").write_text(toml)
    (tmp_path / UNIT).mkdir(parents=True)
    return tmp_path


def problems(nb, root):
    return rules.problems(nb, root / UNIT, root)


def test_a_notebook_that_keeps_the_rules(root):
    assert problems(course_notebook(), root) == []
    path = root / UNIT / "lab1_made.ipynb"
    anatomy.write(course_notebook(), path)
    assert problems(path, root) == []


def edit(id, old, new):
    """An edit of a cell's source."""

    def do(nb):
        cell = nb.cells[at(nb, id)]
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return do


def change(id, /, **fields):
    """A change of a cell's other fields."""

    def do(nb):
        nb.cells[at(nb, id)].update(fields)

    return do


def tags(id, *names):
    return change(id, metadata={"tags": list(names)})


def remove(id):
    def do(nb):
        del nb.cells[at(nb, id)]

    return do


def add(cell, before="text-the-end"):
    def do(nb):
        nb.cells.insert(at(nb, before), cell)

    return do


BROKEN = {
    "no first cell": (remove("colab"), "first cell"),
    "first cell edited": (edit("colab", "import os", "import os  # mine"), "make stamp"),
    "first cell without role": (tags("colab"), "Cell colab: give it the tag `setup`"),
    "no title": (remove("text-made"), "second cell must be the title"),
    "no hours": (edit("text-made", "1-2 hours", "some time"), r"\*\*1-2 hours\*\*"),
    "wrong sum of points": (edit("text-made", "10 points", "11 points"), r"\*\*10 points\*\*"),
    "no metadata": (lambda nb: nb.metadata.clear(), "metadata `course`"),
    "other hours": (lambda nb: nb.metadata["course"].update(hours="7"), "metadata `course`"),
    "not listed": (lambda nb: nb.metadata["course"].update(notebook="x.ipynb"), r"course.toml lists no notebook .*/x"),
    "two roles": (tags("imports", "setup", "answer"), "Cell imports: has the tags"),
    "answer without tag": (tags("add-two"), "Cell add-two: starts with a TODO line but lacks the tag"),
    "check without tag": (tags("check-add-two"), "Cell check-add-two: calls a check but lacks the tag"),
    "raw cell": (change("text-the-end", cell_type="raw"), "raw cell"),
    "prose with role": (tags("text-the-end", "setup"), "text cannot have the role setup"),
    "slug twice": (add(code(ADD, "x", "answer"), "text-why"), "Answer add-two: 2 TODOs have this slug"),
    "no points": (edit("add-two", "  (3 points, ~5 min)", ""), "with points and minutes"),
    "no todo line": (edit("add-two", "# TODO add-two  (3 points, ~5 min)\n", ""), "with points and minutes"),
    "wrong id": (change("add-two", id="add"), "Answer add-two: its cell has another id"),
    "answered": (change("add-two", source=ADD_SOLVED), "Answer add-two: is not a stub"),
    "answered in prose": (change("why-two", source=WHY_SOLVED), "Answer why-two: is already answered"),
    "defines nothing": (change("add-two", source=ADD.split("\n")[0] + "\nx = 1"), "must define one function or class"),
    "misnamed": (edit("add-two", "def add_two", "def plus"), "defines `plus`; name it after the slug"),
    "no docstring": (edit("add-two", '    """Return x plus 2."""\n', ""), "`add_two` has no docstring"),
    "method without docstring": (
        edit("scaler-layer", '        """Return factor times x."""\n', ""),
        "`forward` has no",
    ),
    "stub names another": (edit("add-two", 'Error("add-two")', 'Error("x")'), 'raise NotImplementedError."add-two"'),
    "no hints": (edit("text-adding", HINTS, ""), "Answer add-two: has 0 hints"),
    "four hints": (edit("text-adding", HINTS, HINTS + "<details>"), "Answer add-two: has 4 hints"),
    "hints behind code": (add(code("x = 1"), "add-two"), "Answer add-two: has 0 hints"),
    "no check": (remove("check-add-two"), "Answer add-two: no check cell"),
    "check of another": (change("check-add-two", id="check-x"), "Answer add-two: no check cell"),
    "check of no answer": (change("check-add-two", id="check-x"), "Cell check-x: is the check of no TODO"),
    "check of another's answer": (edit("check-add-two", "(add_two)", "(ScalerLayer)"), r"`checks.<name>\(add_two\)`"),
    "check and more": (edit("check-add-two", "checks.", "x = 1\nchecks."), "Cell check-add-two: a check cell is one"),
    "check of nothing": (edit("check-add-two", "(add_two)", "(3)"), "Cell check-add-two: a check cell is one"),
    "check of two": (edit("check-add-two", "(add_two)", "(add_two, 1)"), "Cell check-add-two: a check cell is one"),
    "check without output": (change("check-add-two", outputs=[]), "Cell check-add-two: must store"),
    "check without count": (change("check-add-two", execution_count=None), "Cell check-add-two: must store"),
    "output elsewhere": (change("use", execution_count=3), "Cell use: stores an output"),
    "long cell": (change("use", source="x = 1\n" * 41), "Cell use: has 42 lines"),
    "long cells": (lambda nb: nb.cells.extend(code("x\n" * 20, f"c{i}") for i in range(9)), "21 lines in the median"),
    "dead link": (add(text("[this](none.md)", "t")), "Cell t: links to none.md"),
    "dead picture": (add(text('<img width="3" src="none.png">', "t")), "Cell t: links to none.png"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_rule_fires(name, root):
    do, says = BROKEN[name]
    nb = course_notebook()
    do(nb)
    found = problems(nb, root)
    assert any(re.search(says, sentence) for sentence in found), found
    assert all(sentence.endswith(".") for sentence in found)


# A unit with several notebooks and an answer file


@pytest.mark.parametrize("path", [THEORY, CODE])
def test_a_unit_of_several_that_keeps_the_rules(path, tmp_path):
    assert rules.problems(several(tmp_path) / path, tmp_path / SEVERAL, tmp_path) == []


BROKEN_OF_SEVERAL = {
    "no check": (remove("check-net-loss"), "Answer net-loss in net.py: no check cell"),
    "no hints": (edit("text-loss", HINTS, ""), "Answer net-loss: has 0 hints.* right before its check"),
    "hints of two": (remove("check-net-forward"), "Answer net-loss: has 6 hints"),
    "check of another": (edit("check-net-forward", "(Net)", "(net_loss)"), r"`checks.<name>\(Net\)`"),
    "points": (edit("title", "15 points", "5 points"), r"\*\*15 points\*\*"),
    "hours": (edit("title", "2–3 hours", "3-4 hours"), r"\*\*2-3 hours\*\*"),
    "no reload": (edit("imports", "%autoreload 2", ""), "No setup cell reloads net.py"),
    "slug of the file": (change("scaler-layer", source=SCALER.replace("scaler-layer", "net-loss")), "2 TODOs have"),
    "slug of the other notebook": (
        change("scaler-layer", source=ADD),
        r"Answer add-two: hw1_theory.ipynb has this slug too",
    ),
}


@pytest.mark.parametrize("name", BROKEN_OF_SEVERAL)
def test_rule_fires_in_a_unit_of_several(name, tmp_path):
    do, says = BROKEN_OF_SEVERAL[name]
    root, nb = several(tmp_path), code_notebook()
    do(nb)
    found = rules.problems(nb, root / SEVERAL, root)
    assert any(re.search(says, sentence) for sentence in found), found
    assert all(sentence.endswith(".") for sentence in found)


BROKEN_FILES = {
    "gone": (None, "net.py: cannot be read"),
    "no Python": (NET.replace("class Net:", "class Net"), "net.py: is not valid Python"),
    "no docstring": (NET.partition("\n")[2], "net.py: has no docstring on top"),
    "no points": (NET.replace("  (6 points, ~10 min)", ""), "net.py: write `# TODO net-loss  "),
    "above nothing": (NET + "\n# TODO more  (1 point, ~1 min)\n", "net.py: the line `# TODO more` must stand above"),
    "stub without docstring": (NET.replace('    """Return the squared error."""\n', ""), "`net_loss` has no docstring"),
    "stub names another": (NET.replace('Error("net-loss")', 'Error("x")'), 'net.py: .*raise NotImplementedError."net'),
    "answered": (NET.replace('raise NotImplementedError("net-loss")', "return 0"), "Answer net-loss: is not a stub"),
    "stub without TODO": (
        NET + '\n\ndef more():\n    """Do."""\n    raise NotImplementedError\n',
        "the stub `more` belongs to no TODO",
    ),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
def test_rule_fires_for_an_answer_file(name, tmp_path):
    source, says = BROKEN_FILES[name]
    root = several(tmp_path)
    (root / SEVERAL / "net.py").unlink()
    if source:
        (root / SEVERAL / "net.py").write_text(source)
    found = rules.problems(root / CODE, root / SEVERAL, root)
    assert any(re.search(says, sentence) for sentence in found), found
    assert all(sentence.endswith(".") for sentence in found)


def test_file_out_of_normal_form(root):
    path = root / UNIT / "lab1_made.ipynb"
    anatomy.write(course_notebook(), path)
    path.write_bytes(path.read_bytes() + b"\n")
    assert problems(path, root) == ["The file is not in normal form: run `make format`."]
    path.write_text("{")
    assert "breaks off" in problems(path, root)[0]


@pytest.mark.parametrize(
    ("markdown", "broken"),
    [
        ("[a](there.md) ![b](<there.md>) [c](there.md#part) [d](#part) [e](there.md 'title')", []),
        ("[a](https://x.org/y.md) <a href='mailto:a@b.c'>, ![i](attachment:i.png), ![](data:image/png;base64,AA)", []),
        ("[a](with%20space.md)", []),
        ("```\n[a](gone.md)\n``` and `[b](gone.md)`", []),
        ("[a](gone.md) [b](there.md)", ["gone.md"]),
        ("![a](img/gone.png) <img alt='' src=\"gone.svg\">", ["img/gone.png", "gone.svg"]),
        ("[a][1]\n\n[1]: gone.md", ["gone.md"]),
        ("[a](../gone/ 'title')", ["../gone/"]),
    ],
)
def test_broken_links(markdown, broken, tmp_path):
    (tmp_path / "there.md").touch()
    (tmp_path / "with space.md").touch()
    assert rules.broken_links(markdown, tmp_path) == broken


# Leaks

ATTENTION = '''# TODO add-two  (3 points, ~5 min)
def add_two(q, k, v):
    """Attend."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # scaled
    weights = scores.softmax(-1)
    mixed = weights @ v
    return mixed'''


@pytest.fixture
def solved(tmp_path):
    path = tmp_path / "solved.ipynb"
    half = SCALER.replace('raise NotImplementedError("scaler-layer")', "self.factor = factor", 1)
    nb = answered(add_two=ATTENTION, scaler_layer=half.replace("    raise NotImplementedError", "    return x"))
    anatomy.write(nb, path)
    return path


LEAK = """
def oracle(q, k, v):
    '''Another docstring.'''
    print("other")
    scores = (q @ k.transpose(-2, -1)) / math.sqrt(
        q.shape[-1]
    )
    weights = scores.softmax(-1)
    mixed = weights @ v
    return mixed.sum()
"""


@pytest.mark.parametrize(
    ("name", "content", "leaks"),
    [
        ("whole.py", ATTENTION, True),
        ("part.py", LEAK, True),
        ("string.py", f"TEXT = {LEAK!r}", True),
        ("nested.py", "if True:\n" + "".join(f"    {line}\n" for line in LEAK.splitlines()), True),
        ("notes.md", f"Text\n\n```python\n{LEAK}```\n", True),
        ("prose.md", "scores, weights, mixed", False),
        ("short.py", "class A:\n    def __init__(self, factor):\n        self.factor = factor\n", False),
        ("two.py", "weights = scores.softmax(-1)\nmixed = weights @ v\nprint(mixed)\n", False),
        ("broken.py", "def f(:", False),
    ],
)
def test_leaks(name, content, leaks, solved, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    found = rules.leaked_answers([path], [solved])
    assert found == ([f"{path}: holds (a part of) the answer to add-two. Take it out."] if leaks else [])


def test_leaks_in_notebooks(solved, tmp_path):
    path = tmp_path / "student.ipynb"
    anatomy.write(course_notebook(), path)
    assert rules.leaked_answers([path], [solved]) == []
    for cell in (code(LEAK, "x"), text(f"<details>\n\n```python\n{LEAK}```\n</details>", "x")):
        nb = course_notebook()
        nb.cells.append(cell)
        anatomy.write(nb, path)
        assert rules.leaked_answers([path], [solved])
    anatomy.write(answered(add_two=ATTENTION), path)
    assert rules.leaked_answers([path], [solved])


def test_what_the_stub_gives_is_no_leak(tmp_path):
    given = SCALER.replace(
        'raise NotImplementedError("scaler-layer")',
        "super().__init__()\n        self.factor = float(factor)\n        self.register_buffer('f', tensor(factor))",
        1,
    )
    nb, full = course_notebook(), answered()
    nb.cells[at(nb, "scaler-layer")].source = given
    full.cells[at(full, "scaler-layer")].source = given.replace("raise NotImplementedError", "return str")
    anatomy.write(nb, tmp_path / "main.ipynb")
    anatomy.write(full, tmp_path / "solved.ipynb")
    assert rules.leaked_answers([tmp_path / "main.ipynb"], [tmp_path / "solved.ipynb"]) == []


@pytest.fixture
def net(tmp_path):
    """Main, and what the branch has, of a unit with an answer file."""
    root, branch_has = several(tmp_path / "main"), solve_several(tmp_path / "solved")
    own = [path for pattern in ("*.py", "*.ipynb") for path in rules.files(root, pattern)]
    return root / SEVERAL, own, [branch_has / THEORY, branch_has / CODE, branch_has / SEVERAL / "net.py"]


def test_the_stub_of_an_answer_file_is_no_leak(net):
    _, own, solved = net
    assert rules.leaked_answers(own, solved) == []


FORWARD = NET_SOLVED[NET_SOLVED.index("    def forward") : NET_SOLVED.index("\n\n\n# TODO net-loss")]


@pytest.mark.parametrize(
    ("file", "old", "new", "slug"),
    [
        ("checks.py", "", f"class Oracle:\n{FORWARD}\n", "net-forward"),
        ("checks.py", "", NET_SOLVED[NET_SOLVED.index("def scaled") :], "hw1_made/net.py"),
        ("net.py", "", NET_SOLVED[NET_SOLVED.index("def scaled") :], None),  # what the stub has, it gives
        ("net.py", NET, NET_SOLVED, "net-forward"),
        ("net.py", "", f"TEXT = {FORWARD!r}\n", "net-forward"),
        ("helper.py", "", NET.replace("Net", "Other"), None),
    ],
)
def test_leaks_of_an_answer_file(file, old, new, slug, net):
    unit, own, solved = net
    path = unit / file
    text = path.read_text() if path.exists() else ""
    path.write_text(text.replace(old, new) if old else f"{text}\n\n{new}")
    found = rules.leaked_answers({*own, path}, solved)
    assert all(one.startswith(f"{path}: ") for one in found)
    assert (f"{path}: holds (a part of) the answer to {slug}. Take it out." in found) if slug else not found
