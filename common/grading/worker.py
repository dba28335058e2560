"""What happens in a worker process: the answers of one notebook run in order, and each is judged at once.

`Session` is the untrusted side, `judge` the trusted one; see `common.grading`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import importlib.util
import json
import os
import select
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from common.checks import Answer, Check, find
from common.grading.job import FOLDER, Job, Step
from common.notebooks import anatomy
from common.runtime import seed_everything

LONGEST_TEXT = 2000  # characters of one message
LARGEST_FILE = 256 * 2**20  # bytes

Send = Callable[[dict[str, Any]], None]


def work(job: Job, pipe: Connection) -> None:
    """Do `job` and end the process.

    Each line written to `pipe` is one JSON message, sent as soon as it is known: `{"start": label}` before
    a step runs, `{"answer": slug, ...}` when it has been judged, `{"remark": text}`, and `{"done": true}`. Lines
    that are no JSON say where a worker hung or died (see `_tell_where`).
    """
    os.setsid()  # a process group of our own, which can be killed whole

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(_trimmed(message)).encode() + b"\n"
        while data:
            data = data[os.write(pipe.fileno(), data) :]

    try:
        _silence()
        threading.Thread(target=_die_with_the_reader, args=(pipe, job.folder), daemon=True).start()
        _limit(job.memory, job.seconds)
        _tell_where(pipe)
        torch.set_num_threads(1)
        seed_everything(job.seed)
        os.chdir(job.folder)
        sys.path.insert(0, str(job.folder))
        sys.dont_write_bytecode = True
        checks = find(_load(job.checks))
        hidden = find(_load(job.hidden)) if job.hidden else {}
        session = Session(send)
        session.write([step for step in job.steps if step.kind == "file"])
        for step in job.steps:
            send({"start": step.label})
            error = session.load(step) if step.kind == "file" else session.run(step)
            if step.kind == "setup":
                # A stub's NotImplementedError is no news: the setup cell uses an answer that is not there.
                if error and "NotImplementedError" not in error:
                    send({"remark": f"{step.label} of the course does not run: {error}"})
            elif step.kind == "answer" and step.judged:
                check, more = checks.get(step.label), hidden.get(step.label)
                send({"answer": step.label, **judge(session, step, error, check, more, job.seed)})
        send({"done": True})
    except BaseException as error:
        with contextlib.suppress(BaseException):
            send({"failure": _describe(error)})
    os._exit(0)  # whatever threads the answers have started


class Session:
    """The untrusted side: an IPython shell and modules in which a student's answers are defined."""

    def __init__(self, send: Send) -> None:
        """Start a shell; `send` takes remarks."""
        self._send, self._folder = send, Path.cwd()
        self._stubs: dict[str, str] = {}  # the answer files of the course
        self._files: dict[str, dict[str, Any]] = {}  # what each answer file defines
        self._broken: dict[str, str] = {}  # why an answer file could not be imported
        os.environ.update(
            COURSE_SCALE="quick",
            CUDA_VISIBLE_DEVICES="",
            MPLBACKEND="Agg",
            HF_HUB_OFFLINE="1",
            IPYTHONDIR=os.getcwd(),
        )
        config = Config()
        config.HistoryManager.enabled = False
        _Shell.remark = lambda text: send({"remark": text})
        self._shell = _Shell.instance(config=config)

    def write(self, steps: Sequence[Step]) -> None:
        """Put all answer files of the student in the places of the course's own: one may import another."""
        for step in steps:
            path = self._folder / step.label
            self._stubs[step.label] = path.read_text(encoding="utf-8")
            path.write_text(step.source, encoding="utf-8")

    def load(self, step: Step) -> str:
        """Import an answer file; returns what went wrong, or ''.

        The stub stands in for a file that cannot be imported, and for the names that it does not define, so that
        cells which import from it run.
        """
        name, stub = step.label.removesuffix(".py"), self._stubs[step.label]
        try:
            module = importlib.import_module(name)
        except BaseException as raised:
            error = _describe(raised)
            (self._folder / step.label).write_text(stub, encoding="utf-8")
            sys.modules.pop(name, None)
            importlib.invalidate_caches()
            importlib.import_module(name)
            self._broken[step.label] = error
            self._send({"remark": f"{step.label} cannot be imported: {error}"})
            return error
        self._files[step.label] = defined = vars(module)
        if missing := [name for name in anatomy.own_names(stub) if name not in defined]:
            given: dict[str, Any] = {}
            exec(compile(stub, step.label, "exec"), given)
            defined |= {name: given[name] for name in missing}
            self._send({"remark": f"{step.label} does not define {', '.join(missing)}; the course's own was used"})
        return ""

    def run(self, step: Step) -> str:
        """Run a cell as Jupyter would, or look at an answer file; returns what went wrong, or ''."""
        if step.file:
            return self._broken.get(step.file, "")
        self._shell.user_ns.pop(step.name, None)
        try:
            result = self._shell.run_cell(step.source, store_history=False, silent=True)
        except BaseException as raised:
            return _describe(raised)
        error = result.error_before_exec or result.error_in_exec
        return _describe(error) if error else ""

    def answer(self, step: Step) -> Answer | None:
        """Return what stands for the answer of a step; None when its cell or file does not define it."""
        names = self._files.get(step.file, {}) if step.file else self._shell.user_ns
        return Answer(names[step.name]) if step.name in names else None


