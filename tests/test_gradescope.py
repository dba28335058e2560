"""The autograder for Gradescope: what is in its zip, what it answers, and what code running as nobody can reach."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from test_grading import OTHER_UNIT, make_course, submission

from common.grading import gradescope, sandbox
from common.grading.sandbox import Settings
from common.notebooks import anatomy
from common.notebooks.anatomy import NotebookError

UNIT = "phase9_made/lab1_made"
HIDDEN = """
import torch
from common.checks import check

@check("softmax-rows", points=2)
def softmax_rows(answer, case):
    with case("large values", points=2, hint="subtract the maximum"):
        case.equal(answer(torch.tensor([[0.0, 1000.0]])).tolist(), [[0.0, 1.0]], "SECRET")
"""
SCRIPTS = {"setup.sh", "run_autograder"}


@pytest.fixture
def root(tmp_path):
    """A course whose first unit has a hidden test."""
    root = make_course(tmp_path / "course")
    checks = root / UNIT / "checks.py"
    checks.write_text(checks.read_text().replace('"softmax-rows", points=3', '"softmax-rows", points=3, hidden=2'))
    notebook = root / UNIT / "lab1_made.ipynb"
    notebook.write_text(notebook.read_text().replace("softmax-rows  (3 points", "softmax-rows  (5 points"))
    hidden = root / "solutions" / UNIT / "hidden_checks.py"
    hidden.parent.mkdir(parents=True)
    hidden.write_text(HIDDEN)
    (root / "solutions" / UNIT / "lab1_made.ipynb").write_text(notebook.read_text().replace("raise", "SOLVED"))
    return root


@pytest.fixture
def autograder(root):
    """What is in Gradescope's container: the zip unpacked, a submission, and a folder for the results."""
    gradescope.pack(root, UNIT, root.parent / "autograder.zip")
    with tempfile.TemporaryDirectory() as tmp:  # not in tmp_path, which is closed for nobody
        folder = Path(tmp) / "autograder"
        for name in ("source", "submission", "results"):
            (folder / name).mkdir(parents=True)
        folder.parent.chmod(0o755)
        shutil.unpack_archive(root.parent / "autograder.zip", folder / "source")
        (folder / "submission_metadata.json").write_text("{}")
        yield folder


def hand_in(folder, notebook):
    anatomy.write(notebook, folder / "submission" / "my solution.ipynb")


def test_the_zip_has_what_grades_the_unit_and_no_solution(root, tmp_path):
    path = tmp_path / "autograder.zip"
    assert gradescope.main(["zip", f"{UNIT}/", "--out", str(path), "--course", str(root)]) == 0
    with zipfile.ZipFile(path) as archive:
        names, content = set(archive.namelist()), b"".join(map(archive.read, archive.namelist()))
        executable = {entry.filename for entry in archive.infolist() if entry.external_attr >> 16 & stat.S_IXUSR}
    assert executable == SCRIPTS
    assert {name for name in names if "common/" not in name} == {
        *SCRIPTS,
        *("requirements.txt", "pyproject.toml", f"{UNIT}/checks.py", f"{UNIT}/lab1_made.ipynb"),
        f"solutions/{UNIT}/hidden_checks.py",
    }
    assert {"common/course.toml", "common/environment.py", "common/grading/feedback.html"} <= names
    assert b"SOLVED" not in content
    first = path.read_bytes()
    gradescope.pack(root, UNIT, path)
    assert path.read_bytes() == first


def test_there_is_no_zip_without_the_unit_or_its_hidden_tests(root, tmp_path, capsys):
    assert gradescope.main(["zip", "phase9_made/lab3", "--course", str(root), "--out", str(tmp_path / "a.zip")]) == 1
    assert "phase9_made/lab3" in capsys.readouterr().err
    (root / "solutions" / UNIT / "hidden_checks.py").unlink()
    with pytest.raises(NotebookError, match="hidden tests"):
        gradescope.pack(root, UNIT, tmp_path / "a.zip")
    gradescope.pack(root, OTHER_UNIT, tmp_path / "a.zip")


