"""Measures our grader, nbgrader's autograde and otter-grader on the same submissions of one lab.

    python -m common.grading.benchmark [--keep folder]        (make bench)

nbgrader and otter-grader are installed into an environment of their own, which also sees the packages of this one
and is removed afterwards. All three get the same submissions, right and wrong answers mixed, and the same checks: a
check cell is a test cell of nbgrader's and a test file of otter's. That two graders give an answer the same points is
demanded; theirs are all or nothing, so ours are compared as that.

The two run the whole notebook, ours only the answers and what they need. What is left of the difference when the
notebooks they get are cut down to the same is measured too. Each is run in its fastest way without containers:
nbgrader grades all submissions in one process, one after another; of otter there is a process for each core, which
loads it once. Everything from the start of a command to its end counts, loading torch too.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from common import course, runtime
from common.bench import peers
from common.grading import proofs
from common.notebooks import anatomy, branch
from common.notebooks.anatomy import NotebookError

UNIT = "phase2_transformers/lab1_attention"
TOOLS = ("nbgrader", "otter-grader")
WRONG = 0.2  # the share of answers that are wrong
KERNEL_THREAD = 0x00200000  # PF_KTHREAD of Linux, in the flags of a process
SHOWN = re.compile(r"(<!-- speed:begin -->).*?(<!-- speed:end -->)", re.DOTALL)

Points = dict[str, dict[str, float]]  # of each student, of each answer

NBGRADER_CONFIG = """\
c = get_config()
c.CourseDirectory.course_id = "course"
c.Execute.timeout = 600  # seconds for a cell; with the usual 30 a training may be cut off
"""
NBGRADER_POINTS = """\
import json, sys
from nbgrader.api import Gradebook
with Gradebook("sqlite:///gradebook.db", "course") as book:
    print(json.dumps({
        submission.student.id: {
            grade.name.removeprefix("check-"): grade.auto_score
            for notebook in submission.notebooks for grade in notebook.grades
        }
        for submission in book.assignment_submissions(sys.argv[1])
    }))
"""
OTTER = """\
import json, sys
from pathlib import Path
from otter.api import grade_submission
out, autograder, *notebooks = sys.argv[1:]
points = {}
for notebook in notebooks:
    results = grade_submission(notebook, autograder, quiet=True).results
    points[Path(notebook).parent.name] = {name: test.score for name, test in results.items()}
Path(out).write_text(json.dumps(points))
"""
WATCH = """\
# Runs a command and waits for all that it leaves behind, so that the seconds of every process count.
import contextlib, ctypes, os, sys, time
with contextlib.suppress(AttributeError):  # on Linux, orphans come to this process
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
command, last, status = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:]), None, 0
with contextlib.suppress(ChildProcessError):
    while last is None or time.monotonic() < last:
        ended, how = os.waitpid(-1, os.WNOHANG if last else 0)
        if ended == command:
            last, status = time.monotonic() + 5, os.waitstatus_to_exitcode(how)
        elif not ended:
            time.sleep(0.01)
sys.exit(status)
"""
OTTER_TEST = """\
OK_FORMAT = False
from otter.test_files import test_case

name = {slug!r}
points = {points:g}


@test_case()
def test({names}):
    {check}
