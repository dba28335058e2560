"""Finds the notebooks and answer files that students handed in, and what in them is to be graded.

Nothing of a submission is run here, and nothing odd in one stops the others: it becomes a remark. Each student's
files are read in a process of their own, so that none of them can hang or fill the grader.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import multiprocessing
import os
import re
import signal
import stat
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from graphlib import CycleError, TopologicalSorter
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from nbformat import NotebookNode

from common import course
from common.grading import flags, sandbox, similar
from common.grading.job import LARGEST_ARTEFACT, Step
from common.notebooks import anatomy
from common.notebooks.anatomy import Answer, NotebookError
from common.notebooks.graft import graft

LITTER = {"__MACOSX", "__pycache__", "Thumbs.db", "desktop.ini"}
MOST_FILES = 50  # notebooks read of one student, and as many Python files
LARGEST_NOTEBOOK = 50 * 2**20  # bytes
LARGEST_PYTHON = 2**20
LONGEST_CODE = 200_000  # characters of one cell
LONGEST_PROSE = 20_000  # characters of one answer
LONGEST_REMARK = 500
MOST_REMARKS = 50
READING_SECONDS = 10  # of processor time for the files of one student; six times as long by the clock
READING_MEMORY = 320 * 2**20  # bytes, on Linux


@dataclass(frozen=True)
class AnswerFile:
    """An answer file as the student was given it: its name and its TODOs."""

    name: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Part:
    """A notebook of a unit as it is graded: its name, the TODOs in its cells, its answer files, what it makes."""

    name: str
    notebook: NotebookNode
    cells: tuple[Answer, ...]
    files: tuple[AnswerFile, ...]
    artefacts: tuple[str, ...] = ()

    @property
    def prose(self) -> list[Answer]:
        """The TODOs that a person marks."""
        return [answer for answer in self.cells if answer.kind == "markdown"]


@dataclass(frozen=True)
class Base:
    """A unit of the course, as it is graded.

    Attributes:
        unit: its folder from the root of the course, with slashes.
        parts: its notebooks.
        imports: the import statements of its setup cells and of its checks.
        hidden: the points of its hidden tests, by slug.
        rules: what its checks.py says of each answer, for `common.grading.flags`.
    """

    unit: str
    folder: Path
    parts: tuple[Part, ...]
    imports: tuple[str, ...]
    hidden: dict[str, float]
    rules: dict[str, flags.Rule] = field(default_factory=dict)

    @cached_property
    def todos(self) -> dict[str, tuple[Answer, ...]]:
        """The TODOs of each notebook, followed by those of its answer files, by the name of the file."""
        found: dict[str, tuple[Answer, ...]] = {}
        for part in self.parts:
            found |= {part.name: part.cells} | {file.name: file.answers for file in part.files}
        return found

    @cached_property
    def stubs(self) -> dict[str, str]:
        """The source of each answer cell as the student was given it, by slug."""
        return {answer.slug: answer.source for part in self.parts for answer in part.cells}


@dataclass(frozen=True)
class Task:
    """One student's submission for one unit.

    Attributes:
        base: the unit; None when none fits.
        files: the files that are graded, and as which file of the course where the unit has several; none when
            there is nothing to grade.
        jobs: what to run, for each notebook of the unit that there is anything to run of.
        prose: the Markdown answers by slug, for a person to mark; "" for one that is not answered.
        missing: the course's notebooks and answer files that were not handed in.
        flags: lines that a person should look at.
        codes: the student's own lines of each cell and answer file.
        digest: of everything that the row depends on.
    """

    student: str
    unit: str
    base: Base | None
    remarks: list[str]
    files: tuple[str, ...] = ()
    jobs: tuple[tuple[Step, ...], ...] = ()
    prose: dict[str, str] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    flags: tuple[dict[str, Any], ...] = ()
    codes: dict[str, str] = field(default_factory=dict)
    digest: str = ""


def load_units(root: Path | None = None, only: str | None = None) -> list[Base]:
    """Read the units that can be graded.

    Args:
        root: the course; without it, the one that this package belongs to.
        only: the folder of the only unit to read.

    Raises:
        NotebookError: there is no such unit, or a notebook or answer file of it cannot be read.
    """
    found = course.load(root)
    ready = [unit for unit in found.ready() if (found.root / unit.folder / "checks.py").is_file()]
    if only is not None:
        only = only.rstrip("/")
        ready = [unit for unit in ready if unit.folder == only]
        if not ready:
            raise NotebookError(f"{only}: no unit with its notebooks and a checks.py in {found.root}")
    return [_base(unit, found.root / unit.folder) for unit in ready]


def _base(unit: course.Unit, folder: Path) -> Base:
    parts = []
    for one in unit.notebooks:
        notebook = anatomy.read(folder / one.file)
        files = [AnswerFile(name, tuple(anatomy.file_answers(folder / name))) for name in one.answer_files]
        parts.append(Part(one.file, notebook, tuple(anatomy.answers(notebook)), tuple(files), one.artefacts))
    checks = (folder / "checks.py").read_text(encoding="utf-8")
    sources = [cell.source for part in parts for cell in part.notebook.cells if anatomy.role(cell) == "setup"]
    local = {file.stem for file in folder.glob("*.py")}
    imports = [one for source in [*sources, checks] for one in _imports(source)]
    shared = tuple(statement for statement, packages in imports if not local & packages)
    hidden = {slug: said["hidden"] for slug, said in flags.declared(checks).items() if said.get("hidden")}
    return Base(unit.folder, folder, tuple(parts), shared, hidden, flags.rules(checks))


def _imports(source: str) -> Iterator[tuple[str, set[str]]]:
    """The import statements at the top level of some code, with the packages that each names."""
    tree = anatomy.python(source)
    for node in tree.body if tree else []:
        if isinstance(node, ast.Import):
            yield ast.unparse(node), {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield ast.unparse(node), {node.module.split(".")[0]}


def students(folder: Path, bases: Sequence[Base], skip: Path | None = None) -> dict[str, list[Path]]:
    """Find what each student has handed in: a sub-folder, a zip file, or loose files, by the student's name.

    Args:
        folder: where the submissions lie.
        bases: the units that they may belong to.
        skip: a folder that is no submission, such as the one for the results.

    Raises:
        OSError: the folder cannot be read.
    """
    entries: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if _is_litter(entry.name) or (skip and entry.resolve() == skip.resolve()):
            continue
        entries.setdefault(printable(_student(entry, bases)), []).append(entry)
    return entries


def collect(
    entries: Mapping[str, Sequence[Path]], bases: Sequence[Base], unit: str | None = None, jobs: int = 1
) -> Generator[Task, None, None]:
    """Read what students have handed in, and yield a task for each student and unit, in their order.

    Args:
        entries: what `students` has found.
        bases: the units that it may belong to.
        unit: the unit that it all belongs to, if that is known.
        jobs: how many students' files are read at a time.
    """
    waiting, reading = deque(entries.items()), deque[_Reader]()
    try:
        while waiting or reading:
            while waiting and len(reading) < jobs:
                reading.append(_Reader(*waiting.popleft(), bases, unit))
            yield from reading[0].tasks()
            reading.popleft().kill()
    finally:
        for reader in reading:
            reader.kill()


def _student(entry: Path, bases: Sequence[Base]) -> str:
    """Whose a sub-folder or loose file is: what stands in its name before the mark that a learning platform adds.

    Of a loose file, also what stands before the course's own name of it. Files that are called as the course calls
    the several files of a unit are all of one student, whose name is that of the folder.
    """
    moodle, canvas = r"(.+_\d+)_assignsubmission_.*", r"([^\W_]+)(?:_late)?(_\d+)_\d+_.*"
    if entry.is_dir() and not entry.is_symlink():
        stem, patterns = entry.name, [moodle]
    elif any(entry.name in base.todos for base in bases if len(base.todos) > 1):
        return entry.parent.resolve().name
    else:
        names = "|".join(re.escape(Path(name).stem) for base in bases for name in base.todos)
        stem, patterns = entry.stem, [moodle, canvas, rf"(.*[^\W_])[-_ .]+(?:{names})(?: ?\(\d+\)|-\d+)?"]
    for pattern in patterns:
        if found := re.fullmatch(pattern, stem, re.IGNORECASE):
            return "".join(found.groups())
    return stem


def printable(text: str) -> str:
    """Return text that can be shown and stored anywhere: control characters and half surrogates escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


