"""What happens in a worker: a student's code runs, and its answers are called with values.

It holds no check, no expected value and no answer but the student's. What it says is believed by nobody: see
`common.grading.remote`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import itertools
import math
import os
import signal
import socket
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from IPython.core.interactiveshell import InteractiveShell
from torch import Tensor, nn
from traitlets.config import Config

from common.checks import Answer, ModuleAnswer, ObjectAnswer
from common.checks.case import explain, stub_of
from common.grading.sandbox import FOLDER
from common.grading.wire import Channel, Violation
from common.notebooks import anatomy
from common.runtime import seed_everything

# What a probe of a checks.py may use; see `common.checks.Answer.probe`.
PROBE_NAMES = {
    **{"torch": torch, "nn": nn, "F": F, "np": np, "math": math, "time": time, "gc": gc, "weakref": weakref},
    **{"itertools": itertools, "contextlib": contextlib},
}


def serve(sock: socket.socket, words: int, session: Session | None = None) -> None:
    """Do what a judge asks over `sock`, until it closes; write to `words` where the code is when it dies."""
    _tell_where(words)
    os.register_at_fork(after_in_child=sock.close)  # a child that comes back here shall not answer, nor take a question
    session = session or Session()
    channel = Channel(sock, session.wrap, session.unwrap)
    while True:
        try:
            method, arguments = channel.receive()
        except EOFError:
            return
        try:
            channel.send({"value": getattr(session, method)(*arguments)})
        except BaseException as error:
            channel.send({"error": _told(error)})


class Session:
    """An IPython shell and modules in which a student's answers are defined, and what was made of them."""

    def __init__(self) -> None:
        """Start a shell in the working directory."""
        self._folder = Path.cwd()
        self._remarks: list[str] = []
        self._stubs: dict[str, str] = {}  # the answer files of the course
        self._files: dict[str, dict[str, Any]] = {}  # what each answer file defines
        self._broken: dict[str, str] = {}  # why an answer file could not be imported
        self._kept: list[Answer | ObjectAnswer] = []  # what handles stand for
        os.environ.update(
            COURSE_SCALE="quick",
            CUDA_VISIBLE_DEVICES="",
            MPLBACKEND="Agg",
            HF_HUB_OFFLINE="1",
            IPYTHONDIR=os.getcwd(),
        )
        sys.path.insert(0, os.getcwd())
        sys.dont_write_bytecode = True
        sys.modules["checks"] = _NoChecks("checks")
        importlib.invalidate_caches()
        torch.set_num_threads(1)
        seed_everything(0)
        config = Config()
        config.HistoryManager.enabled = False
        _Shell.remark = self._remarks.append
        self._shell = _Shell.instance(config=config)

    # -- the student's code -------------------------------------------------------------------------------

    def write(self, files: Mapping[str, str]) -> None:
        """Put all answer files of the student in the places of the course's own: one may import another."""
        for name, source in files.items():
            path = self._folder / name
            self._stubs[name] = path.read_text(encoding="utf-8")
            path.write_text(source, encoding="utf-8")

    def place(self, name: str, content: Tensor) -> None:
        """Put an artefact of the student, given as its bytes (N,), into the working directory."""
        (self._folder / name).write_bytes(content.numpy().tobytes())

    def load(self, name: str) -> tuple[str, list[str]]:
        """Import an answer file; returns what went wrong, or '', and remarks.

        The stub stands in for a file that cannot be imported, and for the names that it does not define, so that
        cells which import from it run.
        """
        stem, stub = name.removesuffix(".py"), self._stubs[name]
        try:
            module = importlib.import_module(stem)
        except BaseException as raised:
            error = _describe(raised)
            (self._folder / name).write_text(stub, encoding="utf-8")
            sys.modules.pop(stem, None)
            importlib.invalidate_caches()
            importlib.import_module(stem)
            self._broken[name] = error
            return error, [f"{name} cannot be imported: {error}"]
        self._files[name] = defined = vars(module)
        missing = [one for one in anatomy.own_names(stub) if one not in defined]
        if not missing:
            return "", []
        given: dict[str, Any] = {}
        exec(compile(stub, name, "exec"), given)
        defined |= {one: given[one] for one in missing}
        return "", [f"{name} does not define {', '.join(missing)}; the course's own was used"]

    def run(self, source: str, name: str, file: str) -> tuple[str, list[str]]:
        """Run a cell as Jupyter would, or look at an answer file; returns what went wrong, or '', and remarks."""
        if file:
            return self._broken.get(file, ""), []
        self._shell.user_ns.pop(name, None)
        self._remarks.clear()
        try:
            result = self._shell.run_cell(source, store_history=False, silent=True)
            error = result.error_before_exec or result.error_in_exec
        except BaseException as raised:
            error = raised
        return _describe(error) if error else "", [*self._remarks]

    def answer(self, name: str, file: str) -> Answer | None:
        """Return what stands for an answer; None when its cell or file does not define it."""
        names = self._files.get(file, {}) if file else self._shell.user_ns
        return Answer(names[name]) if name in names else None

    # -- asking it ----------------------------------------------------------------------------------------

    def ask(
        self,
        handle: int,
        method: str,
        rules: dict[str, Any],
        arguments: Sequence[Any],
        keywords: dict[str, Any],
        random: Tensor | None,
        grad: bool,
    ) -> Any:
        """Call a method of what `handle` stands for; see `common.grading.remote.Worker.ask`."""
        kept = self._kept[handle]
        asked = type(kept)(kept._target, **kept.rules | rules)
        if method == "probe":
            source, name, *arguments = arguments
            arguments = (_probe(source, name), *arguments)
        if random is not None:
            torch.set_rng_state(random)
        with torch.set_grad_enabled(grad):
            return getattr(asked, method)(*arguments, **keywords)

    def wrap(self, value: Any) -> Any:
        """Keep an object, and return what a judge needs to ask for it: a handle, its kind, its class."""
        if not isinstance(value, (Answer, ObjectAnswer)):
            value = Answer(value) if callable(value) else ObjectAnswer(value)
        self._kept.append(value)
        kind = "module" if isinstance(value, ModuleAnswer) else "answer" if isinstance(value, Answer) else "object"
        return [len(self._kept) - 1, kind, type(value._target).__name__]

    def unwrap(self, handle: Any) -> Any:
        """Return the object that a handle stands for."""
        return self._kept[handle]._target


