"""Measures the units: runs each solved notebook and writes down what it recorded.

A notebook records a figure with `common.runtime.record`. `results.json` in the unit's folder keeps, for each of
its notebooks, the figures of the last run at each scale, with the time and the hardware::

    {"lab1_attention.ipynb": {"quick": {"hardware": ..., "seconds": ..., "rows": [[measure, value], ...]}, "full": ...}}

`common.notebooks.stamp` makes tables of it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nbclient
from nbclient.exceptions import CellExecutionError

from common import course
from common.notebooks import anatomy, branch, stamp
from common.notebooks.anatomy import NotebookError

SCALES = ("quick", "full")


def measure(root: Path, only: Sequence[str] = (), scale: str | None = None, say: Callable[[str], None] = print) -> None:
    """Run solved notebooks at scale `quick`, and at `full` where COURSE_DATA names a mirror; write the tables.

    The solved notebooks are those of `solutions/` if there are any, else those of the branch. A figure that is
    not measured again stays as it is.

    Args:
        root: the course.
        only: the notebooks to run, or folders of units, from the root of the course; all, if there are none.
        scale: the one scale to measure.
        say: is given each line of the report.

    Raises:
        NotebookError: when there is no such notebook, or one fails; the figures measured before are kept.
    """
    syllabus = course.load(root)
    scales = [scale] if scale else ["quick", "full"] if os.environ.get("COURSE_DATA") else ["quick"]
    if not scale and len(scales) == 1:
        say("COURSE_DATA is not set, so only `quick` is measured; the figures of `full` stay as they are.")
    wanted = [name.rstrip("/") for name in only]
    unknown = set(wanted) - {name for entry in syllabus.notebooks() for name in (entry.path, entry.unit)}
    if unknown:
        listed = ", ".join(entry.path for entry in syllabus.notebooks())
        raise NotebookError(f"no notebook is called {', '.join(sorted(unknown))}; there are {listed}")
    with tempfile.TemporaryDirectory() as tmp:
        solved = Path(tmp) / "solutions"
        branch.preview(root, solved, say)
        for entry in syllabus.notebooks():
            for one in scales:
                if not wanted or entry.path in wanted or entry.unit in wanted:
                    say(f"{entry.path}, {one} ...")
                    _keep(root / entry.unit / "results.json", entry.file, one, _run(solved / entry.path, one))
    for path in stamp.stamp(root):
        say(f"{path}: stamped.")
    say("If a notebook was stamped, run `make solutions` and `make publish` to bring the branch along.")


def _keep(file: Path, notebook: str, scale: str, run: dict[str, Any]) -> None:
    """Write one run into a `results.json`; everything else in it stays."""
    measured = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    runs = measured.get(notebook, {}) | {scale: run}
    measured[notebook] = {name: runs[name] for name in SCALES if name in runs}
    anatomy.write_bytes((json.dumps(measured, indent=1, ensure_ascii=False) + "\n").encode(), file)


def _run(notebook: Path, scale: str) -> dict[str, Any]:
    """Run one notebook in a fresh kernel and return its figures."""
    with tempfile.TemporaryDirectory() as tmp:
        target = Path(tmp) / "results.jsonl"
        surroundings = os.environ | {"COURSE_SCALE": scale, "COURSE_RESULTS": str(target)}
        client = nbclient.NotebookClient(
            anatomy.read(notebook), timeout=None, resources={"metadata": {"path": str(notebook.parent)}}
        )
        begin = time.perf_counter()
        try:
            client.execute(env=surroundings)
        except CellExecutionError as error:
            raise NotebookError(f"{notebook.name} fails at scale {scale}:\n{error}") from None
        seconds = round(time.perf_counter() - begin, 1)
        if not target.is_file():
            raise NotebookError(f"{notebook.name} does not say what it runs on: call `start()` in its setup cell")
        recorded = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in recorded if row[0] != "hardware"]
    return {"hardware": dict(recorded)["hardware"], "seconds": seconds, "rows": rows}
