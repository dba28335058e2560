"""Stamps what the course knows about itself into its notebooks and READMEs.

From ``common/course.toml`` come the first cell of every notebook, its ``course`` metadata, the Colab badges
and the syllabus tables; from each unit's ``results.json`` come the tables of measured results. Stamping twice
changes nothing.

A README, or the Markdown cell ``results`` of a notebook, says by a pair of comments where a table goes::

    <!-- syllabus:begin -->
    <!-- syllabus:end -->

The README of the course gets the tables of all phases; one inside a phase or a unit gets only its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import textwrap
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from common.course import Course, Unit, load
from common.notebooks import anatomy

BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"


def first_cell(unit: str, repository: str, branch: str = "main", base: str = "/content") -> str:
    """The source of a notebook's first cell: on Colab it fetches the course, anywhere else it does nothing.

    Args:
        unit: the unit's folder from the root of the course.
        repository: the address that git can clone, or "" while the course has none.
        branch: the branch to fetch.
        base: the folder on Colab in which the course becomes the folder ``course``.
    """
    course = f"{base}/course"
    absent = f'not os.path.exists("{course}/common")'
    if repository:
        address = f"--branch {shlex.quote(branch)} {shlex.quote(repository)}"
        fetch = f"cd {base}; rm -rf part course; git clone -q --depth 1 {{address}} part && mv part course"
        lines = [f"address = {_quote(address)}", f"fetch = f{_quote(fetch)}", f"if {absent} and os.system(fetch):"]
        reason = "The course could not be fetched. Check the network, then run this cell again."
    else:
        lines = [f"if {absent}:"]
        reason = f"The course has no address yet: copy it to {course}, then run this again."
    lines += [
        f"    raise RuntimeError({_quote(reason)})",
        f"sys.path.insert(0, {_quote(course)})",
        "from common import colab",
        "",
        f"colab.enter({_quote(unit)})",
    ]
    why = "# on Google Colab, fetch the course; elsewhere, do nothing"
    head = f'import os\nimport sys\n\nif "google.colab" in sys.modules:  {why}\n'
    return head + textwrap.indent("\n".join(lines), "    ")


def stamp(root: str | Path | None = None, check: bool = False) -> list[str]:
    """Bring every notebook and README up to date with ``course.toml`` and the measured results.

    Args:
        root: the root of the course; without it, the course that this package belongs to.
        check: only say what would change.

    Returns:
        The files that changed (or would), from the root, in order.

    Raises:
        common.notebooks.anatomy.NotebookError: when a notebook can't be read.
        ValueError: when ``course.toml`` or a ``results.json`` is wrong, or a marker has no end.
    """
    course = load(root)
    changed = []
    for unit in course.ready():
        notebook = anatomy.read(course.notebook(unit))
        stamped = stamp_notebook(deepcopy(notebook), course, unit)
        if stamped != notebook:
            changed.append(unit.path)
            if not check:
                anatomy.write(stamped, course.notebook(unit))
    folders = ["", *(phase.folder for phase in course.phases), *(unit.folder for unit in course.units)]
    for folder in dict.fromkeys(folders):
        readme = course.root / folder / "README.md"
        if not readme.is_file():
            continue
        text = readme.read_bytes().decode()
        stamped_text = stamp_readme(text, course, folder)
        if stamped_text != text:
            changed.append(readme.relative_to(course.root).as_posix())
            if not check:
                anatomy.write_bytes(stamped_text.encode(), readme)
    return changed


def stamp_notebook(notebook: NotebookNode, course: Course, unit: Unit) -> NotebookNode:
    """Set the first cell, the badge in the title, the results and the metadata of a notebook, in place."""
    notebook.metadata["course"] = {"unit": unit.folder, "hours": unit.hours}
    source = first_cell(unit.folder, course.repository, course.branch)
    first = new_code_cell(source, id="colab", metadata={"tags": ["setup"]})
    cells = notebook.cells = [first, *(cell for cell in notebook.cells if cell.get("id") != "colab")]
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            cell.source = _with_badge(cell.source, colab_badge(course, unit))
            break
    for cell in cells:
        if cell.get("id") == "results":
            cell.source = _between(cell.source, "results", lambda: _one_result(course, unit))
    return notebook


def stamp_readme(text: str, course: Course, folder: str) -> str:
    """A README's text with its syllabus and results up to date.

    Args:
        text: the README.
        course: the course.
        folder: where the README lies, from the root: "" for the README of the course.
    """
    text = _between(text, "syllabus", lambda: syllabus(course, folder))
    return _between(text, "results", lambda: results(course, folder))


def colab_badge(course: Course, unit: Unit) -> str:
    """The Markdown of the unit's Colab badge; "" unless the course lies on GitHub, where Colab reads from."""
    prefix = "https://github.com/"
    if not course.repository.startswith(prefix):
        return ""
    name = course.repository.removeprefix(prefix).removesuffix(".git")
    return f"{BADGE}(https://colab.research.google.com/github/{name}/blob/{course.branch}/{unit.path})"


