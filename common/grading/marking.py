"""Writes marking.html: each question in prose with its rubric and everyone's answers, for a person to mark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.grading import output
from common.grading.collect import Base, Part
from common.grading.pool import Row
from common.notebooks import anatomy, rubric
from common.notebooks.anatomy import Answer, NotebookError, write_bytes

FILE = "marking.html"


def write(folder: Path, rows: Sequence[Row], bases: Sequence[Base], solved: Path | None) -> None:
    """Write marking.html, where there is anything to mark.

    Args:
        folder: where to.
        rows: what was graded.
        bases: the units.
        solved: the units with their `rubrics/`; None when there are none.

    Raises:
        NotebookError: the file cannot be written.
    """
    rows = sorted(rows, key=lambda row: (row.student.casefold(), row.student))
    questions = [question for base in bases for question in _questions(base, rows, solved)]
    if questions:
        page = output.PAGES.get_template(FILE).render(questions=questions, number=output.number)
        write_bytes(page.encode(), folder / FILE)


def _questions(base: Base, rows: Sequence[Row], solved: Path | None) -> Iterator[dict[str, Any]]:
    given = {(row.student, one.slug): one for row in rows if row.unit == base.unit for one in row.answers}
    students = list(dict.fromkeys(student for student, _ in given))
    for part in base.parts if students else ():
        for answer in part.prose:
            groups: dict[str, dict[str, Any]] = {}
            for student in students:
                if text := given[student, answer.slug].message:
                    group = groups.setdefault(" ".join(text.split()), {"text": text, "students": []})
                    group["students"].append(student)
            question = {"unit": base.unit, "file": part.name, "slug": answer.slug, "points": answer.points or 0}
            question |= {"text": _text(part, answer), "groups": list(groups.values())}
            question |= {"absent": [student for student in students if not given[student, answer.slug].message]}
            yield question | _rubric(base, answer, solved)


def _text(part: Part, answer: Answer) -> str:
    """The Markdown before an answer cell, without the hints."""
    texts: list[str] = []
    for cell in reversed(part.notebook.cells[: answer.index]):
        if anatomy.role(cell) != "prose":
            break
        texts.insert(0, re.sub(r"<details\b.*?</details>", "", cell.source, flags=re.DOTALL).strip())
    return "\n\n".join(filter(None, texts))


def _rubric(base: Base, answer: Answer, solved: Path | None) -> dict[str, Any]:
    try:
        if solved is None:
            raise NotebookError("The branch `solutions`, where the rubrics are, could not be read.")
        path = solved / base.unit / "rubrics" / f"{answer.slug}.md"
        if not path.is_file():
            raise NotebookError("The branch `solutions` has no rubric for this question.")
        return {"rubric": rubric.read(path), "without_rubric": ""}
    except NotebookError as error:
        return {"rubric": None, "without_rubric": str(error)}
