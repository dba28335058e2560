"""`python -m common.grading FOLDER`: grade a folder of submissions. See `common.grading`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

from common import course
from common.grading import collect, marking, marks, output
from common.grading.collect import Base, Task
from common.grading.pool import Row, Settings, grade
from common.notebooks import branch
from common.notebooks.anatomy import NotebookError

NOT_CONTAINED = (
    "Not contained yet: answers run with your rights (files, network) and in one process with their checks, so a "
    "student who wants to cheat can; isolation comes later. Mistakes, hangs and crashes are contained."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Grade a folder; return the exit status.

    That is 0; 1 when the course or the grader is at fault, 2 when there is nothing to grade, 130 when
    interrupted.
    """
    options = _options(arguments)
    if not hasattr(os, "fork"):
        return _refuse("grading needs Linux or macOS; on Windows use WSL")
    try:
        bases = collect.load_units(options.course, options.unit)
        if not bases:
            return _refuse("the course has no unit with a notebook and a checks.py")
        tasks = collect.collect(options.folder, bases, options.unit, skip=options.out)
        options.out.mkdir(parents=True, exist_ok=True)
    except (NotebookError, FileNotFoundError, ValueError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.filename}: {error.strerror}")
    if not tasks:
        return _refuse(f"{options.folder} is empty: it needs a sub-folder or a notebook for each student")
    with tempfile.TemporaryDirectory() as tmp:
        try:
            return _grade(options, bases, tasks, Path(tmp) / "solutions")
        except NotebookError as error:  # a file of the results cannot be written
            return _refuse(f"{error} The rows are in {options.out / 'results.jsonl'}.")


def _grade(options: argparse.Namespace, bases: list[Base], tasks: list[Task], tmp: Path) -> int:
    solved = _solved(options.course, tasks, tmp)
    hidden = {base.unit: solved / base.unit / "hidden_checks.py" for base in bases} if solved else {}
    hidden = {unit: path for unit, path in hidden.items() if path.is_file()}
    settings = Settings(options.seed, options.jobs, options.timeout, int(options.memory * 2**30), hidden)
    print(f"{len(tasks)} submissions, {settings.jobs} at a time, seed {settings.seed}")
    about = {"seed": settings.seed, "started": datetime.now().astimezone().isoformat(timespec="seconds")}
    rows: list[Row] = []
    began = time.monotonic()
    interrupted = False
    with (
        (options.out / "results.jsonl").open("w", encoding="utf-8") as log,
        contextlib.closing(grade(tasks, settings)) as finished,
    ):
        log.write(json.dumps(about) + "\n")
        try:
            for row in _progress(finished, len(tasks)):
                rows.append(row)
                log.write(json.dumps(row.as_dict()) + "\n")  # a grader that is killed loses no finished row
                log.flush()
        except KeyboardInterrupt:
            interrupted = True
    seconds = time.monotonic() - began
    about |= {"seconds": round(seconds, 1), "complete": not interrupted, "submissions": len(tasks)}
    problems = marks.update(options.out, rows)
    output.write(options.out, rows, about)
    marking.write(options.out, rows, bases, solved)
    print(output.summary(rows))
    print(f"\n{len(rows)} rows in {seconds:.1f} s, {seconds / max(1, len(rows)):.2f} s each: {options.out}")
    print(f"To repeat this grading exactly: --seed {settings.seed}")
    if interrupted:
        left = len(tasks) - len(rows)
        print(f"Interrupted: {left} of {len(tasks)} submissions are not graded and have no row.")
    failed = sum(row.failed for row in rows)
    if failed:
        print(f"{failed} rows could not be graded by no fault of their students: see their remarks.")
    for base in {task.base.unit: task.base for task in tasks if task.base and task.files}.values():
        if base.hidden and base.unit not in hidden:
            print(f"HIDDEN TESTS NOT FOUND: {base.unit} lacks {sum(base.hidden.values()):g} points in every row.")
    if any(answer.prose for row in rows for answer in row.answers):
        print("\n".join([*problems, marks.remaining(options.out, rows)]))
    print(NOT_CONTAINED)
    return 130 if interrupted else 1 if failed else 0


def _solved(root: Path | None, tasks: list[Task], target: Path) -> Path | None:
    """Write what the branch `solutions` has for graders, if anybody's unit has hidden tests or questions in prose."""
    units = [task.base for task in tasks if task.base and task.files]
    if not any(base.hidden or any(part.prose for part in base.parts) for base in units):
        return None
    try:
        return branch.preview(root or course.find_root(), target)
    except NotebookError as error:
        print(f"THE SOLUTIONS CANNOT BE READ, so there are no hidden tests and no rubrics: {error}", file=sys.stderr)
        return None


def _progress(rows: Iterator[Row], total: int) -> Iterator[Row]:
    shape = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=total, desc="grading", bar_format=shape, smoothing=0) as bar:
        began = time.time()
        for done, row in enumerate(rows, 1):
            yield row
            ready = began + (time.time() - began) * total / done
            bar.set_postfix_str(time.strftime("ready at %H:%M:%S", time.localtime(ready)), refresh=False)
            bar.update()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m common.grading", description="Grade a folder of submissions.", epilog=NOT_CONTAINED
    )
    add = parser.add_argument
    add("folder", type=Path, help="for each student a sub-folder, a zip file or loose files, under any names")
    add("--unit", help="such as phase2_transformers/lab1_attention (default: found out from each notebook)")
    add("--out", type=Path, default=Path("grades"), help="folder for the results (grades)")
    add("--seed", type=int, default=None, help="repeats an earlier grading (default: a fresh one)")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="submissions at a time (all cores)")
    add("--timeout", type=float, default=120, help="seconds for a notebook, a quarter for one answer (120)")
    add("--memory", type=float, default=4, help="GiB that a submission may use, on Linux (4)")
    add("--course", type=Path, default=None, help="the course (the one this command belongs to)")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**31)
    for name in ("jobs", "timeout", "memory"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be positive")
    if not 0 <= options.seed < 2**32:
        parser.error("--seed must be at least 0 and below 2**32")
    return options


def _refuse(message: str) -> int:
    print(f"Nothing graded: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
