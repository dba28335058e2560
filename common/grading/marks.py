"""Marks that a person gives: marks.csv, in a folder of grades, into the totals.

`make grade` writes a line for each student and question in prose, and marking.html to read beside it. Filled
marks count from the next `make grade` on, or at once with `make marks`. The file is a person's work: what stands
in it is never changed or taken out, only lines that are lacking are added.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import csv
import io
import json
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from common.grading import output
from common.grading.pool import AnswerResult, Row
from common.notebooks.anatomy import NotebookError, write_bytes

FILE = "marks.csv"
COLUMNS = ("student", "unit", "question", "mark", "out_of", "comment")

_Key = tuple[str, str, str]


def update(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Take the marks of `folder`/marks.csv into `rows`, and add the lines to it that are lacking.

    Args:
        folder: the folder of the grades.
        rows: what was graded.

    Returns:
        What is odd about the file, a sentence each; a mark that is spoken of was not taken.

    Raises:
        NotebookError: the file cannot be written.
    """
    questions = {
        (output.no_formula(row.student), row.unit, answer.slug): answer
        for row in rows
        for answer in row.answers
        if answer.prose
    }
    for answer in questions.values():
        _set(answer, None, "")
    path = folder / FILE
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        return [f"{path} cannot be read ({error.strerror}): no mark was taken"]
    sheet = _Sheet(data)
    if sheet.columns is None:
        return [f"{path}, line 1: must name the columns {', '.join(COLUMNS)}; no mark was taken"]
    problems = [f"{path}, {problem}" for problem in _take(sheet, questions)]
    lacking = [key for key in questions if key not in sheet.taken]
    if lacking:
        lines = [(*key, "", output.number(questions[key].out_of), "") for key in lacking]
        write_bytes(sheet.extended(lines), path)
    return problems


def _set(answer: AnswerResult, mark: float | None, comment: str) -> None:
    if mark is not None:
        answer.state, answer.points = "marked", mark
    elif answer.state in ("marked", "unchecked"):
        answer.state, answer.points = "unchecked" if answer.message else "todo", 0
    answer.comment = comment


def _take(sheet: _Sheet, questions: dict[_Key, AnswerResult]) -> Iterator[str]:
    loosely: dict[_Key, list[_Key]] = {}
    for key in questions:
        loosely.setdefault(_loose(key), []).append(key)
    units = {unit for _, unit, _ in loosely} | {""}
    unknown = []
    for line in sheet.lines():
        if _loose(line.key)[1] not in units:  # another homework's, graded into the same folder
            continue
        alike = [line.key] if line.key in questions else loosely.get(_loose(line.key), [])
        if len(alike) != 1:
            unknown.append(line.number)
            continue
        answer = questions[alike[0]]
        mark = line.points
        whose = f"{line.mark!r} for {line.key[2]} of {line.key[0]}"
        if line.mark and (mark is None or mark > answer.out_of):
            yield f"line {line.number}: {whose} is no number from 0 to {answer.out_of:g}; it was not taken"
            mark = None
        earlier = sheet.taken.setdefault(alike[0], line.number)
        if earlier == line.number:
            _set(answer, mark, line.comment)
        elif mark is not None:
            yield f"line {line.number}: {whose} stands in line {earlier} too; the later line counts"
            _set(answer, mark, line.comment)
    if unknown:
        shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
        yield f"{len(unknown)} lines (line {shown}) are of no question or student of this grading; they were kept"
    yield from sheet.problems


def _loose(key: _Key) -> _Key:
    """A line's key whatever a spreadsheet did to it: 007 becomes 7, a leading ' goes."""

    def loose(text: str) -> str:
        text = unicodedata.normalize("NFC", text).strip().lstrip("'").strip()
        return text.lstrip("0") if text.isdigit() else text

    student, unit, question = map(loose, key)
    return student, unit, question


@dataclass(frozen=True)
class _Line:
    """One line of marks.csv."""

    number: int
    key: _Key
    mark: str
    comment: str

    @property
    def points(self) -> float | None:
        """The mark as a number, whichever decimal sign it has; None when it is none."""
        text = self.mark.lstrip("'").replace(",", ".")
        return float(text) if re.fullmatch(r"\d{1,9}(\.\d*)?|\.\d+", text, re.ASCII) else None