def syllabus(course: Course, folder: str = "") -> str:
    """The table of units: of all phases under a heading each, or of the phase in ``folder`` alone."""
    blocks = []
    for phase in course.phases:
        if folder.split("/")[0] not in ("", phase.folder):
            continue
        rows = ["| unit | hours | what you build | points | status |", "|---|---|---|---|---|"]
        for unit in course.of_phase(phase.folder):
            name, points = unit.title, course.points(unit)
            if points is not None:
                name = f"[{name}]({_link(unit.path, folder)}) {colab_badge(course, unit)}".rstrip()
            cells = [name, _hours(unit), unit.builds, "" if points is None else points, course.status(unit)]
            rows.append(_row(cells))
        if not folder:
            title = phase.title
            if (course.root / phase.folder / "README.md").is_file():
                title = f"[{title}]({phase.folder}/README.md)"
            rows = [f"### {title}", "", *rows]
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks)


def results(course: Course, folder: str = "") -> str:
    """The tables of measured results: of every unit at or below ``folder`` that has a ``results.json``."""
    blocks = []
    for unit in course.units:
        inside = not folder or unit.folder == folder or unit.folder.startswith(folder + "/")
        if inside and (course.root / unit.folder / "results.json").is_file():
            title = f"**[{unit.title}]({_link(unit.path, folder)})**"
            blocks.append(f"{title}\n\n{_one_result(course, unit)}")
    return "\n\n".join(blocks) or "Nothing has been measured yet: `make results`."


def _one_result(course: Course, unit: Unit) -> str:
    """The unit's ``results.json`` as a table: one row a measure, one column a scale."""
    file = course.root / unit.folder / "results.json"
    if not file.is_file():
        return "Nothing has been measured yet: `make results`."
    try:
        runs = {scale: run for scale, run in json.loads(file.read_text(encoding="utf-8")).items() if run}
        table = {"hardware": [run["hardware"] for run in runs.values()]}
        table["time"] = [_seconds(run["seconds"]) for run in runs.values()]
        for place, run in enumerate(runs.values()):
            for measure, value in run["rows"]:
                table.setdefault(measure, [""] * len(runs))[place] = str(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not what `make results` writes: {error!r}; run it again") from error
    head = [_row(["measure", *runs]), "|---" * (len(runs) + 1) + "|"]
    return "\n".join([*head, *(_row([measure, *values]) for measure, values in table.items())])


def _row(cells: list) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _hours(unit: Unit) -> str:
    return unit.hours.replace("-", "–")


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _link(path: str, folder: str) -> str:
    return os.path.relpath(path, folder or ".").replace(os.sep, "/")


def _quote(text: str) -> str:
    """``text`` as a string of Python in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _with_badge(source: str, badge: str) -> str:
    """A title cell's source with ``badge`` below its title, or with none when ``badge`` is empty."""
    title, _, rest = source.partition("\n")
    lines = [line for line in rest.split("\n") if not line.startswith(BADGE)]
    return "\n\n".join(part for part in (title, badge, "\n".join(lines).strip("\n")) if part)


def _between(text: str, name: str, content: Callable[[], str]) -> str:
    """``text`` with what stands between the markers of ``name`` replaced; unchanged without markers."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if begin not in text:
        return text
    found = re.search(re.escape(begin) + ".*?" + re.escape(end), text, flags=re.DOTALL)
    if not found:
        raise ValueError(f"the marker {begin} has no {end} after it")
    return text[: found.start()] + f"{begin}\n\n{content()}\n\n{end}" + text[found.end() :]
