"""The notebooks under `pytest --nbval`: solved ones pass, untouched ones fail where something is to do.

This is the one place where `make test` runs notebooks. Each is run as seldom as possible: the solved ones
once, in parallel; the student's ones once in parallel and once in a single process.
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

from common.notebooks import anatomy, branch

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [path.relative_to(ROOT) for path in branch.unit_notebooks(ROOT)]
PARALLEL = ("-n", "2", "--dist", "loadscope")


def nbval(folder, *options):
    """Run `pytest --nbval` on a folder; return what it printed and, for each notebook, {cell: failure}."""
    report = folder.parent / f"{folder.name}-{len(options)}.xml"
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}", *options, str(folder)],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
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
    """Copies of the units; a notebook in which somebody has worked is left out."""
    folder = tmp_path_factory.mktemp("untouched") / "units"
    for path in NOTEBOOKS:
        if all(answer.is_stub for answer in anatomy.answers(anatomy.read(ROOT / path))):
            leave = shutil.ignore_patterns("*.ipynb", "__pycache__", ".*", "runs", "data")
            shutil.copytree(ROOT / path.parent, folder / path.parent, ignore=leave, dirs_exist_ok=True)
            shutil.copyfile(ROOT / path, folder / path)
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
        checks = {cell.id for cell in anatomy.read(untouched / path).cells if anatomy.role(cell) == "check"}
        assert set(failed) == checks, output
        for cell, message in failed.items():
            assert "still to do" in message.lower(), f"{path}, {cell}: {message}"


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
