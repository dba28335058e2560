"""What a notebook of the course is made of: reading, writing, the roles of cells, its answers."""

import ast
import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nbformat import NotebookNode, from_dict

Role = Literal["answer", "check", "setup", "prose", "code"]
Function = ast.FunctionDef | ast.AsyncFunctionDef

MAX_BYTES = 100_000_000
LONGEST_TODO = 300  # characters of a TODO line
VALID_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
TODO_LINE = re.compile(
    r"(?:#+|<!--)\s*TODO:?\s+(?P<slug>[a-z0-9]+(?:-[a-z0-9]+)*)"
    r"(?:\s*\(\s*(?P<points>\d+)\s+points?\s*,\s*~?\s*(?P<minutes>\d+)\s+min\w*\s*\))?\s*(?:-->)?\s*"
)
PLACEHOLDER = "*Your answer.*"


class NotebookError(Exception):
    """Something is wrong with a notebook or a folder; the message says what, and what to do next."""


@dataclass(frozen=True)
class Todo:
    """The first line of an answer cell, read. Points and minutes are None where the line has none."""

    slug: str
    points: int | None
    minutes: int | None


@dataclass(frozen=True)
class Answer:
    """One TODO: an answer cell of a notebook, or a part of an answer file.

    `name` is what its code defines (None in Markdown and where nothing can be found; in a file, the top-level
    name that holds it); `index` is the cell's, in a file the line's; `is_stub` says that something in it still
    has to be done; `file` is the name of the answer file, if it lies in one.
    """

    slug: str
    points: int | None
    minutes: int | None
    name: str | None
    kind: Literal["code", "markdown", "file"]
    index: int
    source: str
    is_stub: bool
    file: str = ""


# Reading and writing


