"""What is stamped into notebooks and READMEs."""

import json
import shutil

import nbformat
import pytest
from notebook_factory import CODE, SEVERAL, THEORY, several

from common.course import find_root, load
from common.notebooks import anatomy, branch, results, stamp
from common.notebooks.__main__ import main

UNIT = "phase2_transformers/lab1_attention"
GITHUB = "https://github.com/owner/name"
QUICK = {"hardware": "CPU, 2 threads", "seconds": 41.2, "rows": [["loss", "2.41 nats"], ["a|b", "1"]]}
FULL = {"hardware": "One GPU", "seconds": 754.0, "rows": [["loss", "1.52 nats"], ["points", "28"]]}
TABLE = """\
| measure | quick | full |
|---|---|---|
| hardware | CPU, 2 threads | One GPU |
| time | 41 s | 13 min |
| loss | 2.41 nats | 1.52 nats |
| a\\|b | 1 |  |
| points |  | 28 |"""
EMPTY = "<!-- results:begin -->\n<!-- results:end -->"
README = "# Course\n\n<!-- syllabus:begin -->\n<!-- syllabus:end -->\n\nText.\n\n" + EMPTY + "\n\nThe end.\n"


@pytest.fixture
def root(tmp_path):
    """A course with one notebook, not yet stamped, and two READMEs."""
    (tmp_path / "common").mkdir()
    shutil.copy(find_root() / "common" / "course.toml", tmp_path / "common")
    set_address(tmp_path, "")
    (tmp_path / "README.md").write_text(README)
    folder = tmp_path / UNIT
    folder.mkdir(parents=True)
    (folder.parent / "README.md").write_text(README)
    (folder / "results.json").write_text(json.dumps({"lab1_attention.ipynb": {"quick": QUICK, "full": FULL}}))
    answer = "# TODO twice  (12 points, ~5 min)\ndef twice(x):\n    raise NotImplementedError('twice')"
    cells = [
        nbformat.v4.new_markdown_cell("# Attention\n\nWhat it is.", id="title"),
        nbformat.v4.new_code_cell(answer, id="twice", metadata={"tags": ["answer"]}),
        nbformat.v4.new_markdown_cell(f"## Results\n\n{EMPTY}", id="results"),
    ]
    anatomy.write(nbformat.v4.new_notebook(cells=cells), folder / "lab1_attention.ipynb")
    return tmp_path


def set_address(root, address):
    file = root / "common" / "course.toml"
    lines = file.read_text(encoding="utf-8").splitlines()
    found = [f'repository = "{address}"' if line.startswith("repository =") else line for line in lines]
    file.write_text("\n".join(found), encoding="utf-8")


def notebook(root):
    return anatomy.read(root / UNIT / "lab1_attention.ipynb")


def source(root, id):
    (found,) = [cell.source for cell in notebook(root).cells if cell.id == id]
    return found


def test_stamping_twice_changes_nothing(root):
    files = [f"{UNIT}/lab1_attention.ipynb", "README.md", "phase2_transformers/README.md"]
    before = {name: (root / name).read_bytes() for name in files}
    assert stamp.stamp(root, check=True) == files
    assert {name: (root / name).read_bytes() for name in files} == before, "a check writes nothing"
    assert stamp.stamp(root) == files
    after = {name: (root / name).read_bytes() for name in files}
    assert stamp.stamp(root) == stamp.stamp(root, check=True) == []
    assert {name: (root / name).read_bytes() for name in files} == after


def test_notebook(root):
    stamp.stamp(root)
    found = notebook(root)
    assert found.metadata["course"] == {"unit": UNIT, "notebook": "lab1_attention.ipynb", "hours": "2-3"}
    assert [cell.id for cell in found.cells] == ["colab", "title", "twice", "results"]
    assert anatomy.role(found.cells[0]) == "setup"
    assert found.cells[0].source == stamp.first_cell(UNIT, "")
    assert source(root, "title") == "# Attention\n\nWhat it is."
    assert source(root, "results") == (f"## Results\n\n<!-- results:begin -->\n\n{TABLE}\n\n<!-- results:end -->")