class _Sheet:
    """The text of a marks.csv, however a spreadsheet has saved it."""

    def __init__(self, data: bytes) -> None:
        """Read the bytes of the file; `columns` is None when it has no heading."""
        self.problems: list[str] = []
        self.taken: dict[_Key, int] = {}  # the questions that it has a line for, and which
        marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
        said = [encoding for mark, encoding in marks.items() if data.startswith(mark)]
        for self._encoding in (*said, "utf-8", "cp1252", "latin-1"):
            with contextlib.suppress(UnicodeDecodeError):
                self._text = data.decode(self._encoding)
                break
        if not self._text.strip():
            self._text, self._encoding = ",".join(COLUMNS) + "\n", "utf-8-sig"
        heading = self._text.lstrip().splitlines()[0]
        self._delimiter = max(",;\t", key=heading.count)
        names = [name.strip().strip('"').lower() for name in heading.split(self._delimiter)]
        found = {name: names.index(name) for name in COLUMNS if name in names}
        self.columns = found if found.keys() >= {"student", "unit", "question", "mark"} else None

    def lines(self) -> Iterator[_Line]:
        """Yield the lines below the heading, without empty ones."""
        columns = self.columns or {}
        for number, cells in self._records():
            values = {name: cells[at].strip() for name, at in columns.items() if at < len(cells)}
            if any(values.values()) and number > 1:
                key = (values.get("student", ""), values.get("unit", ""), values.get("question", ""))
                yield _Line(number, key, values.get("mark", ""), values.get("comment", ""))

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        text = io.StringIO(self._text.replace("\0", ""), newline=None).read()
        reader = csv.reader(io.StringIO(text), delimiter=self._delimiter, strict=True)
        try:
            number, records = 1, []
            for record in reader:
                records.append((number, record))
                number = reader.line_num + 1
        except csv.Error:
            self.problems.append(f"line {number}: its quotes do not match; each line was read by itself")
            lines = text.splitlines()
            records = [(n, next(csv.reader([line], delimiter=self._delimiter), [])) for n, line in enumerate(lines, 1)]
        yield from records

    def extended(self, lines: Sequence[Sequence[str]]) -> bytes:
        """Return the bytes of the file with more lines, in the form that it has."""
        columns = self.columns or {}
        end = "\r\n" if "\r\n" in self._text else "\n"
        added = io.StringIO()
        writer = csv.writer(added, delimiter=self._delimiter, lineterminator=end)
        for line in lines:
            values = dict(zip(COLUMNS, line, strict=True))
            cells = {at: values[name] for name, at in columns.items()}
            writer.writerow([cells.get(at, "") for at in range(max(cells) + 1)])
        text = self._text + ("" if self._text.endswith(("\n", "\r")) else end) + added.getvalue()
        try:
            return text.encode(self._encoding)
        except UnicodeEncodeError:
            return text.encode("utf-8-sig")


def main(arguments: Sequence[str] | None = None) -> int:
    """Take filled marks into grades that are there already; return 1 when something is odd, 2 without grades."""
    parser = argparse.ArgumentParser(
        prog="python -m common.grading.marks", description="Take the marks of marks.csv into the grades."
    )
    parser.add_argument("folder", type=Path, nargs="?", default=Path("grades"), help="of `make grade` (grades)")
    folder = parser.parse_args(arguments).folder
    try:
        about = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        rows = [_row(row) for row in about.pop("rows")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"No results to add marks to in {folder}: run `make grade` first ({error})", file=sys.stderr)
        return 2
    try:
        problems = update(folder, rows)
        output.write(folder, rows, about)
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 2
    print(output.summary(rows))
    print("\n".join(["", *problems, remaining(folder, rows)]))
    return 1 if problems else 0


def remaining(folder: Path, rows: Sequence[Row]) -> str:
    """Return a sentence about the answers that still wait for a person."""
    if left := sum(row.unmarked for row in rows):
        return (
            f"Answers in prose that are not marked yet: {left}. Read {folder / 'marking.html'}, fill {folder / FILE}."
        )
    return "Every answer in prose is marked."


def _row(data: dict[str, Any]) -> Row:
    known = {field.name for field in fields(Row)}
    answers = [AnswerResult(**answer) for answer in data["answers"]]
    return Row(**{name: value for name, value in data.items() if name in known} | {"answers": answers})


if __name__ == "__main__":
    sys.exit(main())
