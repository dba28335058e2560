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
answer in a file is proven with the whole reference file, below which it is put, so that it may say
`class MLP(MLP):` and replace one method.

Answers run in a worker of the grader's and are judged as students' are (only not contained: the authors' code is
trusted). Setup cells and reference answers run once in a notebook: at each TODO the process is forked, and its copy
proves that TODO in a worker, while the notebook goes on to the next; as many TODOs at a time as there are cores.

`python -m common.grading.proofs [unit ...]` proves the units and prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import course
from common.checks import Check, find
from common.grading import worker
from common.grading.job import Step
from common.grading.judge import judge, load, silence
from common.grading.remote import Worker, WorkerLost
from common.grading.sandbox import FOLDER, Settings
from common.notebooks import anatomy, branch
from common.notebooks.anatomy import Answer, NotebookError

MINIMUM = {"right": 1, "wrong": 5}  # stored answers of each TODO, besides the reference
SEEDS = (0, 1)  # a grader draws fresh inputs, so a proof must not hang on one draw
SECONDS = 30.0  # by the clock, to run an answer's code, and for its check with one seed; more on a slow machine

_HEADER = re.compile(r"# %% *(?P<kind>\w+): *(?P<title>.*?) *(?:\[says: *(?P<says>.*?) *\])? *")


@dataclass(frozen=True)
class Snippet:
    """An answer to prove.

    Attributes:
        kind: `right` or `wrong`, or `mutant` (see `common.grading.mutants`).
        title: what it is called.
        says: the words of which the message must contain one.
        source: its code.
        whole: whether, of an answer in a file, it is the file and not what is put below the reference.
    """

    kind: str
    title: str
    says: tuple[str, ...]
    source: str
    whole: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a check did with one answer.

    Attributes:
        kind: that of the snippet.
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


More = Callable[[Answer, str], Sequence[Snippet]]  # of a TODO and, of one in a file, the reference file


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


def prove(
    notebook: Path, answer_files: Sequence[str] | None = None, more: More | None = None
) -> dict[str, list[Outcome]]:
    """Prove the checks of one notebook.

    Args:
        notebook: a solved notebook, with its unit's files, `answers/` and, where there are hidden tests,
            `hidden_checks.py` beside it.
        answer_files: the names of its answer files. Without it, those that the course gives to its notebook whose
            path `notebook` ends with.
        more: returns further answers to each TODO.

    Returns:
        For each TODO that is answered with code, first those of the notebook, then those of its answer files, what
        happened to its reference and to each of its stored answers, and to the further ones.

    Raises:
        NotebookError: the notebook cannot be proven at all: a setup cell or a reference answer does not run, or its
            checks do not belong together.
    """
    (outcomes,) = prove_all([notebook], answer_files, more)
    return outcomes


def prove_all(
    notebooks: Sequence[Path], answer_files: Sequence[str] | None = None, more: More | None = None
) -> Iterator[dict[str, list[Outcome]]]:
    """Prove several notebooks at once; see `prove`."""
    if not hasattr(os, "fork"):
        raise NotebookError("proofs need Linux or macOS; on Windows use WSL")
    cores = multiprocessing.get_context("fork").Semaphore(os.cpu_count() or 1)
    paths = [Path(notebook).resolve() for notebook in notebooks]
    waiting = [_fork(partial(_prove, path, _files_of(path, answer_files), more, cores)) for path in paths]
    for result in waiting:
        yield result()


