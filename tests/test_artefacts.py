"""Grading a file that a notebook makes: a submission's model is loaded where the answers run, and nowhere else."""

import csv
import io
import json
import subprocess
import zipfile

import numpy as np
import pytest
from notebook_factory import UNIT, book, code
from notebook_factory import cell as made_cell
from test_grading import ROOT, command, hand_in

from common.grading import collect, proofs
from common.grading.job import LARGEST_ARTEFACT
from common.notebooks import anatomy

TOML = f"""
repository = ""
branch = "main"
[[phase]]
folder = "phase9_made"
title = "Made"
[[unit]]
folder = "{UNIT}"
title = "One"
hours = "1"
builds = "Something."
notebooks = [{{ file = "lab1_made.ipynb", artefacts = ["model.npy"] }}]
"""
CHECKS = """
from common.checks import check

@check("predict", points=4)
def predict(answer, case):
    x = case.randn(5)
    with case("twice as much", points=4, hint="load model.npy"):
        case.close(answer(x), 2 * x)
"""
HEAD = "# TODO predict  (4 points, ~5 min)\n"
STUB = 'def predict(x):\n    """Return x times the number in model.npy."""\n    raise NotImplementedError("predict")'
RIGHT = "def predict(x):\n    return x * float(np.load('model.npy'))"
WRONG = "# %% wrong: forgets the model  [says: off]\ndef predict(x):\n    return x\n"


def notebook(answer):
    cells = [
        code("import numpy as np\nimport checks", "setup", "setup"),
        code(HEAD + answer, "predict", "answer"),
        made_cell("code", "checks.predict(predict)", "check-predict", ("check",), "predict: 4 of 4 points\n"),
    ]
    return book(cells, UNIT, "lab1_made.ipynb", "1")


def model(factor):
    stream = io.BytesIO()
    np.save(stream, np.float64(factor))
    return stream.getvalue()


def zipped(**files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "."), content)
    return stream.getvalue()


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    root = tmp_path_factory.mktemp("course")
    (root / UNIT).mkdir(parents=True)
    (root / "common").mkdir()
    (root / "common" / "course.toml").write_text(TOML)
    (root / UNIT / "checks.py").write_text(CHECKS)
    anatomy.write(notebook(STUB), root / UNIT / "lab1_made.ipynb")
    return root


@pytest.fixture(scope="module")
def rows(course, tmp_path_factory):
    folder = tmp_path_factory.mktemp("submissions")
    right = json.dumps(notebook(RIGHT))
    students = {
        "right": {"model.npy": model(2)},
        "renamed": {"right_12_34_model (1).npy": model(2)},
        "other_name": {"best.npy": model(2)},
        "deeper": {"out/model.npy": model(2)},
        "two": {"model.npy": model(2), "old/model.npy": model(3)},
        "wrong": {"model.npy": model(3)},
        "broken": {"model.npy": b"no array"},
        "empty": {"model.npy": b""},
        "code": {"model.npy": b"\x80\x04cposix\nsystem\n(S'touch owned'\ntR."},  # a pickle that would run a command
        "none": {},
        "large": {"model.npy": bytes(LARGEST_ARTEFACT + 1)},
    }
    hand_in(folder, {f"{who}/{name}": data for who, files in students.items() for name, data in files.items()})
    hand_in(folder, {f"{who}/lab1_made.ipynb": right for who in students})
    hand_in(folder, {"zip.zip": zipped(lab1_made__ipynb=right, model__npy=model(2))})
    hand_in(folder, {"bomb.zip": zipped(lab1_made__ipynb=right, model__npy=bytes(10 * LARGEST_ARTEFACT))})
    (folder / "link").mkdir()
    (folder / "link" / "lab1_made.ipynb").write_text(right)
    (folder / "link" / "model.npy").symlink_to(folder / "right" / "model.npy")
    arguments = ("--course", course, "--out", folder / "grades", "--timeout", 60)
    done = subprocess.run(command(folder, *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = csv.DictReader(io.StringIO((folder / "grades" / "grades.csv").read_text(encoding="utf-8-sig")))
    messages = {}
    for row in json.loads((folder / "grades" / "rows.json").read_text())["rows"]:
        messages[row["student"]] = " ".join(case["message"] for answer in row["answers"] for case in answer["cases"])
    return {row["student"]: row | {"messages": messages[row["student"]]} for row in table}


@pytest.mark.parametrize("who", ["right", "renamed", "other_name", "deeper", "two", "zip"])
def test_the_artefact_is_found(rows, who):
    assert float(rows[who]["total"]) == 4
    assert "model.npy" not in rows[who]["remarks"] or who == "two"


@pytest.mark.parametrize(
    ("who", "message", "remark"),
    [
        ("wrong", "1.5 times the expected", ""),
        ("broken", "allow_pickle", ""),
        ("empty", "EOFError", ""),
        ("code", "allow_pickle", ""),
        ("none", "FileNotFoundError", "model.npy was not handed in"),
        ("large", "FileNotFoundError", "larger than 32 MB"),
        ("bomb", "FileNotFoundError", "larger than 32 MB"),
        ("link", "FileNotFoundError", "a link, which is not followed"),
    ],
)
def test_a_bad_artefact_costs_its_points_and_is_named(rows, who, message, remark):
    assert float(rows[who]["total"]) == 0
    assert message in rows[who]["messages"]
    assert remark in rows[who]["remarks"]


def test_of_two_the_one_that_was_taken_is_named(rows):
    assert "model.npy was taken as model.npy; not looked at: old/model.npy" in rows["two"]["remarks"]


def test_a_new_artefact_is_graded_anew(course, tmp_path):
    digests = []
    for factor in (2, 3):
        hand_in(tmp_path, {"ann/lab1_made.ipynb": json.dumps(notebook(RIGHT)), "ann/model.npy": model(factor)})
        bases = collect.load_units(course)
        (task,) = collect.collect(collect.students(tmp_path, bases), bases)
        digests.append(task.jobs[0][0].source)
    assert digests[0] != digests[1]


def test_proofs_take_the_artefact_of_the_branch(course, tmp_path):
    solved = tmp_path / UNIT
    solved.mkdir(parents=True)
    (solved / "checks.py").write_text(CHECKS)
    anatomy.write(notebook(RIGHT), solved / "lab1_made.ipynb")
    (solved / "answers").mkdir()
    (solved / "answers" / "model.npy").write_bytes(model(2))
    (solved / "answers" / "predict.py").write_text(WRONG)
    outcomes = proofs.prove(solved / "lab1_made.ipynb")["predict"]
    assert [one.problem for one in outcomes] == ["", ""]
