"""`python -m common.grading` on a folder of right, wrong, broken and hostile submissions."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from notebook_factory import at, cell, code, text, without_ids

from common import course
from common.grading import collect, output
from common.grading.__main__ import main
from common.grading.pool import AnswerResult, Row
from common.notebooks import anatomy

ROOT = Path(__file__).resolve().parents[1]
UNIT = "phase9_made/lab1_made"
OTHER_UNIT = "phase9_made/lab2_made"
SEED = 7
MARK = f"1000.{os.getpid()}"  # an argument by which a process is found

# A tiny course.

TOML = """
repository = ""
branch = "main"
[[phase]]
folder = "phase9_made"
title = "Made"
[[unit]]
folder = "phase9_made/lab1_made"
title = "One"
hours = "1"
builds = "Something."
[[unit]]
folder = "phase9_made/lab2_made"
title = "Two"
hours = "1"
builds = "Something."
"""

CHECKS = """
import torch
from torch.nn import functional as F
from common.checks import check

@check("softmax-rows", points=3)
def softmax_rows(answer, case):
    x = case.randn(4, 5)
    with case("every row sums to 1", points=1, hint="divide by the sum of the row"):
        case.close(answer(x).sum(-1), torch.ones(4))
    with case("agrees with torch", points=2, hint="exponentials over their sum"):
        case.close(answer(x), F.softmax(x, -1), mistakes={"softmax over the wrong axis": F.softmax(x, 0)})

@check("entropy-rows", points=2)
def entropy_rows(answer, case):
    x = case.randn(4, 5)
    with case("agrees with torch.distributions", points=2, hint="minus the sum of p log p"):
        case.close(answer(x), torch.distributions.Categorical(logits=x).entropy())

@check("linear-layer", points=4)
def linear_layer(answer, case):
    x, weight = case.randn(3, 5), case.randn(2, 5)
    layer = answer(5, 2)
    with case("has one weight of shape (out, in)", points=1, hint="nn.Parameter"):
        case.equal([tuple(p.shape) for p in layer.parameters().values()], [(2, 5)])
    with case("multiplies by the weight", points=2, hint="x @ weight.T"):
        layer.load_state_dict({"weight": weight})
        case.close(layer(x), x @ weight.T)
    with case("is differentiable", points=1, hint="no detach"):
        layer.parameter_gradients(x, upstream=torch.ones(3, 2))

@check("clip-norm", points=2)
def clip_norm(answer, case):
    x = case.randn(6)
    with case("a long vector gets length 1", points=1, hint="divide by the norm"):
        case.close(answer(10 * x).norm(), torch.tensor(1.0))
    with case("a short vector stays", points=1, hint="only when the norm is above 1"):
        case.close(answer(x / x.norm() / 2), x / x.norm() / 2)
"""

OTHER_CHECKS = """
from common.checks import check

@check("double-it", points=1)
def double_it(answer, case):
    x = case.randn(3)
    with case("doubles", points=1, hint="times 2"):
        case.close(answer(x), 2 * x)
