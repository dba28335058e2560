"""What happens in a judge: the answers of one notebook are run in a worker, in order, and each is checked at once.

The judge holds the checks, the hidden tests and every expected value, and runs no code of a student's.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import pickle
import select
import shutil
import signal
import sys
import threading
import time
import zipfile
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from common.checks import Check, find
from common.grading import sandbox
from common.grading.job import LARGEST_ARTEFACT, Job, Step
from common.grading.remote import Worker, WorkerLost, trimmed


def work(settings: sandbox.Settings, file: Path, pipe: Connection) -> None:
    """Start a worker, do the job that lies pickled in a file of the grader's, and end the process.

    Each line written to `pipe` is one JSON message, sent as soon as it is known: `{"start": label}` before
    a step runs, `{"answer": slug, ...}` when it has been judged, `{"remark": text}`, and at the end `{"lost": why}`
    when the worker could not go on, else `{"done": true}`.
    """
    os.setsid()  # a process group of our own, which can be killed whole

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(_trimmed(message)).encode() + b"\n"
        while data:
            data = data[os.write(pipe.fileno(), data) :]

    try:
        silence()
        torch.set_num_threads(1)
        worker = Worker(settings)  # before anything is loaded that it must not have: job, checks
        sandbox.shield()
        sandbox.limit_memory(settings.memory)
        threading.Thread(target=_die_with_the_reader, args=(pipe, settings.folder), daemon=True).start()
        job: Job = pickle.loads(file.read_bytes())
        file.unlink()  # before an answer runs
        sys.dont_write_bytecode = True
        checks = find(load(job.checks))
        hidden = find(load(job.hidden)) if job.hidden else {}
        try:
            _run(job, worker, checks, hidden, send)
            send({"done": True})
        except WorkerLost:
            send({"lost": worker.lost})
        worker.close()
    except BaseException as error:
        with contextlib.suppress(BaseException):
            send({"failure": f"{type(error).__name__}: {error}"})
    os._exit(0)


def _run(job: Job, worker: Worker, checks: dict[str, Check], hidden: dict[str, Check], send: Any) -> None:
    began = time.monotonic()
    worker.limit = job.step_seconds
    worker.command("write", {step.label: step.source for step in job.steps if step.kind == "file"})
    for step in job.steps:
        send({"start": step.label})
        if step.kind == "artefact":
            worker.command("place", step.label, torch.from_numpy(np.frombuffer(bytearray(artefact(step)), np.uint8)))
            continue
        worker.limit = max(0.1, min(job.step_seconds, began + job.seconds - time.monotonic()))
        arguments = (step.label,) if step.kind == "file" else (step.source, step.name, step.file)
        error, remarks = worker.text("load" if step.kind == "file" else "run", *arguments)
        for remark in remarks:
            send({"remark": remark})
        if step.kind == "setup":
            # A stub's NotImplementedError is no news: the setup cell uses an answer that is not there.
            if error and "NotImplementedError" not in error:
                send({"remark": f"{step.label} of the course does not run: {error}"})
        elif step.kind == "answer" and step.judged:
            found = judge(worker, step, error, checks.get(step.label), hidden.get(step.label), job.seed)
            send({"answer": step.label, **found})
            if worker.lost:
                raise WorkerLost


def artefact(step: Step) -> bytes:
    """Read a file that a student handed in, of which the grader has seen that it is not too large.

    Raises:
        OSError: it is no longer what the grader has seen.
    """
    with open(os.open(step.name, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        if step.file:
            with zipfile.ZipFile(file) as archive, archive.open(step.file) as member:
                content = member.read(LARGEST_ARTEFACT)
        else:
            content = file.read(LARGEST_ARTEFACT)
    if hashlib.sha256(content).hexdigest() != step.source:
        raise OSError(f"{step.label} has changed since the grading began")
    return content


def judge(
    worker: Worker, step: Step, error: str, check: Check | None, hidden: Check | None, seed: int
) -> dict[str, Any]:
    """Run the check of one answer, and the hidden tests that belong to it.

    Returns:
        `state` (graded, todo, broken, stopped or unchecked), `message`, and the `cases` where there are any; a hidden
        case has no message.
    """
    if check is None:
        return {"state": "unchecked", "message": "the course has no check for this answer"}
    answer, place = worker.answer(step.name, step.file), step.file or "the cell"
    if answer is None:
        message = f"{place} does not run: {error}" if error else f"{place} does not define {step.name}"
        return {"state": "broken", "message": message}
    try:
        report = check.run(answer, seed)
    except Exception as raised:
        return {"state": "broken", "message": f"the check could not go on: {type(raised).__name__}: {raised}"}
    cases = [case | {"hidden": False} for case in report.as_dict()["cases"]]
    message = f"the cell defines {step.name}, but then stops: {error}" if error else ""
    if hidden and not report.todo and not worker.lost:
        try:
            cases += [case | {"hidden": True, "message": ""} for case in hidden.run(answer, seed).as_dict()["cases"]]
        except Exception:
            message = "the hidden tests could not go on"
    if worker.lost:
        return {"state": "stopped", "message": f"your code {worker.lost}", "cases": cases}
    return {"state": "todo" if report.todo else "graded", "message": message, "cases": cases}


def load(path: Path) -> ModuleType:
    """Import a checks.py or hidden_checks.py under its own name, by which the second may import the first."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where inspect looks, too, for the source of what it defines
    spec.loader.exec_module(module)
    return module


def silence() -> None:
    """Send what this process and its children print, and what they read, to nowhere."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.stdin, sys.stdout, sys.stderr = (open(stream, mode, closefd=False) for stream, mode in enumerate("rww"))  # noqa: SIM115


def _trimmed(value: Any) -> Any:
    """Return a message in which no text is too long: a case may repeat what the answer has returned."""
    if isinstance(value, str):
        return trimmed(value)
    if isinstance(value, dict):
        return {key: _trimmed(item) for key, item in value.items()}
    return [_trimmed(item) for item in value] if isinstance(value, list) else value


def _die_with_the_reader(pipe: Connection, folder: Path) -> None:
    """Delete the folder and kill this process group once nobody reads `pipe`: the grader itself was killed."""
    poll = select.poll()
    poll.register(pipe.fileno(), 0)
    poll.poll()
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