"""


@dataclass(frozen=True)
class Timing:
    """What one grader needed for each submission.

    Attributes:
        grader: which one.
        runs: what of a notebook it runs.
        submissions: how many there were.
        wall: seconds by the clock.
        cpu: seconds of the CPU, summed over all processes and cores.
        others: the share of the machine that programs of others used meanwhile; 0 where that cannot be known.
    """

    grader: str
    runs: str
    submissions: int
    wall: float
    cpu: float
    others: float = 0


# -- submissions ---------------------------------------------------------------------------------------------


def submissions(
    notebook: NotebookNode, right: Mapping[str, Sequence[str]], wrong: Mapping[str, Sequence[str]], number: int
) -> dict[str, NotebookNode]:
    """Answer a notebook so many times, by the students' names; the first has the first right answers throughout.

    Args:
        notebook: of the course, with stubs.
        right: sources of right answers, by slug; other answers stay stubs.
        wrong: sources of wrong answers, by slug.
        number: of submissions; a larger number begins with the same ones.
    """
    draw = random.Random(0)
    made = {}
    for student in range(1, number + 1):
        answered = deepcopy(notebook)
        for answer in anatomy.answers(answered):
            sources = right.get(answer.slug)
            if not sources:
                continue
            source = sources[0]
            if student > 1:
                source = draw.choice((draw.random() < WRONG and wrong.get(answer.slug)) or sources)
            first = answer.source.partition("\n")[0]
            answered.cells[answer.index].source = source if source.startswith(first) else f"{first}\n{source.rstrip()}"
        made[f"student{student}"] = answered
    return made


def only_answers(notebook: NotebookNode) -> NotebookNode:
    """Return what our grader runs of a notebook: setup cells, answers and checks."""
    cut = deepcopy(notebook)
    cut.cells = [cell for cell in cut.cells if cell.cell_type == "code" and anatomy.role(cell) != "code"]
    return cut


def for_nbgrader(notebook: NotebookNode) -> NotebookNode:
    """Return a notebook whose answers and check cells nbgrader knows as solutions and tests."""
    marked = deepcopy(notebook)
    points = {answer.slug: answer.points for answer in anatomy.answers(notebook)}
    for cell in marked.cells:
        role = anatomy.role(cell)
        if cell.cell_type == "code" and role in ("answer", "check"):
            tests = role == "check"
            about = {"grade_id": cell.id, "grade": tests, "locked": tests, "solution": not tests, "task": False}
            about |= {"schema_version": 3, "cell_type": cell.cell_type}
            about |= {"points": points[cell.id.removeprefix("check-")]} if tests else {}
            cell.metadata["nbgrader"] = about
    return marked


def for_otter(notebook: NotebookNode) -> NotebookNode:
    """Return a notebook in which otter runs the test of each answer behind it, in the place of the check cell."""
    marked, tests = deepcopy(notebook), otter_tests(notebook)
    marked.cells = [cell for cell in marked.cells if anatomy.role(cell) != "check"]
    for cell in marked.cells:
        if cell.id in tests:
            cell.metadata["otter"] = {"tests": [cell.id]}
    return marked


def otter_tests(notebook: NotebookNode) -> dict[str, str]:
    """Return otter's test file for each answer, by slug: it makes the call that stands in the check cell."""
    points = {answer.slug: answer.points for answer in anatomy.answers(notebook)}
    tests = {}
    for cell in notebook.cells:
        if anatomy.role(cell) == "check":
            slug = cell.id.removeprefix("check-")
            names = sorted({node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)})
            check = cell.source.replace("\n", "\n    ")
            tests[slug] = OTTER_TEST.format(slug=slug, points=points[slug], names=", ".join(names), check=check)
    return tests


# -- results -------------------------------------------------------------------------------------------------


def all_or_nothing(journal: str) -> Points:
    """Return what our grader's `results.jsonl` says, with no points for an answer that is only partly right."""
    lines = [json.loads(line) for line in journal.splitlines()]
    return {
        row["student"]: {
            answer["slug"]: answer["out_of"] if answer["points"] == answer["out_of"] else 0.0
            for answer in row["answers"]
        }
        for row in lines
        if "student" in row
    }


def disagreements(results: Mapping[str, Points]) -> list[str]:
    """Return a line for each answer to which not all graders give the same points; `results` are by grader."""
    lines = []
    for student in sorted({student for points in results.values() for student in points}):
        slugs = {slug for points in results.values() for slug in points.get(student, {})}
        for slug in sorted(slugs):
            given = {grader: points.get(student, {}).get(slug) for grader, points in results.items()}
            if len(set(given.values())) > 1:
                said = ", ".join(f"{grader} {points}" for grader, points in given.items())
                lines.append(f"{student}, {slug}: {said}")
    return lines


def table(timings: Sequence[Timing]) -> str:
    """Return the timings in Markdown; the first is the one to compare with."""
    head = [
        "| grader | runs | submissions | seconds each | CPU seconds each | times as long | other programs |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = [
        f"| {one.grader} | {one.runs} | {one.submissions} | {one.wall:.2f} | {one.cpu:.2f} | "
        f"{one.wall / timings[0].wall:.1f} | {one.others:.0%} |"
        for one in timings
    ]
    return "\n".join(head + rows)


