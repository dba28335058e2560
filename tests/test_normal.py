import json
import random
import subprocess
import sys
from copy import deepcopy

import nbformat
import pytest
from nbformat import from_dict
from notebook_factory import answered, at, cell, code, code_notebook, course_notebook, text, without_ids

from common.notebooks import anatomy, normal


def as_saved_by_jupyter(notebook):
    """Outputs, counts, metadata and blanks as they are after a run in JupyterLab."""
    for count, one in enumerate(notebook.cells):
        one.metadata["collapsed"] = True
        one.metadata["executionInfo"] = {"user": "someone", "timestamp": count}
        if one.cell_type == "code":
            one.execution_count = count
            one.source += "   \n\n"
            if not one.outputs:
                one.outputs = [from_dict({"output_type": "stream", "name": "stdout", "text": "3 s on cuda"})]
    notebook.metadata.update({"widgets": {"x": 1}, "colab": {}, "language_info": {"version": "3.12"}})
    return notebook


def test_what_an_editor_adds_goes_away():
    assert normal.to_bytes(as_saved_by_jupyter(answered())) == normal.to_bytes(answered())


def test_the_form_itself():
    nb = normal.normalise(as_saved_by_jupyter(answered()))
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    assert set(nb.metadata) == {"course", "kernelspec", "language_info"}
    assert nb.metadata.kernelspec.name == "python3"
    for one in nb.cells:
        assert set(one.metadata) <= {"tags"}
        if one.cell_type == "code":
            is_check = anatomy.role(one) == "check"
            assert bool(one.outputs) is is_check
            assert one.execution_count == (1 if is_check else None)
    raw = normal.to_bytes(nb).decode()
    assert raw.endswith("\n}\n")
    assert raw.startswith('{\n "cells": [\n')
    assert list(json.loads(raw)) == ["cells", "metadata", "nbformat", "nbformat_minor"]
    nbformat.validate(nbformat.reads(raw, 4))


def test_normalising_leaves_the_notebook_alone():
    notebook = as_saved_by_jupyter(answered())
    before = deepcopy(notebook)
    normal.normalise(notebook)
    assert notebook == before


def test_ids_follow_from_roles_and_content():
    notebook = without_ids(course_notebook())
    for one in notebook.cells:
        if one.source.startswith(("# TODO", "<!-- TODO")):
            one.metadata["tags"] = ["answer"]
        if one.source.startswith("checks."):
            one.metadata["tags"] = ["check"]
    ids = [one.id for one in normal.normalise(notebook).cells]
    assert ids[3:8] == ["text-adding", "add-two", "check-add-two", "text-scaling", "scaler-layer"]
    assert "check-scaler-layer" in ids
    assert "why-two" in ids


def test_checks_of_answer_files_keep_their_ids():
    notebook = code_notebook()
    ids = [one.id for one in normal.normalise(notebook).cells]
    checks = [id for id in ids if id.startswith("check-")]
    assert checks == ["check-scaler-layer", "check-net-forward", "check-net-loss"]
    notebook.cells[at(notebook, "check-net-forward")].id = "0a1b2c3d"  # as Jupyter names a new cell
    assert [one.id for one in normal.normalise(notebook).cells] == ids


def test_random_ids_become_readable_and_others_stay():
    notebook = course_notebook()
    notebook.cells += [text("## More to *read* here", "0a1b2c3d"), code("x", "my-own-id")]
    assert [one.id for one in normal.normalise(notebook).cells][-2:] == ["text-more-to-read-here", "my-own-id"]


def test_ids_are_unique_even_where_content_repeats():
    notebook = course_notebook()
    notebook.cells += [text("## Same"), text("## Same"), text(""), text(""), deepcopy(notebook.cells[4])]
    ids = [one.id for one in normal.normalise(notebook).cells]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("seed", range(30))
def test_idempotent(seed):
    rng = random.Random(seed)
    notebook = as_saved_by_jupyter(answered())
    for _ in range(5):
        one = deepcopy(rng.choice(notebook.cells))
        if rng.random() < 0.5:
            one.pop("id", None)
        one.source += rng.choice(["", "\n \n", "\r\nx", "\f", "\u2028y", "\t"])
        notebook.cells.insert(rng.randrange(len(notebook.cells)), one)
    first = normal.to_bytes(notebook)
    assert normal.to_bytes(normal.normalise(notebook)) == first
    assert normal.to_bytes(anatomy.parse(first)) == first
    assert normal.normalise(anatomy.parse(first)) == normal.normalise(notebook)


def test_output_of_a_check_is_one_stream():
    notebook = course_notebook()
    check = notebook.cells[at(notebook, "check-add-two")]
    stream = {"output_type": "stream", "name": "stdout"}
    check.outputs = [
        from_dict({**stream, "text": "add-two: 1\n"}),
        from_dict({"output_type": "stream", "name": "stderr", "text": "warning"}),
        from_dict({**stream, "text": ["add-two: ", "2\n"]}),
    ]
    outputs = normal.normalise(notebook).cells[at(notebook, "check-add-two")].outputs
    assert outputs == [{**stream, "text": "add-two: 1\nadd-two: 2\n"}]


def test_a_failed_check_keeps_no_output():
    notebook = course_notebook()
    check = notebook.cells[at(notebook, "check-add-two")]
    check.outputs.append(from_dict({"output_type": "error", "ename": "E", "evalue": "", "traceback": []}))
    one = normal.normalise(notebook).cells[at(notebook, "check-add-two")]
    assert (one.outputs, one.execution_count) == ([], None)


def test_nbval_accepts_it(tmp_path):
    notebook = course_notebook()
    notebook.cells = [
        code("x = 3", "setup", "setup"),
        text("Prose."),
        code("x"),
        cell("code", "print(x)", None, ("check",), "3\n"),
    ]
    anatomy.write(as_saved_by_jupyter(notebook), tmp_path / "n.ipynb")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--nbval", "-p", "no:cacheprovider", "n.ipynb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "3 passed" in run.stdout
