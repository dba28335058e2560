"""The rules that every student notebook keeps; `tests/test_rules.py` applies them to all of them."""

import ast
import fnmatch
import os
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from nbformat import NotebookNode

from common.course import Course, Notebook, load
from common.notebooks import anatomy, normal, stamp
from common.notebooks.anatomy import Answer, Function, NotebookError

LONGEST_CELL = 40
MEDIAN_CELL = 10
HINTS = 3
GENERATED = {"solutions", "submissions", "grades", "data", "runs"}

# What of an answer counts as given away: this many statements in a row ...
RUN = 3
# ... or a whole function body; either only from this many characters on (comments and blanks do not count).
# Shorter ones, such as `return x + 2` or `q = self.q(x)`, stand in all kinds of code by chance.
DISTINCTIVE = 60


def files(root: Path, pattern: str) -> list[Path]:
    """The course's own files below `root`, without hidden and generated folders and backups of updates."""
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__pycache__"]
        if Path(folder) == root:
            inner[:] = [name for name in inner if name not in GENERATED]
        found += [Path(folder, name) for name in fnmatch.filter(names, pattern)]
    return sorted(path for path in found if not anatomy.is_backup(path.name))


def student_notebooks(root: Path) -> list[Path]:
    """The notebooks of the course's units."""
    return files(root, "*.ipynb")


def problems(notebook: Path | NotebookNode, unit: Path, root: Path) -> list[str]:
    """Hold a student notebook against the rules.

    Args:
        notebook: the notebook, or its file (then the bytes of the file must be in normal form too).
        unit: the folder that it lies in; its links start there.
        root: the root of the course.

    Returns:
        A sentence for each rule that is broken: which cell, and what to do. Empty when all is well.
    """
    found = []
    if isinstance(notebook, Path):
        try:
            nb = anatomy.read(notebook)
        except NotebookError as error:
            return [str(error)]
        if notebook.read_bytes() != normal.to_bytes(nb):
            found.append("The file is not in normal form: run `make format`.")
        name = notebook.name
    else:
        nb = notebook
        name = nb.metadata.get("course", {}).get("notebook") or f"{unit.name}.ipynb"
    course = load(root)
    folder = unit.resolve().relative_to(root.resolve()).as_posix()
    entry = course.find(f"{folder}/{name}")
    if entry is None:
        return [*found, f"common/course.toml lists no notebook {folder}/{name}. Add it to its unit."]
    todos = anatomy.answers(nb)
    for file in entry.answer_files:
        try:
            todos += anatomy.file_answers(unit / file)
        except NotebookError as error:
            found.append(str(error))
        else:
            found += _answer_file(unit / file)
    found += [
        *_first_cell(nb, course, entry),
        *_title(nb, entry, todos),
        *_roles(nb),
        *_slugs(course, entry, todos),
        *_stubs(nb),
        *_hints(nb, todos),
        *_checks(nb, todos),
        *_lengths(nb),
        *_links(nb, unit),
    ]
    return found


def _first_cell(nb: NotebookNode, course: Course, entry: Notebook) -> Iterator[str]:
    first = nb.cells[0] if nb.cells else {}
    expected = stamp.first_cell(entry.unit, course.repository, course.branch)
    if first.get("id") != "colab" or first.get("source") != expected:
        yield "The first cell (id `colab`) is not the course's: run `make stamp`."
    elif anatomy.role(nb.cells[0]) != "setup":
        yield "Cell colab: give it the tag `setup`."
    setup = "\n".join(cell.source for cell in nb.cells if anatomy.role(cell) == "setup")
    if entry.answer_files and "%autoreload 2" not in setup:
        files = " and ".join(entry.answer_files)
        yield (
            f"No setup cell reloads {files} after an edit: begin one with `%load_ext autoreload` and `%autoreload 2`."
        )


def _title(nb: NotebookNode, entry: Notebook, todos: list[Answer]) -> Iterator[str]:
    if nb.metadata.get("course") != stamp.metadata(entry):
        yield f"The notebook's metadata `course` does not name {entry.path} and its hours: run `make stamp`."
    title = nb.cells[1] if len(nb.cells) > 1 else None
    if title is None or title.cell_type != "markdown" or not title.source.startswith("# "):
        yield "The second cell must be the title: Markdown that starts with `# `."
        return
    if f"**{entry.time}**" not in title.source.replace("–", "-"):
        yield f"Cell {title.id}: the title cell must say how long the notebook takes: `**{entry.time}**`."
    total = sum(answer.points or 0 for answer in todos)
    if f"**{total} points**" not in title.source:
        yield f"Cell {title.id}: the title cell must say `**{total} points**`, the sum of the TODO lines."


