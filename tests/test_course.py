"""The course as data."""

import shutil
import subprocess
import sys

import pytest
from notebook_factory import SEVERAL, several

from common import course


@pytest.fixture
def root(tmp_path):
    (tmp_path / "common").mkdir()
    shutil.copy(course.find_root() / "common" / "course.toml", tmp_path / "common")
    return tmp_path


def change(root, old, new):
    file = root / "common" / "course.toml"
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_whole_syllabus_is_there():
    found = course.load()
    assert [len(found.of_phase(phase.folder)) for phase in found.phases] == [4, 8, 4, 4, 10]
    for unit in found.units:
        assert unit.title
        assert unit.builds.endswith(".")
        assert all(float(hours) > 0 for hours in unit.hours.split("-"))


def test_units_know_their_notebook_and_phase():
    found = course.load()
    lab = found.by_folder["phase2_transformers/lab1_attention"]
    (only,) = lab.notebooks
    assert only == course.Notebook(lab.folder, "lab1_attention.ipynb", lab.title, "2-3")
    assert only.path == "phase2_transformers/lab1_attention/lab1_attention.ipynb"
    assert found.find(only.path) == only
    assert found.find("phase2_transformers/lab1_attention/other.ipynb") is None
    assert lab.phase == "phase2_transformers"
    assert found.by_folder["lab3_advanced"].notebooks[0].path == "lab3_advanced/Lab3.ipynb"


def test_a_unit_may_have_several_notebooks_and_answer_files():
    homework = course.load().by_folder["homework/hw1_backpropagation"]
    theory, code = homework.notebooks
    assert (theory.title, theory.hours, theory.answer_files) == ("Theory", "4-5", ())
    assert code.path == "homework/hw1_backpropagation/hw1_backpropagation.ipynb"
    assert code.answer_files == ("mlp.py", "sgd.py")


def test_no_notebook_lies_outside_the_syllabus():
    found = course.load()
    listed = {found.file(notebook) for unit in found.units for notebook in unit.notebooks}
    for phase in found.phases:
        for notebook in (found.root / phase.folder).rglob("*.ipynb"):
            inside = notebook.relative_to(found.root).parts
            if not any(part.startswith(".") for part in inside) and ".before-update-" not in notebook.name:
                assert notebook in listed


def test_readiness_and_points(root):
    found = course.load(root)
    lab = found.by_folder["phase2_transformers/lab1_attention"]
    assert (found.is_ready(lab), found.points(lab), found.ready(), found.notebooks()) == (False, None, [], [])
    path = found.file(lab.notebooks[0])
    path.parent.mkdir(parents=True)
    path.write_text(
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": ['
        '{"cell_type": "code", "id": "a", "metadata": {"tags": ["answer"]}, "outputs": [],'
        ' "execution_count": null, "source": "# TODO a  (3 points, ~5 min)\\ndef a(): ..."},'
        '{"cell_type": "code", "id": "b", "metadata": {"tags": ["answer"]}, "outputs": [],'
        ' "execution_count": null, "source": "# TODO b  (4 points, ~5 min)\\ndef b(): ..."}]}'
    )
    assert (found.is_ready(lab), found.points(lab), found.ready()) == (True, 7, [lab])
    assert found.notebooks() == list(lab.notebooks)


def test_a_unit_is_ready_when_all_its_notebooks_are_there(tmp_path):
    root = several(tmp_path)
    found = course.load(root)
    unit = found.by_folder[SEVERAL]
    assert found.is_ready(unit)
    theory, code = unit.notebooks
    assert [answer.slug for answer in found.answers(theory)] == ["add-two", "why-two"]
    assert [(answer.slug, answer.file) for answer in found.answers(code)] == [
        ("scaler-layer", ""),
        ("net-forward", "net.py"),
        ("net-loss", "net.py"),
    ]
    assert found.points(unit) == 3 + 2 + 5 + 4 + 6
    found.file(code).unlink()
    assert (found.is_ready(unit), found.points(unit), found.notebooks()) == (False, None, [])


def test_find_root(root, tmp_path_factory):
    inside = root / "phase1" / "lab"
    inside.mkdir(parents=True)
    assert course.find_root(inside) == root.resolve()
    assert (course.find_root() / "common" / "course.py").samefile(course.__file__)
    with pytest.raises(FileNotFoundError, match=r"not inside the course.*common/course\.toml"):
        course.find_root(tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('hours = "2-3"\n', "", "hours"),
        ('hours = "2-3"', 'hour = "2-3"', "hour"),
        ('repository = ""', "", "repository"),
        ("phase1_fundamentals/lab2_barebones_network", "phase1_fundamentals/lab1_autograd_engine", "same folder"),
        ("phase1_fundamentals/lab2_barebones_network", "phase7/lab2", r"phase7/lab2 lies in no"),
        (
            '"hw1_theory.ipynb"',
            '"hw1_backpropagation.ipynb"',
            r"course\.toml: homework/hw1_backpropagation lists a file twice",
        ),
        ('["mlp.py", "sgd.py"]', '["mlp.py", "mlp.py"]', "hw1_backpropagation lists a file twice"),
    ],
)
def test_mistakes_are_named(root, old, new, message):
    change(root, old, new)
    with pytest.raises(ValueError, match=message):
        course.load(root)


def test_importing_common_and_the_course_costs_nothing():
    code = "import sys, common.course; print([name for name in ('torch', 'numpy', 'nbformat') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