def _prove(notebook: Path, names: Sequence[str], more: More | None, cores: Any) -> dict[str, list[Outcome]]:
    """Prove a notebook, in a process of its own."""
    silence()
    folder = notebook.parent
    for file in folder.glob("*.py"):
        sys.modules.pop(file.stem, None)  # another unit's
    os.chdir(folder)
    sys.path.insert(0, str(folder))  # hidden tests may import from checks.py
    sys.dont_write_bytecode = True
    nb = anatomy.read(notebook)
    cells = {answer.index: answer for answer in anatomy.answers(nb) if answer.kind == "code"}
    texts = {name: anatomy.read_text(folder / name) for name in names}
    files = [answer for name, text in texts.items() for answer in anatomy.answers_in_file(text, name)]
    todos = [*cells.values(), *files]
    if not todos:
        return {}
    checks = find(load(folder / "checks.py"))
    hidden = find(load(folder / "hidden_checks.py")) if (folder / "hidden_checks.py").is_file() else {}
    _refuse_strangers([checks[todo.slug] for todo in todos if todo.slug in checks], checks, notebook)
    with tempfile.TemporaryDirectory(prefix=FOLDER) as home:
        artefacts = [file for file in folder.glob("answers/*") if file.suffix not in (".py", ".md")]
        for file in [*folder.glob("*.py"), *artefacts]:
            shutil.copy(file, home)
        os.chdir(home)
        given = sys.modules["checks"]
        session = _Session()
        sys.modules["checks"] = given  # hidden tests may have imported it, and their probes are looked up in it

        def proof(answer: Answer) -> Callable[[], list[Outcome]]:
            todo = _Todo(answer, notebook, checks.get(answer.slug), hidden.get(answer.slug), texts.get(answer.file, ""))
            return _fork(partial(todo.prove, None if answer.file else session, more, cores))

        waiting = {answer.slug: proof(answer) for answer in files}
        for index, cell in enumerate(nb.cells):
            answer = cells.get(index)
            if answer:
                waiting[answer.slug] = proof(answer)
            if answer or (anatomy.role(cell) == "setup" and cell.cell_type == "code"):
                error, _ = session.run(cell.source, "", "")
                if error:
                    raise NotebookError(f"{notebook}: the cell {cell.id} does not run: {error}. Mend it first")
        return {todo.slug: waiting[todo.slug]() for todo in todos}


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
class _Todo:
    """A TODO, its checks, and, when it lies in an answer file, the text of that with all reference answers."""

    answer: Answer
    notebook: Path
    check: Check | None
    hidden: Check | None
    reference: str

    def prove(self, session: _Session | None, more: More | None, cores: Any) -> list[Outcome]:
        """Prove its reference and stored answers, and those that `more` gives, in a fork of `session`."""
        with cores:
            snippets = [Snippet("right", "the reference", (), "" if self.reference else self.answer.source)]
            file = self.notebook.parent / "answers" / f"{self.answer.slug}.py"
            snippets += parse(file) if file.is_file() else []
            snippets += more(self.answer, self.reference) if more else []
            if problem := self._problem():
                return [Outcome(one.kind, one.title, problem=problem) for one in snippets]
            outcomes: list[Outcome] = []
            began, limit, limit_of_mutants = time.monotonic(), 4 * SECONDS, SECONDS
            while len(outcomes) < len(snippets):  # once, and again for each answer that hangs or dies
                with self._worker(session) as process:
                    for snippet in snippets[len(outcomes) :]:
                        limit_of_this = limit_of_mutants if snippet.kind == "mutant" else limit
                        outcomes.append(self._prove_one(snippet, process, limit_of_this))
                        if len(outcomes) == 1:  # the reference: it shows how fast the machine is
                            took = time.monotonic() - began
                            limit = SECONDS if process.lost else min(4 * SECONDS, max(SECONDS, 3 * took))
                            limit_of_mutants = min(SECONDS, 3 + 10 * took)  # they hang more often than authors' answers
                        if process.lost:
                            break
            return outcomes

    def _problem(self) -> str:
        """Return why the answer cannot be scored, or ''."""
        if self.check is None:
            return f"checks.py has no check {self.answer.slug!r}"
        hidden = self.hidden.points if self.hidden else 0
        if hidden != self.check.hidden:
            return f"cannot be scored: hidden_checks.py gives {hidden:g} points, checks.py says {self.check.hidden:g}"
        if self.check.points + hidden != self.answer.points:
            given = f"{self.check.points:g}{f' + {hidden:g}' if hidden else ''} points"
            return f"cannot be scored: its check gives {given}, its TODO line says {self.answer.points}"
        return ""

    def _prove_one(self, snippet: Snippet, process: Worker, limit: float) -> Outcome:
        problem, messages = self._messages(snippet, process, limit)
        if snippet.kind == "mutant":
            caught = bool(problem) or all(messages)
            return Outcome(snippet.kind, snippet.title, not caught and not any(messages), caught)
        if problem:
            return Outcome(snippet.kind, snippet.title, problem=problem)
        caught, accepted = all(messages), not any(messages)
        named = caught and all(any(word.lower() in message.lower() for word in snippet.says) for message in messages)
        if snippet.kind == "right" and not accepted:
            problem = f"is refused: {next(filter(None, messages))}"
        elif snippet.kind == "wrong" and not caught:
            problem = "is accepted" if accepted else f"is accepted with some inputs (seeds {SEEDS})"
        elif snippet.kind == "wrong" and not named:
            problem = f"is caught, but no message says {' or '.join(snippet.says)!r}: {messages[0]}"
        return Outcome(snippet.kind, snippet.title, accepted, caught, named, problem)

    @contextlib.contextmanager
    def _worker(self, session: _Session | None) -> Iterator[Worker]:
        """Start a worker: a copy of the session, or, for answers in a file, one with nothing in it."""
        with contextlib.ExitStack() as stack:
            folder = Path.cwd() if session else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=FOLDER)))
            unit = None if session else self.notebook.parent
            settings = Settings(folder, unit, seconds=3600, contained=False)
            process = Worker(settings, partial(_serve, session, dict(os.environ)))
            stack.callback(process.close)
            yield process

    def _messages(self, snippet: Snippet, process: Worker, limit: float) -> tuple[str, list[str]]:
        """Run an answer; return why it cannot be judged, or '', and what a student reads with each seed."""
        answer, name = self.answer, self.answer.name or ""
        process.limit = limit
        try:
            if answer.file:
                source = snippet.source if snippet.whole else f"{self.reference}\n\n{snippet.source}"
                error, _ = process.text("reload", answer.file, source)
            else:
                error, _ = process.text("run", snippet.source, name, "")
            elsewhere = answer.file and snippet.source and not re.search(rf"\b{name}\b", snippet.source)
            missing = elsewhere or process.answer(name, answer.file) is None
        except WorkerLost as lost:
            error = str(lost)
        if error or missing:
            return f"its code does not run: {error}" if error else f"it does not define {name}", []
        messages = []
        for seed in SEEDS:
            process.limit = limit
            torch.default_generator.manual_seed(seed)
            step = Step("answer", answer.slug, snippet.source, name, answer.file)
            messages.append(_read(judge(process, step, "", self.check, self.hidden, seed)))
            if process.lost:
                break
        return "", messages