def _roles(nb: NotebookNode) -> Iterator[str]:
    for cell in nb.cells:
        tags = [tag for tag in cell.metadata.get("tags", []) if tag in ("answer", "check", "setup")]
        if len(tags) > 1:
            yield f"Cell {cell.id}: has the tags {tags}; a cell has one role. Keep one."
        if anatomy.todo(cell.source) and "answer" not in tags:
            yield f"Cell {cell.id}: starts with a TODO line but lacks the tag `answer`. Add the tag."
        if cell.cell_type == "code" and "check" not in tags and _check_call(cell.source) is not None:
            yield f"Cell {cell.id}: calls a check but lacks the tag `check`. Add the tag."
        if cell.cell_type == "raw":
            yield f"Cell {cell.id}: is a raw cell. Make it Markdown or code."
        if cell.cell_type != "code" and tags and tags != ["answer"]:
            yield f"Cell {cell.id}: text cannot have the role {tags[0]}. Take the tag away."


def _slugs(course: Course, entry: Notebook, todos: list[Answer]) -> Iterator[str]:
    counts = Counter(answer.slug for answer in todos)
    for slug, count in counts.items():
        if count > 1:
            yield f"Answer {slug}: {count} TODOs have this slug. Give each its own."
    for other in course.by_folder[entry.unit].notebooks:
        if other != entry and course.file(other).is_file():
            for answer in course.answers(other):
                if answer.slug in counts:
                    yield f"Answer {answer.slug}: {answer.file or other.file} has this slug too. Give each its own."


def _stubs(nb: NotebookNode) -> Iterator[str]:
    for answer in anatomy.answers(nb):
        cell = nb.cells[answer.index]
        if anatomy.todo(answer.source) is None or answer.points is None:
            yield (
                f"Cell {cell.id}: an answer starts with a line such as "
                "`# TODO causal-mask  (5 points, ~10 min)`, with points and minutes."
            )
        elif cell.get("id") != answer.slug:
            yield f"Answer {answer.slug}: its cell has another id, {cell.get('id')}: run `make format`."
        if answer.kind == "markdown":
            if not answer.is_stub:
                yield f"Answer {answer.slug}: is already answered. Leave only `{anatomy.PLACEHOLDER}` below its mark."
        else:
            yield from _code_stub(answer)


def _answer_file(path: Path) -> Iterator[str]:
    name, source = path.name, path.read_text(encoding="utf-8")
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        yield f"{name}: is not valid Python ({error}). Mend it."
        return
    if not ast.get_docstring(tree):
        yield f"{name}: has no docstring on top. Say what the file holds and how to test it."
    answers = anatomy.answers_in_file(source, name)
    for answer in answers:
        if answer.points is None:
            yield f"{name}: write `# TODO {answer.slug}  (5 points, ~10 min)`, with points and minutes."
        if answer.name is None:
            yield f"{name}: the line `# TODO {answer.slug}` must stand above a function, a class or a method."
        else:
            yield from (f"{name}: {sentence}" for sentence in _stub(answer, ast.parse(answer.source).body[0]))
    slugs = {answer.slug for answer in answers}
    for node in ast.walk(tree):
        if isinstance(node, Function) and anatomy.is_stub_function(node):
            raised = next(ast.unparse(line) for line in node.body if not anatomy.is_filler(line))
            if not any(repr(slug) in raised for slug in slugs):
                yield f"{name}: the stub `{node.name}` belongs to no TODO. Put `# TODO <slug>  (...)` above it."


def _code_stub(answer: Answer) -> Iterator[str]:
    slug = answer.slug
    tree = anatomy.python(answer.source)
    defined = [line for line in tree.body if getattr(line, "name", None) == answer.name] if tree else []
    if not defined or not isinstance(defined[-1], Function | ast.ClassDef):
        yield f"Answer {slug}: must define one function or class."
        return
    target = defined[-1]
    if not anatomy.fits(target.name, slug):
        yield f"Answer {slug}: defines `{target.name}`; name it after the slug."
    yield from _stub(answer, target)


def _stub(answer: Answer, target: ast.stmt) -> Iterator[str]:
    slug = answer.slug
    assert isinstance(target, Function | ast.ClassDef)
    if not ast.get_docstring(target):
        yield f"Answer {slug}: `{target.name}` has no docstring. Say what it takes and returns."
    stubs = list(anatomy.stub_functions(answer.source, target.name))
    if not stubs:
        yield f'Answer {slug}: is not a stub. Leave the docstring and `raise NotImplementedError("{slug}")`.'
    for stub in stubs:
        if not ast.get_docstring(stub) and stub.name != "__init__":  # the class says what that takes
            yield f"Answer {slug}: the stub `{stub.name}` has no docstring. Say what it takes and returns."
        first = next(line for line in stub.body if not anatomy.is_filler(line))
        if ast.unparse(first) != f"raise NotImplementedError({slug!r})":
            yield f'Answer {slug}: the stub `{stub.name}` must do nothing but `raise NotImplementedError("{slug}")`.'