def judge(
    session: Session, step: Step, error: str, check: Check | None, hidden: Check | None, seed: int
) -> dict[str, Any]:
    """The trusted side: run the check of one answer, and the hidden tests that belong to it.

    Returns:
        `state` (graded, todo, broken or unchecked), `message`, and the `cases` where there are any; a hidden case
        has no message.
    """
    if check is None:
        return {"state": "unchecked", "message": "the course has no check for this answer"}
    answer, place = session.answer(step), step.file or "the cell"
    if answer is None:
        message = f"{place} does not run: {error}" if error else f"{place} does not define {step.name}"
        return {"state": "broken", "message": message}
    try:
        report = check.run(answer, seed)
    except BaseException as raised:
        return {"state": "broken", "message": f"the check could not go on: {_describe(raised)}"}
    cases = [case | {"hidden": False} for case in report.as_dict()["cases"]]
    message = f"the cell defines {step.name}, but then stops: {error}" if error else ""
    if hidden and not report.todo:
        try:
            cases += [case | {"hidden": True, "message": ""} for case in hidden.run(answer, seed).as_dict()["cases"]]
        except BaseException:
            message = "the hidden tests could not go on"
    return {"state": "todo" if report.todo else "graded", "message": message, "cases": cases}


class _Shell(InteractiveShell):
    """A shell without a screen: no tracebacks, no windows, and no commands of the operating system."""

    remark: Callable[[str], None] = print

    def showtraceback(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `Session.run` reports the error."""

    showsyntaxerror = showtraceback
    enable_gui = ask_exit = showtraceback

    def enable_matplotlib(self, gui: str | None = None) -> tuple[str, str]:
        """Keep the backend that draws to nowhere, whatever `%matplotlib` asks for."""
        return "", "agg"

    def system(self, cmd: str) -> None:
        """Refuse `!command`, `%pip` and the like."""
        type(self).remark(f"the command !{cmd[:80]} in an answer was not run")

    def getoutput(self, cmd: str, split: bool = True, depth: int = 0) -> list[str]:
        """Refuse `x = !command`."""
        self.system(cmd)
        return []


def _load(path: Path) -> ModuleType:
    """Import checks under a name of their own, apart from the `checks` that the notebook imports."""
    spec = importlib.util.spec_from_file_location(f"_the_graders_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _silence() -> None:
    """Send what the answers print, and what they read, to nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.stdin, sys.stdout, sys.stderr = (open(os.devnull, mode) for mode in ("r", "w", "w"))  # noqa: SIM115


def _tell_where(pipe: Connection) -> None:
    """Write the line that the answers are at to `pipe` when they crash, leave Python, or the grader asks for it."""
    faulthandler.enable(pipe.fileno(), all_threads=False)
    faulthandler.register(signal.SIGUSR1, pipe.fileno(), all_threads=False)
    leave, worker = os._exit, os.getpid()

    def tell_and_leave(status: int) -> None:
        if os.getpid() == worker:  # no child of the answers
            faulthandler.dump_traceback(pipe.fileno(), all_threads=False)
        leave(status)

    os._exit = tell_and_leave  # type: ignore[assignment]


def _die_with_the_reader(pipe: Connection, folder: Path) -> None:
    """Delete the folder and kill this process group once nobody reads `pipe`: the grader itself was killed."""
    poll = select.poll()
    poll.register(pipe.fileno(), 0)
    poll.poll()
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _limit(memory: int, seconds: int) -> None:
    """Limit this process; a limit that the system does not know is left out."""
    import resource

    def limit(kind: str, value: int) -> None:
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, kind), (value, value))

    if sys.platform == "linux":
        # RLIMIT_DATA counts private writable memory; RLIMIT_AS would also count all of torch.
        status = Path("/proc/self/status").read_text()
        in_use = int(status.split("VmData:")[1].split()[0]) * 1024
        limit("RLIMIT_DATA", in_use + memory)
    limit("RLIMIT_CORE", 0)
    limit("RLIMIT_CPU", seconds + 10)
    limit("RLIMIT_FSIZE", LARGEST_FILE)


def _describe(error: BaseException) -> str:
    """Name an exception, and the line of the cell or answer file in which it arose."""
    try:
        text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    except BaseException:
        text = type(error).__name__
    if isinstance(error, SyntaxError):
        where = f", line {error.lineno}: {error.text.strip()}" if error.lineno and error.text else ""
        kind = type(error).__name__
        kind = "SyntaxError" if kind.startswith("_") else kind  # Python 3.13 has a private one for cells cut short
        return f"{kind}: {error.msg}{where}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [
        frame
        for frame in frames
        if "<ipython-input-" in frame.filename or Path(frame.filename).parent.name.startswith(FOLDER)
    ]
    if not lines:
        return text
    place = Path(lines[-1].filename).name
    of_file = f" of {place}" if place.endswith(".py") else ""
    return f"{text}, line {lines[-1].lineno}{of_file}" + (f": {lines[-1].line.strip()}" if lines[-1].line else "")


def _trimmed(value: Any) -> Any:
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
        return value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + " … (shortened)"
    if isinstance(value, dict):
        return {key: _trimmed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_trimmed(item) for item in value]
    return value
