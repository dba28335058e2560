"""The checks, tested with answers: every stored right answer must be accepted, every wrong one caught.

Beside a solved notebook on the branch `solutions` lies `answers/<slug>.py` for each TODO that is answered with
code, in cells that replace the answer cell whole::

    # %% right: einsum
    def scaled_dot_product_attention(q, k, v): ...
    # %% wrong: no 1/sqrt(d)  [says: sqrt | d_k]
    def scaled_dot_product_attention(q, k, v): ...

What the check says about a wrong answer must contain one of the words after `says`; capitals do not matter. Of a
hidden test only the name and the hint count, which is all that a student reads of it.

An answer in a cell is proven with the notebook's setup cells and the reference answers of the TODOs before it. An
answer in a file is proven with the whole reference file, which is run before it, so that it may say
`class MLP(MLP):` and replace one method.

`python -m common.grading.proofs [unit ...]` proves the units and prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import linecache
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common import course
from common.checks import Check, find
from common.notebooks import anatomy, branch
from common.notebooks.anatomy import Answer, NotebookError

MINIMUM = {"right": 1, "wrong": 5}  # stored answers of each TODO, besides the reference
SEEDS = (0, 1)  # a grader draws fresh inputs, so a proof must not hang on one draw
SECONDS = 10.0  # of processor time, for one answer with one seed; six times as much by the clock

_HEADER = re.compile(r"# %% *(?P<kind>\w+): *(?P<title>.*?) *(?:\[says: *(?P<says>.*?) *\])? *")


@dataclass(frozen=True)
class Snippet:
    """One stored answer: its kind (`right` or `wrong`), title, expected words and source."""

    kind: str
    title: str
    says: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Outcome:
    """What a check did with one answer.

    Attributes:
        kind: `right` or `wrong`.
        title: what the answer is called.
        accepted: whether it got all points, with every seed.
        caught: whether it lost points, with every seed.
        named: whether the messages contain an expected word, with every seed.
        problem: what is not as it should be, for an author; empty if the proof holds.
    """

    kind: str
    title: str
    accepted: bool = False
    caught: bool = False
    named: bool = False
    problem: str = ""


class _TimeUp(BaseException):
    """Not an Exception, so that no case takes it for the answer's own."""