def _hints(nb: NotebookNode, todos: list[Answer]) -> Iterator[str]:
    places = {cell.get("id"): index for index, cell in enumerate(nb.cells)}
    for answer in todos:
        place = places.get(f"check-{answer.slug}") if answer.kind == "file" else answer.index
        if place is None:
            continue  # a check that is missing; `_checks` says so
        count = 0
        for cell in reversed(nb.cells[:place]):
            if anatomy.role(cell) != "prose":
                break
            count += len(re.findall(r"<details\b", cell.source))
        if count != HINTS:
            yield (
                f"Answer {answer.slug}: has {count} hints. Put {HINTS} `<details>` (the idea, the recipe, "
                f"almost the code) into the Markdown right before {'its check' if answer.kind == 'file' else 'it'}."
            )


def _checks(nb: NotebookNode, todos: list[Answer]) -> Iterator[str]:
    answers = anatomy.answers(nb)
    names = {f"check-{answer.slug}": answer.name for answer in todos if answer.kind != "markdown"}
    checks = [cell.get("id") for cell in nb.cells if anatomy.role(cell) == "check"]
    for answer in todos:
        if answer.kind == "file" and f"check-{answer.slug}" not in checks:
            yield f"Answer {answer.slug} in {answer.file}: no check cell (id check-{answer.slug}). Add one."
    stops = [answer.index for answer in answers[1:]] + [len(nb.cells)]
    for answer, stop in zip(answers, stops, strict=False):  # a notebook may have no answer
        between = nb.cells[answer.index : stop]
        wanted = f"check-{answer.slug}"
        if answer.kind == "code" and not any(
            cell.get("id") == wanted and anatomy.role(cell) == "check" for cell in between
        ):
            yield f"Answer {answer.slug}: no check cell (id {wanted}) follows it before the next answer. Add one."
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        if anatomy.role(cell) != "check":
            if cell.outputs or cell.execution_count is not None:
                yield f"Cell {cell.id}: stores an output or an execution count: run `make format`."
            continue
        call = _check_call(cell.source)
        if cell.get("id") not in names:
            yield f"Cell {cell.get('id')}: is the check of no TODO; its id would be `check-<slug>`."
        elif call is None or call != names[cell.id]:
            wanted = names[cell.id] or "what the answer defines"
            yield f"Cell {cell.id}: a check cell is one call, `checks.<name>({wanted})`."
        streams = [output.get("name") for output in cell.outputs]
        if streams != ["stdout"] or cell.execution_count != 1:
            yield (
                f"Cell {cell.id}: must store what a right answer prints (one text, execution count 1): "
                "take its output from the solved notebook."
            )


def _check_call(source: str) -> str | None:
    """The name that a check cell checks; None when the cell is not just the call of a check."""
    tree = anatomy.python(source)
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return None
    call = tree.body[0].value
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and not call.keywords):
        return None
    if not (isinstance(call.func.value, ast.Name) and call.func.value.id == "checks" and len(call.args) == 1):
        return None
    return call.args[0].id if isinstance(call.args[0], ast.Name) else None


def _lengths(nb: NotebookNode) -> Iterator[str]:
    lengths = {cell.id: cell.source.count("\n") + 1 for cell in nb.cells if cell.cell_type == "code"}
    for name, length in lengths.items():
        if length > LONGEST_CELL:
            yield f"Cell {name}: has {length} lines; {LONGEST_CELL} are the most. Split it."
    median = statistics.median(lengths.values()) if lengths else 0
    if median > MEDIAN_CELL:
        yield f"The code cells have {median:g} lines in the median; {MEDIAN_CELL} are the most. Split the longest."


def _links(nb: NotebookNode, unit: Path) -> Iterator[str]:
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for link in broken_links(cell.source, unit):
                yield f"Cell {cell.id}: links to {link}, which does not exist. Mend the link."


def broken_links(text: str, folder: Path) -> list[str]:
    """The relative links and images of a Markdown text whose files do not exist.

    Args:
        text: Markdown, with HTML in it.
        folder: where the text lies.

    Returns:
        The links as they stand in the text.
    """
    text = re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.M | re.S)
    text = re.sub(r"(`+).+?\1", "", text)
    links = re.findall(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)", text)
    links += re.findall(r"<[^>]*\b(?:src|href)\s*=\s*[\"']([^\"']+)[\"']", text)
    links += re.findall(r"^\[[^\]]+\]:\s*<?(\S+?)>?\s*$", text, flags=re.M)
    broken = []
    for link in links:
        path = unquote(link.split("#")[0].split("?")[0])
        outside = re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", link)
        if path and not outside and not (folder / path).exists():
            broken.append(link)
    return broken


