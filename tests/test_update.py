import os
import subprocess
from pathlib import Path

import pytest
from notebook_factory import ADD, ADD_SOLVED, UNIT, answered, at, code, course_notebook, text, theory_notebook

from common.notebooks import anatomy, update
from common.notebooks.anatomy import NotebookError

NOTEBOOK = f"{UNIT}/lab1_made.ipynb"
STUB_FILE = 'def net():\n    """Build it."""\n    raise NotImplementedError("net")\n'
TOML = f"""repository = ""
branch = "main"
phase = [{{ folder = "phase9_made", title = "Made" }}]

[[unit]]
folder = "{UNIT}"
title = "Made"
hours = "1-2"
builds = "It."
notebooks = [
    {{ file = "lab1_made.ipynb", answer_files = ["net.py"] }},
    {{ file = "second.ipynb", answer_files = ["same.py"] }},
]
"""
MY_FILE = 'def net():\n    """Build it."""\n    return 42\n'


def git(folder, *args):
    identity = {f"GIT_{who}_{what}": "x@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    outside = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *args], cwd=folder, env={**outside, **identity}, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def write_course(folder: Path, version: int) -> None:
    """The course, in version 1 or 2."""
    nb = course_notebook()
    if version == 2:
        nb.cells[at(nb, "text-adding")].source += "\n\nMore words."
        nb.cells[at(nb, "add-two")].source = ADD.replace("Return x plus 2.", "Return x and two more.")
        nb.cells[at(nb, "check-add-two")].outputs[0].text = "new text\n"
    anatomy.write(nb, folder / NOTEBOOK)
    anatomy.write(theory_notebook(), folder / UNIT / "second.ipynb")
    same = course_notebook()
    same.metadata["course"]["unit"] = "phase9_made/lab2_same"
    anatomy.write(same, folder / "phase9_made/lab2_same/lab2_same.ipynb")
    files = {
        "common/course.toml": TOML,
        "common/tool.py": f"VERSION = {version}\n",
        f"{UNIT}/checks.py": f"# checks {version}\n",
        f"{UNIT}/net.py": STUB_FILE if version == 1 else STUB_FILE.replace("Build it.", "Build the net."),
        f"{UNIT}/same.py": STUB_FILE,
        f"{UNIT}/test_net.py": f"from net import net  # {version}\n",
        f"{UNIT}/drawing.py": f"# for the pictures {version}\n",
        "README.md": f"version {version}\n",
        "gone.md" if version == 1 else "fresh.md": "text\n",
        "run.sh": f"echo {version}\n",
        ".gitignore": "*.before-update-*\n*.from-update-*\n",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "run.sh").chmod(0o755)
    if version == 2:
        (folder / "gone.md").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def remote(tmp_path_factory):
    """A repository whose first commit is version 1, with version 2 on the branch `next`."""
    folder = tmp_path_factory.mktemp("remote") / "course"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    write_course(folder, 1)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "1")
    git(folder, "branch", "old")
    write_course(folder, 2)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "2")
    return folder


@pytest.fixture
def clone(remote, tmp_path):
    """A student's clone, still at version 1."""
    folder = tmp_path / "mine"
    git(tmp_path, "clone", "-q", str(remote), str(folder))
    git(folder, "reset", "-q", "--hard", "origin/old")
    return folder


def half_done(folder: Path) -> None:
    """What a student does: half of the answers, a note, an answer file, a change of a helper."""
    nb = answered(add_two=ADD_SOLVED.replace("x + 2", "2 + helper(x)"), why_two="<!-- TODO why-two -->\n\nSo.")
    nb.cells[at(nb, "scaler-layer")] = course_notebook().cells[at(nb, "scaler-layer")]
    nb.cells.insert(4, code("def helper(x):\n    return x"))
    nb.cells.append(text("My own note."))
    anatomy.write(nb, folder / NOTEBOOK)
    anatomy.write(answered(), folder / "phase9_made/lab2_same/lab2_same.ipynb")
    (folder / UNIT / "net.py").write_text(MY_FILE)
    (folder / UNIT / "same.py").write_text(MY_FILE)
    (folder / UNIT / "test_net.py").write_text("def test_mine():\n    assert True\n")
    (folder / UNIT / "drawing.py").write_text("x = 1\n")
    anatomy.write(theory_notebook(add_two=ADD_SOLVED), folder / UNIT / "second.ipynb")
    (folder / "common" / "tool.py").write_text("VERSION = 'mine'\n")
    (folder / UNIT / "my_plan.md").write_text("mine\n")


def run(folder, new=None):
    said: list[str] = []
    update.update(folder, new, said.append)
    return said