def test_address_comes_and_goes(root):
    stamp.stamp(root)
    plain = [(root / name).read_bytes() for name in (f"{UNIT}/lab1_attention.ipynb", "README.md")]
    assert not any(b"colab-badge" in text for text in plain)
    set_address(root, GITHUB + "/")
    stamp.stamp(root)
    link = f"(https://colab.research.google.com/github/owner/name/blob/main/{UNIT}/lab1_attention.ipynb)"
    assert source(root, "title") == f"# Attention\n\n{stamp.BADGE}{link}\n\nWhat it is."
    assert source(root, "colab") == stamp.first_cell(UNIT, GITHUB)
    assert (root / "README.md").read_text().count(stamp.BADGE + link) == 1
    set_address(root, "https://git.example.org/name")
    stamp.stamp(root)
    assert source(root, "title") == "# Attention\n\nWhat it is.", "Colab reads from GitHub only"
    set_address(root, "")
    stamp.stamp(root)
    assert [(root / name).read_bytes() for name in (f"{UNIT}/lab1_attention.ipynb", "README.md")] == plain


def test_syllabus(root):
    stamp.stamp(root)
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Course\n\n<!-- syllabus:begin -->\n\n### Phase 1: Fundamentals\n\n| unit | hours |")
    assert f"| [Lab 1: Self-attention]({UNIT}/lab1_attention.ipynb) | 2–3 | Scaled dot" in text
    assert "| 12 | ready |" in text
    assert "| Lab 2: Transformer encoder | 3–4 |" in text
    assert text.count("|  | planned |") == len(load(root).units) - 1
    assert "### [Phase 2: Transformers](phase2_transformers/README.md)" in text
    assert text.endswith("<!-- results:end -->\n\nThe end.\n")

    text = (root / "phase2_transformers" / "README.md").read_text(encoding="utf-8")
    assert "| [Lab 1: Self-attention](lab1_attention/lab1_attention.ipynb) | 2–3 |" in text
    assert "Phase 1" not in text
    assert "Homework" not in text


def test_results(root):
    stamp.stamp(root)
    for readme, link in (("README.md", f"{UNIT}/lab1_attention.ipynb"), ("phase2_transformers/README.md", None)):
        text = (root / readme).read_text(encoding="utf-8")
        link = link or "lab1_attention/lab1_attention.ipynb"
        assert f"**[Lab 1: Self-attention]({link})**\n\n{TABLE}\n\n<!-- results:end -->" in text
    (root / UNIT / "results.json").unlink()
    stamp.stamp(root)
    assert "Nothing has been measured yet" in source(root, "results")
    assert "Nothing has been measured yet" in (root / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["{", "[]", '{"x": {"quick": {"hardware": "x", "rows": []}}}', '{"x": {"quick": 3}}'])