# No answer on main


def leaked_answers(main_files: Iterable[Path], solved: Iterable[Path]) -> list[str]:
    """Look for the answers of the branch in the files of `main`.

    Compared are statements as Python sees them (no comments, docstrings, blanks). A function body counts as
    given away when it stands somewhere whole, or when 3 of its statements do in a row; either only if it has
    60 characters or more. What the stub of the same TODO gives the student does not count.

    Args:
        main_files: files of main: code (`.py`), notebooks, and Markdown, of which the code blocks are read.
        solved: the solved notebooks, and the completed answer files.

    Returns:
        A sentence for each answer that stands in a file.
    """
    secrets: dict[tuple[str, ...], str] = {}
    for path in solved:
        if path.suffix == ".py":
            source = path.read_text(encoding="utf-8")
            secrets |= dict.fromkeys(_secrets(source), _in_unit(path))
            answers = anatomy.answers_in_file(source, path.name)
        else:
            answers = anatomy.answers(anatomy.read(path))
        for answer in answers:
            if answer.kind != "markdown":
                secrets |= dict.fromkeys(_secrets(answer.source), answer.slug)
    codes = {path: list(_code_in(path)) for path in main_files}
    given: dict[str, set[tuple[str, ...]]] = {}
    for blocks in codes.values():
        for block, own in blocks:
            for slug in own:
                given.setdefault(slug, set()).update(_runs(block))
    found = set()
    for path, blocks in codes.items():
        for block, own in blocks:
            for run in _runs(block) & secrets.keys():
                if secrets[run] not in own and run not in given.get(secrets[run], ()):
                    found.add((str(path), secrets[run]))
    return [f"{path}: holds (a part of) the answer to {slug}. Take it out." for path, slug in sorted(found)]


def _in_unit(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _code_in(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The pieces of code in a file; with the TODOs whose stub a piece is."""
    if path.suffix == ".ipynb":
        nb = anatomy.read(path)
        slugs = {answer.index: (answer.slug,) for answer in anatomy.answers(nb) if answer.is_stub}
        for index, cell in enumerate(nb.cells):
            if cell.cell_type == "code":
                yield cell.source, slugs.get(index, ())
            else:
                yield from ((block, ()) for block in _fenced(cell.source))
    elif path.suffix == ".md":
        yield from ((block, ()) for block in _fenced(path.read_text(encoding="utf-8", errors="replace")))
    elif path.suffix == ".py":
        code = path.read_text(encoding="utf-8", errors="replace")
        answers = anatomy.answers_in_file(code, path.name)
        for answer in answers:
            if not answer.is_stub:
                yield answer.source, ()
                code = code.replace(answer.source, "pass")
        yield code, (_in_unit(path), *(answer.slug for answer in answers)) if answers else ()
        tree = anatomy.python(code)
        for node in ast.walk(tree) if tree else []:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
                yield node.value, ()


def _fenced(text: str) -> list[str]:
    return [block for _, block in re.findall(r"^[ \t]*(```|~~~)[^\n]*\n(.*?)^[ \t]*\1", text, flags=re.M | re.S)]


def _bodies(source: str) -> Iterator[list[str]]:
    """The blocks of a piece of code (the file, bodies, branches), each as a list of normalised statements."""
    tree = anatomy.python(textwrap.dedent(source))
    for node in ast.walk(tree) if tree else []:
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                for line in block:
                    _strip_docstrings(line)
                lines = [ast.unparse(line) for line in block if not anatomy.is_filler(line)]
                if lines:
                    yield lines


def _strip_docstrings(tree: ast.stmt) -> None:
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]


def _runs(source: str) -> set[tuple[str, ...]]:
    """Every run of 1 to 3 statements in a piece of code."""
    return {
        tuple(lines[i : i + size])
        for lines in _bodies(source)
        for size in range(1, RUN + 1)
        for i in range(len(lines) - size + 1)
    }


def _secrets(source: str) -> set[tuple[str, ...]]:
    """What gives an answer away: its runs of 3 statements, and the bodies of its functions that are shorter."""
    found = {run for run in _runs(source) if len(run) == RUN}
    tree = anatomy.python(source)
    for node in ast.walk(tree) if tree else []:
        if isinstance(node, Function):
            body = next(_bodies("\n".join(map(ast.unparse, node.body))), [])
            found.add(tuple(body[:RUN]))
    imports = ("import ", "from ")
    return {
        run for run in found if sum(map(len, run)) >= DISTINCTIVE and not all(line.startswith(imports) for line in run)
    }
