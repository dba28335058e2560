"""The course as data: where it lies, what units it has, and how far each one is."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Unit:
    """One lab, quiz, homework or project: a folder with a notebook.

    Attributes:
        folder: its path from the root of the course, such as ``phase2_transformers/lab1_attention``.
        title: as it stands in tables.
        hours: a student's time, such as ``"2-3"``.
        builds: one sentence: what the student builds.
        notebook: the notebook's file name inside the folder.
    """

    folder: str
    title: str
    hours: str
    builds: str
    notebook: str

    @property
    def phase(self) -> str:
        """The folder of the phase that the unit belongs to."""
        return self.folder.split("/")[0]

    @property
    def path(self) -> str:
        """The notebook's path from the root of the course, with slashes."""
        return f"{self.folder}/{self.notebook}"


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

    def ready(self) -> list[Unit]:
        """The units whose notebook exists."""
        return [unit for unit in self.units if self.notebook(unit).is_file()]

    def notebook(self, unit: Unit) -> Path:
        """Where the notebook of ``unit`` is, or will be."""
        return self.root / unit.path

    def status(self, unit: Unit) -> str:
        """``"ready"`` when the unit's notebook exists, else ``"planned"``."""
        return "ready" if self.notebook(unit).is_file() else "planned"

    def points(self, unit: Unit) -> int | None:
        """The sum of the points of the unit's TODOs; None while it has no notebook.

        Raises:
            common.notebooks.anatomy.NotebookError: when the notebook can't be read.
        """
        if not self.notebook(unit).is_file():
            return None
        from common.notebooks import anatomy

        return sum(answer.points or 0 for answer in anatomy.answers(anatomy.read(self.notebook(unit))))


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
    data = tomllib.loads(file.read_text(encoding="utf-8"))
    try:
        phases = tuple(Phase(**entry) for entry in data["phase"])
        units = tuple(
            Unit(**{"notebook": entry["folder"].split("/")[-1] + ".ipynb", **entry}) for entry in data["unit"]
        )
        course = Course(root, data["repository"].rstrip("/"), data["branch"], phases, units)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: an entry is missing or unknown: {error}") from error
    if len(course.by_folder) < len(units):
        raise ValueError(f"{file}: two units have the same folder")
    homeless = [unit.folder for unit in units if unit.phase not in {phase.folder for phase in phases}]
    if homeless:
        raise ValueError(f"{file}: {homeless[0]} lies in no [[phase]]")
    return course
