"""What a check found: points and messages, as text for the notebook and as data for a grader."""

from __future__ import annotations

import re
import textwrap
from dataclasses import asdict, dataclass, field
from types import ModuleType
from typing import Any

GREEN, RED, YELLOW, DIM, RESET = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
WIDTH = 100


@dataclass(frozen=True)
class CaseResult:
    """One case: its name, the points it gave out of those it could give, and what was wrong.

    `known` says that the message names the mistake for certain; the hint would only lead astray then.
    """

    name: str
    points: float
    out_of: float
    passed: bool
    message: str = ""
    hint: str = ""
    known: bool = False


@dataclass
class Report:
    """All cases of one check, in the order in which they ran.

    `todo` is true when the answer is still the stub that the student was given; `hidden` is what hidden tests of
    the same answer give beside it.
    """

    slug: str
    out_of: float
    cases: list[CaseResult] = field(default_factory=list)
    todo: bool = False
    hidden: float = 0

    @property
    def points(self) -> float:
        """Points earned."""
        return sum(case.points for case in self.cases)

    @property
    def passed(self) -> bool:
        """Whether every case passed."""
        return not self.todo and all(case.passed for case in self.cases)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self) | {"points": self.points, "passed": self.passed}

    def text(self, colour: bool = False) -> str:
        """Return the report as a student reads it; the text of a full pass never varies."""
        paint = _paint if colour else _plain
        head = f"{self.slug}: {self.points:g} of {self.out_of:g} points"
        if self.todo:
            stub = f'`raise NotImplementedError("{self.slug}")`'
            advice = f"replace {stub}, run its cell or save its file, then run this cell"
            return paint(f"{head}. Still to do: {advice}.", YELLOW)
        lines = [paint(head, GREEN if self.passed else RED)]
        seen: dict[str, str] = {}  # a message -> the case that gave it first
        for case in self.cases:
            mark, colour_code = ("✓", GREEN) if case.passed else ("✗", RED)
            lines.append(f"  {paint(mark, colour_code)} {case.name} ({case.points:g}/{case.out_of:g})")
            if not case.passed:
                kind = re.sub(r" \(called with .*\)", "", case.message)
                first = seen.setdefault(kind, case.name)
                lines += _indented(case.message if first == case.name else f"the same as for: {first}")
                if case.hint and not case.known:
                    lines += _indented(f"hint: {case.hint}", lambda line: paint(line, DIM))
        if self.hidden:
            lines.append(f"  {self.hidden:g} more points come from hidden tests, when it is graded")
        return "\n".join(lines)


class CheckFailed(Exception):
    """An answer did not pass its check; shown in a notebook as the report, without a traceback."""

    def __init__(self, report: Report) -> None:
        """Keep the report, whose text is the message."""
        self.report = report
        super().__init__(report.text())

    def _render_traceback_(self) -> list[str]:  # IPython shows these lines instead of a traceback
        return self.report.text(colour=True).splitlines()


_session: dict[str, Report] = {}  # the last report of each check since the kernel started


def remember(report: Report) -> None:
    """Keep `report` as the last one of its check, for `progress`."""
    _session[report.slug] = report


def progress(checks: ModuleType, part: str = "") -> None:
    """Print the points earned so far in this session, one line for each check of the module `checks`.

    Args:
        checks: the module.
        part: of which part of the unit; without it, of all.

    Raises:
        ValueError: when there is no such part.
    """
    from common.checks.core import find

    all_checks = {slug: one for slug, one in find(checks).items() if not part or one.part == part}
    if not all_checks:
        raise ValueError(f"checks.py has no check of the part {part!r}")
    width = max(len(slug) for slug in all_checks)
    earned, next_slug = 0.0, None
    for slug, one in all_checks.items():
        report = _session.get(slug)
        points = report.points if report else 0.0
        earned += points
        bar = "█" * round(10 * points / one.points)
        remark = "" if report and not report.todo else "  still to do" if report else "  not checked yet"
        if points < one.points and next_slug is None:
            next_slug = slug
        print(f"{slug:<{width}}  {bar:░<10}  {points:4g} of {one.points:g}{remark}")
    total = sum(one.points for one in all_checks.values())
    print(f"\n{earned:g} of {total:g} points since the kernel started. ", end="")
    print(f"Next: {next_slug}." if next_slug else "Everything is done.")


def _indented(text: str, paint: Any = lambda line: line) -> list[str]:
    lines = [part for line in text.splitlines() for part in (textwrap.wrap(line, WIDTH - 6) or [""])]
    return [f"      {paint(line)}" for line in lines]


def _paint(text: str, code: str) -> str:
    return f"{code}{text}{RESET}"


def _plain(text: str, code: str) -> str:
    return text
