"""A new unit from nothing: a small notebook that keeps all rules, with one TODO worked out to the end."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from nbformat import NotebookNode, from_dict

from common.course import Course, Notebook, Unit, load
from common.notebooks import anatomy, stamp
from common.notebooks.anatomy import NotebookError

_INTRO = """## 1. How wrong is a prediction?

Say why this is needed: a problem that the reader can see. Then the formula,

$$\\mathrm{MSE}(\\hat y, y) = \\frac 1 n \\sum_{i=1}^n (\\hat y_i - y_i)^2,$$

and a small example with numbers: predictions 1 and 2 for the targets 1 and 4 are wrong by 0 and 2, so the error is
(0 + 4) / 2 = 2.

### Your task: the mean squared error

<details><summary>Hint 1: the idea</summary>

Large errors should count for more than small ones, and no error should cancel another.
</details>
<details><summary>Hint 2: the recipe</summary>

Subtract, square each difference, take the mean over all of them.
</details>
<details><summary>Hint 3: almost the code</summary>

A tensor has a method for the mean: `(...).mean()`. What belongs into the brackets?
</details>"""

_STUB = '''# TODO mean-squared-error  (4 points, ~5 min)
def mean_squared_error(prediction, target):
    """Mean of the squared differences.

    Args:
        prediction: any shape.
        target: the same shape.

    Returns:
        A tensor with one number.
    """
    raise NotImplementedError("mean-squared-error")'''

_RIGHT = "return ((prediction - target) ** 2).mean()"

_PRINTED = """mean-squared-error: 4 of 4 points
  ✓ one number for a whole batch (1/1)
  ✓ agrees with torch (2/2)
  ✓ the inputs stay as they are (1/1)
"""

_USE = """guesses = torch.linspace(0, 6, 61)
numbers = torch.tensor([1.0, 2.0, 6.0])
errors = torch.stack([mean_squared_error(guess.expand(3), numbers) for guess in guesses])

plt.plot(guesses, errors)
plt.xlabel("one guess for the numbers 1, 2 and 6")
plt.ylabel("mean squared error");"""

_RESULTS = """## Results

Measured with the reference solution, by `make results`:

<!-- results:begin -->
<!-- results:end -->"""

_CHECKS = '''"""The checks of {title}."""

import torch.nn.functional as F

from common.checks import check


@check("mean-squared-error", points=4{part})
def mean_squared_error(answer, case):
    x, y = case.randn(3, 5), case.randn(3, 5)
    with case("one number for a whole batch", points=1, hint="take the mean over all axes at once"):
        case.shape(answer(x, y), ())
    with case("agrees with torch", points=2, hint="square each difference, then take the mean"):
        mistakes = {{
            "the squares are added up, but not divided by their number": F.mse_loss(x, y, reduction="sum"),
            "the differences are not squared but made positive": F.l1_loss(x, y),
            "this is the root of the mean squared error": F.mse_loss(x, y).sqrt(),
            "the mean is taken before the square, so errors cancel": (x - y).mean() ** 2,
        }}
        case.close(answer(x, y), F.mse_loss(x, y), mistakes=mistakes)
    with case("the inputs stay as they are", points=1, hint="no operation that ends in _"):
        case.unchanged(answer, x, y)
'''

_ANSWERS = """# %% right: by pow and a division
def mean_squared_error(prediction, target):
    return (prediction - target).pow(2).sum() / target.numel()

# %% wrong: the sum instead of the mean  [says: divided]
def mean_squared_error(prediction, target):
    return ((prediction - target) ** 2).sum()

# %% wrong: absolute differences  [says: squared]
def mean_squared_error(prediction, target):
    return (prediction - target).abs().mean()

# %% wrong: the root of it  [says: root]
def mean_squared_error(prediction, target):
    return ((prediction - target) ** 2).mean().sqrt()

# %% wrong: the square of the mean  [says: cancel]
def mean_squared_error(prediction, target):
    return (prediction - target).mean() ** 2

# %% wrong: one number for each row  [says: shape]
def mean_squared_error(prediction, target):
    return ((prediction - target) ** 2).mean(-1)

# %% wrong: changes its input  [says: in place]
def mean_squared_error(prediction, target):
    return prediction.sub_(target).pow(2).mean()
