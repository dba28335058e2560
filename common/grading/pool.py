"""Runs submissions in worker processes, several at a time, and survives whatever they do.

Each notebook of a submission, with its answer files, is a run of its own. One loop watches all workers. A worker
says what it is about to do and each result as soon as it has it; when it hangs or dies, the answer or answer file
it was busy with is left out and a new worker goes on with the rest. So each run ends after at most as many
workers as it has answers and files, and within its time.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

from common.grading.collect import Base, Task
from common.grading.job import FOLDER, Job, Step, start

STARTUP = 300  # seconds for a worker's first message: the server may still be importing torch
LONGEST_REPORT = 8 * 2**20  # bytes that one worker may send

State = Literal["graded", "todo", "broken", "stopped", "not run", "missing", "unchecked", "marked"]


@dataclass
class AnswerResult:
    """What one answer earned.

    Attributes:
        state: "graded", "todo" (still the stub, or prose without an answer), "broken" (could not be checked),
            "stopped" (hung or killed its worker), "not run" (no time or no worker was left), "missing" (its file was
            not handed in), "unchecked" (a person has to mark it), or "marked" (a person has).
        message: what was wrong; of prose, the student's answer.
        file: the notebook or answer file of the course that it belongs to.
        prose: whether it is for a person to mark.
        comment: what that person says about it.
    """

    slug: str
    out_of: float
    points: float = 0
    state: State = "not run"
    message: str = ""
    cases: list[dict[str, Any]] = field(default_factory=list)
    file: str = ""
    prose: bool = False
    comment: str = ""


@dataclass
class Row:
    """What one student earned in one unit; `failed` when the course or the grader, not the student, is at fault.

    `files` are the student's files that were graded (see `common.grading.collect.Task`).
    """

    student: str
    unit: str
    files: list[str]
    answers: list[AnswerResult]
    remarks: list[str]
    seconds: float = 0
    failed: bool = False

    @property
    def points(self) -> float:
        """Points earned."""
        return sum(answer.points for answer in self.answers)

    @property
    def out_of(self) -> float:
        """Points that could be earned."""
        return sum(answer.out_of for answer in self.answers)

    @property
    def unmarked(self) -> int:
        """How many answers wait for a person; while there are any, `points` are provisional."""
        return sum(answer.state == "unchecked" for answer in self.answers)

    def as_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON values."""
        return asdict(self) | {"points": self.points, "out_of": self.out_of, "unmarked": self.unmarked}


@dataclass(frozen=True)
class Settings:
    """How submissions are run.

    Attributes:
        seed: chooses the inputs of the checks.
        jobs: workers at a time.
        timeout: seconds for one notebook of a submission; one answer may use a quarter of it.
        memory: bytes that a submission may use (Linux only).
        hidden: the hidden_checks.py of each unit that has one.
    """

    seed: int
    jobs: int = os.cpu_count() or 1
    timeout: float = 120
    memory: int = 4 * 2**30
    hidden: Mapping[str, Path] = field(default_factory=dict)


def grade(tasks: Sequence[Task], settings: Settings) -> Generator[Row, None, None]:
    """Run the submissions and yield their rows in the order in which they are finished.

    Closing the iterator, as `break` or an exception does, kills the workers that are still running.
    """
    waiting, running = deque[_Run](), list[_Run]()
    context = _server(tasks)
    try:
        for task in tasks:
            row = Row(task.student, task.unit, list(task.files), _empty(task), list(task.remarks))
            if task.base and task.files and task.base.hidden and task.unit not in settings.hidden:
                lost = sum(task.base.hidden.values())
                row.remarks.append(f"the hidden tests were not found: {lost:g} points cannot be earned")
            waiting.extend(_Run(row, task.base, steps, settings, context) for steps in task.jobs if task.base)
            if not task.jobs:  # the remarks say why
                yield row
        while waiting or running:
            while waiting and len(running) < settings.jobs:
                running.append(waiting.popleft())
                running[-1].start()
            sources = [source for run in running for source in run.sources()]
            if sources:
                wait(sources, max(0.0, min(run.deadline for run in running) - time.monotonic()))
            for run in list(running):
                if run.advance():
                    running.remove(run)
                    if not any(other.row is run.row for other in (*running, *waiting)):
                        yield run.row
    finally:
        for run in running:
            run.kill()


