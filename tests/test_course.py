"""The course as data."""

import shutil
import subprocess
import sys

import pytest

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
    assert lab.path == "phase2_transformers/lab1_attention/lab1_attention.ipynb"
    assert lab.phase == "phase2_transformers"
    assert lab.hours == "2-3"
    assert found.by_folder["lab3_advanced"].path == "lab3_advanced/Lab3.ipynb"


def test_no_notebook_lies_outside_the_syllabus():
    found = course.load()
    listed = {found.notebook(unit) for unit in found.units}
    for phase in found.phases:
        for notebook in (found.root / phase.folder).rglob("*.ipynb"):
            inside = notebook.relative_to(found.root).parts
            if not any(part.startswith(".") for part in inside) and ".before-update-" not in notebook.name:
                assert notebook in listed


def test_status_and_points(root, monkeypatch):
    found = course.load(root)
    lab = found.by_folder["phase2_transformers/lab1_attention"]
    assert (found.status(lab), found.points(lab), found.ready()) == ("planned", None, [])
    path = found.notebook(lab)
    path.parent.mkdir(parents=True)
    path.write_text(
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": ['
        '{"cell_type": "code", "id": "a", "metadata": {"tags": ["answer"]}, "outputs": [],'
        ' "execution_count": null, "source": "# TODO a  (3 points, ~5 min)\\ndef a(): ..."},'
        '{"cell_type": "code", "id": "b", "metadata": {"tags": ["answer"]}, "outputs": [],'
        ' "execution_count": null, "source": "# TODO b  (4 points, ~5 min)\\ndef b(): ..."}]}'
    )
    assert (found.status(lab), found.points(lab), found.ready()) == ("ready", 7, [lab])


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
