"""`make solutions` and `make publish` on tiny courses with real git."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_factory import CODE, NET, NET_SOLVED, SEVERAL, THEORY, several, solve_several

from common.notebooks import anatomy, branch, rubric
from common.notebooks.anatomy import NotebookError

REPOSITORY = Path(__file__).resolve().parents[1]
UNIT = "phase/unit"
NOTEBOOK = f"{UNIT}/unit.ipynb"
CHECKS = """from common.checks import check


@check("double", points=2)
def double(answer, case):
    with case("doubles", points=2, hint="twice"):
        case.equal(answer(3), 6, mistakes={})


@check("triple", points=3)
def triple(answer, case):
    with case("triples", points=3, hint="thrice"):
        case.equal(answer(3), 9)
"""
TODO = '''# TODO {0}  ({1} points, ~5 min)
def {0}(x):
    """{0} x."""
    {2}'''


@pytest.fixture(autouse=True)
def _git_without_configuration(monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for name in list(os.environ):
        if name.startswith(("GIT_AUTHOR", "GIT_COMMITTER", "GIT_DIR", "GIT_INDEX", "GIT_WORK")):
            monkeypatch.delenv(name)


PROVE = branch._prove


@pytest.fixture(autouse=True)
def _trust(monkeypatch):
    """Proofs start a process that imports torch: only the test of publish's own proofs pays for that."""
    monkeypatch.setattr(branch, "_prove", lambda folder, say: None)


@pytest.fixture
def course(tmp_path):
    """A course in git, published once."""
    root = make_course(tmp_path / "the course ü")
    solve(root / "solutions")
    branch.publish(root, say=lambda line: None)
    git(root, "add", "solutions.bundle")
    git(root, "commit", "-qm", "bundle")
    return root


def git(folder, *args):
    command = ["git", "-c", "user.name=T", "-c", "user.email=t@example.invalid", *args]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def notebook(double='raise NotImplementedError("double")', triple='raise NotImplementedError("triple")'):
    def check(slug, points):
        text = f"{slug}: {points} of {points} points\n  ✓ {slug}s ({points}/{points})\n"
        cell = new_code_cell(f"checks.{slug}({slug})", id=f"check-{slug}", metadata={"tags": ["check"]})
        cell.outputs, cell.execution_count = [new_output("stream", text=text)], 1
        return cell

    def answer(slug, points, body):
        source = TODO.format(slug, points, body)
        return new_code_cell(source, id=slug, metadata={"tags": ["answer"]})

    cells = [
        new_code_cell("import checks", id="setup", metadata={"tags": ["setup"]}),
        new_markdown_cell("Some prose.", id="prose"),
        answer("double", 2, double),
        check("double", 2),
        answer("triple", 3, triple),
        check("triple", 3),
    ]
    return new_notebook(cells=cells, metadata={"course": {"unit": UNIT}})


def make_course(root):
    (root / "common").mkdir(parents=True)
    (root / "common/course.toml").write_text(
        'repository = ""\nbranch = "main"\n[[phase]]\nfolder = "phase"\ntitle = "P"\n'
        f'[[unit]]\nfolder = "{UNIT}"\ntitle = "U"\nhours = "1"\nbuilds = "It."\n'
    )
    anatomy.write(notebook(), root / NOTEBOOK)
    (root / UNIT / "checks.py").write_text(CHECKS)
    (root / UNIT / "picture.png").write_bytes(b"\x89PNG\r\n")
    (root / ".gitignore").write_text("solutions/\n__pycache__/\n")
    git(root.parent, "init", "-q", "-b", "main", root)
    git(root, "add", ".")
    git(root, "commit", "-qm", "start")
    return root


def solve(folder, double="return 2 * x", triple="return 3 * x", wrong=5):
    anatomy.write(notebook(double, triple), folder / NOTEBOOK)
    (folder / UNIT / "answers").mkdir(exist_ok=True)
    for slug, symbol in (("double", 2), ("triple", 3)):
        cells = [f"# %% right: a loop\ndef {slug}(x):\n    return sum([x] * {symbol})\n"]
        cells += [
            f"# %% wrong: power {n}  [says: not right]\ndef {slug}(x):\n    return x + {n}\n"
            for n in range(10, 10 + wrong)
        ]
        (folder / UNIT / "answers" / f"{slug}.py").write_text("\n".join(cells))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def tip(root, ref="solutions"):
    return git(root, "rev-parse", ref)


