"""`python -m common.grading FOLDER`: grade a folder of submissions. See `common.grading`."""

from __future__ import annotations

import argparse
import contextlib
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
from common.grading import collect, marking, marks, output, sandbox
from common.grading.collect import Base
from common.grading.journal import NAME, Journal
from common.grading.pool import Row, Settings, grade
from common.notebooks import branch
from common.notebooks.anatomy import NotebookError


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
        students = collect.students(options.folder, bases, skip=options.out)
        options.out.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.out / NAME, options.seed, fresh=secrets.randbelow(2**48))
    except (NotebookError, FileNotFoundError, ValueError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{error.filename}: {error.strerror}")
    if not students:
        return _refuse(f"{options.folder} is empty: it needs a sub-folder or a notebook for each student")
    with tempfile.TemporaryDirectory() as tmp:
        try:
            return _grade(options, bases, students, journal, Path(tmp) / "solutions")
        except NotebookError as error:  # a file of the results cannot be written
            return _refuse(f"{error} The rows are in {options.out / NAME}.")


def _grade(
    options: argparse.Namespace, bases: list[Base], students: dict[str, list[Path]], journal: Journal, tmp: Path
) -> int:
    why = sandbox.missing()
    if why:
        print(f"NOT CONTAINED ({why}). What a student's code can do here: {sandbox.dangers()}.", file=sys.stderr)
    solved = _solved(options.course, bases, tmp)
    hidden = {base.unit: solved / base.unit / "hidden_checks.py" for base in bases} if solved else {}
    hidden = {unit: path for unit, path in hidden.items() if path.is_file()}
    imports = tuple(dict.fromkeys(line for base in bases for line in base.imports))
    memory, seed = int(options.memory * 2**30), journal.about["seed"]
    settings = Settings(seed, options.jobs, options.timeout, memory, hidden, imports, contained=not why)
    print(f"{len(students)} submissions, {settings.jobs} at a time, seed {seed}")
    about = {"seed": seed, "started": datetime.now().astimezone().isoformat(timespec="seconds")}
    rows: list[Row] = []
    began, interrupted = time.monotonic(), False
    with (
        contextlib.closing(collect.collect(students, bases, options.unit, options.jobs)) as found,
        contextlib.closing(grade(journal.missing(found, settings, rows), settings)) as graded,
    ):
        try:
            for row in _progress(graded, len(students), rows):
                journal.add(row)
        except KeyboardInterrupt:
            interrupted = True
    journal.close(done=not interrupted)
    seconds = time.monotonic() - began
    about |= {"seconds": round(seconds, 1), "complete": not interrupted, "submissions": len(students)}
    problems = marks.update(options.out, rows)
    output.write(options.out, rows, about)
    marking.write(options.out, rows, bases, solved)
    print(output.summary(rows))
    print(f"\n{len(rows)} rows in {seconds:.1f} s, {seconds / max(1, len(rows)):.2f} s each: {options.out}")
    if journal.kept:
        print(f"{journal.kept} of them were graded before this grading was stopped, and are as they were.")
    print(f"To repeat this grading exactly: --seed {seed}")
    if interrupted:
        print("Interrupted: some submissions are not graded and have no row. Grade again to go on where it stopped.")
    failed = sum(row.failed for row in rows)
    if failed:
        print(f"{failed} rows could not be graded by no fault of their students: see their remarks.")
    for base in bases:
        if base.hidden and base.unit not in hidden and any(row.unit == base.unit and row.files for row in rows):
            print(f"HIDDEN TESTS NOT FOUND: {base.unit} lacks {sum(base.hidden.values()):g} points in every row.")
    if any(answer.prose for row in rows for answer in row.answers):
        print("\n".join([*problems, marks.remaining(options.out, rows)]))
    return 130 if interrupted else 1 if failed else 0


def _solved(root: Path | None, bases: list[Base], target: Path) -> Path | None:
    """Write what the branch `solutions` has for graders, if a unit has hidden tests or questions in prose."""
    if not any(base.hidden or any(part.prose for part in base.parts) for base in bases):
        return None
    try:
        return branch.preview(root or course.find_root(), target)
    except NotebookError as error:
        print(f"THE SOLUTIONS CANNOT BE READ, so there are no hidden tests and no rubrics: {error}", file=sys.stderr)
        return None


def _progress(graded: Iterator[Row], total: int, rows: list[Row]) -> Iterator[Row]:
    """Add the rows that are graded to `rows`, and yield them; show how many there are, and when all will be."""
    shape = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    with tqdm(total=total, desc="grading", bar_format=shape, smoothing=0) as bar:
        began = time.time()
        for done, row in enumerate(graded, 1):
            rows.append(row)
            yield row
            ready = began + (time.time() - began) * (done + max(0, total - len(rows))) / done
            bar.set_postfix_str(time.strftime("ready at %H:%M:%S", time.localtime(ready)), refresh=False)
            bar.total = max(total, len(rows))
            bar.update(len(rows) - bar.n)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m common.grading", description="Grade a folder of submissions.")
    add = parser.add_argument
    add("folder", type=Path, help="for each student a sub-folder, a zip file or loose files, under any names")
    add("--unit", help="such as phase2_transformers/lab1_attention (default: found out from each notebook)")
    add("--out", type=Path, default=Path("grades"), help="folder for the results (grades)")
    add(
        "--seed",
        type=int,
        default=None,
        help="repeats an earlier grading (default: a fresh one, or that of a grading that was stopped)",
    )
    add("--jobs", type=int, default=os.cpu_count() or 1, help="submissions at a time (all cores)")
    add("--timeout", type=float, default=240.0, help="seconds for a notebook, a quarter for one answer (240)")
    add("--memory", type=float, default=4.0, help="GiB that a submission may use, on Linux (4)")
    add("--course", type=Path, default=None, help="the course (the one this command belongs to)")
    options = parser.parse_args(arguments)
    for name in ("jobs", "timeout", "memory"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name} must be positive")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        parser.error("--seed must be at least 0 and below 2**63")
    return options


def _refuse(message: str) -> int:
    print(f"Nothing graded: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
