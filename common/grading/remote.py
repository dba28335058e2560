"""The judge's end: a worker process, and answers that live in it and are met by values only.

Nothing that a worker says is believed but for what it is: a value that an answer has returned, or a text for the
student who wrote the answer.
"""

from __future__ import annotations

import inspect
import re
import signal
import textwrap
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NoReturn, cast

import torch

from common.checks import Answer, ModuleAnswer, ObjectAnswer
from common.checks.answer import Detached
from common.checks.case import Explained
from common.checks.rules import UsesAutograd, UsesOperation
from common.grading import sandbox
from common.grading.wire import Channel, Violation

LONGEST_TEXT = 2000  # characters of one message
LONGEST_KIND = 80


class WorkerLost(Explained):
    """The worker hangs, has ended or breaks the rules; the text says which."""

    def __init__(self, text: str = "") -> None:
        """Say what happened."""
        super().__init__(text)
        self.text = text


class RemoteError(Explained):
    """An exception that the answer has raised; its class is also the builtin one that it was there."""


class Worker:
    """A process in which a student's code runs.

    Attributes:
        limit: seconds that it may take from now on, until this is set again; no limit at first.
        lost: why nothing can be asked of it any more, or ''.
    """

    def __init__(self, settings: sandbox.Settings, serve: sandbox.Serve | None = None) -> None:
        """Start a process, which serves a new `common.grading.worker.Session`, or does `serve`."""
        from common.grading import worker

        self._process, sock = sandbox.start(serve or worker.serve, settings)
        self._channel = Channel(sock, _wrap, self._unwrap)
        self._random: torch.Tensor | None = None
        self._deadline: float | None = None
        self._limit, self.lost = 0.0, ""
        self._rules: dict[str, Any] = {}  # of the answer that is being asked: what it returns has to keep to them, too

    @property
    def limit(self) -> float:
        """Seconds until the worker is ended."""
        return self._limit

    @limit.setter
    def limit(self, seconds: float) -> None:
        self._limit, self._deadline = seconds, time.monotonic() + seconds

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the worker's session with values, and return its value.

        Raises:
            WorkerLost: there is no answer, now or since an earlier call.
            RemoteError: the student's code has raised an exception.
        """
        if self.lost:
            raise WorkerLost(f"not run: an earlier case {self.lost}")
        try:
            self._channel.send((method, arguments), self._deadline)
            reply = self._channel.receive(self._deadline)
        except TimeoutError:
            self._lose(f"takes longer than {self._limit:.0f} s (an endless loop?)", ask=True)
        except (EOFError, OSError):
            self._lose("")
        except Violation:
            self._lose("disturbs the messages of its worker")
        match reply:
            case {"value": value}:
                return value
            case {"error": (list(kinds), str(raised), str(said))}:
                _raise(kinds, raised, said)
        self._lose("disturbs the messages of its worker")

    def command(self, method: str, *arguments: Any) -> Any:
        """Call a method in which no code of the student's should raise anything, or end the worker.

        Raises:
            WorkerLost: there is no answer, or an exception.
        """
        try:
            return self.call(method, *arguments)
        except RemoteError as error:
            self._lose(f"breaks its worker ({error.text.splitlines()[0][:LONGEST_KIND] if error.text else ''})")

    def text(self, method: str, *arguments: Any) -> tuple[str, list[str]]:
        """Call a method that returns a text, what went wrong, and remarks."""
        match self.command(method, *arguments):
            case (str(text), list(remarks)) if all(isinstance(remark, str) for remark in remarks):
                return trimmed(text), [trimmed(remark) for remark in remarks[:50]]
        self._lose("disturbs the messages of its worker")

    def answer(self, name: str, file: str) -> Answer | None:
        """Return what stands for an answer; None when the cell or file does not define it."""
        found = self.command("answer", name, file)
        if found is None or isinstance(found, Answer):
            return found
        self._lose("disturbs the messages of its worker")

    def ask(self, handle: int, method: str, rules: Any, arguments: Any, keywords: Any) -> Any:
        """Call a method of an answer.

        The worker draws its random numbers as if it were this process: from the state that the global generator has
        here, or, when nobody has touched that since the last call, on from where it stopped.
        """
        state = torch.get_rng_state()
        fresh = None if self._random is not None and torch.equal(state, self._random) else state
        self._rules = rules
        try:
            return self.call("ask", handle, method, rules, arguments, keywords, fresh, torch.is_grad_enabled())
        finally:
            self._rules = {}
            torch.rand(1)  # the answer has drawn, or may have
            self._random = torch.get_rng_state()

    def close(self) -> None:
        """End the process, and every process that it has started."""
        self._process.end()
        self._channel.sock.close()

    def _lose(self, cause: str, *, ask: bool = False) -> NoReturn:
        if ask:
            self._process.signal(signal.SIGUSR1)  # so that it says where it is
            time.sleep(0.2)
        ended = self._process.end(patience=0.0 if cause else 1.0)
        cause = cause or ended or "closes the connection of its worker"
        self.lost = f"{cause}{_place(self._process.last_words)}"
        raise WorkerLost(f"your code {self.lost}")

    def _unwrap(self, content: Any) -> Answer | ObjectAnswer:
        handle, kind, name = content
        if type(handle) is not int or not isinstance(name, str):
            raise Violation("a handle that is none")
        if kind == "object":
            return RemoteObject(self, handle, trimmed(name)[:LONGEST_KIND], **self._rules)
        return {"answer": RemoteAnswer, "module": RemoteModule}[kind](self, handle, **self._rules)


class RemoteAnswer(Answer):
    """An `Answer` whose function or class lives in a worker."""

    def __init__(self, worker: Worker, handle: int, **rules: Any) -> None:
        """Stand for what the worker keeps under `handle`; `rules` as for an `Answer`."""
        super().__init__((worker, handle), **rules)  # type: ignore[arg-type]

    def probe(self, function: Callable[..., Any], *values: Any, uses: Sequence[Any] = ()) -> Any:
        """Send the source of `function` and of what it uses; see `Answer.probe`."""
        return _ask(self, "probe", _source((*uses, function)), function.__name__, *values)


class RemoteModule(RemoteAnswer, ModuleAnswer):
    """A `ModuleAnswer` whose module lives in a worker."""


class RemoteObject(ObjectAnswer):
    """An `ObjectAnswer` whose object lives in a worker."""

    def __init__(self, worker: Worker, handle: int, kind: str = "", **rules: Any) -> None:
        """Stand for what the worker keeps under `handle`, of a class called `kind`."""
        super().__init__((worker, handle), **rules)
        self._kind = kind

    @property
    def kind(self) -> str:
        """The name of the object's class."""
        return self._kind