# -- one student ---------------------------------------------------------------------------------------------


class _Reader:
    """A process that reads the files of one student, within limits."""

    def __init__(self, student: str, entries: Sequence[Path], bases: Sequence[Base], unit: str | None) -> None:
        self._student, self._bases, self._unit = student, bases, unit
        self._pipe, theirs = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_read_student, args=(theirs, student, entries, bases, unit), daemon=True)
        self._process.start()
        theirs.close()

    def tasks(self) -> list[Task]:
        """Wait for the student's tasks; when the process is lost, there is one with nothing to run."""
        units = {base.unit: base for base in self._bases}
        try:
            if not self._pipe.poll(6 * READING_SECONDS):
                raise EOFError
            return [replace(task, base=units.get(task.unit)) for task in self._pipe.recv()]
        except (EOFError, OSError):
            self._process.join(0.1)
            lost = {-signal.SIGXCPU: "it takes too long", None: "it takes too long"}
            cause = lost.get(self._process.exitcode, f"exit code {self._process.exitcode}")
            return _nothing(self._student, self._bases, self._unit, [f"what was handed in cannot be read: {cause}"])

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()


def _read_student(
    pipe: Connection, student: str, entries: Sequence[Path], bases: Sequence[Base], unit: str | None
) -> None:
    """Send the tasks of one student, without their bases; this process runs nothing but the grader's own code."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the grader itself looks after it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (READING_SECONDS, READING_SECONDS + 1))
    sandbox.limit_memory(READING_MEMORY)
    try:
        tasks = _tasks(student, entries, bases, unit)
    except Exception as error:
        cause = "it needs too much memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {error}"
        tasks = _nothing(student, bases, unit, [f"what was handed in cannot be read: {cause}"])
    pipe.send([replace(task, base=None, remarks=_shortened(task.remarks)) for task in tasks])


def _nothing(student: str, bases: Sequence[Base], unit: str | None, remarks: list[str]) -> list[Task]:
    """The tasks of a student of whom nothing can be graded."""
    base = bases[0] if unit and bases else None
    return [Task(student, unit or "", base, remarks, missing=frozenset(base.todos if base else ()))]


def _shortened(remarks: Sequence[str]) -> list[str]:
    shown = [text if len(text) <= LONGEST_REMARK else text[:LONGEST_REMARK] + " …" for text in remarks[:MOST_REMARKS]]
    return [*shown, "more remarks were left out"] if len(remarks) > MOST_REMARKS else shown


@dataclass
class _Candidate:
    """A file that may be the one to grade as a notebook or answer file of a unit.

    Attributes:
        wanted: the name that the course gives to the file.
        rank: the smallest is graded.
        steps: what to run.
        remarks: what is odd about it, if it is graded.
        prose: as in `Task`.
    """

    name: str
    base: Base
    wanted: str
    rank: tuple[float, ...]
    steps: list[Step]
    remarks: list[str]
    prose: dict[str, str] = field(default_factory=dict)


def _tasks(student: str, entries: Sequence[Path], bases: Sequence[Base], unit: str | None) -> list[Task]:
    remarks: list[str] = []
    files = list(_files(entries, remarks))
    candidates: list[_Candidate] = []
    notebooks = [file for file in files if ".ipynb" in file.name.lower()]
    for file, content in _read(notebooks, "notebooks", LARGEST_NOTEBOOK, remarks):
        try:
            candidate = _notebook(file.name, anatomy.parse(content), bases)
        except NotebookError as error:
            remarks.append(f"{file.name}: {error}")
        except Exception as error:  # a notebook stranger than we could imagine is still only one notebook
            remarks.append(f"{file.name}: cannot be read ({type(error).__name__})")
        else:
            if candidate is None:
                remarks.append(f"{file.name}: no answer cell of {unit or 'any unit of the course'} is in it")
            else:
                candidates.append(candidate)
    candidates += _answer_files(files, bases, {one.base.unit for one in candidates}, remarks)
    if not notebooks and not candidates:
        listed = [file.name for file in files]
        shown = f" (found: {', '.join(listed[:5])}{', ...' if len(listed) > 5 else ''})" if listed else ""
        remarks.append(f"no notebook{shown}")
    units: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        units.setdefault(candidate.base.unit, []).append(candidate)
    tasks = [_task(student, same, files, remarks) for same in units.values()]
    return tasks or _nothing(student, bases, unit, remarks)


def _task(student: str, candidates: Sequence[_Candidate], handed_in: Sequence[_File], remarks: Sequence[str]) -> Task:
    """Choose among the files for one unit, and put together what is to be run."""
    base = candidates[0].base
    chosen: dict[str, _Candidate] = {}
    said = list(remarks)
    for wanted, todos in base.todos.items():
        same = sorted((one for one in candidates if one.wanted == wanted), key=lambda one: (one.rank, one.name))
        if not same:
            if todos:
                points = sum(answer.points or 0 for answer in todos)
                said.append(f"{wanted} was not found: its {points} points are missing")
            continue
        best, *rest = same
        chosen[wanted] = best
        said += best.remarks
        if rest:
            others = ", ".join(one.name for one in rest)
            said.append(f"graded {best.name}; not graded, since no more is answered in them: {others}")
    jobs = []
    for part in base.parts:
        parts = _by_imports([chosen[file.name] for file in part.files if file.name in chosen])
        parts += [chosen[part.name]] if part.name in chosen else []  # its cells import the files
        steps = (*_artefacts(handed_in, part, said), *(step for one in parts for step in one.steps))
        if any(step.kind == "answer" for step in steps):
            jobs.append(steps)
    prose = {slug: text for one in chosen.values() for slug, text in one.prose.items()}
    renamed = len(base.todos) > 1
    files = tuple(
        f"{one.name} as {wanted}" if renamed and Path(one.name).name != wanted else one.name
        for wanted, one in chosen.items()
    )
    codes = [list(_codes(base, steps)) for steps in jobs]
    odd = tuple(flag for part in codes for flag in flags.find(part, base.rules))
    own = {one.place: similar.own(one.source, one.given) for part in codes for one in part if one.answers}
    missing = frozenset(base.todos.keys() - chosen)
    return Task(student, base.unit, base, said, files, tuple(jobs), prose, missing, odd, own)


def _codes(base: Base, steps: Sequence[Step]) -> Iterator[flags.Code]:
    """What a notebook runs, as `flags` reads it."""
    for step in steps:
        if step.kind == "setup":
            yield flags.Code(step.label, step.source, {}, step.source)
        elif step.kind == "file":
            todos = base.todos[step.label]
            given = (base.folder / step.label).read_text(encoding="utf-8")
            yield flags.Code(step.label, step.source, flags.places(todos), given)
        elif step.kind == "answer" and not step.file:
            yield flags.Code(step.label, step.source, {("", step.name): step.label}, base.stubs[step.label])


def _by_imports(files: Sequence[_Candidate]) -> list[_Candidate]:
    """Sort answer files, each behind those that it imports: one that is broken is found before it breaks others."""
    modules = {one.wanted.removesuffix(".py"): one for one in files}
    needs = {}
    for name, one in modules.items():
        packages = {package for _, found in _imports(one.steps[0].source) for package in found}
        needs[name] = [other for other in modules if other in packages and other != name]
    try:
        return [modules[name] for name in TopologicalSorter(needs).static_order()]
    except CycleError:
        return list(files)


def _notebook(name: str, notebook: NotebookNode, bases: Sequence[Base]) -> _Candidate | None:
    """Find the notebook of the course that a notebook is, and graft its answers; None when it is none."""
    long = [cell for cell in notebook.cells if cell.cell_type == "code" and len(cell.source) > LONGEST_CODE]
    for cell in long:
        cell.source = ""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    slugs = {cell.id for cell in notebook.cells}
    slugs |= {todo.slug for cell in notebook.cells if (todo := anatomy.todo(cell.source))}
    names = {defined for cell in code for defined in anatomy.own_names(cell.source)}
    sources = {cell.source.strip() for cell in code}
    course_data = notebook.metadata.get("course")
    claimed = course_data.get("unit") if isinstance(course_data, dict) else None

    def found_of(part: Part) -> int:
        checks = [cell.source.strip() for cell in part.notebook.cells if anatomy.role(cell) == "check"]
        answers = sum(answer.slug in slugs or answer.name in names for answer in part.cells)
        return answers or (sum(source in sources for source in checks) if part.files else 0)

    parts = [(found_of(part), base.unit == claimed, base, part) for base in bases for part in base.parts]
    found, _, base, part = max(parts, key=lambda one: one[:2])
    if not found:
        return None
    grafted = graft(part.notebook, notebook)
    steps, prose, setups = [], {}, 0
    place = f" of {part.name}" if len(base.parts) > 1 else ""
    by_index = {answer.index: answer for answer in part.cells}
    for index, cell in enumerate(grafted.notebook.cells):
        answer = by_index.get(index)
        if answer and answer.kind == "markdown":
            lines = [line for line in cell.source.split("\n") if not anatomy.todo_in(line)]
            text = "\n".join(lines).strip() if grafted.answered[answer.slug] else ""
            prose[answer.slug] = text[:LONGEST_PROSE] + (" … (shortened)" if len(text) > LONGEST_PROSE else "")
        elif answer:
            steps.append(Step("answer", answer.slug, cell.source, answer.name or ""))
        elif anatomy.role(cell) == "setup" and cell.cell_type == "code":
            setups += 1
            steps.append(Step("setup", f"setup cell {setups}{place}", cell.source))
    remarks = [f"a code cell of more than {LONGEST_CODE} characters was not read"] * bool(long)
    remarks += [printable(remark) for remark in grafted.remarks]
    rank = (-sum(grafted.answered.values()), -found)
    return _Candidate(name, base, part.name, rank, steps, remarks, prose)


# -- answer files --------------------------------------------------------------------------------------------


def _answer_files(
    files: Sequence[_File], bases: Sequence[Base], present: set[str], remarks: list[str]
) -> Iterator[_Candidate]:
    """Find the answer files among a student's files; `present` are the units whose notebooks are there."""
    wanted = [(base, file) for base in bases for part in base.parts for file in part.files]
    given = {path.name for base in bases for path in base.folder.glob("*.py")} - {file.name for _, file in wanted}
    python = [file for file in files if re.search(r"\.py(?![a-z])", file.name.lower())]
    python = [file for file in python if wanted and all(_likeness(file.name, one) == 2 for one in given)]
    python.sort(key=lambda file: min(_likeness(file.name, one.name) for _, one in wanted))
    for file, content in _read(python, "Python files", LARGEST_PYTHON, remarks):
        source = _text(content)
        names = set(anatomy.own_names(source))
        fitting = []
        for base, one in wanted:
            likeness = _likeness(file.name, one.name)
            defined = sorted({answer.name for answer in one.answers if answer.name} & names)
            near = base.unit in present or not present
            if (near and likeness == 0) or (defined and (near or likeness < 2)):
                fitting.append((likeness, base.unit not in present, -len(defined), base, one, defined))
        if not fitting:
            continue
        likeness, _, _, base, one, defined = min(fitting, key=lambda fit: fit[:3])
        guess = f"{file.name} was taken as {one.name}, since it defines {', '.join(defined)}"
        open_todos = set(re.findall(r"^[^#\n]*NotImplementedError\([\"']([a-z0-9-]+)[\"']\)", source, re.M))
        answered = sum(answer.name in names and answer.slug not in open_todos for answer in one.answers)
        steps = [Step("file", one.name, source)]
        steps += [Step("answer", answer.slug, "", answer.name or "", file=one.name) for answer in one.answers]
        rank = (-answered, likeness, file.name.count("/"))
        yield _Candidate(file.name, base, one.name, rank, steps, [guess] if likeness == 2 else [])