def parse(path: Path) -> list[Snippet]:
    """Read answers/<slug>.py.

    Raises:
        NotebookError: a header is not understood, or code stands before the first one.
    """
    before, *cells = re.split(r"^(?=# %%)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if any(line and not line.startswith("#") for line in before.splitlines()):
        raise NotebookError(f"{path}: code stands before the first `# %%` line; put it below one")
    snippets = []
    for cell in cells:
        first, _, source = cell.partition("\n")
        header = _HEADER.fullmatch(first)
        if not header or header["kind"] not in MINIMUM or bool(header["says"]) != (header["kind"] == "wrong"):
            raise NotebookError(f"{path}: {first!r} is not `# %% right: title` or `# %% wrong: title  [says: word]`")
        words = tuple(word.strip() for word in (header["says"] or "").split("|") if word.strip())
        snippets.append(Snippet(header["kind"], header["title"], words, source.strip("\n") + "\n"))
    return snippets


def prove(notebook: Path, answer_files: Sequence[str] | None = None) -> dict[str, list[Outcome]]:
    """Prove the checks of one notebook.

    Args:
        notebook: a solved notebook, with its unit's files, `answers/` and, where there are hidden tests,
            `hidden_checks.py` beside it.
        answer_files: the names of its answer files. Without it, those that the course gives to its notebook whose
            path `notebook` ends with.

    Returns:
        For each TODO that is answered with code, first those of the notebook, then those of its answer files, what
        happened to its reference and to each of its stored answers.

    Raises:
        NotebookError: the notebook cannot be proven at all: a setup cell, a reference answer or an answer file does
            not run, or its checks do not belong together.
    """
    notebook = Path(notebook).resolve()
    nb = anatomy.read(notebook)
    cells = {answer.index: answer for answer in anatomy.answers(nb) if answer.kind == "code"}
    files = {name: anatomy.file_answers(notebook.parent / name) for name in _files_of(notebook, answer_files)}
    todos = [*cells.values(), *(answer for found in files.values() for answer in found)]
    outcomes: dict[str, list[Outcome]] = {}
    if not todos:
        return outcomes
    with _inside(notebook.parent):
        checks = find(importlib.import_module("checks"))
        hidden = find(importlib.import_module("hidden_checks")) if Path("hidden_checks.py").is_file() else {}
        _refuse_strangers([checks[todo.slug] for todo in todos if todo.slug in checks], checks, notebook)
        namespace: dict[str, Any] = {"__name__": "__main__"}

        def run(source: str, what: str, name: str, namespace: dict[str, Any]) -> None:
            try:
                _execute(source, name, namespace)
            except (Exception, _TimeUp) as error:
                raise NotebookError(f"{notebook}: {what} does not run: {_say(error)}. Mend it first") from error

        def proof(answer: Answer, before: str = "") -> list[Outcome]:
            judges = _Judges(checks.get(answer.slug), hidden.get(answer.slug))
            return _prove_todo(answer, judges, {} if answer.file else namespace, notebook, before)

        for index, cell in enumerate(nb.cells):
            answer = cells.get(index)
            if answer:
                outcomes[answer.slug] = proof(answer)
            if answer or (anatomy.role(cell) == "setup" and cell.cell_type == "code"):
                run(cell.source, f"the cell {cell.id}", f"<{notebook.name}: {cell.id}>", namespace)
        for name, answers in files.items():
            source = Path(name).read_text(encoding="utf-8")
            run(source, name, f"<{name}>", {"__name__": name.removesuffix(".py")})
            outcomes |= {answer.slug: proof(answer, source) for answer in answers}
    return outcomes


def _files_of(notebook: Path, answer_files: Sequence[str] | None) -> Sequence[str]:
    if answer_files is not None:
        return answer_files
    fitting = [unit for unit in course.load().units if notebook.parent.as_posix().endswith(f"/{unit.folder}")]
    return next((one.answer_files for unit in fitting for one in unit.notebooks if one.file == notebook.name), ())


def _refuse_strangers(own: list[Check], checks: dict[str, Check], notebook: Path) -> None:
    """Raise if `progress` at the end of the notebook would not list exactly the checks of its TODOs."""
    parts = {check.part for check in own}
    strangers = [slug for slug, check in checks.items() if check.part in parts and check not in own]
    if len(parts) > 1 or strangers:
        reason = f"checks {strangers} of its part have no TODO in it" if strangers else f"parts {sorted(parts)} differ"
        raise NotebookError(f"{notebook}: its checks' {reason}. Give each notebook's checks one `part=` of their own")


def shortages(outcomes: list[Outcome], minimum: dict[str, int] | None = None) -> list[str]:
    """Return which kind of stored answer a TODO has too few of; its reference does not count."""
    counts = {kind: sum(one.kind == kind for one in outcomes) for kind in MINIMUM}
    counts["right"] -= 1
    return [
        f"stored {kind} answers: {counts[kind]}, needed: {least}"
        for kind, least in (minimum or MINIMUM).items()
        if counts[kind] < least
    ]


@dataclass(frozen=True)
class _Judges:
    """The visible and the hidden check of one answer."""

    visible: Check | None
    hidden: Check | None

    def problem(self, answer: Answer) -> str:
        """Return why the answer cannot be scored, or ''."""
        if self.visible is None:
            return f"checks.py has no check {answer.slug!r}"
        hidden = self.hidden.points if self.hidden else 0
        if hidden != self.visible.hidden:
            return f"cannot be scored: hidden_checks.py gives {hidden:g} points, checks.py says {self.visible.hidden:g}"
        if self.visible.points + hidden != answer.points:
            given = f"{self.visible.points:g}{f' + {hidden:g}' if hidden else ''} points"
            return f"cannot be scored: its check gives {given}, its TODO line says {answer.points}"
        return ""

    def failures(self, answer: object, seed: int) -> str:
        """Return what a student reads about the cases that fail, or ''."""
        reports = [check.run(answer, seed) for check in (self.visible, self.hidden) if check]
        failed = [(report, case) for report in reports for case in report.cases if not case.passed]
        said = [f"{case.name}\n{case.hint}" if report is not reports[0] else case.message for report, case in failed]
        return "\n".join(said) or ("" if all(report.passed for report in reports) else "still to do")


def _prove_todo(
    answer: Answer, judges: _Judges, namespace: dict[str, Any], notebook: Path, before: str
) -> list[Outcome]:
    snippets = [Snippet("right", "the reference", (), "" if answer.file else answer.source)]
    file = notebook.parent / "answers" / f"{answer.slug}.py"
    if file.is_file():
        snippets += parse(file)
    if problem := judges.problem(answer):
        return [Outcome(one.kind, one.title, problem=problem) for one in snippets]
    return [_prove_one(snippet, answer, judges, namespace, before) for snippet in snippets]


def _prove_one(snippet: Snippet, answer: Answer, judges: _Judges, namespace: dict[str, Any], before: str) -> Outcome:
    """Prove one answer; `before` is the file that it is a change of."""

    def outcome(problem: str, **found: bool) -> Outcome:
        return Outcome(snippet.kind, snippet.title, problem=problem, **found)

    messages = []
    for seed in SEEDS:
        scope = {name: value for name, value in namespace.items() if name != answer.name}
        torch.manual_seed(seed)
        torch.set_grad_enabled(True)  # the answer before may have been stopped inside no_grad
        try:
            if before:
                scope["__name__"] = answer.file.removesuffix(".py")
                _execute(before, f"<{answer.file}>", scope)
            _execute(snippet.source, f"<{answer.slug}: {snippet.title}>", scope)
        except (Exception, _TimeUp) as error:
            return outcome(f"its code does not run: {_say(error)}")
        missing = before and snippet.source and not re.search(rf"\b{answer.name}\b", snippet.source)
        if answer.name not in scope or missing:
            return outcome(f"it does not define {answer.name}")
        try:
            with _time_limit():
                messages.append(judges.failures(scope[answer.name], seed))
        except (Exception, _TimeUp) as error:
            messages.append(_say(error))
            if isinstance(error, _TimeUp):
                break
    caught, accepted = all(messages), not any(messages)
    named = caught and all(any(word.lower() in message.lower() for word in snippet.says) for message in messages)
    problem = ""
    if snippet.kind == "right" and not accepted:
        problem = f"is refused: {next(filter(None, messages))}"
    elif snippet.kind == "wrong" and not caught:
        problem = "is accepted" if accepted else f"is accepted with some inputs (seeds {SEEDS})"
    elif snippet.kind == "wrong" and not named:
        problem = f"is caught, but no message says {' or '.join(snippet.says)!r}: {messages[0]}"
    return outcome(problem, accepted=accepted, caught=caught, named=named)


def _execute(source: str, name: str, namespace: dict[str, Any]) -> None:
    """Run a cell in `namespace`; magics are left out."""
    tree = anatomy.python(source)
    code = compile(tree if tree is not None else source, name, "exec", dont_inherit=True)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for tracebacks
    with _time_limit():
        exec(code, namespace)


def _say(error: BaseException) -> str:
    return str(error) if isinstance(error, _TimeUp) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """End a block that runs too long; only where Python has timers, and in its main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TimeUp(f"did not end within {SECONDS:g} seconds")

    # Processor time does not depend on what else the machine does; the clock ends an answer that only waits.
    timers = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, 6 * SECONDS)}
    before = {name: signal.signal(name, stop) for name in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds, 1.0)  # again each second: an answer may catch the first
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for name, handler in before.items():
            signal.signal(name, handler)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Be in the unit's folder as its kernel would be: quiet, with one thread, and with its own `checks`."""
    where, path, threads, bytecode = (
        Path.cwd(),
        list(sys.path),
        torch.get_num_threads(),
        sys.dont_write_bytecode,
    )
    hidden = {
        name: sys.modules.pop(name) for name in [file.stem for file in folder.glob("*.py")] if name in sys.modules
    }
    os.environ.setdefault("MPLBACKEND", "Agg")
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(f"{folder}{os.sep}"):
                del sys.modules[name]
        sys.modules.update(hidden)
        os.chdir(where)
        sys.path[:] = path
        sys.dont_write_bytecode = bytecode
        torch.set_num_threads(threads)


def main(arguments: list[str] | None = None) -> int:
    """Prove units and print a table; returns 0 if every proof holds."""
    parser = argparse.ArgumentParser(prog="python -m common.grading.proofs", description=__doc__.split("\n")[0])
    parser.add_argument("units", nargs="*", help="folders of units, such as phase2_transformers/lab1_attention")
    parser.add_argument("--folder", type=Path, help="solved units that can be run (default: made from solutions/)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as tmp:
        try:
            folder = options.folder
            if folder is None:
                folder = branch.preview(course.find_root(), Path(tmp) / "solutions")
            return _prove_all(folder, [unit.strip("/") for unit in options.units])
        except NotebookError as error:
            print(error, file=sys.stderr)
            return 1


def _prove_all(folder: Path, units: list[str]) -> int:
    folder = folder.resolve()
    found = {path: path.parent.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.ipynb"))}
    unknown = set(units) - set(found.values())
    if unknown:
        raise NotebookError(f"no solved notebook in {', '.join(sorted(unknown))}; there is {sorted(found.values())}")
    problems = []
    for notebook, unit in found.items():
        if units and unit not in units:
            continue
        outcomes_of = prove(notebook)
        if not outcomes_of:
            continue
        print(f"{unit}/{notebook.name}\n{'':40}{'right accepted':>16}{'wrong caught':>16}{'mistake named':>16}")
        for slug, outcomes in outcomes_of.items():
            right = [one.accepted for one in outcomes if one.kind == "right"]
            wrong = [one for one in outcomes if one.kind == "wrong"]
            columns = (right, [one.caught for one in wrong], [one.named for one in wrong])
            print(f"  {slug:38}" + "".join(f"{f'{sum(c)} of {len(c)}':>16}" for c in columns))
            problems += [f"{slug}: {one.kind} answer {one.title!r} {one.problem}" for one in outcomes if one.problem]
            problems += [f"{slug}: {shortage}" for shortage in shortages(outcomes)]
    print("\n".join(["", *problems] if problems else ["Every proof holds."]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
