"""The grader from outside: no attack earns a point, takes or leaves anything, or disturbs the others.

The attacks lie in tests/attacks, one in each cell. Each is a submission in which only the answer `clip-norm` is
right, so 2 points are honest and all others would be stolen. One run of the grader meets them all.
"""

import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import pytest
from broken_notebooks import broken
from notebook_factory import at, code
from test_grading import CLIP, FULL, HEAD, ROOT, UNIT, base, command, points_of, row_of, stored, submission
from test_grading_files import BRANCH, HIDDEN, MLP_STUB, SGD, SGD_STUB, UNTOUCHED, homework

from common.grading import sandbox

SEED = 20461113
MARK = f"attacked-{os.getpid()}"
HONEST = ("honest1", "honest2", "honest3")
FOLDER = Path(__file__).parent / "attacks"
SPOIL = ("patches", "elsewhere", "answer_files")  # attacks after which the student's own right answer may fail
PLACES = ("/", "/tmp", "/var/tmp", "/dev/shm", "/usr", "/etc", "/root", sys.prefix, *sys.path)
LEAKED = '''def leaked(text):
    """The marks of secrets in what an attack has found."""
    import re
    text = text.encode(errors="replace") if isinstance(text, str) else bytes(text)
    return re.findall(rb"CAN" rb"ARY-\\w+", text)'''


def attacks():
    """The cells of all files, by the name of the student who hands them in: file, place and source."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        for cell in path.read_text().split("\n# %% ")[1:]:
            title, source = cell.split("\n", 1)
            place, name = title.split(": ", 1)
            found[f"{path.stem}: {place}: {name}"] = (path.stem, place, source.strip())
    return found


def chosen(found):
    """Those whose name fits the regular expression ATTACKS of the environment."""
    return {title: one for title, one in found.items() if re.search(os.environ.get("ATTACKS", ""), title)}


ATTACKS = chosen(attacks())
BROKEN = chosen({f"broken: {title}": more for title, *more in broken(json.loads(stored(submission())))})


def student(title):
    """The name of the student who hands something in."""
    return re.sub(r"\W+", "-", title).strip("-")


def test_each_has_a_name_of_its_own():
    assert len({student(title) for title in (*ATTACKS, *BROKEN)}) == len(ATTACKS) + len(BROKEN)


def attacked(file, place, source):
    """The files of a submission with an attack in it."""
    if place.endswith(".py"):
        stubs = {"mlp.py": MLP_STUB, "sgd.py": SGD_STUB if place == "sgd.py" else SGD}
        made = UNTOUCHED | stubs | {place: stubs[place] + "\n\n" + source}
        return {name: one if isinstance(one, str) else stored(one) for name, one in made.items()}
    notebook = base()
    notebook.cells[at(notebook, "clip-norm")].source = f"{HEAD['clip-norm']}\n{CLIP}"
    notebook.cells.insert(1, code(LEAKED, "mine"))
    if place == "new":
        notebook.cells.insert(0, code(source, "new"))
    else:
        first = [HEAD[place]] if place in HEAD else []
        notebook.cells[at(notebook, place)].source = "\n".join([*first, source])
    return {"lab1_made.ipynb": stored(notebook)}


def honest(path):
    notebook = submission()
    notebook.cells.append(code(f"# {canary('other')}", "mine"))
    path.mkdir()
    (path / "lab1_made.ipynb").write_text(stored(notebook))


def canary(where):
    return f"CANARY-{where}"


def plant(root):
    """A course, secrets all around it, and what the students hand in."""
    with mock.patch.dict(BRANCH, {"hidden_checks.py": f'{HIDDEN}\nSECRET = "{canary("hidden")}"\n'}):
        homework(root / "course")
    subprocess.run(["git", "init", "--quiet", root / "course"], check=True)
    for unit in (UNIT, "phase9_made/hw1_made"):
        checks = root / "course" / unit / "checks.py"
        checks.write_text(checks.read_text() + f'\nSECRET = "{canary("checks")}"\n')
    for name in ("course/.git/secret", "tree/secret", "home/.netrc", "tmp/secret"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(canary(path.parent.name.strip(".")))
    (root / "in").mkdir()
    for one in HONEST:
        honest(root / "in" / one)
    strange(root / "in" / "strange")
    return root


def hand_in(root, files, name):
    for path, content in files.items():
        target = root / "in" / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())


def strange(folder):
    """A folder in which nothing is a proper file."""
    folder.mkdir()
    os.mkfifo(folder / "fifo.ipynb")
    (folder / "empty.ipynb").mkdir()
    for name, target in (
        ("stolen.ipynb", folder.parent / HONEST[0] / "lab1_made.ipynb"),
        ("endless.ipynb", Path("/dev/zero")),
        ("ring.ipynb", folder / "ring.ipynb"),
        ("up", folder.parent),
        ("root", Path("/")),
    ):
        (folder / name).symlink_to(target)


def filled(source, root, port):
    values = {"TREE": root / "tree", "IN": root / "in", "COURSE": root / "course", "OUT": root / "out"}
    for name, value in (values | {"PORT": port, "MARK": MARK, "SEED": SEED}).items():
        source = source.replace(f"@{name}@", str(value))
    return source


def snapshot(root):
    """Everything below a folder: names, rights, times and contents."""
    found = {}
    for folder, inside, names in os.walk(root):
        for path in (Path(folder, name) for name in (*inside, *names)):
            about = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
            times = about.st_mtime_ns if path.is_file() else 0
            found[str(path.relative_to(root))] = (about.st_mode, about.st_size * path.is_file(), times, content)
    return found


@contextlib.contextmanager
def listening(root):
    """Servers that must not hear anything."""
    with contextlib.ExitStack() as stack:
        made = []
        for family, address in (
            (socket.AF_INET, ("127.0.0.1", 0)),
            (socket.AF_UNIX, f"\0{MARK}"),
            (socket.AF_UNIX, str(root / "tree" / "socket")),
        ):
            one = stack.enter_context(socket.socket(family))
            one.bind(address)
            one.listen()
            one.setblocking(False)
            made.append(one)
        (root / "tree" / "socket").chmod(0o777)
        yield made


def heard(servers):
    found = []
    for server in servers:
        with contextlib.suppress(BlockingIOError):
            found.append(server.accept())
    return found


def children():
    """The processes that have this one as their parent: who is orphaned below it becomes its child."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, rest = path.read_text().rsplit(")", 1)
            state, parent = rest.split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found[int(path.parent.name)] = name
    return found