def _likeness(name: str, wanted: str) -> int:
    """How a file is called: 0 as the course calls it, 1 by a form of that name, 2 otherwise."""
    last = name.split("/")[-1].lower()
    stem = re.escape(Path(wanted).stem.lower())
    return 0 if last == wanted.lower() else 1 if re.search(rf"(?<![a-z]){stem}(?![a-z])", last) else 2


def _artefacts(files: Sequence[_File], part: Part, remarks: list[str]) -> Iterator[Step]:
    """Find the files that the completed notebook has made."""
    for wanted in part.artefacts:
        same_kind = [file for file in files if file.name.lower().endswith(Path(wanted).suffix)]
        fitting = [file for file in same_kind if _likeness(file.name, wanted) < 2] or same_kind[:1]
        fitting.sort(key=lambda file: (_likeness(file.name, wanted), file.name.count("/"), file.name))
        for file, content in _read(fitting[:1], "artefacts", LARGEST_ARTEFACT, remarks):
            yield Step("artefact", wanted, hashlib.sha256(content).hexdigest(), str(file.path.absolute()), file.member)
        if not fitting:
            remarks.append(f"{wanted} was not handed in; the completed notebook makes it")
        elif fitting[1:]:
            others = ", ".join(file.name for file in fitting[1:])
            remarks.append(f"{fitting[0].name} was taken as {wanted}; not looked at: {others}")


