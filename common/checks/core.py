"""A check: the cases of one answer, run for the student's cell and for the grader alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from common.checks.answer import Answer
from common.checks.case import AnswerIsStub, Case, explain
from common.checks.report import CaseResult, CheckFailed, Report, remember

CheckFunction = Callable[[Any, Case], None]


class Check:
    """The cases of one answer. Made by the decorator `check`."""

    def __init__(
        self, slug: str, points: float, function: CheckFunction, *, hidden: float, part: str, autograd: bool
    ) -> None:
        """Wrap `function(answer, case)`; its cases must give `points` in all."""
        self.slug = slug
        self.points = points
        self.hidden = hidden
        self.part = part
        self.autograd = autograd
        self.function = function
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__

    def __call__(self, answer: Any) -> None:
        """Run every case on a student's answer and print the result.

        Raises:
            CheckFailed: when a case fails or the answer is still the stub.
        """
        report = self.run(answer)
        remember(report)
        if not report.passed:
            raise CheckFailed(report) from None
        print(report.text())

    def run(self, answer: Any, seed: int = 0) -> Report:
        """Run every case and return what was found.

        Args:
            answer: the student's function or class, or an `Answer` that stands for one elsewhere.
            seed: chooses the random inputs; the same seed gives the same inputs.
        """
        case = Case(self.slug, seed)
        report = Report(self.slug, self.points, case.results, hidden=self.hidden)
        answer = answer if isinstance(answer, Answer) else Answer(answer)
        try:
            self.function(answer if self.autograd else answer.without_autograd(), case)
        except AnswerIsStub:
            return Report(self.slug, self.points, todo=True, hidden=self.hidden)
        except Exception as error:
            # A check should only touch the answer inside a case; where it does not, no point is invented.
            missing = self.points - sum(result.out_of for result in case.results)
            case.results.append(CaseResult("the remaining cases", 0, missing, False, explain(error)))
            return report
        if sum(result.out_of for result in case.results) != self.points:
            raise ValueError(f"the cases of check {self.slug!r} do not add up to {self.points} points")
        return report


def check(
    slug: str,
    points: float,
    *,
    hidden: float = 0,
    part: str = "",
    autograd: bool = True,
    from_scratch: Sequence[str] = (),
    allows: Sequence[str] = (),
) -> Callable[[CheckFunction], Check]:
    """Make a check of a function `(answer, case)`.

    Args:
        slug: the id of the answer cell that the check belongs to.
        points: what all its cases give together.
        hidden: what the hidden tests of the same answer give, which a student does not see and the grader runs;
            `points + hidden` are the points of the TODO line.
        part: names the checks of one notebook, in a unit that has several; see `progress`.
        autograd: whether the answer may use automatic differentiation; where it may not, using it is a mistake.
        from_scratch: names, or parts of names, of library functions that would be the whole answer. No case looks at
            them: the grader reads them here and shows a person the lines that use them (`common.grading.flags`).
        allows: "files", "processes" (and threads, and coroutines) or "network", where the task itself asks for it:
            the grader does not show these lines.
    """
    return lambda function: Check(slug, points, function, hidden=hidden, part=part, autograd=autograd)


def find(checks: ModuleType) -> dict[str, Check]:
    """Return the checks of a `checks.py` by slug, in the order in which they are written."""
    return {value.slug: value for value in vars(checks).values() if isinstance(value, Check)}