def _server(tasks: Sequence[Task]) -> Any:
    """Return what starts workers: a server that has everything loaded and forks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common.grading.preload"])
    imports = dict.fromkeys(line for task in tasks if task.base for line in task.base.imports)
    os.environ["COURSE_GRADING_IMPORTS"] = "\n".join(imports)
    os.environ.setdefault("MPLBACKEND", "Agg")
    return context


def _empty(task: Task) -> list[AnswerResult]:
    results = []
    for file, answers in task.base.todos.items() if task.base else ():
        for answer in answers:
            prose, text = answer.kind == "markdown", task.prose.get(answer.slug, "")
            state: State = "unchecked" if text else "todo" if prose else "not run"
            if file in task.missing:
                state = "missing"
            result = AnswerResult(answer.slug, answer.points or 0, state=state, message=text, file=file, prose=prose)
            results.append(result)
    return results


class _Run:
    """One notebook of a submission on its way: the worker that runs it now, and what is known so far."""

    def __init__(self, row: Row, base: Base, steps: Sequence[Step], settings: Settings, context: Any) -> None:
        self.row = row
        self._base, self._settings, self._context = base, settings, context
        self._results = {answer.slug: answer for answer in row.answers}
        self._steps = list(steps)
        self._began: float | None = None  # set by the first message: loading torch is not the student's time

    def sources(self) -> list[Any]:
        """What to wait for: the worker's messages and its end."""
        return [self._process.sentinel] if self._closed else [self._pipe, self._process.sentinel]

    def advance(self) -> bool:
        """Take in what has happened; return whether the row is complete."""
        ended = not self._process.is_alive()  # asked first: what it wrote before its end is read below
        fault = self._read()
        if self._done:
            self.kill()
            return self._complete()
        if fault:
            return self._leave_out(fault)
        if ended:
            return self._leave_out(_cause(self._process.exitcode))
        if time.monotonic() > self.deadline:
            self._ask_where()
            return self._leave_out(f"takes longer than {self._limit:.0f} s (an endless loop?)")
        return False

    def _ask_where(self) -> None:
        """Let a worker that hangs say in which line, and give it a moment to do so."""
        assert self._process.pid
        with contextlib.suppress(OSError):
            os.kill(self._process.pid, signal.SIGUSR1)
        time.sleep(0.2)
        self._read()

    def kill(self) -> None:
        """End the worker, with its children, and delete its folder."""
        assert self._process.pid
        for kill in (lambda: os.killpg(self._process.pid, signal.SIGKILL), self._process.kill):
            with contextlib.suppress(OSError):
                kill()
        self._process.join()
        self._process.close()
        self._pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start a worker for what is left to do."""
        base = self._base
        self._folder = Path(tempfile.mkdtemp(prefix=FOLDER))
        for file in base.folder.glob("*.py"):
            shutil.copy(file, self._folder)
        job = Job(
            tuple(self._steps),
            base.folder / "checks.py",
            self._settings.hidden.get(base.unit),
            self._folder,
            self._settings.seed,
            self._settings.memory,
            int(self._settings.timeout),
        )
        self._pipe, theirs = self._context.Pipe(duplex=False)
        os.set_blocking(self._pipe.fileno(), False)
        self._process = self._context.Process(target=start, args=(job, theirs))
        self._process.start()
        theirs.close()
        self._buffer, self._received, self._where = b"", 0, ""
        self._closed = self._done = False
        self._step, self._limit = "", float(STARTUP)
        self.deadline = time.monotonic() + STARTUP

    def _read(self) -> str:
        """Take in all messages that are there; return what is wrong with them, or ''."""
        while not self._closed:
            try:
                data = os.read(self._pipe.fileno(), 65536)
            except BlockingIOError:
                break
            self._closed = not data
            self._received += len(data)
            if self._received > LONGEST_REPORT:
                return "floods the grader with data"
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                if not line.startswith(b"{"):
                    self._where = self._where or _place(line.decode(errors="replace"))
                    continue
                try:
                    self._take(json.loads(line))
                except (ValueError, TypeError, KeyError, AttributeError):
                    return "disturbs the messages of its worker"
        return ""

    def _take(self, message: dict[str, Any]) -> None:
        if "start" in message:
            now = time.monotonic()
            self._began = self._began or now
            self._step = message["start"]
            self._limit = max(0.1, min(self._settings.timeout / 4, self._began + self._settings.timeout - now))
            self.deadline = now + self._limit
        elif "answer" in message:
            result = self._results[message["answer"]]
            result.state, result.message = message["state"], str(message["message"])
            result.cases = list(message.get("cases", []))
            result.points = min(result.out_of, sum(max(0, case["points"]) for case in result.cases))
            self._replace(result.slug, judged=False)
        elif "remark" in message:
            self._remark(str(message["remark"]))
        elif "failure" in message:
            self._remark(f"not graded, by no fault of the student: {message['failure']}")
            self._done = self.row.failed = True
        else:
            self._done = bool(message["done"])

    def _leave_out(self, cause: str) -> bool:
        """The worker is lost: put the stub in the place of the answer that it was busy with, and go on."""
        self.kill()
        cause += self._where
        lost = [step for step in self._steps if step.kind == "answer" and self._step in (step.label, step.file)]
        if not lost or not self._step:
            self.row.failed = self.row.failed or not self._step
            self._remark(f"{self._step or 'the worker'} {cause}: the remaining answers were not run")
            return self._complete()
        self._remark(f"{self._step} {cause}: it was left out and the rest run without it")
        self._steps = [step for step in self._steps if (step.kind, step.label) != ("file", self._step)]
        for step in lost:
            result = self._results[step.label]
            if result.state == "not run":
                result.state, result.message = "stopped", f"your code {cause}"
            self._replace(step.label, judged=False, source=self._base.stubs.get(step.label, ""))
        if not any(step.judged for step in self._steps if step.kind == "answer"):
            return self._complete()
        if self._began and time.monotonic() >= self._began + self._settings.timeout:
            self._remark(f"its {self._settings.timeout:.0f} s are used up: the rest of the notebook was not run")
            return self._complete()
        self.start()
        return False

    def _complete(self) -> bool:
        self.row.seconds = round(self.row.seconds + time.monotonic() - (self._began or time.monotonic()), 2)
        return True

    def _replace(self, slug: str, **changes: Any) -> None:
        self._steps = [replace(step, **changes) if step.label == slug else step for step in self._steps]

    def _remark(self, text: str) -> None:
        if text not in self.row.remarks and len(self.row.remarks) < 50:
            self.row.remarks.append(text)


def _place(line: str) -> str:
    """What a line of faulthandler's says about a student's code, as the end of a sentence; '' when nothing."""
    found = re.fullmatch(rf'  File "(?:<ipython-input.*|.*/{FOLDER}[^/]*/([^/]*))", line (\d+) in (.*)', line)
    if not found:
        return ""
    file, number, function = found.groups()
    return f", line {number} of {file or ('the cell' if function == '<module>' else function)}"


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return f"ends Python ({signal.Signals(-exitcode).name})"
    return f"ends Python (exit code {exitcode})"