def _text(content: bytes) -> str:
    """The text of a Python file, however it is encoded, as it can be written in UTF-8."""
    try:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            text = content.decode("utf-16")
        else:
            text = importlib.util.decode_source(content)
    except (SyntaxError, UnicodeDecodeError):
        text = content.decode("cp1252", "replace")
    text = text.encode("utf-8", "replace").decode()
    return re.sub(r"\A((?:.*\n)?[ \t\f]*#.*?coding[:=][ \t]*)[-\w.]+", r"\1utf-8", text)


# -- files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _File:
    """A file of a submission: its name to show, what opens it, its path, and its name in the zip file there."""

    name: str
    open: Callable[[], IO[bytes]]
    path: Path
    member: str = ""

    def read(self, most: int) -> bytes:
        """Return its contents, up to so many bytes."""
        with self.open() as file:
            return file.read(most)


def _is_litter(name: str) -> bool:
    return name in LITTER or (name.startswith(".") and bool(name.strip(".")))


def _read(files: Sequence[_File], kind: str, most: int, remarks: list[str]) -> Iterator[tuple[_File, bytes]]:
    """Yield files with their contents; what cannot be read goes to `remarks`."""
    if len(files) > MOST_FILES:
        remarks.append(f"more than {MOST_FILES} {kind}: the others were not read")
    for file in files[:MOST_FILES]:
        try:
            content = file.read(most + 1)
        except OSError as error:
            remarks.append(f"{file.name}: cannot be read ({error.strerror or error})")
        except Exception as error:  # whatever a damaged zip file leads to
            remarks.append(f"{file.name}: cannot be unpacked ({type(error).__name__}); unpack it by hand")
        else:
            if len(content) > most:
                advice = "; clear its outputs" if kind == "notebooks" else ""
                remarks.append(f"{file.name}: larger than {most // 2**20} MB{advice}")
            else:
                yield file, content


