"""What the grader tells a worker to do. Light: the grader itself does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

FOLDER = "grading-"  # what the name of a job's folder begins with


@dataclass(frozen=True)
class Step:
    """Something to run: a setup cell of the course, a student's answer file, or a student's answer.

    Attributes:
        label: the answer's slug, the name of the answer file, or how messages call the setup cell.
        source: of the cell or file; "" for an answer in a file.
        name: what the answer is to define.
        file: the answer file that holds the answer; "" when it is a cell.
        judged: whether its check is to run; false when that was done by an earlier worker.
    """

    kind: Literal["setup", "file", "answer"]
    label: str
    source: str
    name: str = ""
    file: str = ""
    judged: bool = True


@dataclass(frozen=True)
class Job:
    """What one worker does.

    Attributes:
        steps: what to run, in order.
        checks: the checks.py that judges the answers.
        hidden: the hidden_checks.py that judges them further, if there is one.
        folder: where to run them; it holds the unit's own Python files.
        seed: chooses the inputs of the checks.
        memory: bytes that the worker may use, beyond what it starts with.
        seconds: the submission's time limit.
    """

    steps: tuple[Step, ...]
    checks: Path
    hidden: Path | None
    folder: Path
    seed: int
    memory: int
    seconds: int


def start(job: Job, pipe: Connection) -> None:
    """Do `job` in this process, which ends with it; see `common.grading.worker.work`."""
    from common.grading.worker import work

    work(job, pipe)
