"""Finds the notebooks that students handed in, and what in them is to be graded.

Nothing of a submission is run here, and nothing odd in one stops the others: it becomes a remark.
"""

from __future__ import annotations

import ast
import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from nbformat import NotebookNode

from common import course
from common.grading.job import Step
from common.notebooks import anatomy
from common.notebooks.anatomy import Answer, NotebookError
from common.notebooks.graft import graft

LITTER = {"__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini"}
MOST_NOTEBOOKS = 50  # read of one student
LARGEST_NOTEBOOK = 50 * 2**20  # bytes


@dataclass(frozen=True)
class Base:
    """A unit of the course, as it is graded.

    Attributes:
        unit: its folder from the root of the course, with slashes.
        stubs: the source of each answer cell as the student was given it.
        imports: the import statements of its setup cells and of its checks.
    """

    unit: str
    folder: Path
    notebook: NotebookNode
    answers: tuple[Answer, ...]
    stubs: dict[str, str]
    imports: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """One student's submission for one unit.

    Attributes:
        notebook: the name of the file that is graded; None when there is nothing to grade.
        base: the unit; None when none fits.
        steps: the cells to run.
        prose: the Markdown answers by slug, for a person to grade.
    """

    student: str
    unit: str
    notebook: str | None
    base: Base | None
    remarks: list[str]
    steps: tuple[Step, ...] = ()
    prose: dict[str, str] = field(default_factory=dict)


def load_units(root: Path | None = None, only: str | None = None) -> list[Base]:
    """Read the units that can be graded.

    Args:
        root: the course; without it, the one that this package belongs to.
        only: the folder of the only unit to read.

    Raises:
        NotebookError: there is no such unit, or its notebook cannot be read.
    """
    found = course.load(root)
    ready = [unit for unit in found.ready() if (found.root / unit.folder / "checks.py").is_file()]
    if only is not None:
        only = only.rstrip("/")
        ready = [unit for unit in ready if unit.folder == only]
        if not ready:
            raise NotebookError(f"{only}: no unit with a notebook and a checks.py in {found.root}")
    return [_base(unit.folder, found.notebook(unit)) for unit in ready]


def _base(unit: str, path: Path) -> Base:
    notebook = anatomy.read(path)
    answers = tuple(anatomy.answers(notebook))
    sources = [cell.source for cell in notebook.cells if anatomy.role(cell) == "setup"]
    sources.append((path.parent / "checks.py").read_text(encoding="utf-8"))
    local = {file.stem for file in path.parent.glob("*.py")}
    return Base(
        unit,
        path.parent,
        notebook,
        answers,
        {answer.slug: answer.source for answer in answers},
        tuple(line for source in sources for line in _imports(source, local)),
    )


def _imports(source: str, local: set[str]) -> Iterator[str]:
    tree = anatomy.python(source)
    for node in tree.body if tree else []:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        else:
            continue
        if not local & {name.split(".")[0] for name in names}:
            yield ast.unparse(node)


def collect(folder: Path, bases: Sequence[Base], unit: str | None = None, skip: Path | None = None) -> list[Task]:
    """Find the submissions in a folder: one sub-folder, notebook or zip file for each student.

    Args:
        folder: where they lie.
        bases: the units that they may belong to.
        unit: the unit that they all belong to, if that is known.
        skip: a folder that is no submission, such as the one for the results.

    Returns:
        One task for each student and unit, by name.

    Raises:
        OSError: the folder cannot be read.
    """
    entries: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if _is_litter(entry.name) or (skip and entry.resolve() == skip.resolve()):
            continue
        is_folder = entry.is_dir() and not entry.is_symlink()
        entries.setdefault(printable(entry.name if is_folder else entry.stem), []).append(entry)
    return [task for student, paths in entries.items() for task in _tasks(student, paths, bases, unit)]