class _Session(worker.Session):
    """A session that takes several answers one after another."""

    def reload(self, name: str, source: str) -> tuple[str, list[str]]:
        """Put another answer file in the place of the last one; returns what `load` does."""
        if name in self._stubs:
            (self._folder / name).write_text(self._stubs[name], encoding="utf-8")
            self._broken.clear()
            self._files.clear()
        sys.modules.pop(name.removesuffix(".py"), None)
        self.write({name: source})
        return self.load(name)


def _serve(session: _Session | None, environment: dict[str, str], sock: socket.socket, words: int) -> None:
    os.environ.update(environment | os.environ)
    worker.serve(sock, words, session or _Session())


def _read(found: dict[str, Any]) -> str:
    """Return what a student reads about what was wrong, or ''."""
    if found["state"] == "todo":
        return "still to do"
    failed = [case for case in found["cases"] if not case["passed"]] if "cases" in found else []
    said = [f"{case['name']}\n{case['hint']}" if case["hidden"] else case["message"] for case in failed]
    return "\n".join(filter(None, [*said, found["message"]]))


def _fork(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start `work` in a copy of this process; return what waits for its result."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            theirs.send((work(), ""))
        except NotebookError as error:
            theirs.send((None, str(error)))
        except BaseException:
            theirs.send((None, f"a proof broke off:\n{traceback.format_exc()}"))
        finally:
            os._exit(0)
    theirs.close()

    def result() -> Any:
        try:
            value, error = ours.recv()
        except EOFError:
            value, error = None, "a proof broke off: its process died"
        ours.close()
        os.waitpid(pid, 0)
        if error:
            raise NotebookError(error)
        return value

    return result


# The report


def parser(module: str, text: str) -> argparse.ArgumentParser:
    """Return a parser for the command `python -m module`, which `text` describes."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=text.split("\n")[0])
    made.add_argument("units", nargs="*", help="folders of units, such as phase2_transformers/lab1_attention")
    made.add_argument("--folder", type=Path, help="solved units that can be run (default: made from solutions/)")
    return made


def run(options: argparse.Namespace, more: More | None = None) -> int:
    """Do what a command asks: prove units and print a table; returns 0 if every stored answer is as it should be."""
    with tempfile.TemporaryDirectory() as tmp:
        try:
            folder = options.folder
            if folder is None:
                folder = branch.preview(course.find_root(), Path(tmp) / "solutions")
            return _report(folder.resolve(), [unit.strip("/") for unit in options.units], more)
        except NotebookError as error:
            print(error, file=sys.stderr)
            return 1


def _report(folder: Path, units: list[str], more: More | None) -> int:
    found = {path: path.parent.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.ipynb"))}
    if unknown := set(units) - set(found.values()):
        raise NotebookError(f"no solved notebook in {', '.join(sorted(unknown))}; there is {sorted(found.values())}")
    chosen = {path: unit for path, unit in found.items() if not units or unit in units}
    kinds = ["right accepted", "wrong caught", "mistake named", *(["mutants caught"] if more else [])]
    totals: dict[str, list[Outcome]] = {}
    problems, survivors = [], []
    for (path, unit), outcomes_of in zip(chosen.items(), prove_all(list(chosen), more=more), strict=True):
        if not outcomes_of:
            continue
        print(f"{unit}/{path.name}\n{'':40}{''.join(f'{kind:>18}' for kind in kinds)}")
        for slug, outcomes in outcomes_of.items():
            print(_line(slug, outcomes, len(kinds)))
            totals.setdefault(unit, []).extend(outcomes)
            problems += [f"{slug}: {one.kind} answer {one.title!r} {one.problem}" for one in outcomes if one.problem]
            problems += [f"{slug}: {shortage}" for shortage in shortages(outcomes)]
            survivors += [f"{slug}, {title}" for title in survived(outcomes)]
    print("All of them")
    for unit, outcomes in totals.items():
        print(_line(unit, outcomes, len(kinds)))
    print("\n".join(["", f"{len(survivors)} mutants survive:", *survivors] if survivors else []))
    print("\n".join(["", *problems] if problems else ["Every proof holds."]))
    return 1 if problems else 0


def _line(name: str, outcomes: list[Outcome], columns: int) -> str:
    wrong = [one for one in outcomes if one.kind == "wrong"]
    found = [
        [one.accepted for one in outcomes if one.kind == "right"],
        [one.caught for one in wrong],
        [one.named for one in wrong],
        [one.caught for one in outcomes if one.kind == "mutant"],
    ]
    return f"  {name:38}" + "".join(f"{f'{sum(column)} of {len(column)}':>18}" for column in found[:columns])


def survived(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the mutants, as texts, that keep all points with some inputs."""
    mutants = [one for one in outcomes if one.kind == "mutant" and not one.caught]
    return [one.title + ("" if one.accepted else "  (with some inputs)") for one in mutants]


def main(arguments: list[str] | None = None) -> int:
    """Prove units and print a table; returns 0 if every proof holds."""
    return run(parser("common.grading.proofs", __doc__).parse_args(arguments))


if __name__ == "__main__":
    from common.grading import proofs  # the module that outcomes are known by in every process

    sys.exit(proofs.main())