# -- the three graders ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bench:
    """A folder to work in, the course, its lab, and the variables that every grader gets."""

    folder: Path
    root: Path
    notebook: NotebookNode
    variables: dict[str, str]

    @property
    def name(self) -> str:
        """The name of the notebook's file."""
        return self.notebook.metadata["course"]["notebook"]

    def write(self, folder: Path, notebooks: Mapping[str, NotebookNode], inside: str = "") -> list[Path]:
        """Write a notebook for each student, and return the files."""
        files = [folder / student / inside / self.name for student in notebooks]
        for file, notebook in zip(files, notebooks.values(), strict=True):
            file.parent.mkdir(parents=True)
            nbformat.write(notebook, file)  # anatomy.write would drop the marks of other graders
        return files

    def run(self, command: Sequence[object], where: Path, **variables: str) -> str:
        """Run a command with the variables that every grader gets, and return what it printed."""
        return _run(command, where, self.variables | variables)

    def watched(self, command: Sequence[object], where: Path, **variables: str) -> str:
        """Run a command as `run` does, until no process of it is left."""
        return self.run([sys.executable, "-c", WATCH, *command], where, **variables)

    def ours(self, notebooks: Mapping[str, NotebookNode]) -> tuple[Points, Timing]:
        """Grade with our grader."""
        folder, out = self.folder / f"ours-{len(notebooks)}", self.folder / f"grades-{len(notebooks)}"
        self.write(folder, notebooks)
        # With the seed 0 the checks draw the numbers that they draw in a notebook.
        command = [sys.executable, "-m", "common.grading", folder, "--unit", UNIT, "--out", out, "--seed", "0"]
        timing = _measured("ours", "answers", len(notebooks), lambda: self.watched(command, self.root))
        points = all_or_nothing((out / "results.jsonl").read_text(encoding="utf-8"))
        return points, timing

    def nbgrader(self, python: Path, runs: str, notebooks: Mapping[str, NotebookNode]) -> tuple[Points, Timing]:
        """Grade with `nbgrader autograde`; `runs` names the assignment."""
        folder, name = self.folder / "nbgrader", runs.replace(" ", "-")
        source = folder / "source" / name
        source.mkdir(parents=True)
        (folder / "nbgrader_config.py").write_text(NBGRADER_CONFIG)
        first = only_answers(self.notebook) if runs == "answers" else self.notebook
        nbformat.write(for_nbgrader(first), source / self.name)
        shutil.copy(self.root / UNIT / "checks.py", source)
        self.run([python, "-m", "nbgrader", "generate_assignment", name], folder)
        handed_in = {student: for_nbgrader(notebook) for student, notebook in notebooks.items()}
        self.write(folder / "submitted", handed_in, name)
        command = [python, "-m", "nbgrader", "autograde", name]
        timing = _measured("nbgrader", runs, len(notebooks), lambda: self.watched(command, folder))
        points = json.loads(self.run([python, "-c", NBGRADER_POINTS, name], folder))
        return points, timing

    def otter(self, python: Path, runs: str, notebooks: Mapping[str, NotebookNode]) -> tuple[Points, Timing]:
        """Grade with otter's `grade_submission`, which is `otter run`, in a process for each core."""
        folder = self.folder / "otter" / runs.replace(" ", "-")
        (folder / "tests").mkdir(parents=True)
        for slug, test in otter_tests(self.notebook).items():
            (folder / "tests" / f"{slug}.py").write_text(test, encoding="utf-8")
        shutil.copy(self.root / UNIT / "checks.py", folder)
        self.run([python, "-m", "otter", "generate", "-t", "tests", "-o", "autograder.zip", "checks.py"], folder)
        handed_in = {student: for_otter(notebook) for student, notebook in notebooks.items()}
        files = self.write(folder / "submitted", handed_in)
        cores = min(os.cpu_count() or 1, len(files))
        threads = str(max(1, (os.cpu_count() or 1) // cores))

        def grade() -> None:
            outs = [folder / f"points{core}.json" for core in range(cores)]
            commands = [
                [python, "-c", OTTER, out, folder / "autograder.zip", *files[core::cores]]
                for core, out in enumerate(outs)
            ]
            with ThreadPoolExecutor(cores) as pool:
                list(pool.map(lambda command: self.watched(command, folder, OMP_NUM_THREADS=threads), commands))

        timing = _measured("otter-grader", runs, len(notebooks), grade)
        points: Points = {}
        for out in folder.glob("points*.json"):
            points |= json.loads(out.read_text())
        return points, timing


def _run(command: Sequence[object], where: Path, variables: Mapping[str, str] | None = None) -> str:
    words = list(map(str, command))
    done = subprocess.run(
        words, cwd=where, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode:
        raise NotebookError(f"{' '.join(words[:4])} ... fails:\n{done.stdout[-3000:]}")
    return done.stdout


def _measured(grader: str, runs: str, submissions: int, work: Callable[[], Any]) -> Timing:
    """Measure some work that is done in other processes."""
    before, others, began = resource.getrusage(resource.RUSAGE_CHILDREN), _of_others(), time.monotonic()
    work()
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    share = max(0.0, _of_others() - others) / (wall * (os.cpu_count() or 1))
    return Timing(grader, runs, submissions, wall / submissions, cpu / submissions, share)


def _of_others() -> float:
    """The seconds of the CPU that all other programs have used, with their children; 0 where that cannot be known.

    The kernel's own threads are left out: they clear away what graders leave behind.
    """
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = path.read_bytes().rpartition(b")")[2].split()
            if not int(fields[6]) & KERNEL_THREAD:
                process = int(path.parent.name)
                parents[process], seconds[process] = int(fields[1]), sum(map(int, fields[11:15]))
    ours = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(used for process, used in seconds.items() if process not in ours) / os.sysconf("SC_CLK_TCK")


# -- the command ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it into the README; return 1 if the graders disagree."""
    parser = argparse.ArgumentParser(prog="python -m common.grading.benchmark", description=__doc__.split("\n")[0])
    parser.add_argument("--submissions", type=int, default=8, help="for all three graders; 0 leaves them out (8)")
    parser.add_argument("--ours", type=int, default=300, help="for our grader alone; 0 leaves it out (300)")
    parser.add_argument("--keep", type=Path, help="keep the environment in this folder, or use the one that is there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as tmp:
        try:
            return _measure(Path(tmp), options.submissions, options.ours, options.keep)
        except NotebookError as error:
            print(error, file=sys.stderr)
            return 1


def _measure(folder: Path, few: int, many: int, keep: Path | None) -> int:
    root = course.find_root()
    notebook, right, wrong = _lab(root, folder / "solutions")
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON", "OMP"))
    }
    variables |= {"COURSE_SCALE": "quick", "PYTHONPATH": str(root), "JUPYTER_PREFER_ENV_PATH": "1"}
    variables |= {"JUPYTER_CONFIG_DIR": str(folder / "jupyter"), "IPYTHONDIR": str(folder / "ipython")}
    bench = _Bench(folder, root, notebook, variables)
    results: dict[str, Points] = {}
    timings, versions = [], ""

    def took(result: tuple[Points, Timing]) -> None:
        points, timing = result
        timings.append(timing)
        print(f"{timing.grader}, {timing.runs}: {timing.wall:.2f} s each, {timing.cpu:.2f} s of the CPU", flush=True)
        if timing.submissions == few:
            results[f"{timing.grader} ({timing.runs})"] = points

    if few:
        try:
            python = peers((keep or folder / "environment").resolve(), *TOOLS)
        except subprocess.CalledProcessError:
            raise NotebookError(
                f"{' and '.join(TOOLS)} cannot be installed; --submissions 0 leaves them out."
            ) from None
        say = "from importlib.metadata import version; import sys; print(*map(version, sys.argv[1:]))"
        variables["PATH"] = f"{python.parent}{os.pathsep}{variables.get('PATH', '')}"  # nbgrader calls alembic
        numbers = bench.run([python, "-c", say, *TOOLS], folder).split()
        versions = "; " + ", ".join(f"{tool} {number}" for tool, number in zip(TOOLS, numbers, strict=True))
        made = submissions(notebook, right, wrong, few)
        cut = {student: only_answers(one) for student, one in made.items()}
        took(bench.ours(made))
        for runs, notebooks in {"whole notebook": made, "answers": cut}.items():
            took(bench.nbgrader(python, runs, notebooks))
            took(bench.otter(python, runs, notebooks))
    if many:
        took(bench.ours(submissions(notebook, right, wrong, many)))
    differing = disagreements(results)
    about = f"{date.today():%B %Y}, {runtime.hardware()}{versions}."
    text = f"{table(timings)}\n\n{about}"
    print("\n".join(["", text, "", *differing]))
    if few and many and not differing:
        readme = root / "README.md"
        whole = readme.read_bytes().decode()
        anatomy.write_bytes(SHOWN.sub(lambda found: f"{found[1]}\n\n{text}\n\n{found[2]}", whole).encode(), readme)
    return 1 if differing else 0


def _lab(root: Path, target: Path) -> tuple[NotebookNode, dict[str, list[str]], dict[str, list[str]]]:
    """Return the notebook of the lab, and the right and the wrong answers to it."""
    notebook = anatomy.read(next((root / UNIT).glob("*.ipynb")))
    solved = branch.preview(root, target) / UNIT
    right, wrong = {}, {}
    for answer in anatomy.answers(anatomy.read(next(solved.glob("*.ipynb")))):
        stored = proofs.parse(solved / "answers" / f"{answer.slug}.py")
        right[answer.slug] = [answer.source, *(one.source for one in stored if one.kind == "right")]
        wrong[answer.slug] = [one.source for one in stored if one.kind == "wrong"]
    return notebook, right, wrong


if __name__ == "__main__":
    sys.exit(main())
