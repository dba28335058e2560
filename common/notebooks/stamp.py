"""Stamps what the course knows about itself into its notebooks and READMEs.

From ``common/course.toml`` come the first cell of every notebook, its ``course`` metadata, the Colab badges
and the syllabus tables; from each unit's ``results.json`` come the tables of measured results, one for each
notebook. Stamping twice changes nothing.

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
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from common.course import Course, Notebook, Unit, load
from common.notebooks import anatomy

NOTHING = "Nothing has been measured yet: `make results`."
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
    for entry in course.notebooks():
        notebook = anatomy.read(course.file(entry))
        stamped = stamp_notebook(deepcopy(notebook), course, entry)
        if stamped != notebook:
            changed.append(entry.path)
            if not check:
                anatomy.write(stamped, course.file(entry))
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


def metadata(entry: Notebook) -> dict[str, str]:
    """The metadata ``course`` of a notebook: which one of the course's it is, and how many hours it takes."""
    return {"unit": entry.unit, "notebook": entry.file, "hours": entry.hours}


def stamp_notebook(notebook: NotebookNode, course: Course, entry: Notebook) -> NotebookNode:
    """Set the first cell, the badge in the title, the results and the metadata of a notebook, in place."""
    notebook.metadata["course"] = metadata(entry)
    source = first_cell(entry.unit, course.repository, course.branch)
    first = new_code_cell(source, id="colab", metadata={"tags": ["setup"]})
    cells = notebook.cells = [first, *(cell for cell in notebook.cells if cell.get("id") != "colab")]
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            cell.source = _with_badge(cell.source, colab_badge(course, entry))
            break
    for cell in cells:
        if cell.get("id") == "results":
            cell.source = _between(cell.source, "results", lambda: _tables(course, entry.unit).get(entry.file, NOTHING))
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


def colab_badge(course: Course, entry: Notebook) -> str:
    """The Markdown of a notebook's Colab badge; "" unless the course lies on GitHub, where Colab reads from."""
    prefix = "https://github.com/"
    if not course.repository.startswith(prefix):
        return ""
    name = course.repository.removeprefix(prefix).removesuffix(".git")
    return f"{BADGE}(https://colab.research.google.com/github/{name}/blob/{course.branch}/{entry.path})"


def syllabus(course: Course, folder: str = "") -> str:
    """The table of units: of all phases under a heading each, or of the phase in ``folder`` alone."""
    blocks = []
    for phase in course.phases:
        if folder.split("/")[0] not in ("", phase.folder):
            continue
        rows = ["| unit | hours | what you build | points | status |", "|---|---|---|---|---|"]
        for unit in course.of_phase(phase.folder):
            points = course.points(unit)
            name, known, status = unit.title, "", "planned"
            if points is not None:
                name, known, status = _linked(course, unit, folder), str(points), "ready"
            rows.append(_row([name, unit.hours.replace("-", "–"), unit.builds, known, status]))
        if not folder:
            title = phase.title
            if (course.root / phase.folder / "README.md").is_file():
                title = f"[{title}]({phase.folder}/README.md)"
            rows = [f"### {title}", "", *rows]
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks)


def _linked(course: Course, unit: Unit, folder: str) -> str:
    """A unit's title in the syllabus, with a link to each of its notebooks."""
    links = [
        f"[{entry.title}]({_link(entry.path, folder)}) {colab_badge(course, entry)}".rstrip()
        for entry in unit.notebooks
    ]
    return links[0] if len(links) == 1 else "<br>".join([unit.title, *links])


def results(course: Course, folder: str = "") -> str:
    """The tables of measured results: of every unit at or below ``folder`` that has a ``results.json``."""
    blocks = []
    for unit in course.units:
        inside = not folder or unit.folder == folder or unit.folder.startswith(folder + "/")
        tables = _tables(course, unit.folder) if inside else {}
        several = len(unit.notebooks) > 1
        if several and tables:
            blocks.append(f"**{unit.title}**")
        for entry in unit.notebooks:
            if entry.file in tables:
                link = f"[{entry.title}]({_link(entry.path, folder)})"
                blocks += [link if several else f"**{link}**", tables[entry.file]]
    return "\n\n".join(blocks) or NOTHING


def _tables(course: Course, unit: str) -> dict[str, str]:
    """The tables of the notebooks of a unit that are in its ``results.json``, by the names of their files."""
    file = course.root / unit / "results.json"
    if not file.is_file():
        return {}
    try:
        measured = json.loads(file.read_text(encoding="utf-8"))
        return {notebook: _table(runs) for notebook, runs in measured.items() if runs}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not what `make results` writes: {error!r}; run it again") from error


def _table(runs: dict[str, Any]) -> str:
    """The runs of a notebook, by scale: one row a measure, one column a scale."""
    table = {"hardware": [run["hardware"] for run in runs.values()]}
    table["time"] = [_seconds(run["seconds"]) for run in runs.values()]
    for place, run in enumerate(runs.values()):
        for measure, value in run["rows"]:
            table.setdefault(measure, [""] * len(runs))[place] = str(value)
    head = [_row(["measure", *runs]), "|---" * (len(runs) + 1) + "|"]
    return "\n".join([*head, *(_row([measure, *values]) for measure, values in table.items())])


def _row(cells: list) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


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
