"""Runs submissions, several at a time, and survives whatever they do.

Each notebook of a submission, with its answer files, is a run of its own: a judge, and a worker in which the
student's code runs. One loop watches all judges. A judge says what it is about to do and each result as soon as it
has it; when its worker hangs or dies, the answer or answer file that it was busy with is left out and a new judge
goes on with the rest. So each run ends after at most as many judges as it has answers and files, and within its time.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from common.grading import sandbox
from common.grading.collect import Base, Task
from common.grading.job import Job, Step, start

STARTUP = 300  # seconds for a judge's first message: the server may still be importing torch
GRACE = 30  # seconds more than a worker has, for the judge to say so
KEPT = (  # the last two for checks that judge a trained model by real data
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS"),
    *("COURSE_SCALE", "COURSE_DATA"),
)

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

    `files` are the student's files that were graded (see `common.grading.collect.Task`); `flags` are lines that a
    person should look at (see `common.grading.flags`), which the student is not shown; `digest` is of everything that
    the row depends on (see `common.grading.journal`); `codes` are the student's own lines of each cell and answer file
    (see `common.grading.similar`).
    """

    student: str
    unit: str
    files: list[str]
    answers: list[AnswerResult]
    remarks: list[str]
    seconds: float = 0
    failed: bool = False
    flags: list[dict[str, Any]] = field(default_factory=list)
    digest: str = ""
    codes: dict[str, str] = field(default_factory=dict)

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
        imports: import statements of the units, to be run once for all.
        contained: whether namespaces keep the answers from everything else.
    """

    seed: int
    jobs: int = os.cpu_count() or 1
    timeout: float = 240
    memory: int = 4 * 2**30
    hidden: Mapping[str, Path] = field(default_factory=dict)
    imports: Sequence[str] = ()
    contained: bool = True


def grade(tasks: Iterable[Task], settings: Settings) -> Generator[Row, None, None]:
    """Run the submissions and yield their rows in the order in which they are finished.

    Closing the iterator, as `break` or an exception does, kills the workers that are still running.
    """
    waiting, running = deque[_Run](), list[_Run]()
    context = _server(settings.imports)
    left = iter(tasks)
    try:
        while True:
            while len(running) + len(waiting) < settings.jobs and (task := next(left, None)):
                row = _row(task, settings)
                waiting.extend(_Run(row, task.base, steps, settings, context) for steps in task.jobs if task.base)
                if not task.jobs:  # the remarks say why
                    yield row
            while waiting and len(running) < settings.jobs:
                running.append(waiting.popleft())
                running[-1].start()
            if not running:
                return
            sources = [source for run in running for source in run.sources()]
            wait(sources, max(0.0, min(run.deadline for run in running) - time.monotonic()))
            for run in list(running):
                if run.advance():
                    running.remove(run)
                    if not any(other.row is run.row for other in (*running, *waiting)):
                        yield run.row
    finally:
        for run in running:
            run.kill()


def _server(imports: Sequence[str]) -> Any:
    """Return what starts judges: a server that has everything loaded and forks, and knows no secret of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["common.grading.preload"])
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    kept |= {"COURSE_GRADING_IMPORTS": "\n".join(imports), "MPLBACKEND": "Agg"}
    with mock.patch.dict(os.environ, kept, clear=True):
        forkserver.ensure_running()
    return context


def _row(task: Task, settings: Settings) -> Row:
    row = Row(task.student, task.unit, list(task.files), _empty(task), list(task.remarks))
    row.flags, row.digest, row.codes = list(task.flags), task.digest, dict(task.codes)
    if task.base and task.files and task.base.hidden and task.unit not in settings.hidden:
        lost = sum(task.base.hidden.values())
        row.remarks.append(f"the hidden tests were not found: {lost:g} points cannot be earned")
    return row


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
    """One notebook of a submission on its way: the judge that runs it now, and what is known so far."""

    def __init__(self, row: Row, base: Base, steps: Sequence[Step], settings: Settings, context: Any) -> None:
        self.row = row
        self._base, self._settings, self._context = base, settings, context
        self._results = {answer.slug: answer for answer in row.answers}
        self._steps = list(steps)
        self._began: float | None = None  # set by the first message: loading torch is not the student's time

    def sources(self) -> list[Any]:
        """What to wait for: the judge's messages and its end."""
        return [self._process.sentinel] if self._closed else [self._pipe, self._process.sentinel]

    def advance(self) -> bool:
        """Take in what has happened; return whether the row is complete."""
        ended = not self._process.is_alive()  # asked first: what it wrote before its end is read below
        self._read()
        if self._done:
            self.kill()
            return self._complete()
        if self._lost:
            return self._leave_out(self._lost)
        if ended or time.monotonic() > self.deadline:
            return self._leave_out("ends its judge" if ended else "keeps its judge busy for too long")
        return False

    def kill(self) -> None:
        """End the judge, with its worker, and delete its folder."""
        assert self._process.pid
        for kill in (lambda: os.killpg(self._process.pid, signal.SIGKILL), self._process.kill):
            with contextlib.suppress(OSError):
                kill()
        self._process.join()
        self._process.close()
        self._pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._job.unlink(missing_ok=True)

    def start(self) -> None:
        """Start a judge for what is left to do."""
        base, settings = self._base, self._settings
        self._folder = Path(tempfile.mkdtemp(prefix=sandbox.FOLDER)).resolve()
        left = settings.timeout - (time.monotonic() - self._began if self._began else 0)
        job = Job(
            tuple(self._steps),
            base.folder / "checks.py",
            settings.hidden.get(base.unit),
            settings.seed,
            settings.timeout / 4,
            left,
        )
        worker = sandbox.Settings(self._folder, base.folder, settings.memory, int(settings.timeout), settings.contained)
        self._pipe, theirs = self._context.Pipe(duplex=False)
        os.set_blocking(self._pipe.fileno(), False)
        with tempfile.NamedTemporaryFile(prefix="job-", delete=False) as file:
            pickle.dump(job, file)
        self._job = Path(file.name)
        self._process = self._context.Process(target=start, args=(worker, self._job, theirs))
        self._process.start()
        theirs.close()
        self._buffer, self._lost = b"", ""
        self._closed = self._done = False
        self._step = ""
        self.deadline = time.monotonic() + STARTUP

    def _read(self) -> None:
        """Take in all messages that are there."""
        while not self._closed:
            try:
                data = os.read(self._pipe.fileno(), 65536)
            except BlockingIOError:
                break
            self._closed = not data
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "start" in message:
            now = time.monotonic()
            self._began = self._began or now
            self._step = message["start"]
            self.deadline = now + self._settings.timeout / 4 + GRACE
        elif "answer" in message:
            result = self._results[message["answer"]]
            result.state, result.message = message["state"], message["message"]
            result.cases = message.get("cases", [])
            result.points = min(result.out_of, sum(max(0, case["points"]) for case in result.cases))
            self._replace(result.slug, judged=False)
        elif "remark" in message:
            self._remark(message["remark"])
        elif "lost" in message:
            self._lost = message["lost"]
        elif "failure" in message:
            self._remark(f"not graded, by no fault of the student: {message['failure']}")
            self._done = self.row.failed = True
        else:
            self._done = bool(message["done"])

    def _leave_out(self, cause: str) -> bool:
        """The worker is lost: put the stub in the place of the answer that it was busy with, and go on."""
        self.kill()
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