def printable(text: str) -> str:
    """Return text that can be shown and stored anywhere: control characters and half surrogates escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@dataclass(frozen=True)
class _Candidate:
    name: str
    base: Base
    found: int
    answered: int
    task: Task


def _tasks(student: str, entries: Sequence[Path], bases: Sequence[Base], unit: str | None) -> list[Task]:
    remarks: list[str] = []
    candidates: dict[str, list[_Candidate]] = {}
    for name, content in _notebooks(entries, remarks):
        try:
            candidate = _candidate(student, name, anatomy.parse(content), bases)
        except NotebookError as error:
            remarks.append(f"{name}: {error}")
        except Exception as error:  # a notebook stranger than we could imagine is still only one notebook
            remarks.append(f"{name}: cannot be read ({type(error).__name__})")
        else:
            if candidate is None:
                remarks.append(f"{name}: no answer cell of {unit or 'any unit of the course'} is in it")
            else:
                candidates.setdefault(candidate.base.unit, []).append(candidate)
    tasks = []
    for same in candidates.values():
        best, *rest = sorted(same, key=lambda one: (-one.answered, -one.found, one.name))
        task = best.task
        task.remarks[:0] = remarks
        if rest:
            names = ", ".join(one.name for one in rest)
            task.remarks.append(f"graded {best.name}; not graded, since no more is answered in them: {names}")
        tasks.append(task)
    if not tasks:
        base = bases[0] if unit and bases else None
        tasks = [Task(student, unit or "", None, base, remarks or ["no notebook"])]
    return tasks


def _candidate(student: str, name: str, notebook: NotebookNode, bases: Sequence[Base]) -> _Candidate | None:
    """Find the unit that a notebook belongs to, and graft its answers; None when it belongs to no unit."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    slugs = {cell.id for cell in notebook.cells}
    slugs |= {todo.slug for cell in notebook.cells if (todo := anatomy.todo(cell.source))}
    names = {defined for cell in code for defined in anatomy.defined_names(cell.source)}
    course_data = notebook.metadata.get("course")
    claimed = course_data.get("unit") if isinstance(course_data, dict) else None

    def found_of(base: Base) -> int:
        return sum(answer.slug in slugs or answer.name in names for answer in base.answers)

    base = max(bases, key=lambda base: (found_of(base), base.unit == claimed))
    found = found_of(base)
    if not found:
        return None
    grafted = graft(base.notebook, notebook)
    steps, prose, setups = [], {}, 0
    by_index = {answer.index: answer for answer in base.answers}
    for index, cell in enumerate(grafted.notebook.cells):
        answer = by_index.get(index)
        if answer and answer.kind == "markdown":
            lines = [line for line in cell.source.split("\n") if not anatomy.todo_in(line)]
            prose[answer.slug] = "\n".join(lines).strip() if grafted.answered[answer.slug] else "(not answered)"
        elif answer:
            steps.append(Step("answer", answer.slug, cell.source, answer.name or ""))
        elif anatomy.role(cell) == "setup" and cell.cell_type == "code":
            setups += 1
            steps.append(Step("setup", f"setup cell {setups}", cell.source))
    remarks = [printable(remark) for remark in grafted.remarks]
    task = Task(student, base.unit, name, base, remarks, tuple(steps), prose)
    return _Candidate(name, base, found, sum(grafted.answered.values()), task)


# -- files ---------------------------------------------------------------------------------------------------


def _is_litter(name: str) -> bool:
    return name in LITTER or (name.startswith(".") and bool(name.strip(".")))


def _notebooks(entries: Sequence[Path], remarks: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of a student's notebooks; what is odd goes to `remarks`."""
    others, number = [], 0
    for path, name in _files(entries, remarks):
        kind = path.name.lower()
        if ".ipynb" not in kind and not kind.endswith(".zip"):
            others.append(name)
            continue
        number += 1
        if number > MOST_NOTEBOOKS:
            remarks.append(f"more than {MOST_NOTEBOOKS} notebooks: the others were not read")
            return
        try:
            content = _content(path)
        except OSError as error:
            remarks.append(f"{name}: cannot be read ({error.strerror or error})")
            continue
        if kind.endswith(".zip"):
            yield from _unzipped(name, content, remarks)
        else:
            yield name, content
    if not number:
        listed = f" (found: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''})" if others else ""
        remarks.append(f"no notebook{listed}")


def _files(entries: Sequence[Path], remarks: list[str]) -> Iterator[tuple[Path, str]]:
    """Yield the regular files below `entries` with the names to show; links are not followed."""

    def refuse(error: OSError) -> None:
        remarks.append(f"{printable(Path(error.filename).name)}: cannot be opened ({error.strerror})")

    for entry in entries:
        if entry.is_symlink() or not entry.is_dir():
            paths = [entry]
        else:
            paths = []
            for folder, inside, names in os.walk(entry, onerror=refuse):
                linked = [name for name in inside if Path(folder, name).is_symlink()]
                inside[:] = sorted(name for name in inside if not _is_litter(name))
                paths += [Path(folder, name) for name in sorted([*names, *linked]) if not _is_litter(name)]
        for path in paths:
            name = printable(path.name if path == entry else path.relative_to(entry).as_posix())
            if path.is_symlink():
                remarks.append(f"{name}: a link, which is not followed; hand in the file itself")
            elif not stat.S_ISREG(path.stat().st_mode):
                remarks.append(f"{name}: not a file")
            else:
                yield path, name


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(LARGEST_NOTEBOOK + 1)
    if len(content) > LARGEST_NOTEBOOK:
        raise OSError(f"larger than {LARGEST_NOTEBOOK // 2**20} MB; clear its outputs")
    return content


def _unzipped(name: str, content: bytes, remarks: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the notebooks of a zip file; they are read in memory, so no path in it can do harm."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            inside = [
                info
                for info in archive.infolist()
                if ".ipynb" in info.filename.lower()
                and not info.is_dir()
                and not any(_is_litter(part) for part in info.filename.split("/"))
            ]
            if not inside:
                remarks.append(f"{name}: no notebook in it")
            for info in inside[:MOST_NOTEBOOKS]:
                inner = printable(f"{name}/{info.filename}")
                with archive.open(info) as file:
                    data = file.read(LARGEST_NOTEBOOK + 1)
                if len(data) > LARGEST_NOTEBOOK:
                    remarks.append(f"{inner}: larger than {LARGEST_NOTEBOOK // 2**20} MB")
                else:
                    yield inner, data
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        remarks.append(f"{name}: cannot be unpacked ({type(error).__name__}); unpack it by hand")
