"""A newer version of the course in mid-term, without losing what the student has done.

The newer course comes from the remote of a git clone or from a folder. Per file that both sides changed:
a notebook gets the student's answers grafted into the new one; an answer file that course.toml lists stays
the student's; of anything else the new version is taken. The student's own version stays beside it as
`*.before-update-*`.

Every file is written whole or not at all, copies are made before anything is replaced, and git's HEAD moves
last: after an interruption the next call carries on, and finds what is done already done.
"""

import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

from common import course
from common.notebooks import anatomy, git, graft, normal, rules
from common.notebooks.anatomy import NotebookError

Say = Callable[[str], None]
Reader = Callable[[str], bytes | None]

# What a folder with a course may hold that is not the course's.
_NOT_COURSE = {".git", ".venv", ".ipynb_checkpoints", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
_OTHER_WAY = "Or download the newer course, unpack it, and run `make update NEW=<that folder>`."


@dataclass
class _Change:
    """What is to be brought in: the paths that are new or different, and how to read both sides.

    `before` reads the version that the student started from; None where that is not known.
    """

    paths: list[str]
    new: Reader
    before: Reader | None
    answer_files: set[str]
    executable: set[str]


def update(root: Path, new: Path | None = None, say: Say = print) -> None:
    """Bring the course in `root` to a newer version and keep the student's answers.

    Args:
        root: the student's copy of the course.
        new: a folder with the newer course; without it, it comes from the remote of the git clone `root`.
        say: is given one line for each file that needed a decision, and a summary.

    Raises:
        NotebookError: there is nothing to update from; the message says what to do.
    """
    root = root.resolve()
    if new is not None:
        change = _from_folder(root, new)
        _bring(root, change, say)
    else:
        _check_clone(root)
        head, target = _text(root, "rev-parse", "HEAD"), _fetch(root)
        base = _text(root, "merge-base", head, target, may_fail=True) or None
        if base == target:
            say("The course is up to date.")
            return
        change = _from_commit(root, base, target)
        _bring(root, change, say)
        _move_head(root, head, base, target, change.paths)
    say("The course is updated. Reload notebooks that are open (File > Reload Notebook from Disk).")


# One file after the other


def _bring(root: Path, change: _Change, say: Say) -> None:
    for path in change.paths:
        mine = (root / path).read_bytes() if (root / path).is_file() else None
        new = change.new(path)
        old = change.before(path) if change.before else None
        untouched = change.before is not None and _same(mine, old)
        if new is None:
            if mine is not None and untouched:
                (root / path).unlink()
        elif _same(mine, new):
            pass
        elif mine is None or untouched:
            _write(root, path, new, change)
        elif path.endswith(".ipynb") and _has_answers(new):
            _merge_notebook(root, path, mine, new, old, change, say)
        elif path in change.answer_files and not _is_untouched_code(new, mine):
            beside = _lay_beside(root / path, new, "from-update", keep_ending=True)
            say(f"{path}: is yours and stays as it is. The new version lies beside it: {beside.name}")
        else:
            copy = _lay_beside(root / path, mine, "before-update", keep_ending=False)
            _write(root, path, new, change)
            say(f"{path}: new version. Your copy: {copy.name}")


def _merge_notebook(
    root: Path, path: str, mine: bytes, new: bytes, old: bytes | None, change: _Change, say: Say
) -> None:
    try:
        student = anatomy.parse(mine)
    except NotebookError as error:
        copy = _lay_beside(root / path, mine, "before-update", keep_ending=True)
        _write(root, path, new, change)
        say(f"{path}: YOUR NOTEBOOK COULD NOT BE READ ({error}) It is kept as {copy.name}; the new one is empty.")
        return
    result = graft.carry_over(anatomy.parse(new), student, anatomy.parse(old) if old else None)
    merged = normal.to_bytes(result.notebook)
    if merged == mine:
        return
    copy = _lay_beside(root / path, mine, "before-update", keep_ending=True)
    _write(root, path, merged, change)
    done = sum(result.answered.values())
    say(
        f"{path}: {done} of {len(result.answered)} TODOs are answered and carried over. "
        f"The old notebook, with notes and cells of your own, is {copy.name}"
    )
    for remark in result.remarks:
        say(f"    {remark}")


def _lay_beside(path: Path, data: bytes, mark: str, keep_ending: bool) -> Path:
    """Write a copy beside a file, under the first free number; an equal copy that is there already will do."""
    for number in count(1):
        suffix = f".{mark}-{number}"
        name = path.stem + suffix + path.suffix if keep_ending else path.name + suffix
        copy = path.with_name(name)
        if not copy.exists():
            anatomy.write_bytes(data, copy)
            return copy
        if copy.read_bytes() == data:
            return copy
    raise AssertionError("unreachable")


def _write(root: Path, path: str, data: bytes, change: _Change) -> None:
    anatomy.write_bytes(data, root / path)
    if path in change.executable:
        (root / path).chmod(0o755)


def _same(one: bytes | None, other: bytes | None) -> bool:
    """Whether two files are the same; git on Windows may have changed the line ends."""
    if one is None or other is None:
        return one is other
    return one == other or one.replace(b"\r\n", b"\n") == other.replace(b"\r\n", b"\n")


def _has_answers(data: bytes) -> bool:
    return bool(anatomy.answers(anatomy.parse(data)))


def _is_untouched_code(new: bytes, mine: bytes) -> bool:
    """Whether the student's file holds no code that the new one does not hold too."""
    return graft.adds_nothing(new.decode("utf-8", "replace"), mine.decode("utf-8", "replace"))


# From a folder


def _from_folder(root: Path, new: Path) -> _Change:
    folder = new.resolve()
    inner = sorted(folder.glob("*/common/course.toml"))
    if not (folder / "common" / "course.toml").is_file() and len(inner) == 1:
        folder = inner[0].parents[1]
    if not (folder / "common" / "course.toml").is_file():
        raise NotebookError(
            f"{new}: no course there. Give the folder of the unpacked newer course (with `common` in it)."
        )
    if folder == root:
        raise NotebookError(f"{new}: is this very course. Give the folder of the unpacked newer one.")
    paths = []
    for place, inside, names in os.walk(folder):
        inside[:] = [name for name in inside if name not in _NOT_COURSE and not name.endswith(".egg-info")]
        if Path(place) == folder:
            inside[:] = [name for name in inside if name not in rules.GENERATED]
        paths += [Path(place, name).relative_to(folder).as_posix() for name in names]
    return _Change(
        sorted(paths),
        new=lambda path: (folder / path).read_bytes(),
        before=None,
        answer_files=_answer_files(paths, (folder / "common" / "course.toml").read_bytes()),
        executable={path for path in paths if os.access(folder / path, os.X_OK)},
    )


def _answer_files(paths: list[str], toml: bytes | None) -> set[str]:
    """The answer files of the newer course: those that its course.toml lists.

    Where this version cannot read that file, every file that may be one: then the student's stays.
    """
    try:
        units = course.parse((toml or b"").decode(), Path()).units
    except ValueError:
        folders = {str(PurePosixPath(path).parent) for path in paths if path.endswith(".ipynb")}
        code = [PurePosixPath(path) for path in paths if path.endswith(".py")]
        given = re.compile(r"checks\.py|test_.*")
        return {str(path) for path in code if str(path.parent) in folders and not given.fullmatch(path.name)}
    return {f"{one.unit}/{name}" for unit in units for one in unit.notebooks for name in one.answer_files}


# From git


def _check_clone(root: Path) -> None:
    top = _text(root, "rev-parse", "--show-toplevel", may_fail=not (root / ".git").exists())
    if not top or Path(top).resolve() != root:
        raise NotebookError(
            "This folder is no git clone, so there is nothing to fetch from. Download the newer course, unpack it, "
            "and run `make update NEW=<that folder>`."
        )
    git_dir = Path(_text(root, "rev-parse", "--absolute-git-dir"))
    for name, command in (("MERGE_HEAD", "merge"), ("rebase-merge", "rebase"), ("rebase-apply", "rebase")):
        if (git_dir / name).exists():
            raise NotebookError(
                f"A git {command} is under way here. Finish it, or give it up with `git {command} --abort`; then again."
            )
    if not _text(root, "rev-parse", "--verify", "--quiet", "HEAD", may_fail=True):
        raise NotebookError(f"This git repository has no commit yet. {_OTHER_WAY}")


def _fetch(root: Path) -> str:
    """Fetch the default branch of the course and return its commit."""
    remotes = _text(root, "remote").split()
    for remote in ("upstream", "origin", *remotes):
        if remote in remotes:
            break
    else:
        raise NotebookError(
            f"This clone has no remote to fetch from: `git remote add origin <address of the course>`. {_OTHER_WAY}"
        )
    done = _git(root, "fetch", "--quiet", "--no-tags", remote, "HEAD")
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().split("\n")[0]
        raise NotebookError(
            f"The newer course could not be fetched from '{remote}': {reason} Is there network? {_OTHER_WAY}"
        )
    return _text(root, "rev-parse", "FETCH_HEAD")


def _from_commit(root: Path, base: str | None, target: str) -> _Change:
    listing = [line.split("\t") for line in _text(root, "ls-tree", "-r", "-z", target).split("\0") if line]
    paths = [path for _, path in listing]
    changed = paths
    if base is not None:
        diff = _text(root, "diff", "--name-only", "--no-renames", "-z", base, target)
        changed = [path for path in diff.split("\0") if path]
    return _Change(
        sorted(changed),
        new=lambda path: _blob(root, target, path),
        before=None if base is None else lambda path: _blob(root, base, path),
        answer_files=_answer_files(paths, _blob(root, target, "common/course.toml")),
        executable={path for mode, path in listing if mode.startswith("100755")},
    )


def _move_head(root: Path, head: str, base: str | None, target: str, paths: list[str]) -> None:
    """Let the branch stand at the new version; commits of the student's own stay, joined by a merge commit.

    The files are in place already and are not touched.
    """
    if base != head:
        index = Path(_text(root, "rev-parse", "--absolute-git-dir")) / "index-of-course-update"
        env = {"GIT_INDEX_FILE": str(index), **_identity(root, head)}
        index.unlink(missing_ok=True)
        _text(root, "read-tree", head, env=env)
        listed = "\0".join(paths).encode()
        _text(root, "update-index", "--add", "--remove", "--replace", "-z", "--stdin", env=env, input=listed)
        tree = _text(root, "write-tree", env=env)
        index.unlink(missing_ok=True)
        parents = ("-p", head, "-p", target)
        target = _text(root, "commit-tree", tree, *parents, "-m", "Update the course", env=env)
    _text(root, "reset", "--quiet", target)


def _identity(root: Path, head: str) -> dict[str, str]:
    """Who commits: as git is set up; where it is not, whoever made the last commit."""
    if _text(root, "var", "GIT_COMMITTER_IDENT", may_fail=True):
        return {}
    name, mail = _text(root, "log", "-1", "--format=%an%n%ae", head).split("\n")
    return {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", name), ("EMAIL", mail))
    }


def _blob(root: Path, commit: str, path: str) -> bytes | None:
    done = _git(root, "cat-file", "blob", f"{commit}:{path}")
    return None if done.returncode else done.stdout


def _text(
    root: Path, *args: str, may_fail: bool = False, env: dict[str, str] | None = None, input: bytes | None = None
) -> str:
    done = _git(root, *args, env=env, input=input)
    if done.returncode:
        if may_fail:
            return ""
        reason = done.stderr.decode(errors="replace").strip()
        raise NotebookError(f"`git {args[0]}` failed: {reason} Nothing is lost; mend that and run `make update` again.")
    return done.stdout.decode("utf-8", "surrogateescape").rstrip("\n")


def _git(
    root: Path, *args: str, env: dict[str, str] | None = None, input: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    return git.run(*args, cwd=root, env=env, input=input, advice=f". {_OTHER_WAY}")
