"""Writes what was graded, in every form: for a person, for a spreadsheet, for Gradescope, for other programs.

In the folder: grades.csv; feedback/, a page for each student; class.html for the instructor (`report`); gradescope/, a
results.json for each student; junit.xml; rows.json, which has everything.

Names, file names and messages come from strangers: pages and XML escape them, spreadsheets get no formula from them.
A student's page, Gradescope and JUnit tell of a hidden case only its name and hint, and nothing of flags.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jinja2

from common.grading.pool import AnswerResult, Row
from common.notebooks.anatomy import write_bytes

STATES = {
    "todo": "Still to do: there is no answer here yet.",
    "broken": "Could not be checked.",
    "stopped": "Stopped: this answer was left out, and the rest was run without it.",
    "not run": "Not run.",
    "missing": "Not handed in.",
    "unchecked": "To be marked by a person.",
}
PAGES = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(Path(__file__).parent)
)


def write(folder: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write every file; each is at every moment the old or the new one.

    Args:
        folder: where to; it must exist.
        rows: what was graded, in any order.
        about: facts of the run for rows.json, among them `seed`.

    Raises:
        common.notebooks.anatomy.NotebookError: a file cannot be written.
    """
    from common.grading import report, similar  # report imports this module

    rows = sorted(rows, key=lambda row: (row.student.casefold(), row.student, row.unit))
    write_bytes(_csv(rows).encode(), folder / "grades.csv")
    write_bytes(_json(about | {"rows": [row.as_dict() for row in rows]}), folder / "rows.json")
    write_bytes(junit(rows), folder / "junit.xml")
    template = PAGES.get_template("feedback.html")
    pages: dict[str, list[Row]] = {}
    for row in rows:
        pages.setdefault(row.student, []).append(row)
    names = file_names(list(pages))
    for student, name in names.items():
        page = template.render(
            student=student, rows=pages[student], seed=about["seed"], states=STATES, number=number, seen=seen
        )
        write_bytes(page.encode(), folder / "feedback" / f"{name}.html")
        for row in pages[student]:
            unit = f"-{row.unit.split('/')[-1]}" if len(pages[student]) > 1 else ""
            write_bytes(_json(gradescope(row)), folder / "gradescope" / f"{name}{unit}.json")
    write_bytes(report.page(rows, similar.pairs(rows), about["seed"], names).encode(), folder / "class.html")


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def file_names(students: Sequence[str]) -> dict[str, str]:
    """Return a file name without ending for each student: safe on every system, and different for each."""
    names: dict[str, str] = {}
    for student in students:
        safe = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", student))[:50].strip("._") or "student"
        names[student] = safe
    alike = [name.casefold() for name in names.values()]
    for student, name in names.items():
        if name != student or alike.count(name.casefold()) > 1:
            name += "-" + hashlib.sha256(student.encode()).hexdigest()[:8]
        names[student] = name
    return names


def seen(cases: Sequence[dict[str, Any]]) -> list[str]:
    """Return what to say of each case: its message; "" where it passed, and a reference where an earlier one says it.

    What was put into a call does not make two messages different.
    """
    first: dict[str, str] = {}
    said = []
    for case in cases:
        message = "" if case["passed"] else case["message"]
        earlier = first.setdefault(re.sub(r" \(called with .*\)", "", message), case["name"])
        said.append(f"the same as for: {earlier}" if message and earlier != case["name"] else message)
    return said


# -- for other programs ----------------------------------------------------------------------------------------


