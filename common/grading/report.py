"""Makes class.html: how a class has done, what it found hard, and what the instructor should look at."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

from common.grading import output
from common.grading.pool import AnswerResult, Row

BINS = 10
MOST = 12  # cases and misconceptions of a unit that are listed
OUTCOMES = {  # of an answer, in the order of the bar
    "full": "all points",
    "part": "some points",
    "none": "no points",
    "stopped": "did not run to its end",
    "todo": "not answered",
    "waiting": "to be marked",
}


def page(rows: Sequence[Row], alike: Sequence[Mapping[str, Any]], seed: int, names: Mapping[str, str]) -> str:
    """Return class.html.

    Args:
        rows: what was graded.
        alike: what `common.grading.similar` has found.
        seed: of the checks.
        names: the name of each student's page, without its ending.
    """
    units = []
    for unit in sorted({row.unit for row in rows}):
        here = [row for row in rows if row.unit == unit]
        shares = [row.points / row.out_of for row in here if row.out_of]
        units.append(
            {
                "name": unit or "No unit found",
                "rows": here,
                "out_of": max(row.out_of for row in here),
                "mean": mean(row.points for row in here),
                "median": median(row.points for row in here),
                "unmarked": sum(row.unmarked for row in here),
                "bars": _bars(shares),
                "answers": _answers(here),
                "hardest": hardest(here)[:MOST],
                "misconceptions": misconceptions(here)[:MOST],
                "similar": [pair for pair in alike if pair["unit"] == unit],
            }
        )
    template = output.PAGES.get_template("class.html")
    return template.render(units=units, seed=seed, names=names, number=output.number, outcomes=OUTCOMES)


def _bars(shares: Sequence[float]) -> list[dict[str, float]]:
    """The bars of the histogram, in a picture of 640 × 180: how many earned at least so many tenths."""
    counts = Counter(min(int(share * BINS + 1e-9), BINS - 1) for share in shares)
    most = max(counts.values(), default=1)
    return [
        {"from": bin / BINS, "count": counts[bin], "x": 8 + 63 * bin, "height": 120 * counts[bin] / most}
        for bin in range(BINS)
    ]


def _outcome(answer: AnswerResult) -> str:
    if answer.state in ("graded", "marked"):
        return "full" if answer.points >= answer.out_of else "part" if answer.points else "none"
    return {"todo": "todo", "missing": "todo", "unchecked": "waiting"}.get(answer.state, "stopped")


def _answers(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each answer, the share of its points that were earned, and how many students came to which outcome."""
    found: dict[str, list[AnswerResult]] = {}
    for row in rows:
        for answer in row.answers:
            found.setdefault(answer.slug, []).append(answer)
    return [
        {
            "slug": slug,
            "out_of": answers[0].out_of,
            "share": mean(one.points / one.out_of if one.out_of else 0 for one in answers),
            "counts": Counter(map(_outcome, answers)),
            "total": len(answers),
        }
        for slug, answers in found.items()
    ]


def hardest(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the cases that somebody failed, first those that most students failed; stubs do not count."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        for answer in row.answers:
            for case in answer.cases if answer.state == "graded" else ():
                found.setdefault((answer.slug, case["name"]), []).append(case)
    cases = [
        {
            "slug": slug,
            "name": name,
            "hidden": cases[0]["hidden"],
            "failed": sum(not case["passed"] for case in cases),
            "tried": len(cases),
        }
        for (slug, name), cases in found.items()
    ]
    failed = [case for case in cases if case["failed"]]
    return sorted(failed, key=lambda case: (-case["failed"] / case["tried"], -case["failed"]))


def misconceptions(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the messages that failing cases of several students share, whatever the numbers in them.

    Of one answer, what the first case that failed says counts: those after it may fail only because of that one.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}  # answer and message -> student -> the case
    for row in rows:
        for answer in row.answers:
            failed = [
                case
                for case in answer.cases
                if not case["passed"] and case["message"] and "is still to do" not in case["message"]
            ]
            for case in failed[:1] if answer.state == "graded" else ():
                found.setdefault((answer.slug, masked(case["message"])), {})[row.student] = case
    groups = [
        {"slug": slug, "message": case["message"], "known": case["known"], "students": list(said)}
        for (slug, _), said in found.items()
        if len(said) > 1 and (case := next(iter(said.values())))
    ]
    return sorted(groups, key=lambda group: (-len(group["students"]), not group["known"]))


def masked(message: str) -> str:
    """Return a message without what differs from draw to draw: numbers, shapes and what a call was given."""
    message = re.sub(r" \(called with .*\)", "", message)
    message = re.sub(r"[-+]?\d[\d.]*(?:e[-+]?\d+)?", "#", message)
    return re.sub(r"#(?:, #)*", "#", message)
