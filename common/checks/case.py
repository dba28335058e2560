"""One case of a check: seeded inputs, comparisons that explain themselves, points."""

from __future__ import annotations

import hashlib
import linecache
import re
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checks.answer import Answer, Detached, ModuleAnswer, ObjectAnswer
from common.checks.report import CaseResult
from common.checks.rules import UsesAutograd, UsesOperation

# How far a right answer may be off, as a share of the largest expected value (at least 1).
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

Mistakes = Mapping[str, Tensor | Callable[[], Any]]


class Failure(Exception):
    """What a case found wrong, in words for the student."""


class KnownMistake(Failure):
    """A failure whose cause is certain; the case's hint would only lead astray."""


class Explained(Exception):
    """An error that brings with it, as `text`, what a student should read about it."""

    text = ""


class AnswerIsStub(Exception):
    """The answer is still the stub that the student was given."""


def stub_of(error: BaseException) -> str | None:
    """Return the slug of the answer whose stub raised `error`; None for any other error."""
    if isinstance(error, NotImplementedError) and len(error.args) == 1:
        slug = error.args[0]
        if isinstance(slug, str) and re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", slug):
            return slug
    return None


class Case:
    """Names, seeds and scores the cases of one check. See `common.checks`."""

    def __init__(self, slug: str, seed: int) -> None:
        """Start a check of `slug` with inputs that follow from `seed`."""
        self._slug, self._seed = slug, seed
        self._generator = torch.Generator()
        self._reseed("")
        self.results: list[CaseResult] = []

    # -- a case -------------------------------------------------------------------------------------------

    @contextmanager
    def __call__(self, name: str, *, points: float, hint: str) -> Iterator[None]:
        """Run the block as the case `name`; whatever it raises is written down and the next case goes on.

        Args:
            name: the property that is tested, as a phrase that is true of a right answer.
            points: what the case gives when nothing in the block fails.
            hint: what to look at when it fails; shown to the student, never the answer itself. Left out when
                the mistake is known.
        """
        message, known = "", False
        with torch.random.fork_rng(devices=[]):
            self._reseed(name)
            try:
                yield
            except (Exception, SystemExit) as error:  # an answer that calls exit() fails, nothing more
                if stub_of(error) == self._slug and not any(result.passed for result in self.results):
                    raise AnswerIsStub from None
                message = explain(error)
                known = isinstance(error, KnownMistake | UsesAutograd | UsesOperation)
        if message:
            self.results.append(CaseResult(name, 0, points, False, message, hint, known))
        else:
            self.results.append(CaseResult(name, points, points, True))

    def _reseed(self, name: str) -> None:
        text = f"{self._seed}/{self._slug}/{name}"
        self._generator.manual_seed(zlib.crc32(text.encode()))
        if name:  # inside fork_rng: what the answer draws is repeatable too, and tells nothing about the inputs
            torch.default_generator.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]))

    # -- inputs -------------------------------------------------------------------------------------------

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw from the standard normal distribution."""
        return torch.randn(*shape, generator=self._generator, dtype=torch.float64).to(dtype)

    def randint(self, low: int, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Draw integers with low ≤ value < high, as int64."""
        return torch.randint(low, high, tuple(shape), generator=self._generator)

    def choice(self, *options: Any) -> Any:
        """Draw one of `options`."""
        return options[int(self.randint(0, len(options)))]

    # -- comparisons --------------------------------------------------------------------------------------

    def close(
        self,
        actual: Any,
        expected: Tensor,
        *,
        what: str = "the result",
        mistakes: Mistakes | None = None,
        tolerance: float | None = None,
    ) -> None:
        """Demand that `actual` equals `expected` up to rounding.

        Args:
            actual: what the answer returned.
            expected: from an independent oracle.
            what: how a message calls the value.
            mistakes: what common mistakes would have returned (a tensor, or a function without arguments that
                makes it, or says by a boolean that it was made), under the sentence that names the mistake.
            tolerance: how far it may be off, as a share of the largest expected value (at least 1); without it,
                what rounding in the tensors' dtype explains.

        Raises:
            Failure: that names the mistake, or the property that is wrong and where.
        """
        actual = _tensor(actual, what)
        if alike(actual, expected, tolerance):
            return
        _raise_known(actual, mistakes, tolerance)
        self.shape(actual, tuple(expected.shape), what=what)
        raise Failure(f"{what}: {_difference(actual, expected)}")

    def equal(self, actual: Any, expected: Any, *, what: str = "the result", mistakes: Mistakes | None = None) -> None:
        """Demand that a tensor of integers or booleans, a number or a string equals `expected` exactly."""
        if not isinstance(expected, Tensor):
            if isinstance(actual, Tensor) and actual.ndim == 0:
                actual = actual.item()
            if actual == expected:
                return
            for sentence, wrong in (mistakes or {}).items():
                if actual == wrong:
                    raise KnownMistake(sentence)
            raise Failure(f"{what} is {_short(actual)}, which is not right")
        actual = _tensor(actual, what)
        if actual.shape == expected.shape and bool((actual.cpu() == expected).all()):
            return
        _raise_known(actual, mistakes)
        self.shape(actual, tuple(expected.shape), what=what)
        off = (actual.cpu() != expected).nonzero()
        raise Failure(f"{what}: {len(off)} of {expected.numel()} entries are wrong, the first at {off[0].tolist()}")

    def shape(
        self,
        actual: Any,
        expected: Sequence[int],
        *,
        what: str = "the result",
        mistakes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Demand a tensor of exactly this shape; `mistakes` holds the shapes that common mistakes have."""
        actual = _tensor(actual, what)
        if tuple(actual.shape) == tuple(expected):
            return
        for sentence, wrong in (mistakes or {}).items():
            if tuple(actual.shape) == tuple(wrong):
                raise Failure(f"{sentence}. {what} has shape {tuple(actual.shape)}, expected {tuple(expected)}")
        same = " (the same sizes in another order)" if sorted(actual.shape) == sorted(expected) else ""
        raise Failure(f"{what} has shape {tuple(actual.shape)}, expected {tuple(expected)}{same}")

    def dtype(self, actual: Any, expected: torch.dtype, *, what: str = "the result") -> None:
        """Demand a tensor of this dtype."""
        actual = _tensor(actual, what)
        if actual.dtype != expected:
            raise Failure(f"{what} has dtype {_name(actual.dtype)}, expected {_name(expected)}")

    def finite(self, actual: Any, *, what: str = "the result") -> None:
        """Demand a tensor without NaN or infinity."""
        actual = _tensor(actual, what)
        if not bool(torch.isfinite(actual).all()):
            raise Failure(f"{what} {_not_finite(actual)}")

    def true(self, condition: bool | Tensor, message: str) -> None:
        """Demand a condition; `message` says what is wrong when it does not hold."""
        if not bool(condition):
            raise Failure(message)

    def parts(self, actual: Any, *names: str) -> tuple[Tensor, ...]:
        """Demand a tuple of tensors, one for each name, and return it."""
        wanted = f"a tuple ({', '.join(names)})"
        if isinstance(actual, Tensor):
            raise Failure(f"the result is one tensor, expected {wanted}")
        if not isinstance(actual, (tuple, list)):
            raise Failure(f"the result is {_short(actual)}{_forgot_return(actual)}, expected {wanted}")
        if len(actual) != len(names):
            raise Failure(f"the result has {len(actual)} parts, expected {wanted}")
        return tuple(_tensor(part, name) for part, name in zip(actual, names, strict=True))

    def unchanged(self, answer: Answer, *args: Any, **kwargs: Any) -> None:
        """Demand that calling the answer leaves the tensors in `args` as they were."""
        self.same_inputs(args, answer.inputs_after(*args, **kwargs))

    def same_inputs(self, before: Sequence[Any], after: Sequence[Any]) -> None:
        """Demand that the tensors among the arguments of a call are what they were before it."""
        for position, (was, now) in enumerate(zip(before, after, strict=True), start=1):
            if isinstance(was, Tensor) and (was.shape != now.shape or not torch.equal(was, now)):
                raise Failure(
                    f"your code changes its argument number {position} in place (an operation that ends in _, "
                    "or an assignment to part of a tensor); make a new tensor instead"
                )


def kind_of(value: Any) -> str:
    """Return what a message calls the type of something that an answer has returned."""
    if isinstance(value, ObjectAnswer):
        return value.kind
    return "module" if isinstance(value, ModuleAnswer) else type(value).__name__


def made_by(result: Any, mistakes: Mistakes) -> Mistakes:
    """Turn mistakes into questions: is `result`, of which a case compares only a part, made by this one?"""

    def ask(wrong: Tensor | Callable[[], Any]) -> Callable[[], bool]:
        return lambda: alike(result, wrong() if callable(wrong) else wrong)

    return {sentence: ask(wrong) for sentence, wrong in mistakes.items()}


def always(sentence: str) -> Mistakes:
    """Return the mistake that explains every wrong value."""
    return {sentence: lambda: True}


# -- messages ---------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str:
    """Return what a student should read about an exception: what it says, and where in the answer it arose."""
    if isinstance(error, Failure):
        return str(error)
    if isinstance(error, Explained):
        return error.text
    if isinstance(error, Detached):
        return (
            "the result is detached from the graph: no gradient flows back to the inputs or parameters. "
            "Look for .detach(), .data, .item(), .numpy(), torch.no_grad() or torch.tensor(...) around a tensor"
        )
    if isinstance(error, UsesAutograd):
        return f"your code leaves the work to automatic differentiation ({error}); write the formula out yourself"
    if isinstance(error, UsesOperation):
        return f"torch's own operation `{error}` does the work: build it yourself, from indexing, sums and products"
    if slug := stub_of(error):
        where = traceback.extract_tb(error.__traceback__)[-1].name
        return f"{slug} is still to do: the line `raise NotImplementedError(...)` stands in `{where}`"
    text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    if isinstance(error, (RuntimeError, IndexError, ValueError)):  # what torch raises when sizes do not fit
        text += "".join(f" ({note})" for note in getattr(error, "__notes__", [])[-1:])
        if "dtype" in text and "Bool" in text:
            text += " (is a mask of booleans passed where a sequence belongs?)"
    here = str(Path(__file__).parents[1])
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(here)
        and "site-packages" not in frame.filename
        and Path(frame.filename).name not in ("checks.py", "hidden_checks.py")
    ]
    if not frames:
        return text
    lines, verb = [text], "in"
    for frame in reversed(frames[-3:]):  # the innermost first: it may be an earlier answer, called with wrong sizes
        source = (frame.line or linecache.getline(frame.filename, frame.lineno or 0)).strip()
        lines.append(f"{verb} line {frame.lineno} of {frame.name}" + (f": {source}" if source else ""))
        verb = "called in"
    return "\n".join(lines)


def _tensor(value: Any, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise Failure(f"{what} is {_short(value)}{_forgot_return(value)}, expected a tensor")
    return value.detach()


def alike(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
    """Return whether two tensors have the same shape and, up to rounding (or `tolerance`), the same values."""
    if actual.shape != expected.shape:
        return False
    if not expected.is_floating_point() or not actual.is_floating_point():
        return bool((actual.cpu() == expected.cpu()).all())
    coarser = tolerance or max(TOLERANCE.get(actual.dtype, 1e-5), TOLERANCE.get(expected.dtype, 1e-5))
    wide = expected.detach().cpu().double()
    size = wide[wide.isfinite()].abs().max().item() if wide.isfinite().any() else 1.0
    return torch.allclose(actual.detach().cpu().double(), wide, rtol=0, atol=coarser * max(1.0, size))


def _raise_known(actual: Tensor, mistakes: Mistakes | None, tolerance: float | None = None) -> None:
    for sentence, wrong in (mistakes or {}).items():
        try:
            made = wrong if isinstance(wrong, Tensor) else wrong()
            known = made if isinstance(made, bool) else alike(actual, made, tolerance)
        except Exception:  # the mistake cannot be made with these shapes
            continue
        if known:
            raise KnownMistake(sentence)


def _difference(actual: Tensor, expected: Tensor) -> str:
    got, want = actual.cpu().double(), expected.detach().cpu().double()
    if not got.isfinite().all() and want.isfinite().all():
        return _not_finite(actual)
    off = (got - want).abs()
    where = np.unravel_index(int(off.argmax()), off.shape)  # torch's own imports sympy, which takes a second
    index = [int(i) for i in where]
    wrong = int((off > 1e-5 * max(1.0, want.abs().max().item())).sum())
    text = (
        f"{wrong} of {want.numel()} values are off; the largest difference is at {index}: "
        f"{got[where].item():.4g} instead of {want[where].item():.4g}"
    )
    return text + _pattern(got, want)


def _pattern(got: Tensor, want: Tensor) -> str:
    """Name a simple relation between two tensors that differ, if there is one."""
    factor = ((got * want).sum() / (want * want).sum()).item()  # least squares; NaN where all of `want` is 0
    if want.numel() > 1 and factor and torch.allclose(got, factor * want, rtol=0, atol=1e-4 * got.abs().max().item()):
        return f". Every value is {factor:.4g} times the expected one"
    for a in range(got.ndim):
        for b in range(a + 1, got.ndim):
            if got.shape[a] == got.shape[b] and torch.allclose(got.transpose(a, b), want, rtol=0, atol=1e-5):
                return f". It would be right with axes {a - got.ndim} and {b - got.ndim} exchanged"
    return ""


def _not_finite(value: Tensor) -> str:
    bad = ~torch.isfinite(value)
    kind = "NaN" if value.isnan().any() else "infinity"
    first = bad.nonzero()[0].tolist()
    return f"contains {kind} ({int(bad.sum())} of {value.numel()} values, the first at {first})"


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)[:60]
    return f"a {kind_of(value)}"


def _forgot_return(value: Any) -> str:
    return " (is a return statement missing?)" if value is None else ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