def test_spoilt_results_are_named(root, text):
    (root / UNIT / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is not what `make results` writes"):
        stamp.stamp(root)


def test_marker_without_end_is_named(root):
    (root / "README.md").write_text("<!-- syllabus:begin -->")
    with pytest.raises(ValueError, match=r"syllabus:begin --> has no <!-- syllabus:end"):
        stamp.stamp(root)


# A unit with several notebooks


@pytest.fixture
def two(tmp_path):
    """A course with a unit of two notebooks, with results of one of them, and a README."""
    root = several(tmp_path)
    (root / "README.md").write_text(README)
    theory = anatomy.read(root / THEORY)
    theory.cells.append(nbformat.v4.new_markdown_cell(f"## Results\n\n{EMPTY}", id="results"))
    anatomy.write(theory, root / THEORY)
    (root / SEVERAL / "results.json").write_text(json.dumps({"hw1_theory.ipynb": {"quick": QUICK, "full": FULL}}))
    return root


def test_several_notebooks_share_a_row_and_have_their_own_tables(two):
    set_address(two, GITHUB)
    stamp.stamp(two)
    theory, code = anatomy.read(two / THEORY), anatomy.read(two / CODE)
    assert theory.metadata["course"] == {"unit": SEVERAL, "notebook": "hw1_theory.ipynb", "hours": "1"}
    assert code.metadata["course"] == {"unit": SEVERAL, "notebook": "hw1_code.ipynb", "hours": "2-3"}
    assert TABLE in theory.cells[-1].source

    link = f"(https://colab.research.google.com/github/owner/name/blob/main/{SEVERAL}"
    assert f"{link}/hw1_code.ipynb)" in code.cells[1].source
    text = (two / "README.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| Homework 1")]
    assert row == (
        f"| Homework 1: Made<br>[Theory]({THEORY}) {stamp.BADGE}{link}/hw1_theory.ipynb)"
        f"<br>[Code]({CODE}) {stamp.BADGE}{link}/hw1_code.ipynb) | 3–4 | A net. | 20 | ready |"
    )
    assert f"**Homework 1: Made**\n\n[Theory]({THEORY})\n\n{TABLE}\n\n<!-- results:end -->" in text
    assert stamp.stamp(two, check=True) == []


def test_a_unit_of_which_a_notebook_is_missing_is_planned(two):
    (two / CODE).unlink()
    stamp.stamp(two)
    assert "| Homework 1: Made | 3–4 | A net. |  | planned |" in (two / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def ran(two, monkeypatch):
    """What `make results` would run, instead of running it."""
    runs = []

    def run(notebook, scale):
        runs.append((notebook.name, scale))
        return {"hardware": "H", "seconds": 1.0, "rows": [["runs", str(len(runs))]]}

    monkeypatch.setattr(results, "_run", run)
    monkeypatch.setattr(branch, "preview", lambda root, target, say: target)
    monkeypatch.delenv("COURSE_DATA", raising=False)
    return runs


def measured(root):
    return json.loads((root / SEVERAL / "results.json").read_text())


def test_results_of_one_notebook_and_scale_leave_the_others(two, ran):
    assert main(["--root", str(two), "results", CODE, "--scale", "full"]) == 0
    assert ran == [("hw1_code.ipynb", "full")]
    assert measured(two)["hw1_theory.ipynb"] == {"quick": QUICK, "full": FULL}
    results.measure(two, [SEVERAL], say=lambda line: None)
    assert ran[1:] == [("hw1_theory.ipynb", "quick"), ("hw1_code.ipynb", "quick")]
    found = measured(two)
    assert found["hw1_theory.ipynb"]["full"] == FULL
    assert list(found["hw1_code.ipynb"]) == ["quick", "full"], "in this order, whichever was measured first"
    assert "| runs | 2 |  |" in anatomy.read(two / THEORY).cells[-1].source
    assert "| runs | 3 | 1 |" in (two / "README.md").read_text(encoding="utf-8")


def test_results_of_everything(two, ran, monkeypatch):
    said = []
    results.measure(two, say=said.append)
    assert ran == [("hw1_theory.ipynb", "quick"), ("hw1_code.ipynb", "quick")]
    assert "COURSE_DATA is not set" in said[0]
    monkeypatch.setenv("COURSE_DATA", "somewhere")
    results.measure(two, say=said.append)
    assert [scale for _, scale in ran[2:]] == ["quick", "full"] * 2


def test_results_of_nothing_are_refused(two, ran, capsys):
    assert main(["--root", str(two), "results", "hw1_code"]) == 1
    assert f"no notebook is called hw1_code; there are {THEORY}, {CODE}" in capsys.readouterr().err
    assert ran == []


def test_the_checkout_is_stamped():
    assert stamp.stamp(check=True) == [], "run: make stamp"
