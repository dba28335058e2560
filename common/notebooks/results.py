"""Measures the units: runs each solved notebook and writes down what it recorded.

A notebook records a figure with `common.runtime.record`. `results.json` in the unit's folder keeps the figures
of the last run at each scale, with the time and the hardware; `common.notebooks.stamp` makes tables of it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbclient
from nbclient.exceptions import CellExecutionError

from common import course
from common.notebooks import anatomy, branch, stamp
from common.notebooks.anatomy import NotebookError


def measure(root: Path, say: Callable[[str], None] = print) -> None:
    """Run every solved notebook at scale `quick`, and at `full` where COURSE_DATA names a mirror; write the tables.

    The solved notebooks are those of `solutions/` if there are any, else those of the branch.

    Raises:
        NotebookError: when a notebook fails; the figures measured before are kept.
    """
    scales = ["quick", "full"] if os.environ.get("COURSE_DATA") else ["quick"]
    if len(scales) == 1:
        say("COURSE_DATA is not set, so only `quick` is measured; the figures of `full` stay as they are.")
    with tempfile.TemporaryDirectory() as tmp:
        solved = Path(tmp) / "solutions"
        branch.preview(root, solved, say)
        for unit in course.load(root).ready():
            file = root / unit.folder / "results.json"
            runs = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            for scale in scales:
                say(f"{unit.folder}, {scale} ...")
                runs[scale] = _run(solved / unit.path, scale)
                anatomy.write_bytes((json.dumps(runs, indent=1, ensure_ascii=False) + "\n").encode(), file)
    for path in stamp.stamp(root):
        say(f"{path}: stamped.")
    say("If a notebook was stamped, run `make solutions` and `make publish` to bring the branch along.")


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
        recorded = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in recorded if row[0] != "hardware"]
    return {"hardware": dict(recorded)["hardware"], "seconds": seconds, "rows": rows}