def heads(bundle):
    return git(bundle.parent, "bundle", "list-heads", str(bundle)).split()[0]


def lines(function, *args, **kwargs):
    said = []
    function(*args, **kwargs, say=said.append)
    return "\n".join(said)


def answer_of(path, slug="double"):
    return next(answer for answer in anatomy.answers(anatomy.read(path)) if answer.slug == slug).source


# -- make solutions ------------------------------------------------------------------------------------------


def test_solutions_are_complete_and_grafted(course):
    edit(course / NOTEBOOK, "Some prose.", "Better prose.")
    shutil.rmtree(course / "solutions")
    said = lines(branch.make_solutions, course)
    files = {path.relative_to(course / "solutions").as_posix() for path in (course / "solutions").rglob("*.*")}
    assert files - {".manifest"} == {
        NOTEBOOK,
        f"{UNIT}/checks.py",
        f"{UNIT}/picture.png",
        f"{UNIT}/answers/double.py",
        f"{UNIT}/answers/triple.py",
    }
    assert "the local branch" in said
    assert "Better prose." in (course / "solutions" / NOTEBOOK).read_text()
    assert "return 2 * x" in answer_of(course / "solutions" / NOTEBOOK)
    assert git(course, "status", "--porcelain", "--ignored") == f"M {NOTEBOOK}\n!! solutions/"


def test_fresh_clone_reads_the_remote_branch_then_the_bundle(course, tmp_path):
    git(tmp_path, "clone", "-q", str(course), "clone")
    assert "`origin/solutions`" in lines(branch.make_solutions, tmp_path / "clone")
    git(tmp_path, "clone", "-q", "--single-branch", str(course), "single")
    assert "From solutions.bundle" in lines(branch.make_solutions, tmp_path / "single")
    git(tmp_path, "clone", "-q", "--depth=1", course.as_uri(), "shallow")
    assert "From solutions.bundle" in lines(branch.make_solutions, tmp_path / "shallow")
    git(tmp_path, "clone", "-q", "--depth=1", "--no-single-branch", course.as_uri(), "deep")
    assert "`origin/solutions`" in lines(branch.make_solutions, tmp_path / "deep")
    for name in ("clone", "single", "shallow", "deep"):
        assert (tmp_path / name / "solutions" / NOTEBOOK).read_bytes() == (course / "solutions" / NOTEBOOK).read_bytes()
        assert git(tmp_path / name, "status", "--porcelain") == ""
        assert git(tmp_path / name, "for-each-ref", "refs/heads") == git(
            tmp_path / name, "for-each-ref", "refs/heads/main"
        )


