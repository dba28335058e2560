"""Small notebooks for tests, made in a few lines."""

from nbformat import NotebookNode, from_dict

from common.notebooks import stamp

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
    metadata = {"course": {"unit": unit, "hours": "1-2"}}
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
