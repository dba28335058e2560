"""The notebooks under `pytest --nbval`: solved ones pass, untouched ones fail where something is to do.

This is the one place where `make test` runs notebooks. Each is run as seldom as possible: the solved ones
once, in parallel; the student's ones once in parallel and once in a single process. The example tests that lie in
the folder of a unit (`test_*.py`) are run here too, in both states.
"""

import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook
from notebook_factory import CODE, SEVERAL, THEORY, several, solve_several

from common import course
from common.notebooks import anatomy, branch

ROOT = Path(__file__).resolve().parents[1]
COURSE = course.load(ROOT)
NOTEBOOKS = [Path(notebook.path) for notebook in COURSE.notebooks()]
PARALLEL = ("-n", "2", "--dist", "loadscope")


def run_pytest(folder, report, *arguments):
    """Run pytest in a folder, apart from the run that this test belongs to; its results go to `report`."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def nbval(folder, *options):
    """Run `pytest --nbval` on a folder; return what it printed and, for each notebook, {cell: failure}."""
    report = folder.parent / f"{folder.name}-{len(options)}.xml"
    configured = ("-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}")
    without_examples = "--ignore-glob=*.py"
    done = run_pytest(folder, report, "--nbval", without_examples, *configured, *options, str(folder))
    assert report.exists(), done.stdout + done.stderr
    found = {path.relative_to(folder): {} for path in folder.rglob("*.ipynb")}
    assert found, f"no notebook in {folder}"
    cells = {path: code_cells(folder / path) for path in found}
    seen = {path: set() for path in found}
    by_class = {".".join(path.parts): path for path in found}
    for case in ElementTree.parse(report).iter("testcase"):
        path = by_class[case.get("classname", "")]
        cell = cells[path][int(case.get("name", "").removeprefix("Cell "))]
        seen[path].add(cell)
        for trouble in (*case.iter("failure"), *case.iter("error"), *case.iter("skipped")):
            found[path][cell] = f"{trouble.get('message')}\n{trouble.text}"
    assert seen == {path: set(ids) for path, ids in cells.items()}, done.stdout
    return done.stdout, found


def code_cells(path):
    return [cell.id for cell in anatomy.read(path).cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    return branch.make_solutions(ROOT, tmp_path_factory.mktemp("solved") / "solutions")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """Copies of the units; a notebook in which, or in whose answer files, somebody has worked is left out."""
    folder = tmp_path_factory.mktemp("untouched") / "units"
    for notebook in COURSE.notebooks():
        if all(answer.is_stub for answer in COURSE.answers(notebook)):
            leave = shutil.ignore_patterns("*.ipynb", "__pycache__", ".*", "runs", "data")
            shutil.copytree(ROOT / notebook.unit, folder / notebook.unit, ignore=leave, dirs_exist_ok=True)
            shutil.copyfile(ROOT / notebook.path, folder / notebook.path)
    if not folder.exists():
        pytest.skip("NO UNTOUCHED NOTEBOOK: every notebook here has answers in it")
    return folder


def test_solved_notebooks_pass(solved):
    output, failures = nbval(solved, *PARALLEL)
    assert set(failures) >= set(NOTEBOOKS)
    assert not any(failures.values()), output


@pytest.mark.parametrize("options", [(), PARALLEL], ids=["one process", "parallel"])
def test_untouched_notebooks_say_what_is_to_do(untouched, options):
    output, failures = nbval(untouched, *options)
    for path, failed in failures.items():
        assert_only_checks_fail(untouched / path, failed, output)


def assert_only_checks_fail(path, failed, output):
    assert set(failed) == {cell.id for cell in anatomy.read(path).cells if anatomy.role(cell) == "check"}, output
    for cell, message in failed.items():
        assert "still to do" in message.lower(), f"{path}, {cell}: {message}"


def test_a_unit_of_several_notebooks_and_an_answer_file(tmp_path):
    several(tmp_path)
    branch.assemble(tmp_path, solve_several(tmp_path / "branch"), tmp_path / "units/solved")
    shutil.copytree(tmp_path / SEVERAL, tmp_path / "units/untouched" / SEVERAL)
    output, failures = nbval(tmp_path / "units", *PARALLEL)
    for path in (Path(THEORY), Path(CODE)):
        assert failures["solved" / path] == {}, output
        assert_only_checks_fail(tmp_path / "units/untouched" / path, failures["untouched" / path], output)


# Example tests


def run_examples(unit):
    """Run the example tests in the folder of a unit; return what was printed and {test: failure or None}."""
    report = unit / ".report.xml"
    tests = sorted(path.name for path in unit.glob("test_*.py"))
    done = run_pytest(unit, report, *tests)
    assert done.returncode in (0, 1), f"the tests cannot be collected:\n{done.stdout}{done.stderr}"
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        trouble = [
            f"{one.get('message')}\n{one.text}" for kind in ("failure", "error", "skipped") for one in case.iter(kind)
        ]
        assert not list(case.iter("error")), done.stdout
        found[f"{case.get('classname')}.{case.get('name')}"] = trouble[0] if trouble else None
    assert found, done.stdout
    return done.stdout, found


def assert_examples_say_what_is_to_do(unit, slugs):
    output, found = run_examples(unit)
    troubles = [trouble for trouble in found.values() if trouble]
    assert troubles, f"every test passes, and nothing is done yet:\n{output}"
    for trouble in troubles:
        assert "still to do" in trouble.lower() or any(slug in trouble for slug in slugs), trouble


def units_with_examples(folder):
    return [unit for unit in COURSE.ready() if any((folder / unit.folder).glob("test_*.py"))]


def test_example_tests_pass_with_the_solution(solved):
    for unit in units_with_examples(solved):
        output, found = run_examples(solved / unit.folder)
        assert not any(found.values()), output


def test_example_tests_of_untouched_files_say_what_is_to_do(untouched):
    for unit in units_with_examples(untouched):
        slugs = [answer.slug for notebook in unit.notebooks for answer in COURSE.answers(notebook)]
        assert_examples_say_what_is_to_do(untouched / unit.folder, slugs)


def test_example_tests_of_a_made_unit(tmp_path):
    several(tmp_path)
    assert_examples_say_what_is_to_do(tmp_path / SEVERAL, ["net-forward", "net-loss"])
    (tmp_path / SEVERAL / "net.py").write_text("Net = net_loss = None\n")
    with pytest.raises(AssertionError, match="NoneType"):
        assert_examples_say_what_is_to_do(tmp_path / SEVERAL, ["net-forward", "net-loss"])
    (tmp_path / SEVERAL / "net.py").write_text("")
    with pytest.raises(AssertionError, match="cannot be collected"):
        run_examples(tmp_path / SEVERAL)
    branch.assemble(tmp_path, solve_several(tmp_path / "branch"), tmp_path / "solved")
    output, found = run_examples(tmp_path / "solved" / SEVERAL)
    assert len(found) == 2, output
    assert not any(found.values()), output


def test_a_kernel_that_dies_does_not_wait_for_ever(tmp_path):
    cells = [new_code_cell("import os; os._exit(1)", id="dies"), new_code_cell("1", id="after")]
    anatomy.write(new_notebook(cells=cells), tmp_path / "units/dying.ipynb")
    started = time.monotonic()
    output, failures = nbval(tmp_path / "units", "--nbval-cell-timeout=4")
    assert time.monotonic() - started < 60
    assert set(failures[Path("dying.ipynb")]) == {"dies", "after"}, output


def test_the_project_sets_a_sensible_timeout(pytestconfig):
    """nbval's own 2000 seconds is how long a dead kernel would be waited for."""
    assert 60 <= pytestconfig.getoption("nbval_cell_timeout") <= 300