def test_plain_copy_without_git(course, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(course, copy, ignore=shutil.ignore_patterns(".git", "solutions"))
    assert "From solutions.bundle" in lines(branch.make_solutions, copy)
    assert "return 2 * x" in answer_of(copy / "solutions" / NOTEBOOK)
    assert not (copy / ".git").exists()


def test_a_repository_around_a_plain_copy_is_not_read(course, tmp_path, monkeypatch):
    outer = make_course(tmp_path / "outer")
    solve(outer / "solutions", double="return 'outer'")
    branch.publish(outer, say=lambda line: None)
    copy = outer / "inside"
    shutil.copytree(course, copy, ignore=shutil.ignore_patterns(".git", "solutions"))
    monkeypatch.setenv("GIT_DIR", str(outer / ".git"))  # as in a git hook
    assert "From solutions.bundle" in lines(branch.make_solutions, copy)
    assert "return 2 * x" in answer_of(copy / "solutions" / NOTEBOOK)
    with pytest.raises(NotebookError, match="no git checkout"):
        branch.publish(copy)


def test_a_worktree_of_git_is_a_checkout(course, tmp_path):
    git(course, "worktree", "add", "-q", str(tmp_path / "tree"), "-b", "other")
    assert "the local branch" in lines(branch.make_solutions, tmp_path / "tree")


def test_edits_are_kept_until_forced(course):
    solutions = course / "solutions"
    edit(solutions / NOTEBOOK, "return 2 * x", "return x + x")
    edit(solutions / UNIT / "checks.py", "twice", "2 x")
    (solutions / UNIT / "rubric.md").write_text("new")
    (course / UNIT / "picture.png").write_bytes(b"another")
    for _ in range(2):  # what was kept once is kept again
        said = lines(branch.make_solutions, course)
        assert said.count("kept ") == 3, said
        assert "return x + x" in answer_of(solutions / NOTEBOOK)
        assert (solutions / UNIT / "rubric.md").read_text() == "new"
        assert "2 x" in (solutions / UNIT / "checks.py").read_text()
    assert (solutions / UNIT / "picture.png").read_bytes() == b"another"
    said = lines(branch.make_solutions, course, force=True)
    assert said.count("replaced ") == 2, said
    assert "return 2 * x" in answer_of(solutions / NOTEBOOK)
    assert (solutions / UNIT / "checks.py").read_text() == CHECKS
    assert (solutions / UNIT / "rubric.md").read_text() == "new"


def test_an_edit_and_a_new_version_are_told_apart_from_an_edit_alone(course):
    edit(course / "solutions" / NOTEBOOK, "return 2 * x", "return x + x")
    edit(course / NOTEBOOK, "Some prose.", "Better prose.")
    assert "source has changed as well" in lines(branch.make_solutions, course)


def test_a_notebook_that_was_only_run_is_not_an_edit(course):
    path = course / "solutions" / NOTEBOOK
    content = json.loads(path.read_text())
    content["cells"][0] |= {"execution_count": 7, "outputs": [new_output("stream", text="noise")]}
    path.write_text(json.dumps(content))
    assert "kept" not in lines(branch.make_solutions, course)
    assert "noise" not in path.read_text()


def test_a_students_own_run_leaves_no_trace_in_the_solution(course):
    before = (course / "solutions" / NOTEBOOK).read_bytes()
    content = json.loads((course / NOTEBOOK).read_text())
    content["cells"][3]["outputs"] = [{"output_type": "error", "ename": "CheckFailed", "evalue": "", "traceback": []}]
    content["cells"][3]["execution_count"] = 12
    (course / NOTEBOOK).write_text(json.dumps(content))
    branch.make_solutions(course)
    assert (course / "solutions" / NOTEBOOK).read_bytes() == before
    assert branch.drift(course) == []


def test_a_broken_notebook_on_main_stops_nothing(course):
    (course / NOTEBOOK).write_text("{")
    assert "as it was published" in lines(branch.make_solutions, course)
    assert "return 2 * x" in answer_of(course / "solutions" / NOTEBOOK)


@pytest.mark.parametrize("content", [b"", b"not a bundle", "cut"])
def test_a_damaged_bundle(course, tmp_path, content):
    bundle = course / "solutions.bundle"
    bundle.write_bytes(bundle.read_bytes()[:-60] if content == "cut" else content)
    assert "is damaged" in lines(branch.make_solutions, course)
    copy = tmp_path / "copy"
    shutil.copytree(course, copy, ignore=shutil.ignore_patterns(".git"))
    before = (copy / "solutions" / NOTEBOOK).read_bytes()
    with pytest.raises(NotebookError, match=r"solutions.bundle is damaged: get it again"):
        branch.make_solutions(copy)
    assert (copy / "solutions" / NOTEBOOK).read_bytes() == before
    assert "is damaged" in branch.drift(copy)[0]


def test_no_bundle_and_no_git(course, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(course, copy, ignore=shutil.ignore_patterns(".git", "solutions*"))
    with pytest.raises(NotebookError, match=r"no branch `solutions` and no solutions.bundle"):
        branch.make_solutions(copy)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotebookError, match="git is not installed"):
        branch.make_solutions(course)


def test_an_old_local_branch_is_told(course, tmp_path):
    old = tip(course)
    publish_change(course)
    git(course, "branch", "-f", "solutions", old)
    said = lines(branch.make_solutions, course, tmp_path / "out")
    assert "older than solutions.bundle. Run `git fetch solutions.bundle solutions:solutions`" in said
    assert branch.drift(course) == []
    with pytest.raises(NotebookError, match="someone else has published"):
        branch.publish(course)
    git(course, "fetch", "-q", "solutions.bundle", "solutions:solutions")
    assert "older" not in lines(branch.make_solutions, course, tmp_path / "out")


# -- make publish --------------------------------------------------------------------------------------------


def publish_change(root, new="return x + x"):
    edit(root / "solutions" / NOTEBOOK, "return 2 * x", new)
    return branch.publish(root, say=lambda line: None)


def state(root):
    bundle = (root / "solutions.bundle").read_bytes()
    return tip(root), bundle, git(root, "status", "--porcelain"), tip(root, "HEAD"), index(root)


def index(root):
    return git(root, "ls-files", "--stage", "--debug")


def test_publishing_twice_changes_nothing(course):
    before = state(course)
    stamp = (course / "solutions.bundle").stat().st_mtime_ns
    assert "Nothing to publish" in lines(branch.publish, course)
    assert state(course) == before
    assert (course / "solutions.bundle").stat().st_mtime_ns == stamp
    (course / "solutions.bundle").unlink()
    branch.publish(course)
    assert state(course)[:2] == before[:2]


def test_the_branch_holds_answers_and_nothing_else(course):
    assert git(course, "ls-tree", "-r", "--name-only", "solutions").split() == [
        f"{UNIT}/answers/double.py",
        f"{UNIT}/answers/triple.py",
        NOTEBOOK,
    ]
    stored = subprocess.run(["git", "show", f"solutions:{NOTEBOOK}"], cwd=course, capture_output=True).stdout
    assert stored == (course / "solutions" / NOTEBOOK).read_bytes()
    assert git(course, "log", "-1", "--format=%an <%ae>", branch.REF).startswith("Course authors <")


def test_publish_touches_neither_head_nor_index_nor_files(course):
    (course / UNIT / "staged.txt").write_text("staged")
    git(course, "add", UNIT)
    edit(course / NOTEBOOK, "Some prose.", "Better prose.")
    before = (git(course, "status", "--porcelain"), tip(course, "HEAD"), index(course))
    commit = publish_change(course)
    bundle_apart = [line for line in git(course, "status", "--porcelain").splitlines() if "bundle" not in line]
    assert (" ".join(bundle_apart).split(), tip(course, "HEAD"), index(course)) == (
        before[0].split(),
        *before[1:],
    )
    assert tip(course, f"{commit}^") == tip(course, "solutions~1")
    assert heads(course / "solutions.bundle") == commit
    assert "Better prose." in git(course, "show", f"solutions:{NOTEBOOK}")


def test_a_file_of_main_edited_in_the_folder_is_refused_or_left(course):
    (course / "solutions" / UNIT / "picture.png").write_bytes(b"x")
    assert "not published: solutions/phase/unit/picture.png" in lines(branch.publish, course)
    edit(course / "solutions" / UNIT / "checks.py", "twice", "2 x")
    with pytest.raises(NotebookError, match=r"checks.py, which students have: change it there"):
        branch.publish(course)


def test_an_old_copy_of_checks_is_not_an_edit(course):
    edit(course / UNIT / "checks.py", "twice", "2 x")
    commit = publish_change(course)
    assert "checks.py" not in git(course, "ls-tree", "-r", "--name-only", commit)
    assert "2 x" in (course / "solutions" / UNIT / "checks.py").read_text()


def test_a_completed_answer_file_goes_onto_the_branch(course):
    toml = course / "common/course.toml"
    toml.write_text(toml.read_text() + 'notebooks = [{ file = "unit.ipynb", answer_files = ["model.py"] }]\n')
    stub = TODO.format("half", 2, 'raise NotImplementedError("half")') + "\n"
    done = TODO.format("half", 2, "return x / 2") + "\n"
    (course / UNIT / "model.py").write_text(stub)
    branch.make_solutions(course)
    assert (course / "solutions" / UNIT / "model.py").read_text() == stub
    (course / "solutions" / UNIT / "model.py").write_text(done)
    commit = branch.publish(course)
    assert git(course, "show", f"{commit}:{UNIT}/model.py") == done.strip()
    shutil.rmtree(course / "solutions")
    branch.make_solutions(course)
    assert (course / "solutions" / UNIT / "model.py").read_text() == done


@pytest.mark.parametrize("kind", ["unanswered", "gone", "unknown", "no todo", "not made"])
def test_what_is_incomplete_is_not_published(course, kind):
    before = state(course)
    solutions = course / "solutions"
    if kind == "unanswered":
        edit(solutions / NOTEBOOK, "return 2 * x", 'raise NotImplementedError(\\"double\\")')
        says = f"answer double in solutions/{NOTEBOOK}"
    elif kind == "gone":
        (solutions / NOTEBOOK).unlink()
        says = "is gone"
    elif kind == "unknown":
        anatomy.write(notebook(), solutions / UNIT / "Untitled.ipynb")
        says = "has no notebook on main"
    elif kind == "no todo":
        (solutions / UNIT / "answers/half.py").write_text("")
        says = "delete solutions/phase/unit/answers/half.py"
    else:
        shutil.rmtree(solutions)
        says = "run `make solutions` first"
    with pytest.raises(NotebookError, match=says):
        branch.publish(course)
    assert state(course) == before


def test_proofs_decide(course, monkeypatch):
    monkeypatch.setattr(branch, "_prove", PROVE)
    solve(course / "solutions", double="return x", wrong=4)
    before = state(course)
    with pytest.raises(NotebookError) as raised:
        branch.publish(course)
    assert "double: right answer 'the reference' is refused: " in str(raised.value)
    assert "triple: stored wrong answers: 4, needed: 5" in str(raised.value)
    assert state(course) == before
    solve(course / "solutions", double="return x + x", wrong=6)
    assert branch.publish(course) != before[0]


def test_clone_with_the_bundle_alone_continues_its_history(course, tmp_path):
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth=1", course.as_uri(), "clone")
    git(clone, "remote", "remove", "origin")
    branch.make_solutions(clone)
    assert "Nothing to publish" in lines(branch.publish, clone)
    assert tip(clone) == tip(course)
    commit = publish_change(clone)
    assert tip(clone, f"{commit}~1") == tip(course)
    shutil.copyfile(clone / "solutions.bundle", course / "solutions.bundle")
    with pytest.raises(NotebookError, match="someone else has published"):
        branch.publish(course)
    git(course, "fetch", "-q", "solutions.bundle", "solutions:solutions")
    edit(course / "solutions" / NOTEBOOK, "return 3 * x", "return x * 3")
    with pytest.raises(NotebookError, match="not made from the present tip"):
        branch.publish(course)
    assert "source has changed as well" in lines(branch.make_solutions, course)
    branch.publish(course)


def test_histories_that_differ_are_not_joined(course):
    first = tip(course)
    mine = publish_change(course, "return x + x")
    bundle = (course / "solutions.bundle").read_bytes()
    git(course, "branch", "-f", "solutions", first)
    git(course, "checkout", "-q", "--", "solutions.bundle")
    branch.make_solutions(course, force=True)
    publish_change(course, "return 4 * x / 2")
    (course / "solutions.bundle").write_bytes(bundle)
    assert "different histories" in lines(branch.make_solutions, course)
    with pytest.raises(NotebookError, match="git branch -m solutions my-solutions"):
        branch.publish(course)
    assert heads(course / "solutions.bundle") == mine


def test_the_branch_must_not_be_checked_out(course, tmp_path):
    git(course, "worktree", "add", "-q", str(tmp_path / "tree"), "solutions")
    with pytest.raises(NotebookError, match="is checked out"):
        branch.publish(course)


def test_gits_own_identity_is_used(course):
    git(course, "config", "user.name", "Ada")
    git(course, "config", "user.email", "ada@example.invalid")
    commit = publish_change(course)
    assert git(course, "log", "-1", "--format=%an %ae %cn", commit) == "Ada ada@example.invalid Ada"


SLOW_GIT = """#!/bin/sh
case " $* " in *" {command} "*) touch {flag}; [ {when} = after ] && {git} "$@"; exec sleep 60;; esac
exec {git} "$@"
"""


@pytest.mark.parametrize(
    ("when", "command"),
    [
        *[("before", command) for command in ("hash-object", "commit-tree", "update-ref", "bundle create")],
        ("after", "rev-list"),
    ],
)
def test_kill_leaves_the_old_bundle_whole(course, tmp_path, command, when):
    """Publish is killed around each of git's steps; the next publish finishes the work."""
    bundle, flag, bin = course / "solutions.bundle", tmp_path / "flag", tmp_path / "bin"
    before, old = bundle.read_bytes(), tip(course)
    bin.mkdir()
    script = SLOW_GIT.format(command=command, flag=flag, when=when, git=shutil.which("git"))
    (bin / "git").write_text(script)
    (bin / "git").chmod(0o755)
    edit(course / "solutions" / NOTEBOOK, "return 2 * x", "return x + x")
    code = (
        "import sys; from pathlib import Path; from common.notebooks import branch\n"
        "branch._prove = lambda folder, say: None\nbranch.publish(Path(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(course)],
        env=os.environ | {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not flag.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert flag.exists()
    assert bundle.read_bytes() == before
    assert git(course, "status", "--porcelain") == ""
    moved = tip(course) != old
    assert bool(branch.drift(course)) == moved
    commit = branch.publish(course)
    assert heads(bundle) == commit == tip(course)
    assert tip(course, f"{commit}~1") == old
    assert branch.drift(course) == []


# -- drift ---------------------------------------------------------------------------------------------------


def test_no_drift_after_publishing(course):
    assert branch.drift(course) == []


def test_drift_is_named(course):
    path = course / NOTEBOOK
    original = path.read_bytes()
    edit(path, "Some prose.", "Better prose.")
    assert branch.drift(course) == [f"{NOTEBOOK} has changed since it was published: run `make publish`"]

    changed = notebook()
    changed.cells[2].source = TODO.format("half", 2, 'raise NotImplementedError("half")')
    changed.cells[2].id = "half"
    anatomy.write(changed, path)
    found = "\n".join(branch.drift(course))
    assert f"solutions.bundle is not complete: answer half in solutions/{NOTEBOOK}, and run `make publish`" in found
    assert "answers double, which is no TODO on main" in found
    assert "delete solutions/phase/unit/answers/double.py" in found

    path.unlink()
    assert f"main has no {NOTEBOOK}" in branch.drift(course)[0]
    path.write_bytes(original)
    (course / "solutions.bundle").unlink()
    assert branch.drift(course) == ["there is no solutions.bundle: run `make publish`"]


def test_drift_of_a_new_unit_and_of_a_newer_branch(course):
    bundle = (course / "solutions.bundle").read_bytes()
    publish_change(course)
    (course / "solutions.bundle").write_bytes(bundle)
    assert branch.drift(course) == ["the local branch `solutions` is newer than solutions.bundle: run `make publish`"]
    branch.publish(course)
    toml = course / "common/course.toml"
    toml.write_text(toml.read_text() + '[[unit]]\nfolder = "phase/two"\ntitle = "U"\nhours = "1"\nbuilds = "."\n')
    anatomy.write(notebook(), course / "phase/two/two.ipynb")
    assert branch.drift(course) == ["phase/two/two.ipynb is not in solutions.bundle: solve it and run `make publish`"]


def test_a_unit_inside_the_folder_of_another_is_not_copied_with_it(course):
    anatomy.write(notebook(), course / UNIT / "inner/inner.ipynb")
    (course / UNIT / "inner/checks.py").write_text(CHECKS)
    (course / UNIT / "parts").mkdir()
    (course / UNIT / "parts/one.txt").write_text("1")
    branch.make_solutions(course)
    assert not (course / "solutions" / UNIT / "inner").exists()
    assert (course / "solutions" / UNIT / "parts/one.txt").exists()


# -- a unit with several notebooks, an answer file, prose ------------------------------------------------------


@pytest.fixture
def net(tmp_path):
    """Such a unit, published once; its folder in solutions/."""
    root = several(tmp_path / "made")
    (root / ".gitignore").write_text("solutions/\n")
    git(tmp_path, "init", "-q", "-b", "main", root)
    solve_several(root / "solutions")
    branch.publish(root, say=lambda line: None)
    return root / "solutions" / SEVERAL


def root_of(net):
    return net.parents[2]


def ids(path):
    return [cell.id for cell in anatomy.read(path).cells]


def test_everything_of_a_unit_goes_onto_the_branch_and_comes_back(net):
    root = root_of(net)
    names = git(root, "ls-tree", "-r", "--name-only", "solutions").split()
    assert [name.removeprefix(f"{SEVERAL}/") for name in names] == [
        "answers/add-two.md",
        "answers/add-two.py",
        "answers/net-forward.md",
        "hidden_checks.py",
        "hw1_code.ipynb",
        "hw1_theory.ipynb",
        "net.py",
        "rubrics/why-two.md",
    ]
    shutil.rmtree(root / "solutions")
    branch.make_solutions(root, say=lambda line: None)
    assert (net / "net.py").read_text() == NET_SOLVED
    assert (net / "test_net.py").read_text() == (root / SEVERAL / "test_net.py").read_text()
    assert "Because one is not enough." in (net / "hw1_theory.ipynb").read_text()
    assert branch.drift(root) == []


def test_explanations_stand_below_their_answers(net):
    root = root_of(net)
    theory, code = ids(net / "hw1_theory.ipynb"), ids(net / "hw1_code.ipynb")
    assert theory[theory.index("add-two") :][:3] == ["add-two", "explanation-add-two", "check-add-two"]
    assert code[code.index("check-net-forward") + 1] == "explanation-net-forward"
    assert sum("explanation" in id for id in theory + code) == 2
    cell = anatomy.read(net / "hw1_theory.ipynb").cells[theory.index("explanation-add-two")]
    assert (cell.cell_type, cell.source) == ("markdown", "Two is $1 + 1$.\n\nSo we add it.")
    before = tip(root)
    assert "Nothing to publish" in lines(branch.publish, root)
    edit(net / "answers/add-two.md", "So we add it.", "So we add both.")
    (net / "answers/net-forward.md").unlink()
    branch.publish(root)
    assert tip(root) != before
    assert "So we add both." in git(root, "show", f"solutions:{THEORY}")
    assert "explanation" not in git(root, "show", f"solutions:{CODE}")
    assert branch.drift(root) == []


def test_an_explanation_is_edited_in_its_file(net):
    root = root_of(net)
    edit(net / "answers/add-two.md", "So we add it.", "So we add one twice.")
    branch.make_solutions(root)
    assert "one twice." in (net / "hw1_theory.ipynb").read_text()
    branch.publish(root)
    edit(net / "hw1_theory.ipynb", "one twice.", "both.")
    says = f"cell explanation-add-two of solutions/{THEORY} to solutions/{SEVERAL}/answers/add-two.md"
    assert says in lines(branch.make_solutions, root)
    with pytest.raises(NotebookError, match=says):
        branch.publish(root)
    assert "both." in (net / "hw1_theory.ipynb").read_text()
    edit(net / "answers/add-two.md", "one twice.", "both, always.")
    branch.publish(root)
    assert "both, always." in (net / "hw1_theory.ipynb").read_text()
    assert "Nothing to publish" in lines(branch.publish, root)
    edit(net / "hw1_code.ipynb", "explanation-net-forward", "explanation-net-loss")
    with pytest.raises(NotebookError, match=rf"cell explanation-net-loss .* to solutions/{SEVERAL}/answers/net-loss"):
        branch.publish(root)


def test_a_half_solved_answer_file_is_kept(net):
    edit(net / "net.py", "** 2", "** 3")
    said = lines(branch.make_solutions, root_of(net))
    assert f"kept {SEVERAL}/net.py as you changed it" in said
    assert "** 3" in (net / "net.py").read_text()


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),  # what says None is fine
    [
        ("net.py", None, None, "complete solutions/{}/net.py"),
        ("net.py", "", NET, "complete solutions/{}/net.py"),
        (
            "net.py",
            "difference_of_the_two_values =",
            'raise NotImplementedError("net-loss")\n    d =',
            "answer net-loss in",
        ),
        ("net.py", "# TODO net-loss  (6 points, ~10 min)\n", "", "the TODO lines of {}/net.py.* differ in net-loss"),
        ("net.py", "(6 points", "(7 points", "the TODO lines of {}/net.py.* differ in net-loss"),
        ("net.py", "def net_loss", "def other():\n    pass\n\n\ndef net_loss", "differ in net-loss"),
        ("net.py", "class Net:", "class Net", "mend solutions/{}/net.py: it is not valid Python"),
        ("test_net.py", "3", "4", "test_net.py differs from {}/test_net.py, which students have"),
        ("hw1_theory.ipynb", "x + 2", "None", None),
        (
            "hw1_theory.ipynb",
            "Because one is not enough.",
            "*Your answer.*",
            "answer why-two in solutions/{}/hw1_theory",
        ),
        ("answers/net-x.md", "", "x", "delete solutions/{}/answers/net-x.md: no TODO of this name is answered in code"),
        ("answers/net-x.py", "", "x", "delete solutions/{}/answers/net-x.py"),
        ("answers/why-two.md", "", "x", "delete solutions/{}/answers/why-two.md"),
        ("answers/scaler-layer.md", "", "x", None),
        ("answers/net-loss.py", "", "x", None),
        ("rubrics/why-two.md", None, None, "write solutions/{}/rubrics/why-two.md: what earns the 2 points"),
        ("rubrics/add-two.md", "", "x", "delete solutions/{}/rubrics/add-two.md: no TODO of this name .* in prose"),
        ("rubrics/why-two.md", "# why-two", "# why", "mend solutions/{}/rubrics/why-two.md: its first line"),
        ("rubrics/why-two.md", "1 point: says one", "2 points: says one", "mend .*: it gives 3 points, the TODO 2"),
    ],
)
def test_what_is_incomplete_in_such_a_unit_is_not_published(net, file, old, new, says):
    path = net / file
    if old is None:
        path.unlink()
    elif old:
        edit(path, old, new)
    else:
        path.write_text(new)
    before = tip(root_of(net))
    if says is None:
        assert branch.publish(root_of(net)) != before
        return
    with pytest.raises(NotebookError, match=says.format(SEVERAL)):
        branch.publish(root_of(net))
    assert tip(root_of(net)) == before


def test_a_notebook_of_the_unit_is_missing_on_the_branch(net):
    root = root_of(net)
    manifest = json.loads((root / "solutions/.manifest").read_text())
    del manifest["files"][CODE]
    (root / "solutions/.manifest").write_text(json.dumps(manifest))
    (net / "hw1_code.ipynb").unlink()
    with pytest.raises(NotebookError, match=f"solve {CODE} as solutions/{CODE}"):
        branch.publish(root)


def test_drift_of_an_answer_file_and_of_prose(net):
    root = root_of(net)
    edit(root / SEVERAL / "net.py", "net-loss  (6 points", "net-loss  (5 points")
    theory = anatomy.read(root / THEORY)
    cell = next(cell for cell in theory.cells if cell.id == "why-two")
    cell.source = cell.source.replace("2 points", "4 points")
    anatomy.write(theory, root / THEORY)
    assert branch.drift(root) == [
        f"{THEORY} has changed since it was published: run `make publish`",
        f"solutions.bundle is not complete: give solutions/{SEVERAL}/net.py the TODO lines of {SEVERAL}/net.py, each "
        "where it stands there: they differ in net-loss, and run `make publish`",
        f"solutions.bundle is not complete: mend solutions/{SEVERAL}/rubrics/why-two.md: it gives 2 points, "
        "the TODO 4, and run `make publish`",
    ]


# -- rubrics -------------------------------------------------------------------------------------------------


def test_a_rubric_is_read(tmp_path):
    file = tmp_path / "why-two.md"
    file.write_text(
        "# why-two\n\n- 2 points: names the\n  cause\n- 1 point: gives: an example\n\n"
        "Common misreadings:\n\n- one is enough\n"
    )
    found = rubric.read(file)
    assert (found.slug, found.points) == ("why-two", 3)
    assert found.items == ((2, "names the cause"), (1, "gives: an example"))
    assert found.notes == "Common misreadings:\n\n- one is enough"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "first line must be `# why-two`"),
        ("# why\n- 1 point: x\n", "first line must be `# why-two`"),
        ("# why-two\n- 1: x\n", "says nowhere what earns points"),
        (None, "cannot be read"),
    ],
)
def test_a_spoilt_rubric_is_named(tmp_path, text, says):
    file = tmp_path / "why-two.md"
    if text is not None:
        file.write_text(text)
    with pytest.raises(NotebookError, match=says):
        rubric.read(file)