def _ask(answer: Any, method: str, *arguments: Any, **keywords: Any) -> Any:
    worker, handle = answer._target
    return worker.ask(handle, method, answer.rules, arguments, keywords)


def _forward(name: str) -> Callable[..., Any]:
    return lambda answer, *arguments, **keywords: _ask(answer, name, *arguments, **keywords)


for _remote, _methods in {
    RemoteAnswer: ("__call__", "inputs_after", "gradients"),
    RemoteModule: ("parameters", "load_state_dict", "train", "parameter_gradients"),
    RemoteObject: ("call", "read", "fill", "method"),
}.items():
    for _name in _methods:
        setattr(_remote, _name, _forward(_name))


@cache
def _source(definitions: tuple[Any, ...]) -> str:
    return "\n\n".join(textwrap.dedent(inspect.getsource(one)) for one in definitions)


def _wrap(value: Any) -> Any:
    if isinstance(value, (RemoteAnswer, RemoteObject)):
        _, handle = cast(tuple[Worker, int], value._target)
        return handle
    raise TypeError(f"{type(value).__name__} is no value: a case can only hand in values (see Answer.probe)")


# The classes that a RemoteError can have: what the checks of a course may want to catch.
_KINDS = {
    kind.__name__: type(kind.__name__, (RemoteError, kind), {})
    for kind in (
        *(ValueError, TypeError, KeyError, IndexError, LookupError, AttributeError, NameError, AssertionError),
        *(NotImplementedError, RecursionError, RuntimeError, ZeroDivisionError, OverflowError, ArithmeticError),
        *(MemoryError, StopIteration, ImportError),
    )
}


def _raise(kinds: Sequence[Any], raised: str, said: str) -> NoReturn:
    """Raise what the worker says was raised: names of classes, its text, and what a student should read."""
    for kind in (Detached, UsesAutograd, UsesOperation):
        if kind.__name__ in kinds:
            raise kind(trimmed(raised)[:LONGEST_KIND])
    found = next((_KINDS[kind] for kind in kinds if isinstance(kind, str) and kind in _KINDS), RemoteError)
    error = found(trimmed(raised))
    error.text = trimmed(said)
    raise error


def _place(words: str) -> str:
    """What faulthandler's lines say about a student's code, as the end of a sentence; '' when nothing."""
    pattern = rf'^  File "(?:<ipython-input.*|[^"]*/{sandbox.FOLDER}[^/"]*/([^/"]*))", line (\d+) in (.*)'
    if not (found := re.search(pattern, words, re.M)):
        return ""
    file, number, function = found.groups()
    return trimmed(f", line {number} of {file or ('the cell' if function == '<module>' else function)}")


def trimmed(text: str) -> str:
    """Return a text as it can be stored and shown: no half surrogates, and not too long."""
    text = text[: LONGEST_TEXT + 1].encode("utf-8", "replace").decode()
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " … (shortened)"
