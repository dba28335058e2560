"""Mangled notebooks, made from the course's own: each gets a row, soon, and the grader stays small.

`FUZZ=1000 pytest tests/test_fuzz_grading.py` makes a thousand of them; the default is a few.
"""

import json
import os
import random
import subprocess
import time
from copy import deepcopy

import pytest
from test_attacks import peak
from test_grading import ROOT, command

from common.notebooks import branch

COUNT = int(os.environ.get("FUZZ", "16"))
SEED = 4
JUNK = (
    *(None, True, -1, 1e308, "", "\0", "\ud800", "\u202e", "x" * 100_000, [], {}, [[[[]]]], {"source": {}}),
    *("code", "markdown", "def f(:\n", "%%bash\nexit 1\n", "'''", "((((", "import os\n"),
    "# TODO causal-mask  (5 points, ~10 min)\n",
)


def some(data, rng):
    """Two places in a sequence, in order and mostly near each other."""
    begin = rng.randrange(len(data) + 1)
    return begin, min(len(data), begin + int(rng.expovariate(1 / max(1, len(data) // 20))))


def mangled_bytes(data, rng):
    """Change, leave out, repeat or insert bytes; or break off."""
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        a, b = some(made, rng)
        change = rng.randrange(6)
        if change == 0 and made:
            made[min(a, len(made) - 1)] = rng.randrange(256)
        elif change == 1:
            del made[a:b]
        elif change == 2:
            made[a:a] = made[a:b]
        elif change == 3:
            made[a:a] = rng.randbytes(rng.randrange(50))
        elif change == 4:
            made[a:a] = rng.choice(
                (b"[" * 2000, b'{"a":' * 500, b'"', b"\\", b"\xff\xfe", b"\0", b",", b"]}", b"<<<<<<< ")
            )
        elif rng.random() < 0.1:
            del made[a:]
    return bytes(made)


def nodes(value):
    """All containers in a JSON value."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found = [value] if isinstance(value, (dict, list)) and value else []
    return found + [node for one in inside for node in nodes(one)]


def mangled_json(notebook, rng):
    """Replace, leave out, exchange or repeat values anywhere."""
    for _ in range(rng.choice((1, 3, 10, 40))):
        node = rng.choice(nodes(notebook) or [notebook])
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            continue
        one, other = rng.choice(keys), rng.choice(keys)
        change = rng.randrange(4)
        if change == 0:
            node[one] = deepcopy(rng.choice(JUNK))
        elif change == 1:
            del node[one]
        elif change == 2:
            node[one], node[other] = node[other], node[one]
        elif isinstance(node, list) and len(node) < 500:
            node.extend(deepcopy(node[:20]))
    return notebook


def mangled_cells(notebook, rng):
    """Delete, repeat, move, split, join and edit cells, as students and editors do."""
    cells = notebook["cells"]
    for _ in range(rng.choice((1, 3, 10, 40))):
        if not cells:
            break
        place = rng.randrange(len(cells))
        cell = cells[place]
        text = "".join(cell["source"])
        change = rng.randrange(9)
        a, b = some(text, rng)
        if change == 0:
            del cells[place]
        elif change == 1:
            cells.insert(rng.randrange(len(cells)), deepcopy(cell))
        elif change == 2:
            cells.insert(rng.randrange(len(cells)), cells.pop(place))
        elif change == 3:
            cell["source"] = text[:a]
            cells.insert(place + 1, cell | {"source": text[a:]})
        elif change == 4:
            cell["cell_type"] = rng.choice(("code", "markdown", "raw", "heading"))
        elif change == 5:
            cell["id"] = rng.choice(cells).get("id", "")
        elif change == 6:
            cell["source"] = text[:a] + str(rng.choice(JUNK))[:1000] + text[b:]
        elif change == 7:
            cell["source"] = text[:a] + text[b:]
        else:
            cell["source"] = text + "\n" + "".join(rng.choice(cells)["source"])
    return notebook


def mangled(data, rng):
    """One mangled notebook."""
    level = rng.choice((mangled_bytes, mangled_json, mangled_cells, mangled_cells))
    if level is mangled_bytes:
        return mangled_bytes(data, rng)
    return json.dumps(level(json.loads(data), rng)).encode()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The notebooks of students and their solutions."""
    solved = branch.make_solutions(ROOT, tmp_path_factory.mktemp("solved") / "solutions", say=lambda line: None)
    given = branch.unit_notebooks(ROOT)
    return [path.read_bytes() for path in given + 2 * [solved / path.relative_to(ROOT) for path in given]]


def test_every_mangled_notebook_has_a_row(tmp_path, sources):
    rng = random.Random(SEED)
    for number in range(COUNT):
        path = tmp_path / "in" / f"student{number}" / "notebook.ipynb"
        path.parent.mkdir(parents=True)
        path.write_bytes(mangled(rng.choice(sources), rng))
    began, memory = time.monotonic(), 0
    with (tmp_path / "said").open("w") as said:
        options = ("--out", tmp_path / "out", "--seed", SEED, "--timeout", 60)
        run = subprocess.Popen(command(tmp_path / "in", *options), cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        while run.poll() is None:
            memory = max(memory, peak(run.pid))
            time.sleep(0.1)
    text = (tmp_path / "said").read_text(errors="replace")
    assert run.returncode == 0, text[-3000:]
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())["rows"]
    print(f"{len(rows)} rows in {time.monotonic() - began:.0f} s, {memory} MB")
    assert {row["student"] for row in rows} == {f"student{number}" for number in range(COUNT)}
    assert len(rows) == COUNT
    assert all(0 <= row["points"] <= row["out_of"] for row in rows)
    assert memory <= 500