def _opened(path: Path) -> IO[bytes]:
    return path.open("rb")


def _files(entries: Sequence[Path], remarks: list[str]) -> Iterator[_File]:
    """Yield the regular files below `entries`, and those in zip files; links are not followed."""

    def refuse(error: OSError) -> None:
        remarks.append(f"{printable(Path(error.filename).name)}: cannot be opened ({error.strerror})")

    for entry in entries:
        if entry.is_symlink() or not entry.is_dir():
            paths = [entry]
        else:
            paths = []
            for folder, inside, names in os.walk(entry, onerror=refuse):
                linked = [name for name in inside if Path(folder, name).is_symlink()]
                inside[:] = sorted(name for name in inside if not _is_litter(name))
                paths += [Path(folder, name) for name in sorted([*names, *linked]) if not _is_litter(name)]
        for path in paths:
            name = printable(path.name if path == entry else path.relative_to(entry).as_posix())
            if path.is_symlink():
                remarks.append(f"{name}: a link, which is not followed; hand in the file itself")
            elif not stat.S_ISREG(path.stat().st_mode):
                remarks.append(f"{name}: not a file")
            elif path.name.lower().endswith(".zip"):
                yield from _zipped(_File(name, partial(_opened, path), path), remarks)
            else:
                yield _File(name, partial(_opened, path), path)


def _zipped(file: _File, remarks: list[str]) -> Iterator[_File]:
    """Yield the files in a zip file; they are read in memory, so no path in it can do harm."""
    contents = [content for _, content in _read([file], "zip files", LARGEST_NOTEBOOK, remarks)]
    try:
        archives = [zipfile.ZipFile(BytesIO(content)) for content in contents]
    except Exception as error:
        remarks.append(f"{file.name}: cannot be unpacked ({type(error).__name__}); unpack it by hand")
        return
    for archive in archives:
        for info in archive.infolist():
            if not info.is_dir() and not any(_is_litter(part) for part in info.filename.split("/")):
                name = f"{file.name}/{info.filename}"[-LONGEST_REMARK:]
                yield _File(printable(name), partial(archive.open, info), file.path, info.filename)
