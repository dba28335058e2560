import json
import random
from copy import deepcopy

import pytest
from notebook_factory import (
    ADD,
    ADD_SOLVED,
    SCALER,
    SCALER_SOLVED,
    WHY_SOLVED,
    answered,
    at,
    code,
    course_notebook,
    text,
    without_ids,
)

from common.notebooks import anatomy, normal
from common.notebooks.anatomy import NotebookError
from common.notebooks.graft import carry_over, graft

SLUGS = ["add-two", "scaler-layer", "why-two"]


def sources(grafted) -> dict[str, str]:
    return {answer.slug: answer.source for answer in anatomy.answers(grafted.notebook)}


def saved(notebook):
    """A notebook as it comes back from its file."""
    return anatomy.parse(json.dumps(notebook).encode())


# Reading


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"\0\0\0\0", "empty"),
        (b'{"cells": [{"cell_type": "code", "sour', "breaks off"),
        (b"[1, 2]", "without cells"),
        (b'{"name": "package"}', "without cells"),
        (b'{"cells": 3}', "without cells"),
        (b"import torch\nprint(1)\n", "Python file"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"PK\x03\x04abc", "zip"),
        (b"\xff\xfe\xfa binary \x80", "not a notebook"),
        (b'{"cells": [\n<<<<<<< HEAD\n1', "conflict"),
        (b"[" * 200_000, "breaks off"),
    ],
)
def test_what_is_no_notebook_is_refused_in_words(tmp_path, content, says):
    path = tmp_path / "x.ipynb"
    path.write_bytes(content)
    with pytest.raises(NotebookError, match=says) as error:
        anatomy.read(path)
    assert str(path) in str(error.value)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.ipynb", tmp_path):
        with pytest.raises(NotebookError, match="cannot be read"):
            anatomy.read(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_are_read(encoding):
    raw = json.dumps(answered(why_two=WHY_SOLVED + " çé→"), ensure_ascii=False).encode(encoding)
    assert sources(graft(course_notebook(), anatomy.parse(raw)))["why-two"].endswith("çé→")


def test_version_3_is_read():
    old = {
        "nbformat": 3,
        "metadata": {},
        "worksheets": [
            {
                "cells": [
                    {"cell_type": "heading", "level": 2, "source": ["Title"]},
                    {"cell_type": "code", "input": ADD_SOLVED.splitlines(True), "outputs": [{"output_type": "pyout"}]},
                ]
            }
        ],
    }
    notebook = anatomy.parse(json.dumps(old).encode())
    assert [cell.source for cell in notebook.cells] == ["## Title", ADD_SOLVED]
    assert graft(course_notebook(), notebook).answered["add-two"]


def test_odd_content_is_mended():
    cells = [
        7,
        {},
        {"cell_type": "code", "source": None, "metadata": None, "outputs": "none", "id": 5},
        {"cell_type": "code", "source": ["a = 1\r\n", 3, "b = 2"], "metadata": {"tags": "answer"}, "id": "x y"},
        {"cell_type": "strange", "source": "\ud800 text", "id": "same"},
        {"cell_type": "markdown", "source": "second", "id": "same"},
    ]
    notebook = anatomy.parse(json.dumps({"cells": cells, "metadata": 3}).encode())
    assert [cell.source for cell in notebook.cells[2:]] == ["a = 1\nb = 2", "\ufffd text", "second"]
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    normal.to_bytes(notebook)


def test_writing_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "n.ipynb"
    anatomy.write(course_notebook(), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(NotebookError, match="No space left"):
        anatomy.write(answered(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["n.ipynb"]


# Anatomy


def test_answers_are_read():
    made = anatomy.answers(course_notebook())
    assert [(a.slug, a.points, a.minutes, a.name, a.kind, a.is_stub) for a in made] == [
        ("add-two", 3, 5, "add_two", "code", True),
        ("scaler-layer", 5, 15, "ScalerLayer", "code", True),
        ("why-two", 2, 5, None, "markdown", True),
    ]
    assert not any(answer.is_stub for answer in anatomy.answers(answered()))


@pytest.mark.parametrize(
    ("source", "stub"),
    [
        ("def f():\n    raise NotImplementedError", True),
        ("def f():\n    'doc'\n    ...\n    raise NotImplementedError('f')", True),
        ("def f():\n    x = 1\n    raise NotImplementedError('f')", False),
        ("def f():\n    raise NotImplementedError('f')\n    return {'a': None}", True),
        ("def f():\n    pass", False),
        ("async def f():\n    raise NotImplementedError('f')", True),
        ("def f(:", False),
    ],
)
def test_what_is_a_stub(source, stub):
    assert anatomy.is_stub(source, "f") is stub


@pytest.mark.parametrize(
    "source", ["%matplotlib inline\nx = 1", "!pip install x\nx = 1", "x = !ls\n", "%%time\nx = 1", "x = 1\nx?"]
)
def test_magic_does_not_hinder_reading(source):
    assert "x" in anatomy.defined_names(source)


# Graft


def test_answers_come_over_and_nothing_else():
    submission = answered()
    submission.cells[at(submission, "text-adding")].source = "Prose of my own."
    submission.metadata["mine"] = 1
    base = course_notebook()
    result = graft(base, submission)
    expected = answered()
    assert result.notebook == expected
    assert result.answered == dict.fromkeys(SLUGS, True)
    assert result.remarks == []
    assert base == course_notebook(), "the base itself must stay as it was"


def test_untouched_notebook_gives_the_base():
    result = graft(course_notebook(), course_notebook())
    assert result.notebook == course_notebook()
    assert result.answered == dict.fromkeys(SLUGS, False)
    assert result.remarks == []


@pytest.mark.parametrize("order", [list, reversed])
def test_colab_and_order(order):
    submission = without_ids(answered())
    submission.cells = list(order(submission.cells))
    result = graft(course_notebook(), saved(submission))
    assert result.notebook == answered()
    assert result.remarks == ["The cells carry no ids of the course (Colab and old editors drop them)."]


def test_found_by_name_alone():
    submission = without_ids(answered())
    for cell in submission.cells:
        cell.source = cell.source.replace("# TODO add-two", "# my answer").replace("# TODO scaler-layer", "#")
    result = graft(course_notebook(), saved(submission))
    assert "return x + 2" in sources(result)["add-two"]
    assert sources(result)["add-two"].startswith("# TODO add-two  (3 points, ~5 min)\n")
    assert "self.factor * x" in sources(result)["scaler-layer"]
    assert any("add-two: found in cell 5 by the name `add_two`" in remark for remark in result.remarks)


def test_points_cannot_be_edited():
    submission = answered(add_two=ADD_SOLVED.replace("3 points", "300 points"))
    assert sources(graft(course_notebook(), submission))["add-two"] == ADD_SOLVED


def test_checks_cannot_be_edited():
    submission = answered()
    submission.cells[at(submission, "check-add-two")].source = "print('3 of 3 points')"
    submission.cells[at(submission, "imports")].source += "\nBASE = 3"
    del submission.cells[at(submission, "check-scaler-layer")]
    result = graft(course_notebook(), submission)
    assert result.notebook == answered()
    assert result.remarks == [
        "The setup cell 'imports' was changed; the course's own was used.",
        "The check cell 'check-add-two' was changed; the course's own was used.",
        "Cells of the course are missing: 'check-scaler-layer'; the course's own were used.",
    ]


def test_stub_with_the_id_and_answer_elsewhere():
    submission = answered(add_two=ADD)
    submission.cells.append(code("def add_two(x):\n    return 2 + x", "mine"))
    result = graft(course_notebook(), submission)
    assert "return 2 + x" in sources(result)["add-two"]
    assert any("by the name `add_two`" in remark for remark in result.remarks)


def test_of_several_answers_the_last_counts():
    submission = answered()
    submission.cells.append(code("def add_two(x):\n    return 2 + x", "mine"))
    submission.cells.append(code(ADD, "again"))
    result = graft(course_notebook(), submission)
    assert "return 2 + x" in sources(result)["add-two"]
    assert any("answered in several cells (5, 14); cell 14 was used" in remark for remark in result.remarks)


def test_duplicate_is_counted_once():
    submission = answered()
    submission.cells.insert(6, deepcopy(submission.cells[4]))
    result = graft(course_notebook(), saved(submission))
    assert result.notebook == answered()
    assert result.remarks == ["add-two: is there 2 times, word for word; counted once."]


def test_a_later_variable_of_the_same_name_is_no_answer():
    submission = answered()
    submission.cells.append(code("add_two = add_two(4)", "mine"))
    result = graft(course_notebook(), submission)
    assert sources(result)["add-two"] == ADD_SOLVED


@pytest.mark.parametrize("where", range(1, len(SCALER_SOLVED.split("\n"))))
@pytest.mark.parametrize("id_on", ["first", "last", "none"])
def test_split_cells_are_joined(where, id_on):
    lines = SCALER_SOLVED.split("\n")
    submission = answered()
    i = at(submission, "scaler-layer")
    ids = {"first": ("scaler-layer", "n"), "last": ("n", "scaler-layer"), "none": ("m", "n")}[id_on]
    submission.cells[i : i + 1] = [
        code("\n".join(lines[:where]), ids[0]),
        code("\n".join(lines[where:]), ids[1]),
    ]
    result = graft(course_notebook(), submission)
    assert sources(result)["scaler-layer"] == SCALER_SOLVED
    assert sources(result)["add-two"] == ADD_SOLVED


def test_cell_split_into_every_line():
    submission = answered()
    i = at(submission, "scaler-layer")
    submission.cells[i : i + 1] = [code(line) for line in SCALER_SOLVED.split("\n") if line.strip()]
    submission.cells.insert(i + 2, text("a note in between"))
    result = graft(course_notebook(), saved(submission))
    compact = "\n".join(line for line in SCALER_SOLVED.split("\n") if line.strip())
    assert sources(result)["scaler-layer"] == compact
    assert any("split into 9" in remark for remark in result.remarks)


def test_merged_cells_are_parted():
    submission = answered()
    submission.cells[4].source = "\n".join(cell.source for cell in submission.cells[4:9] if cell.cell_type == "code")
    del submission.cells[5:9]
    result = graft(course_notebook(), submission)
    assert result.notebook == answered()


def test_todo_line_wins_over_a_swapped_id():
    submission = answered()
    a, b = at(submission, "add-two"), at(submission, "scaler-layer")
    submission.cells[a].id, submission.cells[b].id = "scaler-layer", "add-two"
    result = graft(course_notebook(), submission)
    assert result.notebook == answered()
    assert any("the TODO line was believed" in remark for remark in result.remarks)


@pytest.mark.parametrize("kind", ["markdown", "raw"])
def test_answer_turned_into_text(kind):
    submission = answered()
    submission.cells[4] = text(ADD_SOLVED, "add-two")
    submission.cells[4].cell_type = kind
    result = graft(course_notebook(), submission)
    assert result.notebook == answered()
    assert result.remarks == ["add-two: cell 5 had been turned into text; it was read as code."]


def test_helpers_come_along():
    submission = answered(add_two=ADD_SOLVED.replace("x + 2", "plus(x, np.int64(BASE))"))
    submission.cells.insert(2, code("import numpy as np\nOFFSET, SPARE = 0, 1\nunused = train()"))
    submission.cells.insert(
        4,
        code("import functools\nshown = 1\n\n@functools.cache\ndef plus(a, b):\n    return a + b + OFFSET\nplus(1, 2)"),
    )
    result = graft(course_notebook(), saved(submission))
    source = sources(result)["add-two"]
    space = {"BASE": 2}
    exec(source, space)
    assert space["add_two"](3) == 5
    assert "unused" not in source
    assert "shown" not in source
    assert any("`OFFSET`, `functools`, `np`, `plus`" in remark for remark in result.remarks)
    assert graft(course_notebook(), result.notebook).notebook == result.notebook


def test_an_import_added_to_the_setup_cell_comes_along():
    submission = answered(add_two=ADD_SOLVED.replace("x + 2", "operator.add(x, BASE)"))
    submission.cells[at(submission, "imports")].source += "\nimport operator"
    source = sources(graft(course_notebook(), submission))["add-two"]
    assert source.split("\n")[1] == "import operator"
    assert "BASE = 2" not in source


def test_helper_that_wraps_itself():
    submission = answered(add_two=ADD_SOLVED.replace("x + 2", "plus(x)"))
    submission.cells += [code("def plus(x):\n    return x + 2"), code("plus = id and plus")]
    space: dict = {}
    exec(sources(graft(course_notebook(), saved(submission)))["add-two"], space)
    assert space["add_two"](1) == 3


def test_helper_in_the_cell_of_another_answer():
    submission = answered(
        add_two=ADD_SOLVED + "\n\ndef times(a, b):\n    return a * b",
        scaler_layer=SCALER_SOLVED.replace("self.factor * x", "times(self.factor, x)"),
    )
    assert "def times" in sources(graft(course_notebook(), submission))["scaler-layer"]


def test_answer_inside_the_cell_of_another_answer():
    mine = "def add_two(x):\n    return x + 1 + 1"
    submission = answered(add_two=ADD, scaler_layer=SCALER_SOLVED + "\n\n" + mine)
    assert sources(graft(course_notebook(), submission))["add-two"].endswith(mine)


def test_check_and_cell_magic_in_the_answer_cell_are_left_out():
    submission = answered(add_two="%%time\n" + ADD_SOLVED + "\nchecks.add_two(add_two)")
    result = graft(course_notebook(), submission)
    assert sources(result)["add-two"] == ADD_SOLVED
    assert any("`%%time` was left out" in remark for remark in result.remarks)


@pytest.mark.parametrize("broken", ["def add_two(x):\n    return x +", "def add_two(x) return 2", "x = (", "\x00"])
def test_broken_code_is_kept_and_reported(broken):
    submission = answered(add_two="# TODO add-two  (3 points, ~5 min)\n" + broken)
    result = graft(course_notebook(), submission)
    assert sources(result)["add-two"].endswith(broken)
    assert result.answered["add-two"]
    assert "add-two: the answer is not valid Python." in result.remarks


def test_renamed_function_is_reported():
    result = graft(course_notebook(), answered(add_two=ADD_SOLVED.replace("add_two(", "addition(")))
    assert "def addition" in sources(result)["add-two"]
    assert "add-two: the answer does not define `add_two`." in result.remarks


def test_half_a_class_counts_as_answered():
    half = SCALER.replace('raise NotImplementedError("scaler-layer")', "self.factor = factor", 1)
    result = graft(course_notebook(), answered(scaler_layer=half))
    assert sources(result)["scaler-layer"] == half
    assert result.answered["scaler-layer"]


def test_work_around_a_stub_is_kept_but_is_no_answer():
    result = graft(course_notebook(), answered(add_two=ADD + "\n\ndef half(x):\n    return x / 2"))
    assert "def half" in sources(result)["add-two"]
    assert not result.answered["add-two"]


def test_frame_filled_in_below_a_forgotten_raise():
    frame = ADD + "\n    return {'a': None}"
    base = course_notebook()
    base.cells[at(base, "add-two")].source = frame
    assert not graft(base, base).answered["add-two"]
    result = graft(base, answered(add_two=frame.replace("None", "7")))
    assert "'a': 7" in sources(result)["add-two"]
    assert not result.answered["add-two"]
    assert result.remarks == ["add-two: something is written, but it still raises NotImplementedError."]


def test_deleted_and_emptied_answers():
    submission = answered(scaler_layer="")
    del submission.cells[at(submission, "add-two")]
    result = graft(course_notebook(), submission)
    assert result.answered == {"add-two": False, "scaler-layer": False, "why-two": True}
    assert sources(result)["add-two"] == ADD
    assert sources(result)["scaler-layer"] == SCALER
    assert result.remarks == ["add-two: no cell with an answer was found."]


def test_prose_below_the_placeholder_and_without_a_mark():
    submission = answered(why_two="<!-- TODO why-two (2 points, ~5 min) -->\n\n*Your answer.*")
    submission.cells.insert(at(submission, "why-two") + 1, text("Because.", "n1"))
    submission.cells.insert(at(submission, "why-two") + 2, text("And so.", "n2"))
    assert sources(graft(course_notebook(), submission))["why-two"].endswith("-->\nBecause.\n\nAnd so.")

    submission = without_ids(answered(why_two="Because."))
    result = graft(course_notebook(), saved(submission))
    assert sources(result)["why-two"].endswith("Because.")
    assert any("its mark is lost" in remark for remark in result.remarks)


def test_answer_to_a_todo_that_is_gone():
    submission = answered()
    old = "# TODO old-task  (4 points, ~5 min)\ndef old_task():\n    return 1"
    submission.cells += [code(old, "old-task"), code(old.replace("return 1", "raise NotImplementedError"), "o2")]
    result = graft(course_notebook(), submission)
    assert result.leftover == {"old-task": old}
    assert any(remark.startswith("old-task: this version") for remark in result.remarks)


def test_renamed_slug_is_found_by_name():
    submission = answered(add_two=ADD_SOLVED.replace("add-two", "plus-two"))
    submission.cells[at(submission, "add-two")].id = "plus-two"
    result = graft(course_notebook(), submission)
    assert sources(result)["add-two"].startswith("# TODO add-two  (3 points, ~5 min)\n")
    assert "return x + 2" in sources(result)["add-two"]
    assert result.leftover == {}


def test_carry_over_onto_a_newer_version():
    new = course_notebook()
    new.cells[at(new, "text-why")].source = "## Why\n\nRewritten."
    new.cells[at(new, "text-why")].id = "text-rewritten"
    new.cells[at(new, "add-two")].source = ADD.replace("Return x plus 2.", "Return x, plus two.")
    new.cells[at(new, "check-add-two")].source = "checks.add_two(add_two)  # new"
    result = carry_over(new, answered(scaler_layer=SCALER), course_notebook())
    assert result.remarks == []
    assert result.answered == {"add-two": True, "scaler-layer": False, "why-two": True}
    assert sources(result)["why-two"] == WHY_SOLVED


def test_student_whose_stub_is_of_the_old_version_gets_the_new_stub():
    new = course_notebook()
    new.cells[at(new, "add-two")].source = ADD.replace("Return x plus 2.", "Return x, plus two.")
    result = carry_over(new, course_notebook())
    assert result.notebook == new


# Nothing is lost, nothing crashes


def mangle(notebook, rng: random.Random):
    """Do to a notebook what editors and people do."""
    cells = notebook.cells
    for _ in range(rng.randint(1, 6)):
        i = rng.randrange(len(cells))
        what = rng.choice(["drop id", "split", "double", "move", "add", "drop tags", "empty", "kind", "merge", "id"])
        if what == "drop id":
            cells[i].pop("id", None)
        elif what == "split" and cells[i].source.count("\n"):
            lines = cells[i].source.split("\n")
            cut = rng.randrange(1, len(lines))
            rest = deepcopy(cells[i])
            cells[i].source, rest.source = "\n".join(lines[:cut]), "\n".join(lines[cut:])
            (rest if rng.random() < 0.5 else cells[i])["id"] = f"part{rng.random()}"
            cells.insert(i + 1, rest)
        elif what == "double":
            cells.insert(rng.randrange(len(cells)), deepcopy(cells[i]))
        elif what == "move" and not _is_part(cells, i):
            cells.insert(rng.randrange(len(cells)), cells.pop(i))
        elif what == "add":
            odd = ["x = 1", "%%bash\nls", "!pip", "# TODO", "# TODO add-two", "def g(:", "'''", "", "\\", "😀 = 2"]
            cells.append(code(rng.choice(odd)))
        elif what == "drop tags":
            for cell in cells:
                cell.metadata = {}
        elif what == "empty" and cells[i].metadata.get("tags") == ["check"]:
            cells[i].source = ""
        elif what == "kind" and cells[i].cell_type == "code":
            cells[i].cell_type = rng.choice(["markdown", "raw"])
        elif what == "merge" and cells[i].cell_type == "code" and i + 1 < len(cells):
            if cells[i + 1].cell_type == "code":
                cells[i].source += "\n" + cells.pop(i + 1).source
        elif what == "id":
            cells[i]["id"] = cells[rng.randrange(len(cells))].get("id")
    return notebook


def _is_part(cells, i) -> bool:
    """Moving one half of a split cell away is beyond what can be mended."""
    return anatomy.todo(cells[i].source) is None or str(cells[min(i + 1, len(cells) - 1)].get("id")).startswith("part")


@pytest.mark.parametrize("seed", range(200))
def test_no_answer_is_lost(seed):
    submission = saved(mangle(answered(), random.Random(seed)))
    result = graft(course_notebook(), submission)
    got = sources(result)
    assert [cell.id for cell in result.notebook.cells] == [cell.id for cell in course_notebook().cells]
    assert "return x + 2" in got["add-two"]
    assert "self.factor = factor" in got["scaler-layer"]
    assert "return self.factor * x" in got["scaler-layer"]
    assert "one is not enough" in got["why-two"]
    assert all(got[slug].startswith(("# TODO " + slug, "<!-- TODO " + slug)) for slug in SLUGS)
    again = graft(course_notebook(), result.notebook)
    assert again.notebook == result.notebook


@pytest.mark.parametrize("seed", range(100))
def test_damaged_bytes_never_crash(seed):
    rng = random.Random(seed)
    data = bytearray(json.dumps(answered(), ensure_ascii=False).encode())
    for _ in range(rng.randint(1, 30)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        notebook = anatomy.parse(bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])]))
    except NotebookError:
        return
    result = graft(course_notebook(), notebook)
    assert anatomy.parse(normal.to_bytes(result.notebook)).cells
