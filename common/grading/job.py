"""What the grader tells a judge to do. Light: the grader itself does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from common.grading.sandbox import Settings

LARGEST_ARTEFACT = 32 * 2**20  # bytes


@dataclass(frozen=True)
class Step:
    """Something to run: a setup cell of the course, a student's answer file or answer; or a file to put beside them.

    Attributes:
        label: the answer's slug, the name of the answer file or artefact, or how messages call the setup cell.
        source: of the cell or file; "" for an answer in a file; the SHA-256 of an artefact.
        name: what the answer is to define; the path of an artefact.
        file: the answer file that holds the answer, "" when it is a cell; the name of an artefact in its zip file.
        judged: whether its check is to run; false when that was done by an earlier judge.
    """

    kind: Literal["artefact", "setup", "file", "answer"]
    label: str
    source: str
    name: str = ""
    file: str = ""
    judged: bool = True


@dataclass(frozen=True)
class Job:
    """What one judge does.

    Attributes:
        steps: what to run, in order.
        checks: the checks.py that judges the answers.
        hidden: the hidden_checks.py that judges them further, if there is one.
        seed: chooses the inputs of the checks.
        step_seconds: for each step, with its check.
        seconds: for all of them.
    """

    steps: tuple[Step, ...]
    checks: Path
    hidden: Path | None
    seed: int
    step_seconds: float
    seconds: float


def start(settings: Settings, job: Path, pipe: Connection) -> None:
    """Do the job in the file `job`, and end the process; see `common.grading.judge.work`."""
    from common.grading.judge import work

    work(settings, job, pipe)
