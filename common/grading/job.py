"""What the grader tells a worker to do. Light: the grader itself does not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Step:
    """A cell to run: a setup cell of the course, or a student's answer.

    Attributes:
        label: the answer's slug, or how messages call the setup cell.
        name: what the answer is to define.
        judged: whether its check is to run; false when that was done by an earlier worker.
    """

    kind: Literal["setup", "answer"]
    label: str
    source: str
    name: str = ""
    judged: bool = True


@dataclass(frozen=True)
class Job:
    """What one worker does.

    Attributes:
        steps: the cells to run, in order.
        checks: the checks.py that judges the answers.
        folder: where to run them.
        seed: chooses the inputs of the checks.
        memory: bytes that the worker may use, beyond what it starts with.
        seconds: the submission's time limit.
    """

    steps: tuple[Step, ...]
    checks: Path
    folder: Path
    seed: int
    memory: int
    seconds: int


def start(job: Job, pipe: Connection) -> None:
    """Do `job` in this process, which ends with it; see `common.grading.worker.work`."""
    from common.grading.worker import work

    work(job, pipe)
