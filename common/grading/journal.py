"""Keeps each row as soon as it is known, so that a grader that was killed goes on where it stopped.

The first line of the file holds the seed, the last one says that all is done; between them is a row a line, with a
digest of everything that it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from common.grading.collect import Base, Task
from common.grading.pool import AnswerResult, Row, Settings
from common.notebooks.anatomy import write_bytes

NAME = "results.jsonl"


class Journal:
    """The rows of one grading."""

    def __init__(self, path: Path, seed: int | None, *, fresh: int) -> None:
        """Open the journal, or start a new one.

        Args:
            path: where it lies, or is to.
            seed: the wanted seed; None if any will do.
            fresh: the seed of a new journal, when none is wanted.

        Raises:
            common.notebooks.anatomy.NotebookError: it cannot be written.
        """
        self._rows: dict[str, Row] = {}
        self.kept = 0  # rows of an earlier start that are still right
        about, lines, done = _read(path)
        goes_on = bool(about) and not done and seed in (None, about["seed"])
        self.about = about if goes_on else {"seed": fresh if seed is None else seed}
        for line in lines if goes_on else ():
            self._rows[line["digest"]] = _row(line)
        lines = [self.about, *(row.as_dict() for row in self._rows.values())]
        write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode(), path)
        self._file = path.open("a", encoding="utf-8")

    def missing(self, tasks: Iterable[Task], settings: Settings, rows: list[Row]) -> Iterator[Task]:
        """Yield the tasks of which there is no row yet, with their digests; put the rows that there are into `rows`."""
        units: dict[str, str] = {}
        for task in tasks:
            if task.base and task.unit not in units:
                units[task.unit] = _digest_of_unit(task.base, settings)
            digest = _digest_of_task(task, settings, units.get(task.unit, ""))
            if digest in self._rows:
                rows.append(self._rows[digest])
                self.kept += 1
            else:
                yield replace(task, digest=digest)

    def add(self, row: Row) -> None:
        """Keep a row; when this returns it is on disk."""
        self._write(row.as_dict())
        os.fsync(self._file.fileno())

    def close(self, *, done: bool) -> None:
        """Close the file; when all is `done`, the next grading starts anew."""
        if done:
            self._write({"done": True})
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def _digest_of_task(task: Task, settings: Settings, unit: str) -> str:
    said = task.student, task.unit, task.files, task.jobs, task.prose, sorted(task.missing), task.remarks, task.flags
    limits = settings.seed, settings.timeout, settings.memory, settings.contained, os.environ.get("COURSE_SCALE")
    return hashlib.sha256(repr((said, limits, unit)).encode()).hexdigest()


def _digest_of_unit(base: Base, settings: Settings) -> str:
    files = sorted(base.folder.glob("*.py"))
    files += [settings.hidden[base.unit]] if base.unit in settings.hidden else []
    return hashlib.sha256(repr([(file.name, file.read_bytes()) for file in files]).encode()).hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], bool]:
    """What a journal says first, its rows, and whether all was done; what cannot be read is left out."""
    found = []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}, [], False
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # the grader was killed while it wrote it
            continue
    if not found or not isinstance(found[0].get("seed"), int):
        return {}, [], False
    return found[0], [line for line in found[1:] if "digest" in line], any("done" in line for line in found)


def _row(line: dict[str, Any]) -> Row:
    names = {field.name for field in fields(Row)}
    answers = [AnswerResult(**answer) for answer in line["answers"]]
    return Row(**{name: value for name, value in line.items() if name in names} | {"answers": answers})