def test_a_submission_is_graded_whatever_its_file_is_called(autograder, monkeypatch):
    hand_in(autograder, submission(softmax_rows="def softmax_rows(x):\n    return x.exp() / x.exp().sum(-1)[:, None]"))
    (autograder / "submission" / "notes.txt").symlink_to("/etc/hostname")
    os.mkfifo(autograder / "submission" / "pipe.ipynb")
    assert gradescope.main(["grade", str(autograder)]) == 0
    found = json.loads((autograder / "results" / "results.json").read_text())
    assert (found["score"], found["max_score"]) == (11, 15), found
    (hidden,) = (test for test in found["tests"] if test["visibility"] != "visible")
    assert (hidden["name"], hidden["score"]) == ("softmax-rows: large values", 0)
    assert hidden["output"] == "Hint: subtract the maximum"
    assert found["stdout_visibility"] == "hidden"
    assert "SECRET" not in json.dumps(found)


@pytest.mark.parametrize("fault", ["ends badly", "hangs", "writes nothing", "no unit", "no submission", "not open"])
def test_there_is_a_result_whatever_happens(autograder, monkeypatch, capfd, fault):
    program = {"ends badly": "raise SystemExit('SECRET')", "hangs": "import time; time.sleep(60)"}.get(fault, "")
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda _, **more: run([sys.executable, "-c", program], **more))
    if fault == "no unit":
        shutil.rmtree(autograder / "source" / "phase9_made")
    if fault == "no submission":
        (autograder / "submission").rmdir()
    if fault == "not open":
        monkeypatch.setattr(sandbox, "missing", lambda: "no namespaces")
        monkeypatch.setattr(sandbox, "is_open", lambda: False)
    found = gradescope.grade(autograder, seconds=1)
    assert found["score"] == 0
    assert "by no fault of yours" in found["output"]
    assert ("not ready after 1 s" in found["output"]) == (fault == "hangs")
    assert "SECRET" not in json.dumps(found)
    assert "tests" not in found


def test_the_script_leaves_a_result_when_python_cannot_start(autograder):
    script = autograder / "source" / "run_autograder"
    script.write_text(script.read_text().replace("/autograder/", f"{autograder}/"))
    assert subprocess.run(["sh", script], capture_output=True, timeout=60).returncode != 0
    found = json.loads((autograder / "results" / "results.json").read_text())
    assert found["score"] == 0
    assert "Tell your instructor" in found["output"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_an_answer_reaches_nothing_but_common(autograder, monkeypatch):
    monkeypatch.setattr(sandbox, "is_open", lambda: True)
    source, judge = autograder / "source", os.getpid()
    (autograder / "results" / "results.json").write_text("{}")
    gradescope.close(autograder)
    closed = [
        *(source / UNIT / "checks.py", source / UNIT / "lab1_made.ipynb", source / "solutions" / UNIT),
        *(source / "solutions" / UNIT / "hidden_checks.py", source / "run_autograder"),
        *(autograder / "submission_metadata.json", autograder / "submission", autograder / "results" / "results.json"),
    ]

    def serve(sock, words):
        tries = {str(path): lambda path=path: os.open(path, os.O_RDONLY) for path in closed}
        tries["write"] = lambda: os.open(autograder / "results" / "results.json", os.O_WRONLY)
        tries["add"] = lambda: os.open(autograder / "results" / "new", os.O_WRONLY | os.O_CREAT)
        tries["replace"] = lambda: os.rename("/dev/null", autograder / "results" / "results.json")
        tries["change common"] = lambda: os.open(source / "common" / "course.toml", os.O_WRONLY)
        tries["kill"] = lambda: os.kill(judge, 0)
        tries["look"] = lambda: os.open(f"/proc/{judge}/mem", os.O_RDONLY)
        tries["list"] = lambda: os.listdir(source)
        tries["read common"] = lambda: os.open(source / "common" / "course.toml", os.O_RDONLY)
        tries["be root"] = lambda: os.setuid(0)
        done = []
        for name, attempt in tries.items():
            try:
                attempt()
                done.append(name)
            except OSError:
                pass
        sock.sendall(json.dumps([os.getuid(), os.getgid(), os.getgroups(), done]).encode())

    with tempfile.TemporaryDirectory(prefix=sandbox.FOLDER) as folder:
        process, sock = sandbox.start(serve, Settings(Path(folder), contained=False))
        said = sock.recv(2**16)
        assert process.end(patience=10) == "ends Python (exit code 0)"
        sock.close()
    user, group, *rest = json.loads(said)
    assert user == group >= sandbox.FIRST_USER
    assert rest == [[], ["read common"]]