"""


def new(
    root: Path, unit: str, title: str | None = None, say: Callable[[str], None] = print, notebook: str | None = None
) -> Path:
    """Start a unit: its notebook and checks, and in `solutions/` its solved notebook and stored answers.

    Where the unit has checks already, a further notebook starts as a frame without a TODO.

    Args:
        root: the root of the course.
        unit: the folder, such as `phase2_transformers/lab1_attention`.
        title: of a unit that `common/course.toml` does not list yet; it is added there.
        say: is given what to do next.
        notebook: the file name of one of the notebooks that `common/course.toml` lists; without it, the first.

    Returns:
        The new notebook.

    Raises:
        NotebookError: the folder is not a good one, or something is there already.
    """
    unit = unit.strip("/")
    folder, solutions = root / unit, root / "solutions" / unit
    if notebook and not load(root).find(f"{unit}/{notebook}"):
        raise NotebookError(f"common/course.toml lists no notebook {notebook} in {unit}. Add it to the unit there.")
    whole = [*folder.glob("*.ipynb"), folder / "checks.py", solutions]
    for path in [folder / notebook, solutions / notebook] if notebook else whole:
        if path.exists():
            raise NotebookError(f"{path} is there already. Choose another folder, or work on that one.")
    listed = _entry(root, unit, title)
    course = load(root)
    entry = next(one for one in listed.notebooks if notebook in (None, one.file))
    further = (folder / "checks.py").exists()
    made = _notebook(course, listed, entry, further)
    solved = deepcopy(made)
    for cell in solved.cells:
        cell.source = cell.source.replace('raise NotImplementedError("mean-squared-error")', _RIGHT)
    anatomy.write(made, course.file(entry))
    anatomy.write(solved, solutions / entry.file)
    if not further:
        part = f', part="{_part(entry)}"' if len(listed.notebooks) > 1 else ""
        anatomy.write_bytes(_CHECKS.format(title=listed.title, part=part).encode(), folder / "checks.py")
        anatomy.write_bytes(_ANSWERS.encode(), solutions / "answers" / "mean-squared-error.py")
    say(_next_steps(entry))
    return course.file(entry)


def _entry(root: Path, folder: str, title: str | None) -> Unit:
    """The unit's entry in `course.toml`; without one, it is added."""
    course = load(root)
    if folder in course.by_folder:
        return course.by_folder[folder]
    parts = folder.split("/")
    known = [phase.folder for phase in course.phases]
    if len(parts) != 2 or parts[0] not in known or not parts[1].isidentifier() or parts[1] != parts[1].lower():
        raise NotebookError(
            f"{folder}: a unit is <phase>/<name>, the name of small letters, digits and _; the phases are "
            f"{', '.join(known)}."
        )
    if not title:
        raise NotebookError(f'{folder} is not in common/course.toml. Give a title: make new UNIT={folder} TITLE="..."')
    file = root / "common" / "course.toml"
    block = {"folder": folder, "title": title, "hours": "2-3", "builds": "Say in one sentence what the student builds."}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in block.items()]
    text = file.read_text(encoding="utf-8").rstrip("\n") + "\n\n[[unit]]\n" + "\n".join(lines) + "\n"
    anatomy.write_bytes(text.encode(), file)
    return load(root).by_folder[folder]


def _part(entry: Notebook) -> str:
    """What `checks.py` calls a notebook of a unit that has several: `theory` for `hw1_theory.ipynb`."""
    return entry.file.removesuffix(".ipynb").split("_", 1)[-1].lower()


def _notebook(course: Course, unit: Unit, entry: Notebook, further: bool) -> NotebookNode:
    several = len(unit.notebooks) > 1
    name = f"{unit.title.split(':')[0]}: {entry.title}" if several else unit.title
    time = entry.time.replace("-", "–")
    title = f"# {name}\n\n**4 points** · **{time}**\n\n{unit.builds} Put a picture of the result here."
    progress = f'progress(checks, "{_part(entry)}")' if several else "progress(checks)"
    cells = [
        _code("", "colab", "setup"),
        _text(title, "title"),
        _code(
            "import matplotlib.pyplot as plt\nimport torch\n\nimport checks\nfrom common.checks import progress",
            "setup",
            "setup",
        ),
        _text(_INTRO, "error-intro"),
        _code(_STUB, "mean-squared-error", "answer"),
        _code("checks.mean_squared_error(mean_squared_error)", "check-mean-squared-error", "check"),
        _text(
            "### Use it: the guess with the smallest error\n\nUse each answer at once, on something real.", "error-use"
        ),
        _code(_USE, "error-plot"),
        _text("The smallest error is at 3, the mean of the numbers. Say what a picture shows.", "error-reading"),
        _text("## Your progress", "progress-intro"),
        _code(progress, "progress"),
        _text(_RESULTS, "results"),
        _text("## Think further\n\n- Questions, ways to go on, and what to read.", "end"),
    ]
    check = cells[5]
    check["outputs"] = [{"output_type": "stream", "name": "stdout", "text": _PRINTED}]
    check["execution_count"] = 1
    if further:
        cells = [cell for cell in cells if not cell["id"].startswith(("error", "mean", "check"))]
        cells[1]["source"] = title.replace("**4 points**", "**0 points**")
    notebook = from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells})
    return stamp.stamp_notebook(notebook, course, entry)


def _code(source: str, id: str, *tags: str) -> dict:
    metadata = {"tags": list(tags)} if tags else {}
    return {
        "cell_type": "code",
        "id": id,
        "metadata": metadata,
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


def _text(source: str, id: str) -> dict:
    return {"cell_type": "markdown", "id": id, "metadata": {}, "source": source}


def _next_steps(entry: Notebook) -> str:
    return f"""Made {entry.path}. Now:

1. Edit {entry.path} and {entry.unit}/checks.py. `make lint` says which rule of the notebooks is broken.
2. `make solutions` keeps what is in solutions/{entry.unit}/ and adds what is missing there.
3. Answer every TODO in solutions/{entry.path}, run it, and store its checks' outputs by saving it.
4. Store wrong answers (5 or more for each TODO) and other right ones in solutions/{entry.unit}/answers/<slug>.py.
5. `make test` proves the checks with them; `make publish` takes it all onto the branch `solutions`.
6. `make stamp` brings the tables of the READMEs up to date."""
