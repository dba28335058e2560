"""What the `checks.py` of a unit is written with.

A check is one function that tries one answer of a student in several named cases::

    from common.checks import check

    @check("causal-mask", points=4)
    def causal_mask(answer, case):
        with case("one row per query, one column per key", points=1, hint="..."):
            case.shape(answer(5), (5, 5))
        ...

In the notebook `checks.causal_mask(causal_mask)` runs every case and prints the result, or raises
`CheckFailed` with a message for each case that failed. A grader calls `checks.causal_mask.run(answer, seed)`
and gets the same cases as a `Report`.

A case meets the answer only by calling it with plain tensors and numbers, and looks only at what comes back
(see `common.checks.answer`), so the same case can run against an answer that lives in another process.
"""

from common.checks import notebook
from common.checks.answer import Answer, ModuleAnswer, ObjectAnswer
from common.checks.case import Case, alike, always, kind_of, made_by
from common.checks.core import Check, check, find
from common.checks.report import CaseResult, CheckFailed, Report, progress

__all__ = [
    "Answer",
    "Case",
    "CaseResult",
    "Check",
    "CheckFailed",
    "ModuleAnswer",
    "ObjectAnswer",
    "Report",
    "alike",
    "always",
    "check",
    "find",
    "kind_of",
    "made_by",
    "progress",
]

notebook.install()