def gradescope(row: Row) -> dict[str, Any]:
    """Return the results.json that Gradescope's autograder format asks for, for one student and unit.

    Hidden cases are shown when the grades are published, so that handing in again and again tells nothing of them.
    """
    tests = []
    for answer in row.answers:
        for test in _tests(answer):
            words = [test["message"], f"Hint: {test['hint']}" if test["hint"] else ""]
            one: dict[str, Any] = {"name": f"{answer.slug}: {test['name']}"[:1000], "max_score": test["out_of"]}
            if test["result"] != "waiting":
                one |= {"score": test["points"], "status": "passed" if test["result"] == "passed" else "failed"}
            one |= {"output": "\n".join(filter(None, words)), "output_format": "text"}
            one |= {"visibility": "after_published" if test["hidden"] else "visible"}
            tests.append(one)
    lines = [f"{number(row.points)} of {number(row.out_of)} points"]
    if row.unmarked:
        lines[0] += f", so far: {row.unmarked} to be marked by a person"
    return {
        "score": round(row.points, 2),
        "max_score": round(row.out_of, 2),
        "execution_time": round(row.seconds),
        "output": "\n".join([*lines, *row.remarks]),
        "output_format": "text",
        "test_output_format": "text",
        "tests": tests,
    }


def junit(rows: Sequence[Row]) -> bytes:
    """Return the rows as JUnit XML: a suite for each student and unit, a test for each case.

    A lost point is a failure, an answer that could not be checked an error, one that is not there is skipped.
    """
    root = ElementTree.Element("testsuites")
    for row in rows:
        suite = ElementTree.SubElement(root, "testsuite", name=_xml(f"{row.student}: {row.unit or 'no unit'}"))
        counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
        values = ElementTree.SubElement(suite, "properties")
        for name, value in (("points", row.points), ("out_of", row.out_of)):
            ElementTree.SubElement(values, "property", name=name, value=number(value))
        for answer in row.answers:
            for test in _tests(answer):
                place = _xml(f"{row.unit.replace('/', '.')}.{answer.slug}")
                element = ElementTree.SubElement(suite, "testcase", classname=place, name=_xml(test["name"]))
                counts["tests"] += 1
                kind = {"failed": "failure", "broken": "error", "skipped": "skipped", "waiting": "skipped"}
                if tag := kind.get(test["result"]):
                    counts[{"failure": "failures", "error": "errors"}.get(tag, tag)] += 1
                    text = "\n".join(filter(None, [test["message"], test["hint"] and f"Hint: {test['hint']}"]))
                    first = text.partition("\n")[0]
                    ElementTree.SubElement(element, tag, message=_xml(first)).text = _xml(text)
        for name, count in counts.items():
            suite.set(name, str(count))
        suite.set("time", str(row.seconds))
        if row.remarks:
            ElementTree.SubElement(suite, "system-out").text = _xml("\n".join(row.remarks))
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def _xml(text: str) -> str:
    """Replace the characters that XML 1.0 has no way to write."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _tests(answer: AnswerResult) -> Iterator[dict[str, Any]]:
    """One dictionary for each case, or for the whole answer where there are none.

    Its `result` is passed, failed, broken, skipped, or waiting (for a person).
    """
    for case, message in zip(answer.cases, seen(answer.cases), strict=True):
        hint = "" if case["passed"] or (case["known"] and not case["hidden"]) else case["hint"]
        yield {
            "name": case["name"],
            "points": case["points"],
            "out_of": case["out_of"],
            "result": "passed" if case["passed"] else "failed",
            "message": "" if case["hidden"] else message,
            "hint": hint,
            "hidden": case["hidden"],
        }
    rest = max(0, answer.out_of - sum(case["out_of"] for case in answer.cases))
    if not answer.cases or answer.message or rest:
        result = {"todo": "skipped", "missing": "skipped", "unchecked": "waiting"}.get(answer.state, "broken")
        if answer.state == "marked" or not rest:
            result = "passed" if answer.points >= answer.out_of else "failed"
        said = answer.comment if answer.prose else answer.message
        yield {
            "name": "the rest" if answer.cases else "the whole answer",
            "points": 0 if answer.cases else answer.points,
            "out_of": rest,
            "result": result,
            "message": "\n".join(filter(None, [STATES.get(answer.state, ""), said])),
            "hint": "",
            "hidden": False,
        }


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