def check_result(folder: Path) -> None:
    nb = anatomy.read(folder / NOTEBOOK)
    sources = {answer.slug: answer.source for answer in anatomy.answers(nb)}
    assert "def helper" in sources["add-two"]
    assert "return 2 + helper(x)" in sources["add-two"]
    assert sources["why-two"].endswith("\nSo.")
    assert "NotImplementedError" in sources["scaler-layer"]
    assert "More words." in nb.cells[at(nb, "text-adding")].source
    assert nb.cells[at(nb, "check-add-two")].outputs[0].text == "new text\n"
    old = anatomy.read(folder / UNIT / "lab1_made.before-update-1.ipynb")
    assert old.cells[-1].source == "My own note."
    assert (folder / UNIT / "net.py").read_text() == MY_FILE
    assert (folder / UNIT / "net.from-update-1.py").read_text() == STUB_FILE.replace("Build it.", "Build the net.")
    assert (folder / UNIT / "same.py").read_text() == MY_FILE
    assert (folder / UNIT / "checks.py").read_text() == "# checks 2\n"
    for name, content in (("test_net.py", "from net import net  # 2\n"), ("drawing.py", "# for the pictures 2\n")):
        assert (folder / UNIT / name).read_text() == content, "no answer file"
        assert (folder / UNIT / f"{name}.before-update-1").is_file()
    second = {answer.slug: answer.is_stub for answer in anatomy.answers(anatomy.read(folder / UNIT / "second.ipynb"))}
    assert second == {"add-two": False, "why-two": True}
    assert (folder / "common" / "tool.py").read_text() == "VERSION = 2\n"
    assert (folder / "common" / "tool.py.before-update-1").read_text() == "VERSION = 'mine'\n"
    assert (folder / UNIT / "my_plan.md").read_text() == "mine\n"
    assert (folder / "README.md").read_text() == "version 2\n"
    assert (folder / "fresh.md").is_file()
    assert os.access(folder / "run.sh", os.X_OK)