def read(path: str | Path) -> NotebookNode:
    """Read a notebook of any nbformat version, however it was saved, as nbformat 4.5 with unique ids.

    Cells without an id get one that follows from their content. A repeated id gets the ending `_copy2`,
    `_copy3`, ... Everything odd inside the notebook is mended or left out; nothing is run.

    Args:
        path: the file.

    Returns:
        The notebook.

    Raises:
        NotebookError: the file is missing, too large, or not a notebook.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise NotebookError(
                f"{path}: larger than {MAX_BYTES // 1_000_000} MB. Clear its outputs "
                "(Edit > Clear Outputs of All Cells), save it and try again."
            )
        data = path.read_bytes()
    except OSError as error:
        raise NotebookError(f"{path}: cannot be read ({error.strerror}). Check the name of the file.") from None
    try:
        return parse(data)
    except NotebookError as error:
        raise NotebookError(f"{path}: {error}") from None


def parse(data: bytes) -> NotebookNode:
    """Read a notebook from the bytes of its file, as `read` does.

    Raises:
        NotebookError: these are not the bytes of a notebook.
    """
    if not data.strip(b"\0 \t\r\n"):
        raise NotebookError("the file is empty. Save the notebook again, or take an older copy.")
    try:
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    text = text.removeprefix("\ufeff")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise NotebookError(_not_json(text)) from None
    if not isinstance(raw, dict):
        raise NotebookError("not a notebook: JSON, but without cells. Was another file renamed to .ipynb?")
    cells = raw.get("cells")
    if cells is None and isinstance(raw.get("worksheets"), list):  # nbformat 1 to 3
        sheets = [sheet for sheet in raw["worksheets"] if isinstance(sheet, dict)]
        cells = [cell for sheet in sheets for cell in sheet.get("cells") or []]
    if not isinstance(cells, list):
        raise NotebookError("not a notebook: JSON, but without cells. Was another file renamed to .ipynb?")
    metadata = raw.get("metadata")
    mended = [_mended(cell) for cell in cells if isinstance(cell, dict)]
    give_ids(mended)
    metadata = metadata if isinstance(metadata, dict) else {}
    return from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": mended})


def _not_json(text: str) -> str:
    start = text.lstrip()
    if start.startswith(("{", "[")):
        if "<<<<<<< " in text:
            return "it holds the marks of a git conflict. Settle the conflict, or take one side whole."
        return "the file breaks off or is damaged. Save or download the notebook again."
    if start.startswith("<"):
        return "a web page, not a notebook. Download the notebook itself (on GitHub: the button 'Raw')."
    if start.startswith("PK"):
        return "a zip archive, not a notebook. Unpack it first."
    if python(text) is not None:
        return "a Python file with the ending .ipynb, not a notebook. Hand in the notebook (.ipynb) itself."
    return "not a notebook. Was another file renamed to .ipynb?"


def _text(value: object) -> str:
    """Text from JSON: a string or a list of strings, with \\n line ends and nothing that UTF-8 cannot hold."""
    if isinstance(value, list):
        value = "".join(part for part in value if isinstance(part, str))
    if not isinstance(value, str):
        return ""
    value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value.replace("\r\n", "\n").replace("\r", "\n")


def _mended(cell: dict) -> dict:
    kind = cell.get("cell_type")
    source = _text(cell.get("source", cell.get("input")))
    if kind == "heading":
        level = cell.get("level")
        source = "#" * (level if isinstance(level, int) and 1 <= level <= 6 else 1) + " " + source
    metadata = cell.get("metadata")
    metadata = dict(metadata) if isinstance(metadata, dict) else {}
    tags = metadata.pop("tags", None)
    if isinstance(tags, list) and tags:
        metadata["tags"] = [tag for tag in tags if isinstance(tag, str)]
    new = {
        "cell_type": kind if kind in ("code", "raw") else "markdown",
        "id": cell.get("id"),
        "metadata": metadata,
        "source": source,
    }
    if new["cell_type"] == "code":
        count = cell.get("execution_count")
        outputs = cell.get("outputs")
        new["execution_count"] = count if isinstance(count, int) else None
        new["outputs"] = [_joined(out) for out in outputs if _is_output(out)] if isinstance(outputs, list) else []
    elif isinstance(cell.get("attachments"), dict):
        new["attachments"] = cell["attachments"]
    return new


def _is_output(output: object) -> bool:
    """Whether an output has the form of nbformat 4 (older forms are left out: they are never needed)."""
    if not isinstance(output, dict):
        return False
    kind = output.get("output_type")
    if kind == "stream":
        return isinstance(output.get("name"), str) and isinstance(output.get("text"), str | list)
    return kind == "error" or (kind in ("display_data", "execute_result") and isinstance(output.get("data"), dict))


def _joined(output: dict) -> dict:
    """An output whose texts are strings; in the file they are lists of lines."""
    if output["output_type"] == "stream":
        return {**output, "text": _text(output["text"])}
    data = output.get("data")
    if not isinstance(data, dict):
        return output
    texts = {kind for kind, value in data.items() if isinstance(value, list) and "json" not in kind}
    return {**output, "data": {kind: _text(v) if kind in texts else v for kind, v in data.items()}}


def write(notebook: NotebookNode, path: str | Path) -> None:
    """Write a notebook in normal form, so that the file is at every moment either the old or the new one.

    Args:
        notebook: any notebook of nbformat 4.
        path: the file.

    Raises:
        NotebookError: the file cannot be written.
    """
    from common.notebooks import normal  # normal imports this module

    write_bytes(normal.to_bytes(notebook), path)


def write_bytes(data: bytes, path: str | Path) -> None:
    """Write a file whole or not at all (a temporary file beside it, then a rename).

    Raises:
        NotebookError: the file cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        handle, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise NotebookError(
            f"{path}: cannot be written ({error.strerror}). Check the free space and your rights in the folder."
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def give_ids(cells: list) -> None:
    """Give each cell, in place, a valid and unique id; ids that are fine stay.

    New ids follow from the first words of the cell, so that the same notebook always gets the same ids.
    """
    kept = {cell.get("id") for cell in cells if _is_id(cell.get("id"))}
    seen: set[str] = set()
    numbers: dict[str, int] = {}  # the next one to try for each wish
    for cell in cells:
        old = cell.get("id")
        if _is_id(old) and old not in seen:
            seen.add(old)
            continue
        wish, joint = (old[:56], "_copy") if _is_id(old) else (_id_from_content(cell), "-")
        new, number = wish, numbers.get(wish, 2)
        while new in kept:
            new, number = f"{wish}{joint}{number}", number + 1
        numbers[wish] = number
        cell["id"] = new
        kept.add(new)


def _is_id(value: object) -> bool:
    return isinstance(value, str) and VALID_ID.fullmatch(value) is not None


def _id_from_content(cell: dict) -> str:
    prefix = "code" if cell["cell_type"] == "code" else "text"
    lines = [line for line in cell["source"].split("\n") if line.strip()]
    first = re.sub(r"<[^>]*>", " ", lines[0][:1000]) if lines else ""
    words = re.findall(r"[a-z0-9]+", first.lower())[:6]
    return "-".join([prefix, *words])[:56].rstrip("-")


# Cells


def role(cell: NotebookNode) -> Role:
    """The role of a cell: its tag `answer`, `check` or `setup`; else `code` or, for text, `prose`."""
    tags = cell.get("metadata", {}).get("tags", [])
    for tag in ("answer", "check", "setup"):
        if tag in tags:
            return tag  # type: ignore[return-value]
    return "code" if cell.cell_type == "code" else "prose"


def todo_in(line: str) -> Todo | None:
    """Read a line such as `# TODO causal-mask  (5 points, ~10 min)` or `<!-- TODO why (3 points, ~5 min) -->`."""
    line = line.strip()
    found = TODO_LINE.fullmatch(line) if len(line) <= LONGEST_TODO else None
    if not found:
        return None
    if found["points"] is None:
        return Todo(found["slug"], None, None)
    return Todo(found["slug"], int(found["points"]), int(found["minutes"]))


def todo(source: str) -> Todo | None:
    """The TODO line that a cell starts with, if it does."""
    return todo_in(source.strip().split("\n", 1)[0])


def answers(notebook: NotebookNode) -> list[Answer]:
    """The answer cells of a notebook of the course, in order.

    The slug is that of the TODO line; where there is none, the id of the cell.
    """
    return [answer_in(cell, index) for index, cell in enumerate(notebook.cells) if role(cell) == "answer"]


def answer_in(cell: NotebookNode, index: int = 0) -> Answer:
    """Read one answer cell (see `answers`)."""
    line = todo(cell.source) or Todo(cell.get("id", ""), None, None)
    if cell.cell_type == "code":
        kind: Literal["code", "markdown", "file"] = "code"
        name = defined_name(cell.source, line.slug)
        stub = is_stub(cell.source, name)
    else:
        kind, name = "markdown", None
        stub = is_empty_prose(cell.source)
    return Answer(line.slug, line.points, line.minutes, name, kind, index, cell.source, stub)


def file_answers(path: str | Path) -> list[Answer]:
    """The TODOs of an answer file, in order: each a line `# TODO <slug>  (<points> points, ~<minutes> min)`.

    A TODO belongs to the function, class or method whose first line comes next below it.

    Raises:
        NotebookError: the file cannot be read.
    """
    return answers_in_file(read_text(Path(path)), Path(path).name)


def is_backup(name: str) -> bool:
    """Whether a file is one that `make update` has put beside another, which a course does not look at."""
    return bool(re.search(r"\.(before|from)-update-", name))


def read_text(path: Path) -> str:
    """Read a text file of a unit.

    Raises:
        NotebookError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotebookError(f"{path}: cannot be read ({error}). Check the name of the file.") from None


def answers_in_file(source: str, file: str) -> list[Answer]:
    """The TODOs in the text of the answer file called `file` (see `file_answers`)."""
    definitions: list[tuple[int, str, Function | ast.ClassDef]] = []  # first line, name at the top level
    tree = python(source)
    for statement in tree.body if tree else []:
        if isinstance(statement, Function | ast.ClassDef):
            inner = statement.body if isinstance(statement, ast.ClassDef) else []
            parts = [statement, *(part for part in inner if isinstance(part, Function))]
            definitions += [(part.lineno, statement.name, part) for part in parts]
    found = []
    for number, line in enumerate(source.splitlines(), 1):
        read = todo_in(line)
        if read is None:
            continue
        below = [one for one in definitions if one[0] > number]
        _, name, part = min(below, key=lambda one: one[0]) if below else (0, None, None)
        text = (ast.get_source_segment(source, part) or "") if part else ""
        stub = part is not None and is_stub(ast.unparse(part), part.name)
        found.append(Answer(read.slug, read.points, read.minutes, name, "file", number, text, stub, file))
    return found


def is_empty_prose(source: str) -> bool:
    """Whether a Markdown answer holds nothing but its TODO line and a placeholder such as `*Your answer.*`."""
    lines = [line for line in source.split("\n") if line.strip() and not todo_in(line)]
    text = "\n".join(lines).strip()
    return not text or bool(re.fullmatch(r"([*_])[^*_\n]*\1", text))


# Code


def python(source: str) -> ast.Module | None:
    """Parse the code of a cell; lines that only IPython knows (`%magic`, `!command`, `help?`) become `None`.

    Line numbers stay. Returns None where it is no Python.
    """
    for text in (source, _without_magic(source)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            continue
    return None


_MAGIC = re.compile(r"^([ \t]*)((?:[A-Za-z_][\w, ]*=[ \t]*)?)(?:[%!].*|\?{1,2}[\w.]+|[\w.]+\?{1,2})[ \t]*$", re.M)


def _without_magic(source: str) -> str:
    return _MAGIC.sub(r"\1\2None", source)


def bound_names(statement: ast.stmt) -> list[str]:
    """The names that a top-level statement defines: definitions, imports, assignments, and `if`/`try` of those."""
    if isinstance(statement, Function | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).split(".")[0] for alias in statement.names]
    if isinstance(statement, ast.Assign):
        return [name for target in statement.targets for name in _targets(target)]
    if isinstance(statement, ast.AnnAssign):
        return _targets(statement.target) if statement.value else []
    if isinstance(statement, ast.If | ast.Try):
        inner = [*statement.body, *statement.orelse]
        if isinstance(statement, ast.Try):
            inner += [line for handler in statement.handlers for line in handler.body] + statement.finalbody
        return [name for line in inner for name in bound_names(line)]
    return []


def _targets(target: ast.expr) -> list[str]:
    if isinstance(target, ast.Name):
        return [target.id]
    if isinstance(target, ast.Tuple | ast.List):
        return [name for part in target.elts for name in _targets(part)]
    return []


def defined_names(source: str) -> list[str]:
    """The names that a cell defines at its top level, in order; of broken code, its `def`s and `class`es."""
    tree = python(source)
    if tree is None:
        return re.findall(r"^(?:async\s+def|def|class)\s+([A-Za-z_]\w*)", source, re.M)
    return [name for statement in tree.body for name in bound_names(statement)]


def own_names(source: str) -> list[str]:
    """The names that a Python file defines at its top level, without those that it imports."""
    tree = python(source)
    if tree is None:
        return defined_names(source)
    own = [line for line in tree.body if not isinstance(line, ast.Import | ast.ImportFrom)]
    return [name for line in own for name in bound_names(line)]


def fits(name: str, slug: str) -> bool:
    """Whether a name is the slug with `_` for `-`, or its CamelCase (capitals are not looked at)."""
    return name.replace("_", "").lower() == slug.replace("-", "")


def defined_name(source: str, slug: str) -> str | None:
    """The name that an answer is called by: the one that fits its slug, else the last definition, else none."""
    names = defined_names(source)
    fitting = [name for name in names if fits(name, slug)]
    if fitting:
        return fitting[-1]
    tree = python(source)
    if tree is not None:
        names = [line.name for line in tree.body if isinstance(line, Function | ast.ClassDef)]
    return names[-1] if names else None


def is_filler(statement: ast.stmt) -> bool:
    """Whether a statement does nothing: a docstring, `...` or `pass`."""
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def is_stub_function(function: Function) -> bool:
    """Whether the first thing that a function does is `raise NotImplementedError`.

    What follows is a frame to fill in, such as a dictionary of `None`s.
    """
    body = [line for line in function.body if not is_filler(line)]
    if not body or not isinstance(body[0], ast.Raise):
        return False
    raised = body[0].exc
    if isinstance(raised, ast.Call):
        raised = raised.func
    return isinstance(raised, ast.Name) and raised.id == "NotImplementedError"


def stub_functions(source: str, name: str | None) -> Iterator[Function]:
    """The function or the methods called `name` in a cell that are still stubs."""
    tree = python(source)
    for statement in tree.body if tree else []:
        if getattr(statement, "name", None) != name:
            continue
        parts = statement.body if isinstance(statement, ast.ClassDef) else [statement]
        yield from (part for part in parts if isinstance(part, Function) and is_stub_function(part))


def is_stub(source: str, name: str | None) -> bool:
    """Whether the function `name`, or a method of the class `name`, is still to be written."""
    return any(stub_functions(source, name))