def left_over(before):
    until = time.monotonic() + 10
    while (left := children().keys() - before.keys()) and time.monotonic() < until:
        time.sleep(0.1)
    return {number: name for number, name in children().items() if number in left}


def peak(number):
    """The most memory that a process has had so far, in MB."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{number}/status").read_text()):
            return int(found[1]) // 1024
    return 0


def can_be_contained():
    return not sandbox.missing()


@pytest.fixture(scope="module")
def graded():
    if not can_be_contained():
        pytest.skip("no namespaces here: the attacks would run free")
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    root = Path(tempfile.mkdtemp(prefix="attacks-"))
    try:
        with listening(plant(root)) as servers:
            port = servers[0].getsockname()[1]
            for title, (file, place, source) in ATTACKS.items():
                hand_in(root, attacked(file, place, filled(source, root, port)), student(title))
            for title, (files, _) in BROKEN.items():
                hand_in(root, files, student(title))
            for folder, inside, names in os.walk(root):  # whoever gets here could write
                for path in (Path(folder), *(Path(folder, name) for name in (*inside, *names))):
                    if not path.is_symlink():
                        path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666))
            secret = {"GRADER_TOKEN": canary("environment"), "HOME": str(root / "home"), "TMPDIR": str(root / "tmp")}
            before, processes = snapshot(root), children()
            options = ("--course", root / "course", "--out", root / "out", "--seed", SEED, "--jobs", 2)
            began = time.monotonic()
            with (root / "said").open("w+") as said:
                run = subprocess.Popen(
                    command(root / "in", *options, "--timeout", 12, "--memory", 1),
                    cwd=ROOT,
                    env=os.environ | secret,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                )
                memory = 0
                while run.poll() is None:
                    memory = max(memory, peak(run.pid))
                    time.sleep(0.1)
            left = left_over(processes)
            assert run.returncode in (0, 1), (root / "said").read_text(errors="replace")[-3000:]
            rows = json.loads((root / "out" / "rows.json").read_text())["rows"]
            yield {
                "root": root,
                "rows": {(row["student"], row["unit"]): row for row in rows},
                "said": (root / "said").read_text(errors="replace"),
                "before": before,
                "heard": heard(servers),
                "left": left,
                "memory": memory,
                "seconds": time.monotonic() - began,
            }
    finally:
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)
        shutil.rmtree(root, ignore_errors=True)


def test_the_grader_goes_on_to_its_end(graded):
    assert len(graded["rows"]) == len(ATTACKS) + len(BROKEN) + len(HONEST) + 1
    assert [(row["student"], row["remarks"]) for row in graded["rows"].values() if row["failed"]] == []
    assert "\x1b" not in graded["said"].replace("\x1b[A", "")


@pytest.mark.parametrize("name", HONEST)
def test_the_honest_get_their_points(graded, name):
    assert points_of(row_of(graded, name)) == FULL


@pytest.mark.parametrize("title", ATTACKS)
def test_no_attack_earns_a_point_or_learns_a_secret(graded, title):
    file, place, _ = ATTACKS[title]
    row = row_of(graded, student(title))
    earned = {answer["slug"]: answer["points"] for answer in row["answers"]}
    right = {"mlp.py": "descend", "sgd.py": None}.get(place, "clip-norm")
    assert earned.pop(right, 0) in ((0, 1, 2) if file in SPOIL or right is None else (2,))
    assert {slug: points for slug, points in earned.items() if points} == {}
    said = [answer["message"] for answer in row["answers"]] + row["remarks"]
    said += [case["message"] for answer in row["answers"] for case in answer["cases"]]
    assert not [text for text in said if "CANARY-" in text or "FOUND" in text.split("\n")[0]]


@pytest.mark.parametrize("title", BROKEN)
def test_a_broken_notebook_has_one_row(graded, title):
    _, points = BROKEN[title]
    row = row_of(graded, student(title))
    if points is None:
        assert (row["points"], row["answers"]) == (0, [])
        assert row["remarks"]
    else:
        assert points_of(row) == points


def test_no_link_is_followed(graded):
    row = row_of(graded, "strange")
    assert row["answers"] == []
    assert len(row["remarks"]) >= 6


def test_nothing_is_written_outside(graded):
    after = snapshot(graded["root"])
    outside = {name: about for name, about in after.items() if name.split("/")[0] not in ("out", "said")}
    outside = {name: about for name, about in outside.items() if "torchinductor" not in name}  # made by torch itself
    assert outside == graded["before"]
    found = [str(path) for place in PLACES if place for path in Path(place).glob(f"{MARK}*")]
    assert found == []


def shared_memory(size):
    made = mmap.mmap(-1, size)
    made.write(b"x" * size)
    return made


def memory_file(size):
    return os.write(os.memfd_create("x"), b"x" * size)


def system_memory(size):
    library = ctypes.CDLL(None)
    library.shmat.restype = ctypes.c_void_p
    segment = library.shmget(0, ctypes.c_size_t(size), 0o1600)
    return segment >= 0 and ctypes.memset(library.shmat(segment, None, 0), 1, size)


def child(size):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: others may not look at its memory
        kept = b"x" * size
        time.sleep(5 + 0 * len(kept))
        os._exit(0)
    return True


@pytest.mark.parametrize("take", [shared_memory, memory_file, system_memory, child])
def test_memory_that_no_limit_of_a_process_counts(tmp_path, take):
    if not can_be_contained():
        pytest.skip("no namespaces here")

    def serve(sock, words):
        kept = []
        for _ in range(12):
            kept.append(take(2**27))
            time.sleep(0.1)
            sock.sendall(b"." if kept[-1] else b"")

    folder = Path(tempfile.mkdtemp(prefix=sandbox.FOLDER, dir=tmp_path))
    process, sock = sandbox.start(serve, sandbox.Settings(folder, memory=2**29))
    got = b""
    while part := sock.recv(100):
        got += part
    process.end(patience=1)
    sock.close()
    assert len(got) < 8, "a worker of 512 MB has taken 1 GB and more"


def test_nothing_is_left_running(graded):
    assert graded["left"] == {}


def test_nothing_is_heard(graded):
    assert graded["heard"] == []


def test_no_secret_is_in_the_results(graded):
    for path in (graded["root"] / "out").rglob("*"):
        if path.is_file():
            assert b"CANARY-" not in path.read_bytes(), path.name
    assert "CANARY-" not in graded["said"]


def test_the_grader_stays_small(graded):
    assert graded["memory"] <= 500
