"""What happens in a worker process: the answers of one submission run in order, and each is judged at once.

`Session` is the untrusted side, `judge` the trusted one; see `common.grading`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from common.checks import Answer, Check, find
from common.grading.job import Job, Step
from common.runtime import seed_everything

LONGEST_TEXT = 2000  # characters of one message
LARGEST_FILE = 256 * 2**20  # bytes

Send = Callable[[dict[str, Any]], None]


def work(job: Job, pipe: Connection) -> None:
    """Do `job` and end the process.

    Each line written to `pipe` is one JSON message, sent as soon as it is known: `{"start": label}` before
    a cell runs, `{"answer": slug, ...}` when it has been judged, `{"remark": text}`, and `{"done": true}`.
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
        torch.set_num_threads(1)
        seed_everything(job.seed)
        os.chdir(job.folder)
        sys.path.insert(0, str(job.folder))
        checks = find(_load(job.checks))
        session = Session(send)
        for step in job.steps:
            send({"start": step.label})
            error = session.run(step)
            if step.kind == "setup":
                # A stub's NotImplementedError is no news: the setup cell uses an answer that is not there.
                if error and "NotImplementedError" not in error:
                    send({"remark": f"{step.label} of the course does not run: {error}"})
            elif step.judged:
                send({"answer": step.label, **judge(session, step, error, checks.get(step.label), job.seed)})
        send({"done": True})
    except BaseException as error:
        with contextlib.suppress(BaseException):
            send({"failure": _describe(error)})
    os._exit(0)  # whatever threads the answers have started


class Session:
    """The untrusted side: an IPython shell in which a student's answers are defined."""

    def __init__(self, send: Send) -> None:
        """Start a shell; `send` takes remarks."""
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

    def run(self, step: Step) -> str:
        """Run a cell as Jupyter would; returns what went wrong, or ''."""
        self._shell.user_ns.pop(step.name, None)
        try:
            result = self._shell.run_cell(step.source, store_history=False, silent=True)
        except BaseException as raised:
            return _describe(raised)
        error = result.error_before_exec or result.error_in_exec
        return _describe(error) if error else ""

    def answer(self, name: str) -> Answer | None:
        """Return what stands for the object `name`; None when no cell has defined it."""
        return Answer(self._shell.user_ns[name]) if name in self._shell.user_ns else None


def judge(session: Session, step: Step, error: str, check: Check | None, seed: int) -> dict[str, Any]:
    """The trusted side: run the check of one answer.

    Returns:
        `state` (graded, todo, broken or unchecked), `message`, and the `cases` where there are any.
    """
    if check is None:
        return {"state": "unchecked", "message": "the course has no check for this answer"}
    answer = session.answer(step.name)
    if answer is None:
        message = f"the cell does not run: {error}" if error else f"the cell does not define {step.name}"
        return {"state": "broken", "message": message}
    try:
        report = check.run(answer, seed)
    except BaseException as raised:
        return {"state": "broken", "message": f"the check could not go on: {_describe(raised)}"}
    message = f"the cell defines {step.name}, but then stops: {error}" if error else ""
    return {
        "state": "todo" if report.todo else "graded",
        "message": message,
        "cases": report.as_dict()["cases"],
    }


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
    """Import a checks.py under a name of its own, apart from the `checks` that the notebook imports."""
    spec = importlib.util.spec_from_file_location("_course_checks_of_the_grader", path)
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
    """Name an exception and the line of the cell in which it arose."""
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
    lines = [frame for frame in frames if "<ipython-input-" in frame.filename]
    if not lines:
        return text
    return f"{text}, line {lines[-1].lineno}" + (f": {lines[-1].line.strip()}" if lines[-1].line else "")


def _trimmed(value: Any) -> Any:
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
        return value if len(value) <= LONGEST_TEXT else value[:LONGEST_TEXT] + " … (shortened)"
    if isinstance(value, dict):
        return {key: _trimmed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_trimmed(item) for item in value]
    return value
