"""The course as data: where it lies, what units it has, and how far each one is."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.notebooks.anatomy import Answer


@dataclass(frozen=True)
class Notebook:
    """One notebook of a unit.

    Attributes:
        unit: the folder of its unit.
        file: its file name in that folder.
        title: as it stands in tables, beside the unit's.
        hours: a student's time, such as ``"2-3"``.
        answer_files: the names of the files in the unit's folder that the student completes beside it.
        artefacts: the names of the files that the completed notebook makes and that are handed in with it.
    """

    unit: str
    file: str
    title: str
    hours: str
    answer_files: tuple[str, ...] = ()
    artefacts: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The notebook's path from the root of the course, with slashes."""
        return f"{self.unit}/{self.file}"

    @property
    def time(self) -> str:
        """The hours with their unit, as the notebook's title cell says them."""
        return f"{self.hours} hour{'' if self.hours == '1' else 's'}"


@dataclass(frozen=True)
class Unit:
    """One lab, quiz, homework or project: a folder with one or more notebooks.

    Attributes:
        folder: its path from the root of the course, such as ``phase2_transformers/lab1_attention``.
        title: as it stands in tables.
        hours: a student's time for all of it, such as ``"2-3"``.
        builds: one sentence: what the student builds.
        notebooks: its notebooks, in the order in which a student takes them.
    """

    folder: str
    title: str
    hours: str
    builds: str
    notebooks: tuple[Notebook, ...]

    @property
    def phase(self) -> str:
        """The folder of the phase that the unit belongs to."""
        return self.folder.split("/")[0]


@dataclass(frozen=True)
class Phase:
    """A group of units: a folder with a README of its own."""

    folder: str
    title: str


@dataclass(frozen=True)
class Course:
    """Everything that ``course.toml`` says, and the folder it speaks of."""

    root: Path
    repository: str
    branch: str
    phases: tuple[Phase, ...]
    units: tuple[Unit, ...]

    @cached_property
    def by_folder(self) -> dict[str, Unit]:
        """The units by their folders."""
        return {unit.folder: unit for unit in self.units}

    def of_phase(self, folder: str) -> list[Unit]:
        """The units of the phase in ``folder``, in the order of the syllabus."""
        return [unit for unit in self.units if unit.phase == folder]

    def find(self, path: str) -> Notebook | None:
        """The notebook with a path from the root of the course; None where none is listed there."""
        return next((one for unit in self.units for one in unit.notebooks if one.path == path), None)

    def ready(self) -> list[Unit]:
        """The units whose notebooks all exist."""
        return [unit for unit in self.units if self.is_ready(unit)]

    def is_ready(self, unit: Unit) -> bool:
        """Whether all notebooks of ``unit`` exist."""
        return all(self.file(notebook).is_file() for notebook in unit.notebooks)

    def notebooks(self) -> list[Notebook]:
        """The notebooks of all units that are ready, in the order of the syllabus."""
        return [notebook for unit in self.ready() for notebook in unit.notebooks]

    def file(self, notebook: Notebook) -> Path:
        """Where ``notebook`` is, or will be."""
        return self.root / notebook.path

    def answers(self, notebook: Notebook) -> list[Answer]:
        """The TODOs of a notebook, then those of its answer files.

        Raises:
            common.notebooks.anatomy.NotebookError: when the notebook or one of its answer files can't be read.
        """
        from common.notebooks import anatomy

        found = anatomy.answers(anatomy.read(self.file(notebook)))
        for name in notebook.answer_files:
            found += anatomy.file_answers(self.root / notebook.unit / name)
        return found

    def points(self, unit: Unit) -> int | None:
        """The sum of the points of the unit's TODOs; None while a notebook of it is missing.

        Raises:
            common.notebooks.anatomy.NotebookError: when a notebook or an answer file can't be read.
        """
        if not self.is_ready(unit):
            return None
        return sum(answer.points or 0 for notebook in unit.notebooks for answer in self.answers(notebook))


def find_root(start: str | Path | None = None) -> Path:
    """The root of the course: the nearest folder, upwards from ``start``, that holds ``common/course.toml``.

    Args:
        start: a folder or file of the course; without it, the course that this package belongs to.

    Raises:
        FileNotFoundError: when ``start`` lies in no course.
    """
    place = Path(start or __file__).resolve()
    for folder in (place, *place.parents):
        if (folder / "common" / "course.toml").is_file():
            return folder
    raise FileNotFoundError(f"{place} is not inside the course: no folder above it holds common/course.toml")


def load(root: str | Path | None = None) -> Course:
    """Read ``common/course.toml``.

    Args:
        root: the root of the course; without it, the course that this package belongs to.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when an entry is missing, unknown, or stands twice.
    """
    root = Path(root) if root else find_root()
    file = root / "common" / "course.toml"
    try:
        return parse(file.read_text(encoding="utf-8"), root)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def parse(text: str, root: Path) -> Course:
    """Read the text of a ``course.toml``.

    Args:
        text: of the file.
        root: the root of the course that it describes.

    Raises:
        ValueError: when an entry is missing, unknown, or stands twice.
    """
    data = tomllib.loads(text)
    try:
        phases = tuple(Phase(**entry) for entry in data["phase"])
        units = tuple(_unit(dict(entry)) for entry in data["unit"])
        course = Course(root, data["repository"].rstrip("/"), data["branch"], phases, units)
    except (KeyError, TypeError) as error:
        raise ValueError(f"an entry is missing or unknown: {error}") from error
    if len(course.by_folder) < len(units):
        raise ValueError("two units have the same folder")
    for unit in units:
        files = [
            name for notebook in unit.notebooks for name in (notebook.file, *notebook.answer_files, *notebook.artefacts)
        ]
        if len(set(files)) < len(files):
            raise ValueError(f"{unit.folder} lists a file twice")
    homeless = [unit.folder for unit in units if unit.phase not in {phase.folder for phase in phases}]
    if homeless:
        raise ValueError(f"{homeless[0]} lies in no [[phase]]")
    return course


def _unit(entry: dict[str, Any]) -> Unit:
    folder, title, hours = entry["folder"], entry["title"], entry["hours"]
    listed = entry.pop("notebooks", [{"file": folder.split("/")[-1] + ".ipynb"}])
    notebooks = []
    for each in listed:
        each = {"title": title, "hours": hours, **each}
        each |= {kind: tuple(each.get(kind, ())) for kind in ("answer_files", "artefacts")}
        notebooks.append(Notebook(unit=folder, **each))
    return Unit(**entry, notebooks=tuple(notebooks))