def _probe(source: str, name: str) -> Any:
    names: dict[str, Any] = dict(PROBE_NAMES)
    exec(compile(source, "checks.py", "exec"), names)
    return names[name]


def _told(error: BaseException) -> tuple[list[str], str, str]:
    """What a judge is told about an exception: the names of its classes, its text, and what a student should read."""
    try:
        if isinstance(error, Violation):
            return [], "", f"the result cannot be taken: {error}"
        raised = stub_of(error) or str(error)
        return [kind.__name__ for kind in type(error).__mro__], raised, explain(error)
    except BaseException:  # an exception that cannot be shown
        return [], "", type(error).__name__


class _NoChecks(ModuleType):
    """Stands in for the unit's checks in cells that import them: whatever is asked of it does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **keywords: None


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


def _tell_where(words: int) -> None:
    """Write the line that the answers are at to `words` when they crash, leave Python, or the judge asks for it."""
    faulthandler.enable(words, all_threads=False)
    faulthandler.register(signal.SIGUSR1, words, all_threads=False)
    leave, worker = os._exit, os.getpid()

    def tell_and_leave(status: int) -> None:
        if os.getpid() == worker:  # no child of the answers
            faulthandler.dump_traceback(words, all_threads=False)
        leave(status)

    os._exit = tell_and_leave  # type: ignore[assignment]


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