"""

HEAD = {
    "softmax-rows": "# TODO softmax-rows  (3 points, ~5 min)",
    "entropy-rows": "# TODO entropy-rows  (2 points, ~5 min)",
    "linear-layer": "# TODO linear-layer  (4 points, ~5 min)",
    "clip-norm": "# TODO clip-norm  (2 points, ~5 min)",
    "double-it": "# TODO double-it  (1 points, ~5 min)",
}
SIGNATURE = {
    "softmax-rows": "def softmax_rows(x):",
    "entropy-rows": "def entropy_rows(x):",
    "linear-layer": "class LinearLayer(nn.Module):\n    def __init__(self, n_in, n_out):",
    "clip-norm": "def clip_norm(x):",
    "double-it": "def double_it(x):",
}
SOFTMAX = (
    "def softmax_rows(x):\n    e = (x - x.max(-1, keepdim=True).values).exp()\n    return e / e.sum(-1, keepdim=True)"
)
ENTROPY = "def entropy_rows(x):\n    p = softmax_rows(x)\n    return -(p * p.log()).sum(-1)"
LINEAR = """class LinearLayer(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_out, n_in))

    def forward(self, x):
        return x @ self.weight.T"""
CLIP = "def clip_norm(x):\n    return x / max(1.0, float(x.norm()))"
RIGHT = {"softmax-rows": SOFTMAX, "entropy-rows": ENTROPY, "linear-layer": LINEAR, "clip-norm": CLIP}
WHY = "<!-- TODO why-softmax (2 points, ~5 min) -->\n\n*Your answer.*"


def stub(slug):
    indent = "        " if "class" in SIGNATURE[slug] else "    "
    return f'{HEAD[slug]}\n{SIGNATURE[slug]}\n{indent}"""Do it."""\n{indent}raise NotImplementedError("{slug}")'


def base(slugs=tuple(RIGHT), unit=UNIT, prose=True):
    cells = [
        text("# Made", "title"),
        code("%matplotlib inline\nimport torch\nfrom torch import nn\n\nimport checks", "imports", "setup"),
    ]
    for slug in slugs:
        name = SIGNATURE[slug].split("(")[0].split()[1]
        call = f"checks.{slug.replace('-', '_')}({name})"
        cells += [
            text(f"Do {slug}.", f"text-{slug}"),
            code(stub(slug), slug, "answer"),
            cell("code", call, f"check-{slug}", ("check",), f"{slug}: all points\n"),
        ]
    if prose:
        cells.append(text(WHY, "why-softmax", "answer"))
    cells.append(code("raise RuntimeError('the grader ran a cell that is no answer')", "training"))
    metadata = {"course": {"unit": unit, "hours": "1"}}
    return nbformat.from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def submission(**answers):
    """The notebook of a student; right where nothing else is said, None for an untouched stub."""
    notebook = base()
    for slug, source in (RIGHT | {name.replace("_", "-"): source for name, source in answers.items()}).items():
        if source is not None:
            notebook.cells[at(notebook, slug)].source = f"{HEAD[slug]}\n{source}"
    return notebook


def stored(notebook):
    return json.dumps(notebook)


def make_course(root):
    (root / "common").mkdir(parents=True)
    (root / "common" / "course.toml").write_text(TOML)
    for unit, notebook, checks in (
        (UNIT, base(), CHECKS),
        (OTHER_UNIT, base(["double-it"], OTHER_UNIT, prose=False), OTHER_CHECKS),
    ):
        folder = root / unit
        folder.mkdir(parents=True)
        (folder / "checks.py").write_text(checks)
        anatomy.write(notebook, folder / f"{folder.name}.ipynb")
    return root


# What students hand in.

OTHER_STYLE = {
    "softmax_rows": "from torch.nn import functional as F\nsoftmax_rows = lambda x: F.softmax(x, dim=-1)",
    "entropy_rows": "def entropy_rows(x):\n    return torch.stack([_h(row) for row in x])",
    "linear_layer": LINEAR.replace("x @ self.weight.T", "nn.functional.linear(x, self.weight)"),
    "clip_norm": "def clip_norm(x):\n    n = torch.linalg.vector_norm(x)\n    return torch.where(n > 1, x / n, x)",
}
HELPER = "def _h(row):\n    p = row.softmax(0)\n    return -(p * p.log()).sum()"
HOSTILE = '=HYPERLINK("x")<script>alert(1)</script>'
LONG = "Ünïcode" * 30


def dropped(notebook, *ids):
    notebook.cells = [one for one in notebook.cells if one.id not in ids]
    return notebook


def submissions():
    """Every submission: its path in the folder, and the file's content (None: a folder).

    One leaves a process behind, which sleeps for MARK seconds.
    """
    made = {}

    def add(student, notebook, name="lab1_made.ipynb"):
        made[f"{student}/{name}" if name else f"{student}.ipynb"] = (
            notebook if isinstance(notebook, str | bytes) else stored(notebook)
        )

    right = submission(why_softmax=None)
    right.cells[at(right, "why-softmax")].source = WHY.replace("*Your answer.*", "Because <b>it</b> is smooth.")
    add("right", right)
    other = submission(**OTHER_STYLE)
    other.cells.insert(at(other, "entropy-rows"), code(HELPER, "mine"))
    add("other_style", other)
    add("partly", submission(softmax_rows="def softmax_rows(x):\n    return x.softmax(0)", entropy_rows=None))
    add(
        "wrong",
        submission(
            softmax_rows="def softmax_rows(x):\n    return x.exp()",
            entropy_rows="def entropy_rows(x):\n    return [1, 2]",
            linear_layer=LINEAR.replace("self.weight.T", "self.wieght.T").replace("zeros(n_out, n_in)", "zeros(1)"),
            clip_norm="def clip_norm(x):\n    x / x.norm()",
        ),
    )
    add("half_empty", submission(linear_layer=None, clip_norm=None))
    add("untouched", base())
    add("renamed", submission(), "deep/down/Kopie von final FINAL (2).IPYNB")
    add("colab", without_ids(submission()), "Copy of lab1_made.ipynb")
    duplicated = submission()
    for slug in ("softmax-rows", "clip-norm"):
        duplicated.cells.insert(at(duplicated, slug) + 1, deepcopy(duplicated.cells[at(duplicated, slug)]))
    add("duplicated", duplicated)
    add("deleted", dropped(submission(), "imports", "clip-norm", "check-clip-norm", "check-softmax-rows"))
    add("truncated", stored(submission())[:3000])
    add("not_a_notebook", "I forgot, sorry!")
    add("a_picture", b"\x89PNG\r\n\x1a\n\x00\xff\xfe")
    add("empty_file", "")
    add("list_of_lists", "[" * 100_000)
    add("odd_json", json.dumps({"cells": [None, 3, {"cell_type": "code", "source": 5}], "metadata": 7}))
    add("endless_loop", submission(entropy_rows="def entropy_rows(x):\n    while True: pass"))
    add("exits", submission(linear_layer=LINEAR + "\nimport os\nos._exit(0)"))
    add("exits_politely", submission(entropy_rows="def entropy_rows(x):\n    import sys\n    sys.exit()"))
    add(
        "segfault",
        submission(clip_norm="def clip_norm(x):\n    import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)"),
    )
    add(
        "dies_often",
        submission(**{slug: f"import os\n{RIGHT[slug.replace('_', '-')]}\nos._exit(3)" for slug in OTHER_STYLE}),
    )
    add("memory", submission(entropy_rows="def entropy_rows(x):\n    return torch.ones(10**9).sum()"))
    cheat = submission(softmax_rows="def softmax_rows(x):\n    return x")
    at_check = cheat.cells[at(cheat, "check-softmax-rows")]
    at_check.source = "print('softmax-rows: 3 of 3 points')"
    at_check.outputs = [{"output_type": "stream", "name": "stdout", "text": "softmax-rows: 3 of 3 points"}]
    add("claims_points", cheat)
    flood = "import sys, os\nfor _ in range(3000): print('x' * 1000); sys.stderr.write('y' * 1000)"
    flood += "\nos.write(1, b'z' * 10**6)"
    add("flood", submission(softmax_rows=f"{flood}\n{SOFTMAX}"))
    add("syntax", submission(softmax_rows="def softmax_rows(x):\n    return x.softmax(-1"))
    add("late_error", submission(softmax_rows=f"{SOFTMAX}\nsoftmax_rows(unknown)"))
    add("shell", submission(softmax_rows=f"!touch /tmp/course-grading-was-here\n%pip install nothing\n{SOFTMAX}"))
    start = f"import subprocess\nsubprocess.Popen(['sleep', '{MARK}'])"
    add("leaves_a_child", submission(softmax_rows=f"{start}\n{SOFTMAX}"))
    add("alone", submission(), "")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../escaped.ipynb", stored(submission()))
        archive.writestr("__MACOSX/._lab1_made.ipynb", "x")
    add("zipped", packed.getvalue(), "all.zip")
    add("bad_zip", packed.getvalue()[:200], "all.zip")
    add("several", submission(softmax_rows=None), "old.ipynb")
    add("several", submission(), "new.ipynb")
    add("several", "broken", "other.ipynb")
    add("both_units", submission())
    second = base(["double-it"], OTHER_UNIT, prose=False)
    second.cells[at(second, "double-it")].source = "# TODO double-it\ndef double_it(x):\n    return x + x"
    add("both_units", second, "lab2_made.ipynb")
    add("another_course", nbformat.from_dict({"cells": [code("x = 1")], "metadata": {}}))
    add("no_notebook", "import torch", "answer.py")
    made["no_files/"] = None
    message = "def softmax_rows(x):\n    raise ValueError('<img src=x onerror=alert(2)>')"
    add(HOSTILE.replace("/", "\N{DIVISION SLASH}"), submission(softmax_rows=message), "=1+1<b>.ipynb")
    add("a b", submission())
    add("a_b", submission())
    add(LONG[:120], submission())
    made |= {".DS_Store": "x", "__MACOSX/right/._lab1_made.ipynb": "x", "right/.ipynb_checkpoints/a.ipynb": "x"}
    return made


def hand_in(folder, made):
    for name, content in made.items():
        path = folder / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())


def command(*arguments):
    return [sys.executable, "-m", "common.grading", *map(str, arguments)]


# One run of the command, and what it must have written.


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("grading")
    make_course(tmp / "course")
    hand_in(tmp / "in", submissions())
    (tmp / "in" / "broken_link").symlink_to(tmp / "nowhere")
    (tmp / "in" / "linked").mkdir()
    (tmp / "in" / "linked" / "lab1_made.ipynb").symlink_to(tmp / "in" / "right" / "lab1_made.ipynb")
    os.mkfifo(tmp / "in" / "fifo.ipynb")
    arguments = ("--course", tmp / "course", "--out", tmp / "in" / "grades", "--seed", SEED)
    done = subprocess.run(
        command(tmp / "in", *arguments, "--timeout", 20, "--memory", 1),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp / "in" / "grades" / "rows.json").read_text())
    with (tmp / "in" / "grades" / "grades.csv").open(newline="", encoding="utf-8") as file:
        table = {(row["student"], row["unit"]): row for row in csv.DictReader(file)}
    rows = {(row["student"], row["unit"]): row for row in results["rows"]}
    return {"out": tmp / "in" / "grades", "done": done, "results": results, "rows": rows, "table": table}


def row_of(graded, student):
    found = [row for (name, _), row in graded["rows"].items() if name == student]
    assert len(found) == 1, f"{student}: {len(found)} rows"
    return found[0]


def points_of(row):
    return [answer["points"] for answer in row["answers"] if not answer["prose"]]


FULL = [3, 2, 4, 2]

EXPECTED = {  # points, and a word of a remark
    "right": (FULL, None),
    "other_style": (FULL, "brought along"),
    "partly": ([0, 0, 4, 2], None),
    "wrong": ([0, 0, 0, 0], None),
    "half_empty": ([3, 2, 0, 0], None),
    "untouched": ([0, 0, 0, 0], None),
    "renamed": (FULL, None),
    "colab": (FULL, "no ids"),
    "duplicated": (FULL, "2 times"),
    "deleted": ([3, 2, 4, 0], "missing"),
    "endless_loop": ([3, 0, 4, 2], "entropy-rows takes longer than 5 s (an endless loop?), line 3 of entropy_rows"),
    "exits": ([3, 2, 0, 2], "linear-layer ends Python (exit code 0), line 10 of the cell"),
    "exits_politely": ([3, 0, 4, 2], None),
    "segfault": ([3, 2, 4, 0], "clip-norm ends Python (SIGSEGV), line 4 of clip_norm"),
    "dies_often": ([0, 0, 0, 0], "softmax-rows ends Python (exit code 3)"),
    "memory": ([3, 0, 4, 2], None),
    "claims_points": ([0, 0, 4, 2], "'check-softmax-rows' was changed"),
    "flood": (FULL, None),
    "syntax": ([0, 0, 4, 2], "not valid Python"),
    "late_error": (FULL, None),
    "shell": (FULL, "was not run"),
    "leaves_a_child": (FULL, None),
    "alone": (FULL, None),
    "zipped": (FULL, None),
    "several": (FULL, "graded new.ipynb"),
    "a b": (FULL, None),
    "a_b": (FULL, None),
    LONG[:120]: (FULL, None),
}

UNGRADED = {  # a word of the remark
    "truncated": "breaks off",
    "not_a_notebook": "not a notebook",
    "a_picture": "not a notebook",
    "empty_file": "empty",
    "list_of_lists": "damaged",
    "odd_json": "no answer cell",
    "bad_zip": "unpack",
    "another_course": "no answer cell",
    "no_notebook": "found: answer.py",
    "no_files": "no notebook",
    "broken_link": "link",
    "linked": "link",
    "fifo": "not a file",
}


@pytest.mark.parametrize("student", EXPECTED)
def test_points_and_remarks(graded, student):
    row, (points, remark) = row_of(graded, student), EXPECTED[student]
    assert points_of(row) == points
    assert row["unit"] == UNIT
    assert (row["points"], row["out_of"]) == (sum(points), 13)
    if remark:
        assert remark in " ".join(row["remarks"])
    in_table = graded["table"][student, UNIT]
    assert [float(in_table[f"{UNIT}/{slug}"]) for slug in RIGHT] == points
    assert (float(in_table["total"]), float(in_table["out_of"])) == (sum(points), 13)
    assert float(in_table["percent"]) == pytest.approx(100 * sum(points) / 13, abs=0.06)
    assert in_table["unmarked"] == str(row["unmarked"]) == str(int(student == "right"))


@pytest.mark.parametrize("student", UNGRADED)
def test_what_cannot_be_graded_gets_a_row_and_a_remark(graded, student):
    row = row_of(graded, student)
    assert (row["points"], row["unit"]) == (0, "")
    assert UNGRADED[student] in " ".join(row["remarks"])
    assert graded["table"][student, ""]["total"] == "0"


def test_nobody_is_missing_and_nobody_is_made_up(graded):
    hostile = HOSTILE.replace("/", "\N{DIVISION SLASH}")
    wanted = {*EXPECTED, *UNGRADED, "both_units", hostile}
    assert {student for student, _ in graded["rows"]} == wanted
    assert len(graded["table"]) == len(graded["rows"]) == len(wanted) + 1
    lines = (graded["out"] / "results.jsonl").read_text().splitlines()
    assert len(lines) == 1 + len(graded["rows"]) + 1


def test_a_student_with_two_units_has_two_rows_and_one_page(graded):
    assert graded["rows"]["both_units", UNIT]["points"] == 11
    assert graded["rows"]["both_units", OTHER_UNIT]["points"] == 1
    page = graded["out"] / "feedback" / f"{output.file_names(['both_units'])['both_units']}.html"
    assert UNIT in page.read_text()
    assert OTHER_UNIT in page.read_text()


def answer_of(graded, student, slug):
    return next(answer for answer in row_of(graded, student)["answers"] if answer["slug"] == slug)


@pytest.mark.parametrize(
    ("student", "slug", "state", "message"),
    [
        ("partly", "softmax-rows", "graded", "wrong axis"),
        ("partly", "entropy-rows", "todo", ""),
        ("wrong", "clip-norm", "graded", "return statement missing"),
        ("syntax", "softmax-rows", "broken", "the cell does not run: SyntaxError"),
        ("syntax", "softmax-rows", "broken", "line 3"),
        ("syntax", "entropy-rows", "graded", "NameError"),
        ("late_error", "softmax-rows", "graded", "name 'unknown' is not defined, line 5: softmax_rows(unknown)"),
        ("exits_politely", "entropy-rows", "graded", "SystemExit"),
        ("memory", "entropy-rows", "graded", "allocate"),
        ("endless_loop", "entropy-rows", "stopped", "endless loop"),
        ("segfault", "clip-norm", "stopped", "SIGSEGV"),
        ("deleted", "clip-norm", "todo", ""),
        ("right", "why-softmax", "unchecked", "Because <b>it</b> is smooth."),
    ],
)
def test_messages(graded, student, slug, state, message):
    answer = answer_of(graded, student, slug)
    assert answer["state"] == state
    assert message in answer["message"] + " ".join(case["message"] for case in answer["cases"])


def page_of(graded, student):
    students = list(dict.fromkeys(name for name, _ in graded["rows"]))
    return (graded["out"] / "feedback" / f"{output.file_names(students)[student]}.html").read_text()


def test_every_student_has_a_page(graded):
    students = {name for name, _ in graded["rows"]}
    assert len(list((graded["out"] / "feedback").iterdir())) == len(students)
    for (student, _), row in graded["rows"].items():
        page = page_of(graded, student)
        assert "<script" not in page
        assert "<img" not in page
        assert "prefers-color-scheme: dark" in page
        assert f"{row['points']:g} of {row['out_of']:g} points" in page
        assert "http://" not in page
        assert "https://" not in page


def test_a_page_tells_cases_messages_hints_and_remarks(graded):
    assert "Hint: " in page_of(graded, "exits_politely")
    page = page_of(graded, "partly")
    for part in ("6 of 13 points", "✗", "✓", "softmax over the wrong axis", "Still to do"):
        assert part in page
    assert "graded new.ipynb" in page_of(graded, "several")
    assert "Because &lt;b&gt;it&lt;/b&gt; is smooth." in page_of(graded, "right")
    assert "2 points, not marked yet" in page_of(graded, "right")
    assert "11 of 13 points</strong>, so far: 1 answer still to be marked" in page_of(graded, "right")
    hostile = page_of(graded, HOSTILE.replace("/", "\N{DIVISION SLASH}"))
    assert "&lt;img src=x onerror=alert(2)&gt;" in hostile


def test_no_formula_reaches_a_spreadsheet(graded):
    raw = (graded["out"] / "grades.csv").read_text()
    assert "'=HYPERLINK" in raw
    for line in csv.reader(io.StringIO(raw)):
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in line)


def test_the_console_says_what_was_done(graded):
    shown = graded["done"].stdout
    assert f"--seed {SEED}" in shown
    assert "hardest:" in shown
    assert "mean" in shown
    assert "ready at" in graded["done"].stderr
    assert graded["results"]["seed"] == SEED


def test_nothing_is_left_behind(graded):
    tmp = graded["out"].parents[1]
    assert not Path("/tmp/course-grading-was-here").exists()
    assert not list(tmp.rglob("escaped.ipynb"))
    assert not runs(MARK)
    assert not [path for path in graded["out"].iterdir() if path.name.startswith(".writing")]


# A second run, interruptions, and the parts.


def small(tmp_path, **made):
    make_course(tmp_path / "course")
    hand_in(tmp_path / "in", {f"{name}/x.ipynb": stored(notebook) for name, notebook in made.items()})
    return (tmp_path / "in", "--course", tmp_path / "course", "--out", tmp_path / "out")


def test_interrupting_keeps_what_is_done(tmp_path):
    endless = submission(softmax_rows="import time\ntime.sleep(1000)")
    arguments = small(tmp_path, a=submission(), b=endless, c=submission())
    run = subprocess.Popen(command(*arguments, "--jobs", 1), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "results.jsonl"
    until(lambda: log.is_file() and len(log.read_text().splitlines()) == 2)
    time.sleep(1)
    run.send_signal(signal.SIGINT)
    shown, _ = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "Interrupted: some submissions are not graded" in shown
    results = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert not results["complete"]
    assert [row["student"] for row in results["rows"]] == ["a"]
    assert "a,phase9_made/lab1_made,11,13,3,2,4,2,0,84.6,0," in (tmp_path / "out" / "grades.csv").read_text()


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def runs(mark):
    """Whether there is a process with this in its command line."""
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in line.read_bytes().split(b"\0"):
                return True
    return False


def test_the_seed_repeats_a_grading(tmp_path):
    noisy = submission(softmax_rows="def softmax_rows(x):\n    return x.softmax(-1) + torch.rand(4, 5).round()")
    arguments = small(tmp_path, a=noisy, b=submission(clip_norm="def clip_norm(x):\n    return x"))
    runs = []
    for seed in ("3", "3", "4"):
        assert main([*map(str, arguments), "--seed", seed]) == 0
        rows = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
        runs.append([row["answers"] for row in rows])
    assert runs[0] == runs[1] != runs[2]


def test_a_check_that_fails_is_no_fault_of_the_student(tmp_path):
    arguments = small(tmp_path, a=submission())
    (tmp_path / "course" / UNIT / "checks.py").write_text("import a_module_that_is_not_there")
    assert main([*map(str, arguments)]) == 1
    assert "by no fault of the student: ModuleNotFoundError" in (tmp_path / "out" / "grades.csv").read_text()


def test_a_killed_grader_leaves_no_worker_and_goes_on_where_it_stopped(tmp_path):
    sleeper = f"import subprocess\nsubprocess.run(['sleep', '{MARK}'])"
    arguments = (*small(tmp_path, a=submission(), b=submission(softmax_rows=sleeper)), "--timeout", 80)
    run = subprocess.Popen(command(*arguments, "--jobs", 1), cwd=ROOT, stdout=subprocess.DEVNULL)
    until(lambda: runs(MARK))
    run.kill()
    run.wait()
    log = tmp_path / "out" / "results.jsonl"
    first, *rows = map(json.loads, log.read_text().splitlines())
    assert [row["student"] for row in rows] == ["a"]
    until(lambda: not runs(MARK), seconds=10)
    log.write_text(log.read_text() + '{"student": "b", "uni')  # killed while it wrote
    again = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "1 of them were graded before" in again.stdout
    results = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert results["seed"] == first["seed"]
    assert [row["student"] for row in results["rows"]] == ["a", "b"]
    assert results["rows"][0] == rows[0]


def test_what_cannot_be_graded_at_all_is_refused(tmp_path, capsys):
    make_course(tmp_path / "course")
    (tmp_path / "in").mkdir()
    rest = ["--course", str(tmp_path / "course"), "--out", str(tmp_path / "out")]
    for arguments, said in (
        ([str(tmp_path / "nowhere"), *rest], "nowhere"),
        ([str(tmp_path / "in"), *rest], "is empty"),
        ([str(tmp_path / "in"), "--unit", "phase9_made/lab3", *rest], "no unit"),
    ):
        assert main(arguments) == 2
        assert said in capsys.readouterr().err


def test_unreadable_files_are_remarks(tmp_path, monkeypatch):
    make_course(tmp_path / "course")
    hand_in(tmp_path / "in", {"a/x.ipynb": stored(submission()), "b/x.ipynb": stored(submission())})
    real = Path.open

    def denied(self, *args, **kwargs):
        if "/a/" in str(self):
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    bases = collect.load_units(tmp_path / "course")
    tasks = list(collect.collect(collect.students(tmp_path / "in", bases), bases))
    assert [(task.student, task.files) for task in tasks] == [("a", ()), ("b", ("x.ipynb",))]
    assert "Permission denied" in tasks[0].remarks[0]


def test_a_given_unit_is_the_only_one(tmp_path):
    make_course(tmp_path / "course")
    hand_in(tmp_path / "in", {"a/x.ipynb": stored(submission())})
    bases = collect.load_units(tmp_path / "course", OTHER_UNIT)
    (task,) = collect.collect(collect.students(tmp_path / "in", bases), bases, OTHER_UNIT)
    assert (task.unit, task.files) == (OTHER_UNIT, ())
    assert OTHER_UNIT in task.remarks[0]


def test_file_names_are_safe_and_differ():
    students = ["a b", "a_b", "A_b", "..", "x" * 300, "x" * 301, "é", "e\u0301", "../../etc/passwd", "", "名前"]
    names = output.file_names(students)
    assert len({name.casefold() for name in names.values()}) == len(students)
    for name in names.values():
        assert len(name.encode()) <= 255
        assert "/" not in name
        assert not name.startswith(".")


def test_points_that_a_worker_claims_are_capped():
    answers = [AnswerResult("a", 3, 2, "graded"), AnswerResult("b", 5, 0, "unchecked")]
    row = Row("s", "u", ["n"], answers, [])
    assert (row.points, row.out_of, row.unmarked) == (2, 8, 1)


# The real thing.


def test_the_course_grades_its_own_solution(tmp_path):
    unit = "phase2_transformers/lab1_attention"
    from common.notebooks import branch

    solved = branch.make_solutions(ROOT, tmp_path / "solutions", say=lambda line: None) / unit / "lab1_attention.ipynb"
    untouched = course.load(ROOT).root / unit / "lab1_attention.ipynb"
    hand_in(tmp_path / "in", {"solved/a.ipynb": solved.read_bytes(), "untouched/b.ipynb": untouched.read_bytes()})
    done = subprocess.run(
        command(tmp_path / "in", "--out", tmp_path / "out"), cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    found = {row["student"]: row for row in rows}
    assert found["solved"]["points"] == found["solved"]["out_of"] > 0
    assert found["untouched"]["points"] == 0
    assert found["untouched"]["unit"] == found["solved"]["unit"] == unit
    assert found["solved"]["remarks"] == found["untouched"]["remarks"] == []
