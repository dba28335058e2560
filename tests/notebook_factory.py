"""Small notebooks for tests, made in a few lines."""

from pathlib import Path

from nbformat import NotebookNode, from_dict

from common.notebooks import anatomy, stamp

UNIT = "phase9_made/lab1_made"

HINTS = "\n\n".join(
    f"<details><summary>Hint {n}: {name}</summary>\n\nWords.\n\n</details>"
    for n, name in enumerate(("the idea", "the recipe", "almost the code"), 1)
)

ADD = '''# TODO add-two  (3 points, ~5 min)
def add_two(x):
    """Return x plus 2."""
    raise NotImplementedError("add-two")'''
ADD_SOLVED = '''# TODO add-two  (3 points, ~5 min)
def add_two(x):
    """Return x plus 2."""
    return x + 2'''
SCALER = '''# TODO scaler-layer  (5 points, ~15 min)
class ScalerLayer:
    """Multiplies by a factor."""

    def __init__(self, factor):
        """Keep the factor."""
        raise NotImplementedError("scaler-layer")

    def forward(self, x):
        """Return factor times x."""
        raise NotImplementedError("scaler-layer")'''
SCALER_SOLVED = '''# TODO scaler-layer  (5 points, ~15 min)
class ScalerLayer:
    """Multiplies by a factor."""

    def __init__(self, factor):
        """Keep the factor."""
        self.factor = factor

    def forward(self, x):
        """Return factor times x."""
        return self.factor * x'''
WHY = "<!-- TODO why-two (2 points, ~5 min) -->\n\n*Your answer.*"
WHY_SOLVED = "<!-- TODO why-two (2 points, ~5 min) -->\n\nBecause one is not enough."


def cell(kind: str, source: str, id: str | None = None, tags: tuple = (), printed: str = "") -> NotebookNode:
    """One cell of any kind."""
    made = {"cell_type": kind, "id": id, "metadata": {"tags": list(tags)} if tags else {}, "source": source}
    if kind == "code":
        made["outputs"] = [{"name": "stdout", "output_type": "stream", "text": printed}] if printed else []
        made["execution_count"] = 1 if printed else None
    return from_dict(made)


def code(source: str, id: str | None = None, *tags: str) -> NotebookNode:
    return cell("code", source, id, tags)


def text(source: str, id: str | None = None, *tags: str) -> NotebookNode:
    return cell("markdown", source, id, tags)


def course_notebook(unit: str = UNIT) -> NotebookNode:
    """A notebook that keeps all the rules: a function, a class and a text to answer."""
    cells = [
        code(stamp.first_cell(unit, ""), "colab", "setup"),
        text("# Made\n\nWhat we make. **1-2 hours**, **10 points**.", "text-made"),
        code("import math\n\nBASE = 2", "imports", "setup"),
        text(f"## Adding\n\nAdd two.\n\n{HINTS}", "text-adding"),
        code(ADD, "add-two", "answer"),
        cell("code", "checks.add_two(add_two)", "check-add-two", ("check",), "add-two: 3 of 3 points\n"),
        text(f"## Scaling\n\nScale it.\n\n{HINTS}", "text-scaling"),
        code(SCALER, "scaler-layer", "answer"),
        cell("code", "checks.scaler_layer(ScalerLayer)", "check-scaler-layer", ("check",), "all 5 points\n"),
        code("print(ScalerLayer(3).forward(add_two(1)))", "use"),
        text(f"## Why\n\nSay why.\n\n{HINTS}", "text-why"),
        text(WHY, "why-two", "answer"),
        text("## The end", "text-the-end"),
    ]
    return book(cells, unit, unit.split("/")[-1] + ".ipynb", "1-2")


def book(cells: list[NotebookNode], unit: str, file: str, hours: str) -> NotebookNode:
    """A notebook of these cells, with the course's metadata."""
    metadata = {"course": {"unit": unit, "notebook": file, "hours": hours}}
    return from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def at(notebook: NotebookNode, id: str) -> int:
    """The index of the cell with an id."""
    return [cell.get("id") for cell in notebook.cells].index(id)


def answered(**sources: str) -> NotebookNode:
    """The notebook with answers: `answered(add_two=..., scaler_layer=..., why_two=...)`, right ones by default."""
    notebook = course_notebook()
    right = {"add_two": ADD_SOLVED, "scaler_layer": SCALER_SOLVED, "why_two": WHY_SOLVED}
    for name, source in {**right, **sources}.items():
        notebook.cells[at(notebook, name.replace("_", "-"))].source = source
    return notebook


def without_ids(notebook: NotebookNode) -> NotebookNode:
    """As Colab saves it: nbformat 4.0, no ids, no tags."""
    for cell in notebook.cells:
        cell.pop("id", None)
        cell.metadata.pop("tags", None)
        cell.metadata["id"] = "x9Yz"
    notebook.nbformat_minor = 0
    return notebook


# A unit with two notebooks and an answer file