def backups(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*-update-*"))


def test_a_git_hook_does_not_lead_astray(clone, remote, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(remote / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(remote / ".git" / "index"))
    run(clone)
    assert git(clone, "rev-parse", "HEAD") == git(remote, "rev-parse", "HEAD")


@pytest.mark.parametrize("committed", ["nothing", "some", "all"])
def test_git(clone, remote, committed):
    half_done(clone)
    before = (clone / "phase9_made/lab2_same/lab2_same.ipynb").read_bytes()
    if committed != "nothing":
        git(clone, "add", UNIT if committed == "some" else ".")
        git(clone, "commit", "-qm", "my work")
    mine = git(clone, "rev-parse", "HEAD")
    said = run(clone)
    check_result(clone)
    assert not (clone / "gone.md").exists()
    assert (clone / "phase9_made/lab2_same/lab2_same.ipynb").read_bytes() == before, "upstream left it alone"
    assert backups(clone) == [
        "drawing.py.before-update-1",
        "lab1_made.before-update-1.ipynb",
        "net.from-update-1.py",
        "test_net.py.before-update-1",
        "tool.py.before-update-1",
    ]
    assert any("2 of 3 TODOs are answered and carried over" in line for line in said)
    new = git(remote, "rev-parse", "HEAD")
    git(clone, "merge-base", "--is-ancestor", mine, "HEAD")
    git(clone, "merge-base", "--is-ancestor", new, "HEAD")
    assert git(clone, "branch", "--show-current") == "main"
    assert git(clone, "diff", "--cached", "--name-only") == ""
    if committed == "nothing":
        assert git(clone, "rev-parse", "HEAD") == new
    if committed == "all":
        assert git(clone, "status", "--porcelain") == ""
    assert run(clone) == ["The course is up to date."]


def test_untouched_clone_is_simply_new(clone, remote):
    assert len(run(clone)) == 1
    assert git(clone, "rev-parse", "HEAD") == git(remote, "rev-parse", "HEAD")
    assert git(clone, "status", "--porcelain", "--ignored") == ""


@pytest.mark.parametrize("nested", [False, True])
def test_folder(tmp_path, nested):
    mine, new = tmp_path / "mine", tmp_path / "download" / "course-main"
    write_course(mine, 1)
    write_course(new, 2)
    half_done(mine)
    said = run(mine, new.parent if nested else new)
    check_result(mine)
    assert not (mine / "run.from-update-1.sh").exists()
    assert any(line.startswith(f"{NOTEBOOK}: 2 of 3 TODOs") for line in said)
    once = backups(mine)
    run(mine, new)
    assert backups(mine) == once, "a second update must not make new copies"
    check_result(mine)


def test_untouched_answer_file_is_replaced_from_a_folder(tmp_path):
    write_course(tmp_path / "mine", 1)
    write_course(tmp_path / "new", 2)
    run(tmp_path / "mine", tmp_path / "new")
    assert "Build the net." in (tmp_path / "mine" / UNIT / "net.py").read_text()


@pytest.mark.parametrize("toml", ["[", 'repository = ""\n', TOML.replace("answer_files", "files_of_a_later_version")])
def test_a_course_toml_that_this_version_cannot_read(tmp_path, toml):
    """Whatever may be an answer file stays the student's."""
    write_course(tmp_path / "mine", 1)
    write_course(tmp_path / "new", 2)
    (tmp_path / "new" / "common" / "course.toml").write_text(toml)
    half_done(tmp_path / "mine")
    run(tmp_path / "mine", tmp_path / "new")
    unit = tmp_path / "mine" / UNIT
    assert (unit / "net.py").read_text() == MY_FILE
    assert (unit / "drawing.py").read_text() == "x = 1\n"
    assert (unit / "test_net.py").read_text() == "from net import net  # 2\n"
    assert (unit / "checks.py").read_text() == "# checks 2\n"


def test_unreadable_notebook_is_kept_aside(clone):
    (clone / NOTEBOOK).write_text('{"cells": [{"source": "def add_two')
    said = run(clone)
    assert any("COULD NOT BE READ" in line and "lab1_made.before-update-1.ipynb" in line for line in said)
    assert (clone / UNIT / "lab1_made.before-update-1.ipynb").read_text().endswith("def add_two")
    assert len(anatomy.answers(anatomy.read(clone / NOTEBOOK))) == 3


def test_answer_to_a_todo_that_is_gone_is_named(clone):
    nb = answered()
    nb.cells.append(code("# TODO old-task  (4 points, ~5 min)\ndef old_task():\n    return 1", "old-task"))
    anatomy.write(nb, clone / NOTEBOOK)
    assert any("old-task: this version of the notebook has no such TODO" in line for line in run(clone))
    assert "old_task" in (clone / UNIT / "lab1_made.before-update-1.ipynb").read_text()


def test_a_deleted_file_comes_back(clone):
    (clone / NOTEBOOK).unlink()
    run(clone)
    assert len(anatomy.answers(anatomy.read(clone / NOTEBOOK))) == 3


def test_a_file_of_mine_where_a_new_one_comes(clone):
    (clone / "fresh.md").write_text("mine\n")
    run(clone)
    assert (clone / "fresh.md").read_text() == "text\n"
    assert (clone / "fresh.md.before-update-1").read_text() == "mine\n"


def test_history_without_common_root(clone, remote):
    """A course that was published anew, or a repository that a student made of the zip."""
    half_done(clone)
    git(clone, "checkout", "-q", "--orphan", "mine")
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "mine")
    run(clone)
    check_result(clone)
    git(clone, "merge-base", "--is-ancestor", git(remote, "rev-parse", "HEAD"), "HEAD")


@pytest.mark.parametrize("committed", [False, True])
def test_interrupted_anywhere(clone, monkeypatch, committed):
    """Whatever step is the last one before the power goes, the next call ends where one call would have."""
    half_done(clone)
    if committed:
        git(clone, "add", ".")
        git(clone, "commit", "-qm", "my work")
    start = clone.parent / "start"
    clone.rename(start)
    steps = 1
    while True:
        subprocess.run(["cp", "-a", str(start), str(clone)], check=True)
        left = [steps]

        def stop_at(function, left=left):
            def do(*args, **named):
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
                return function(*args, **named)

            return do

        with monkeypatch.context() as patch:
            patch.setattr(update.anatomy, "write_bytes", stop_at(anatomy.write_bytes))
            patch.setattr(update, "_move_head", stop_at(update._move_head))
            patch.setattr(Path, "unlink", stop_at(Path.unlink))
            try:
                run(clone)
            except KeyboardInterrupt:
                run(clone)
            else:
                break
        check_result(clone)
        assert backups(clone)[1] == "lab1_made.before-update-1.ipynb"
        assert len(backups(clone)) == 5
        subprocess.run(["rm", "-rf", str(clone)], check=True)
        steps += 1
    assert steps > 8


# Errors say what to do


def test_no_clone(tmp_path):
    write_course(tmp_path, 1)
    with pytest.raises(NotebookError, match="NEW="):
        run(tmp_path)


def test_no_remote(clone):
    git(clone, "remote", "remove", "origin")
    with pytest.raises(NotebookError, match="no remote"):
        run(clone)


def test_no_network(clone):
    half_done(clone)
    before = (clone / NOTEBOOK).read_bytes()
    git(clone, "remote", "set-url", "origin", str(clone / "nowhere"))
    with pytest.raises(NotebookError, match="could not be fetched from 'origin'"):
        run(clone)
    assert (clone / NOTEBOOK).read_bytes() == before


def test_merge_under_way(clone):
    (clone / ".git" / "MERGE_HEAD").write_text("0" * 40)
    with pytest.raises(NotebookError, match="git merge --abort"):
        run(clone)


def test_no_git(clone, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotebookError, match="git is not installed"):
        run(clone)


def test_no_course_in_the_folder(tmp_path):
    write_course(tmp_path / "mine", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotebookError, match="no course there"):
        run(tmp_path / "mine", tmp_path / "empty")
    with pytest.raises(NotebookError, match="this very course"):
        run(tmp_path / "mine", tmp_path / "mine")


def test_a_fork_is_updated_from_upstream(clone, remote):
    git(clone, "remote", "rename", "origin", "upstream")
    git(clone, "remote", "add", "origin", str(clone / "my-fork"))
    run(clone)
    assert git(clone, "rev-parse", "HEAD") == git(remote, "rev-parse", "HEAD")
