"""Writes what was graded: grades.csv, results.json, a feedback page for each student, and a table to read.

Names, file names and messages come from strangers: pages escape them, spreadsheets get no formula from them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from common.grading.pool import Row
from common.notebooks.anatomy import write_bytes

STATES = {
    "todo": "Still to do: there is no answer here yet.",
    "broken": "Could not be checked.",
    "stopped": "Stopped: this answer was left out, and the rest was run without it.",
    "not run": "Not run.",
    "missing": "Not handed in.",
}
PAGES = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(Path(__file__).parent)
)


def write(folder: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write grades.csv, results.json and the pages; each file is at every moment the old or the new one.

    Args:
        folder: where to; it must exist.
        rows: what was graded, in any order.
        about: facts of the run for results.json, among them `seed`.

    Raises:
        common.notebooks.anatomy.NotebookError: a file cannot be written.
    """
    rows = sorted(rows, key=lambda row: (row.student.casefold(), row.student, row.unit))
    write_bytes(_csv(rows).encode(), folder / "grades.csv")
    results = about | {"rows": [row.as_dict() for row in rows]}
    write_bytes(json.dumps(results, indent=1, ensure_ascii=False).encode(), folder / "results.json")
    template = PAGES.get_template("feedback.html")
    pages: dict[str, list[Row]] = {}
    for row in rows:
        pages.setdefault(row.student, []).append(row)
    for student, name in file_names(list(pages)).items():
        page = template.render(student=student, rows=pages[student], seed=about["seed"], states=STATES, number=number)
        write_bytes(page.encode(), folder / "feedback" / name)


def file_names(students: Sequence[str]) -> dict[str, str]:
    """Return a name for the page of each student: safe on every system, and different for each."""
    names: dict[str, str] = {}
    for student in students:
        safe = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", student))[:50].strip("._") or "student"
        names[student] = safe
    alike = [name.casefold() for name in names.values()]
    for student, name in names.items():
        if name != student or alike.count(name.casefold()) > 1:
            name += "-" + hashlib.sha256(student.encode()).hexdigest()[:8]
        names[student] = name + ".html"
    return names


def summary(rows: Sequence[Row]) -> str:
    """Return the table for the console: a line for each row, the mean, and the hardest answers."""
    lines = []
    for unit in sorted({row.unit for row in rows}):
        here = sorted((row for row in rows if row.unit == unit), key=lambda row: row.student.casefold())
        lines.append(f"\n{unit or 'no unit found'}")
        width = min(40, max(len(row.student) for row in here))
        for row in here:
            remarks = f"  {len(row.remarks)} remark{'s'[: len(row.remarks) > 1]}" if row.remarks else ""
            first = f": {row.remarks[0][:60]}" if row.remarks else ""
            points = f"{number(row.points):>6} of {number(row.out_of)}"
            points += f" ({row.unmarked} unmarked)" if row.unmarked else ""
            lines.append(f"  {row.student[:40]:<{width}} {points}{remarks}{first}")
        mean = sum(row.points for row in here) / len(here)
        out_of = number(max(row.out_of for row in here))
        lines.append(f"  {len(here)} row{'s'[: len(here) > 1]}, mean {mean:.1f} of {out_of}")
        shares = _shares(here)
        slug, share = min(shares.items(), key=lambda item: item[1], default=("", 1.0))
        if share < 1:
            lines.append(f"  hardest: {slug}, {share:.0%} of its points earned on average")
    return "\n".join(lines)


def _shares(rows: Sequence[Row]) -> dict[str, float]:
    """The share of its points that each answer earned, over the rows in which it was; without what is unmarked."""
    unmarked = {answer.slug for row in rows for answer in row.answers if answer.state == "unchecked"}
    earned: dict[str, list[float]] = {}
    for row in rows:
        for answer in row.answers:
            if answer.out_of and answer.state != "missing" and answer.slug not in unmarked:
                earned.setdefault(answer.slug, []).append(answer.points / answer.out_of)
    return {slug: sum(values) / len(values) for slug, values in earned.items()}


def _csv(rows: Sequence[Row]) -> str:
    several = len({row.unit for row in rows if row.answers}) > 1

    def column(row: Row, slug: str) -> str:
        return f"{row.unit}/{slug}" if several else slug

    columns = dict.fromkeys(column(row, answer.slug) for row in rows for answer in row.answers)
    head = ["student", "unit", "total", "out_of", *columns, "percent", "unmarked", "files", "remarks"]
    text = io.StringIO()
    writer = csv.DictWriter(text, head, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        cells = {
            column(row, answer.slug): "" if answer.state == "unchecked" else number(answer.points)
            for answer in row.answers
        }
        cells |= {"student": row.student, "unit": row.unit}
        cells |= {"files": " | ".join(row.files), "remarks": " | ".join(row.remarks)}
        cells |= {"total": number(row.points), "out_of": number(row.out_of), "unmarked": str(row.unmarked)}
        cells["percent"] = f"{100 * row.points / row.out_of:.1f}" if row.out_of else "0.0"
        writer.writerow({name: no_formula(cell) for name, cell in cells.items()})
    return text.getvalue()


def no_formula(cell: str) -> str:
    """Return the text of a cell on one line, such that no spreadsheet takes it for a formula."""
    cell = " ".join(cell.split("\n"))
    return f"'{cell}" if cell.lstrip().startswith(("=", "+", "-", "@")) else cell


def number(value: float) -> str:
    """Return points as text."""
    return f"{round(value, 2):g}"