SEVERAL = "phase9_made/hw1_made"
THEORY, CODE = f"{SEVERAL}/hw1_theory.ipynb", f"{SEVERAL}/hw1_code.ipynb"
SEVERAL_TOML = f"""repository = ""
branch = "main"

[[phase]]
folder = "phase9_made"
title = "Made"

[[unit]]
folder = "{SEVERAL}"
title = "Homework 1: Made"
hours = "3-4"
builds = "A net."
notebooks = [
    {{ file = "hw1_theory.ipynb", title = "Theory", hours = "1" }},
    {{ file = "hw1_code.ipynb", title = "Code", hours = "2-3", answer_files = ["net.py"] }},
]
"""
NET = '''"""A net. Test it with `pytest`."""

LIMIT = 100


class Net:
    """Multiplies by a weight."""

    def __init__(self, weight):
        """Keep the weight."""
        self.weight = max(-LIMIT, min(LIMIT, weight))
        self.cache = {"calls": 0, "inputs": [], "outputs": []}

    # TODO net-forward  (4 points, ~10 min)
    def forward(self, x):
        """Return the weight times x."""
        raise NotImplementedError("net-forward")


# TODO net-loss  (6 points, ~10 min)
def net_loss(y, y_hat):
    """Return the squared error."""
    raise NotImplementedError("net-loss")
'''
NET_SOLVED = (
    NET.replace(
        'raise NotImplementedError("net-forward")',
        """self.cache["inputs"] = [*self.cache["inputs"], x]
        self.cache["calls"] = len(self.cache["inputs"])
        return scaled(x, self.weight)""",
    ).replace(
        'raise NotImplementedError("net-loss")',
        "difference_of_the_two_values = y - y_hat\n    return difference_of_the_two_values ** 2",
    )
    + """

def scaled(number, factor_to_multiply_the_number_with):
    return number * factor_to_multiply_the_number_with * min(1, LIMIT)
"""
)
NET_CHECKS = '''"""The checks of a made unit."""

from common.checks import check


@check("add-two", points=3, part="theory")
def add_two(answer, case):
    with case("adds", points=3, hint="plus"):
        case.equal(answer(3), 5)


@check("scaler-layer", points=5, part="code")
def scaler_layer(answer, case):
    with case("scales", points=5, hint="times"):
        case.equal(answer(3).call("forward", 2), 6)


@check("net-forward", points=4, part="code")
def net_forward(answer, case):
    with case("multiplies", points=4, hint="times"):
        case.equal(answer(3).call("forward", 2), 6)


@check("net-loss", points=6, part="code")
def net_loss(answer, case):
    with case("squares", points=6, hint="square"):
        case.equal(answer(1, 4), 9)
'''
NET_TESTS = """from net import Net, net_loss


def test_forward():
    assert Net(3).forward(2) == 6


def test_loss():
    assert net_loss(1, 4) == 9
"""


def check_cell(slug: str, call: str, case: str, points: int) -> NotebookNode:
    """A check cell with what its check prints."""
    printed = f"{slug}: {points} of {points} points\n  ✓ {case} ({points}/{points})\n"
    return cell("code", call, f"check-{slug}", ("check",), printed)


def theory_notebook(add_two: str = ADD, why_two: str = WHY) -> NotebookNode:
    cells = [
        code(stamp.first_cell(SEVERAL, ""), "colab", "setup"),
        text("# Homework 1: Theory\n\nWhat we make. **1 hour**, **5 points**.", "title"),
        code("import checks", "imports", "setup"),
        text(f"## Adding\n\nAdd two.\n\n{HINTS}", "text-adding"),
        code(add_two, "add-two", "answer"),
        check_cell("add-two", "checks.add_two(add_two)", "adds", 3),
        text(f"## Why\n\nSay why.\n\n{HINTS}", "text-why"),
        text(why_two, "why-two", "answer"),
        text("## The end", "text-the-end"),
    ]
    return book(cells, SEVERAL, "hw1_theory.ipynb", "1")


def code_notebook(scaler_layer: str = SCALER) -> NotebookNode:
    cells = [
        code(stamp.first_cell(SEVERAL, ""), "colab", "setup"),
        text("# Homework 1: Code\n\nWhat we make. **2–3 hours**, **15 points**.", "title"),
        code("%load_ext autoreload\n%autoreload 2\n\nimport checks\nfrom net import Net, net_loss", "imports", "setup"),
        text(f"## Scaling\n\nScale it.\n\n{HINTS}", "text-scaling"),
        code(scaler_layer, "scaler-layer", "answer"),
        check_cell("scaler-layer", "checks.scaler_layer(ScalerLayer)", "scales", 5),
        text(f"## Forward\n\nIn net.py.\n\n{HINTS}", "text-forward"),
        check_cell("net-forward", "checks.net_forward(Net)", "multiplies", 4),
        text(f"## Loss\n\nIn net.py too.\n\n{HINTS}", "text-loss"),
        check_cell("net-loss", "checks.net_loss(net_loss)", "squares", 6),
        text("## The end", "text-the-end"),
    ]
    return book(cells, SEVERAL, "hw1_code.ipynb", "2-3")


def several(root: Path) -> Path:
    """Write a course of one unit, with two notebooks and an answer file."""
    anatomy.write(theory_notebook(), root / THEORY)
    anatomy.write(code_notebook(), root / CODE)
    (root / "common").mkdir(exist_ok=True)
    (root / "common" / "course.toml").write_text(SEVERAL_TOML)
    for name, content in (("net.py", NET), ("checks.py", NET_CHECKS), ("test_net.py", NET_TESTS)):
        (root / SEVERAL / name).write_text(content)
    return root


def solve_several(folder: Path) -> Path:
    """Write into `folder` what the branch holds of that unit."""
    anatomy.write(theory_notebook(ADD_SOLVED, WHY_SOLVED), folder / THEORY)
    anatomy.write(code_notebook(SCALER_SOLVED), folder / CODE)
    for name, content in {
        "net.py": NET_SOLVED,
        "hidden_checks.py": "",
        "rubrics/why-two.md": "# why-two\n- 1 point: says one\n- 1 point: says enough\n\nNot: two.\n",
        "answers/add-two.py": "# %% right: swapped\ndef add_two(x):\n    return 2 + x\n",
        "answers/add-two.md": "Two is $1 + 1$.  \n\nSo we add it.\n",
        "answers/net-forward.md": "The weight is a factor.\n",
    }.items():
        (folder / SEVERAL / name).parent.mkdir(exist_ok=True)
        (folder / SEVERAL / name).write_text(content)
    return folder
