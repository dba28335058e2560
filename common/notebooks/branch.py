"""The branch `solutions`: out of it with `make solutions`, back onto it with `make publish`.

The branch has the folders of `main`. It holds the solved notebooks and, beside them, what belongs to their
answers; `main` carries the whole branch in one file, `solutions.bundle`::

    <unit>/<notebook>.ipynb     solved
    <unit>/mlp.py               an answer file, completed, with the TODO lines of main's
    <unit>/answers/<slug>.py    wrong and other right answers
    <unit>/answers/<slug>.md    the explanation of an answer in code
    <unit>/answers/<artefact>   a file that the solved notebook makes and that its checks need
    <unit>/rubrics/<slug>.md    what earns the points of an answer in prose
    <unit>/hidden_checks.py     the hidden tests

`solutions/` in the checkout is the working copy of the branch: the solved notebooks grafted onto the
notebooks of the checkout, each explanation in a cell `explanation-<slug>` below its answer, with copies of each
unit's own files (checks.py, pictures, ...), so that every notebook there can be run where it lies. Git ignores
the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from common import course
from common.course import Course, Unit
from common.notebooks import anatomy, git, graft, normal, rubric
from common.notebooks.anatomy import Answer, NotebookError

REF = "refs/heads/solutions"
BUNDLE = "solutions.bundle"
FOLDER = "solutions"
MANIFEST = ".manifest"
EXPLANATION = "explanation-"

# Folders that running a notebook leaves behind; never part of a unit.
_LEFT_BEHIND = {"__pycache__", "runs", "data"}
Say = Callable[[str], None]


# -- the three ways in and out ------------------------------------------------------------------------------


def make_solutions(root: Path, target: Path | None = None, force: bool = False, say: Say = print) -> Path:
    """Write the branch `solutions`, grafted onto the notebooks of `root`, as a folder.

    The branch is read from the local branch, else from a remote's, else from solutions.bundle. Files that
    were changed or added in the folder since it was last made are kept. A notebook that was only run counts
    as unchanged.

    Args:
        root: the course, with or without `.git`.
        target: the folder to write, `solutions` in the course if not given.
        force: replace changed files too.
        say: is given each line of the report.

    Returns:
        The folder.

    Raises:
        NotebookError: no source of the branch can be read, or git is missing.
    """
    root = Path(root).resolve()
    target = Path(target).resolve() if target else root / FOLDER
    target.parent.mkdir(parents=True, exist_ok=True)
    _restore(target)
    # Beside the target, for os.rename; in a folder called `solutions`, for .gitignore.
    with tempfile.TemporaryDirectory(prefix=".making-", dir=target.parent) as beside:
        work = Path(beside) / FOLDER
        with _open(root) as sources:
            source = sources.chosen()
            say(f"From {source.name}, {source.commit[:10]}.")
            for line in sources.remarks():
                say(line)
            source.extract(work / "branch")
        new = work / "new"
        origins = assemble(root, work / "branch", new, say)
        fresh = {path: {"digest": _digest(new / path), "from": origins[path]} for path in sorted(origins)}
        _keep_edits(target, new, fresh, force, say)
        for line in _renew_explanations(new, _manifest(target)):
            say(line)
        _write(new / MANIFEST, _json({"commit": source.commit, "files": fresh}))
        old = work / "old"
        try:
            if target.exists():
                os.rename(target, old)
            os.rename(new, target)
        finally:
            if not target.exists() and old.exists():
                os.rename(old, target)
    return target


def publish(root: Path, say: Say = print) -> str:
    """Commit the folder `solutions` to the branch `solutions` and write solutions.bundle.

    Everything is checked first: each answer and each rubric is there, each stored wrong answer is refused and
    each right one accepted. Neither HEAD, nor the index, nor a file that git tracks is touched, except the bundle.
    What is on the branch already is not committed again.

    Args:
        root: a git checkout of the course.
        say: is given each line of the report.

    Returns:
        The commit at the tip of the branch.

    Raises:
        NotebookError: something is missing or wrong; the branch and the bundle are as they were.
    """
    root = Path(root).resolve()
    folder = root / FOLDER
    if not is_checkout(root):
        raise NotebookError(
            f"{root} is no git checkout, so there is no branch to publish to: clone the course with git, "
            f"copy {FOLDER}/ into the clone and run `make publish` there"
        )
    if not folder.is_dir():
        raise NotebookError(f"there is no {FOLDER}/ to publish: run `make solutions` first")
    _refuse_checked_out(root)
    with tempfile.TemporaryDirectory() as tmp, _open(root) as sources:
        parent = sources.first()
        sources.refuse_divergence(parent)
        collected, new = Path(tmp) / "collected", Path(tmp) / "new"
        problems = _renew_explanations(folder, _manifest(folder))
        _collect(root, folder, collected, say)
        problems += _incomplete(root, collected)
        if problems:
            raise NotebookError("\n  ".join(["not published. Do this and run `make publish` again:", *problems]))
        origins = assemble(root, collected, new, say)
        _prove(new, say)
        paths = [path for path, origin in origins.items() if origin == "branch"]
        if parent and parent is sources.bundle:
            sources.bring_bundle_into_checkout()
        tree = _write_tree(root, new, paths)
        if parent and _text("rev-parse", f"{parent.commit}^{{tree}}", cwd=root) == tree:
            commit = parent.commit
        else:
            if parent and _manifest(folder).get("commit") != parent.commit:
                raise NotebookError(
                    f"{FOLDER}/ was not made from the present tip of {parent.name}: run `make solutions`, "
                    "which keeps your changes, look at what it reports, and run `make publish` again"
                )
            commit = _commit(root, tree, parent.commit if parent else None)
        local = sources.local.commit if sources.local else "0" * 40
        if local != commit:
            _git("update-ref", "-m", "make publish", REF, commit, local, cwd=root)
        in_bundle = bool(sources.bundle and sources.bundle.commit == commit)
    if in_bundle:
        say(f"Nothing to publish: the branch and {BUNDLE} are at {commit[:10]} already.")
    else:
        _write_bundle(root, commit)
        say(f"Published {commit[:10]}. Commit {BUNDLE} to main; push the branch too if your remote has it.")
    make_solutions(root, say=lambda line: say(line) if line.startswith("kept") else None)
    return commit


def drift(root: Path) -> list[str]:
    """Return what makes solutions.bundle and the notebooks of `root` disagree, one sentence each."""
    root = Path(root).resolve()
    notebooks = [path.relative_to(root).as_posix() for path in unit_notebooks(root)]
    found: list[str] = []
    with tempfile.TemporaryDirectory() as tmp, _open(root) as sources:
        if not sources.bundle:
            return [sources.damage or f"there is no {BUNDLE}: run `make publish`"] if notebooks else []
        local, bundle = sources.local, sources.bundle
        if local and local.commit != bundle.commit and sources.contains(local, bundle):
            found.append(f"the local branch `solutions` is newer than {BUNDLE}: run `make publish`")
        stored, new = Path(tmp) / "stored", Path(tmp) / "new"
        bundle.extract(stored)
        assemble(root, stored, new, lambda line: None)
        for path in notebooks:
            found += _drift_of(root, stored, new, path)
        found += [f"{BUNDLE} is not complete: {what}, and run `make publish`" for what in _incomplete(root, stored)]
        for path in _files(stored):
            if path.endswith(".ipynb") and not (root / path).is_file():
                found.append(f"main has no {path}: delete it from {FOLDER}/ and run `make publish`")
    return found


def _drift_of(root: Path, stored: Path, new: Path, path: str) -> list[str]:
    slugs = {answer.slug for answer in anatomy.answers(anatomy.read(root / path))}
    if not (stored / path).is_file():
        started = any((stored / path).parent.glob("*.ipynb"))  # then `_incomplete` asks for it
        return [f"{path} is not in {BUNDLE}: solve it and run `make publish`"] if slugs and not started else []
    found = []
    for slug in sorted({answer.slug for answer in anatomy.answers(anatomy.read(stored / path))} - slugs):
        found.append(f"{path}: {BUNDLE} answers {slug}, which is no TODO on main: run `make publish`")
    if (stored / path).read_bytes() != (new / path).read_bytes():
        found.append(f"{path} has changed since it was published: run `make publish`")
    return found


def preview(root: Path, target: Path, say: Say = lambda line: None) -> Path:
    """Write what `solutions/` holds now, edits and all, with today's notebooks and files of `root`.

    Where there is no `solutions/`, the branch is taken.

    Args:
        root: the course.
        target: a folder that does not exist yet.
        say: is given each line of the report.

    Returns:
        The folder.
    """
    root = Path(root).resolve()
    if not (root / FOLDER).is_dir():
        return make_solutions(root, target, say=say)
    with tempfile.TemporaryDirectory() as tmp:
        _collect(root, root / FOLDER, Path(tmp) / "collected", say)
        assemble(root, Path(tmp) / "collected", target, say)
    return target


# -- a folder like the branch -> a folder that can be run ----------------------------------------------------


def unit_notebooks(root: Path) -> list[Path]:
    """Return the notebooks of the units that are ready, in the order of the syllabus."""
    syllabus = course.load(root)
    return [syllabus.file(notebook) for notebook in syllabus.notebooks()]


def assemble(root: Path, solved: Path, target: Path, say: Say = print) -> dict[str, str]:
    """Write to `target` what `make solutions` makes of `solved`, a folder like the branch.

    Notebooks are grafted onto those of `root` and get their explanations, other files are copied, and the unit's
    own files are added where `solved` has none.

    Args:
        root: the course.
        solved: solved notebooks and their files, in the folders of the course.
        target: a folder that does not exist yet.
        say: is given what graft remarks.

    Returns:
        Where each written file is from, "branch" or "main", by its path inside `target`.
    """
    origins: dict[str, str] = {}
    target.mkdir(parents=True)
    for path in _files(solved):
        destination = target / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".ipynb") and (root / path).is_file():
            solution = anatomy.read(solved / path)
            try:
                base = anatomy.read(root / path)
            except NotebookError as error:
                say(f"{error} The solved notebook is as it was published.")
                base = solution
            grafted = graft.graft(base, solution)
            notebook = _with_check_outputs(grafted.notebook, solution)
            anatomy.write(_with_explanations(notebook, solved / Path(path).parent / "answers"), destination)
            for remark in grafted.remarks:
                say(f"{path}: {remark}")
        else:
            shutil.copyfile(solved / path, destination)
            if path.endswith(".ipynb"):
                say(f"{path}: main has no such notebook")
        origins[path] = "branch"
    for unit in sorted({Path(path).parent for path in origins if path.endswith(".ipynb")}):
        for path in _own_files(root, unit):
            if path not in origins:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / path, target / path)
                origins[path] = "main"
    return origins


def _own_files(root: Path, unit: Path) -> list[str]:
    """Return the files of a unit, without its notebook and without the units inside its folder."""
    paths = [(unit / path).as_posix() for path in _files(root / unit)]
    others = {Path(path).parent for path in paths if path.endswith(".ipynb")} - {unit}
    return [path for path in paths if not path.endswith(".ipynb") and not others.intersection(Path(path).parents)]


def _with_check_outputs(notebook: NotebookNode, solution: NotebookNode) -> NotebookNode:
    """Return `notebook` in normal form; a check that a student ran without success prints what it should."""
    notebook = normal.normalise(notebook)
    printed = {cell.id: cell.outputs for cell in solution.cells if anatomy.role(cell) == "check"}
    for cell in notebook.cells:
        if anatomy.role(cell) == "check" and not cell.outputs:
            cell.outputs = printed.get(cell.id, [])
    return notebook


def _with_explanations(notebook: NotebookNode, answers: Path) -> NotebookNode:
    """Put the explanations of the folder `answers` below their answers; of an answer file, below its check."""
    own = {answer.slug for answer in anatomy.answers(notebook)}
    cells = []
    for cell in notebook.cells:
        if cell.id.startswith(EXPLANATION):
            continue
        cells.append(cell)
        role = anatomy.role(cell)
        slug = cell.id.removeprefix("check-") if role == "check" else cell.id
        is_place = cell.cell_type == "code" and (role == "answer" or (role == "check" and slug not in own))
        if is_place and (answers / f"{slug}.md").is_file():
            cells.append(new_markdown_cell(_explanation(answers / f"{slug}.md"), id=EXPLANATION + slug))
    notebook.cells = cells
    return notebook


def _renew_explanations(folder: Path, made: dict) -> list[str]:
    """Bring the explanations in the notebooks of `folder` up to date with its files answers/<slug>.md.

    A notebook in which such a cell was edited is left alone: what counts is the file, and the edit would be lost.

    Args:
        folder: solutions/, or what is to become of it.
        made: the manifest of what its author started from.

    Returns:
        A sentence for each edited cell.
    """
    edited: list[str] = []
    for path in _files(folder):
        if not path.endswith(".ipynb"):
            continue
        try:
            notebook = anatomy.read(folder / path)
        except NotebookError:
            continue  # `publish` refuses it
        answers, before = (folder / path).parent / "answers", len(edited)
        for cell in notebook.cells:
            if cell.id.startswith(EXPLANATION):
                file = answers / f"{cell.id.removeprefix(EXPLANATION)}.md"
                name = file.relative_to(folder).as_posix()
                then = made.get("files", {}).get(name, {}).get("digest")
                now = _digest(file) if file.is_file() else None
                if then == now and (now is None or cell.source != _explanation(file)):
                    edited.append(
                        f"move what you wrote into the cell {cell.id} of {FOLDER}/{path} to {FOLDER}/{name}, of which "
                        "the cell is a copy, and delete the cell"
                    )
        content = normal.to_bytes(notebook)
        renewed = normal.to_bytes(_with_explanations(notebook, answers))
        if len(edited) == before and renewed != content:
            anatomy.write_bytes(renewed, folder / path)
    return edited


def _explanation(file: Path) -> str:
    return "\n".join(line.rstrip() for line in file.read_text(encoding="utf-8").split("\n")).strip("\n")


def _files(folder: Path) -> list[str]:
    """Return the files below a folder, without what is hidden or left behind by running a notebook."""
    found = []
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if any(part.startswith(".") or part in _LEFT_BEHIND for part in inside.parts):
            continue
        if path.is_file() and not anatomy.is_backup(path.name):
            found.append(inside.as_posix())
    return sorted(found)


# -- the folder solutions/ -----------------------------------------------------------------------------------


def _keep_edits(target: Path, new: Path, fresh: dict[str, dict[str, str]], force: bool, say: Say) -> None:
    """Carry from `target` into `new` what its author has changed or added since it was made."""
    before = {path: entry["digest"] for path, entry in _manifest(target).get("files", {}).items()}
    for path in _files(target) if target.is_dir() else []:
        digest = _digest(target / path)
        if digest == before.get(path) or (path in fresh and digest == fresh[path]["digest"]):
            continue
        edited = path in fresh or path in before
        if edited and force:
            say(f"replaced {path}, which was changed since it was made")
            continue
        (new / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(target / path, new / path)
        if path not in fresh:
            say(f"kept {path}, which is not on the branch")
        elif path in before and before[path] != fresh[path]["digest"]:
            say(f"kept {path} as you changed it, although its source has changed as well: compare the two")
        else:
            say(f"kept {path} as you changed it (`make solutions FORCE=1` replaces it)")


def _manifest(folder: Path) -> dict:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _digest(path: Path) -> str:
    """Return a hash of the file; of a notebook's normal form, so that running it changes nothing."""
    content = path.read_bytes()
    if path.suffix == ".ipynb":
        with suppress(NotebookError):  # not readable: judged by its bytes
            content = normal.to_bytes(anatomy.read(path))
    return hashlib.sha256(content).hexdigest()


def _restore(target: Path) -> None:
    """Put back a folder that was moved away by a `make solutions` that was then killed."""
    if not target.exists():
        for old in target.parent.glob(f".making-*/{FOLDER}/old"):
            os.rename(old, target)
            return


def _collect(root: Path, folder: Path, target: Path, say: Say) -> None:
    """Copy to `target` those files of solutions/ that belong on the branch."""
    syllabus = course.load(root)
    answer_files = {f"{n.unit}/{name}" for unit in syllabus.units for n in unit.notebooks for name in n.answer_files}
    made = {f"{n.unit}/{name}" for unit in syllabus.units for n in unit.notebooks for name in n.artefacts}
    entries = _manifest(folder).get("files", {})
    for path in sorted(set(_files(folder)) - made):
        source, entry = folder / path, entries.get(path, {})
        if entry.get("from") == "main" and entry["digest"] == _digest(source):
            continue
        if path.endswith(".ipynb"):
            if not (root / path).is_file():
                raise NotebookError(f"{FOLDER}/{path} has no notebook on main: delete it or add {path}")
        elif (root / path).is_file():
            if (root / path).read_bytes() == source.read_bytes():
                continue
            if source.suffix == ".py" and path not in answer_files:
                raise NotebookError(f"{FOLDER}/{path} differs from {path}, which students have: change it there")
            if path not in answer_files:
                say(f"not published: {FOLDER}/{path}, which main has too")
                continue
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / path)
    if not target.exists():
        raise NotebookError(f"{FOLDER}/ holds nothing to publish: solve a notebook there")
    for path, entry in entries.items():
        lost = path.endswith(".ipynb") and not (target / path).is_file()
        if lost and entry["from"] == "branch" and (root / path).is_file():
            raise NotebookError(f"{FOLDER}/{path} is gone: run `make solutions` to get it back")


def _unanswered(root: Path, solved: Path, path: str) -> list[str]:
    """Return the TODOs of main that a solved notebook leaves open, wholly or in part."""
    grafted = graft.graft(anatomy.read(root / path), anatomy.read(solved / path))
    stubs = {answer.slug for answer in anatomy.answers(grafted.notebook) if answer.is_stub}
    return [slug for slug, answered in grafted.answered.items() if not answered or slug in stubs]


def _incomplete(root: Path, solved: Path) -> list[str]:
    """Return what there is to do in `solved`, a folder like the branch, before it has all that belongs to main.

    A unit of which `solved` and main have no notebook in common is left out.
    """
    syllabus = course.load(root)
    problems: list[str] = []
    for unit in syllabus.units:
        if any((solved / one.path).is_file() and syllabus.file(one).is_file() for one in unit.notebooks):
            problems += _incomplete_unit(syllabus, unit, solved)
    return problems


def _incomplete_unit(syllabus: Course, unit: Unit, solved: Path) -> Iterator[str]:
    todos: list[Answer] = []
    for notebook in unit.notebooks:
        if not syllabus.file(notebook).is_file():
            continue
        own = syllabus.answers(notebook)
        todos += own
        if (solved / notebook.path).is_file():
            open_ones = _unanswered(syllabus.root, solved, notebook.path)
            yield from (f"answer {slug} in {FOLDER}/{notebook.path}" for slug in open_ones)
        elif own:
            yield f"solve {notebook.path} as {FOLDER}/{notebook.path}"
        for name in notebook.answer_files:
            yield from _incomplete_file(syllabus.root, solved, f"{unit.folder}/{name}")
        for name in notebook.artefacts:
            if not (solved / unit.folder / "answers" / name).is_file():
                yield f"run the solved notebook and copy its {name} to {FOLDER}/{unit.folder}/answers"
    in_code = {todo.slug for todo in todos if todo.kind != "markdown"}
    in_prose = {todo.slug: todo.points for todo in todos if todo.kind == "markdown"}
    folder = solved / unit.folder
    beside = [file for pattern in ("answers/*.py", "answers/*.md") for file in folder.glob(pattern)]
    superfluous = [file for file in beside if file.stem not in in_code]
    superfluous += [file for file in folder.glob("rubrics/*.md") if file.stem not in in_prose]
    for file in sorted(superfluous):
        kind = "prose" if file.parent.name == "rubrics" else "code"
        yield f"delete {FOLDER}/{file.relative_to(solved).as_posix()}: no TODO of this name is answered in {kind}"
    for slug, points in in_prose.items():
        name = f"{FOLDER}/{unit.folder}/rubrics/{slug}.md"
        file = folder / "rubrics" / f"{slug}.md"
        if not file.is_file():
            yield f"write {name}: what earns the {points} points of {slug}"
            continue
        try:
            found = rubric.read(file)
        except NotebookError as error:
            yield str(error).replace(str(file), f"mend {name}").rstrip(".")
        else:
            if found.points != points:
                yield f"mend {name}: it gives {found.points} points, the TODO {points}"


def _incomplete_file(root: Path, solved: Path, path: str) -> Iterator[str]:
    """Yield what there is to do in a completed answer file."""
    if not (solved / path).is_file():
        yield f"complete {FOLDER}/{path}"
        return
    if anatomy.python((solved / path).read_text(encoding="utf-8", errors="replace")) is None:
        yield f"mend {FOLDER}/{path}: it is not valid Python"
        return
    given, done = anatomy.file_answers(root / path), anatomy.file_answers(solved / path)
    yield from (f"answer {answer.slug} in {FOLDER}/{path}" for answer in done if answer.is_stub)
    here, there = ({(one.slug, one.points, one.minutes, one.name) for one in answers} for answers in (given, done))
    if here != there:
        slugs = ", ".join(sorted({slug for slug, *_ in here ^ there}))
        yield f"give {FOLDER}/{path} the TODO lines of {path}, each where it stands there: they differ in {slugs}"


def _prove(folder: Path, say: Say) -> None:
    """Run the proofs of every unit in `folder`, in a process of its own: nothing here imports torch."""
    say("Proving the checks with the stored answers ...")
    done = subprocess.run(
        [sys.executable, "-m", "common.grading.proofs", "--folder", str(folder)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise NotebookError(f"not published, the checks are not proven:\n{done.stdout}{done.stderr}".rstrip())


# -- the sources of the branch -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    name: str
    commit: str
    where: Path  # the repository to read it in

    def extract(self, target: Path) -> None:
        """Write the files of the branch below `target`, byte for byte."""
        target.mkdir(parents=True)
        listing = _git("ls-tree", "-r", "-z", self.commit, cwd=self.where).split(b"\0")[:-1]
        for line in listing:
            kind, name = line.split(b"\t", 1)
            mode, _, blob = kind.decode().split()
            path = Path(os.fsdecode(name))
            if not mode.startswith("100") or path.is_absolute() or ".." in path.parts:
                raise NotebookError(f"{self.name} holds {path}, which is no plain file: publish without it")
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            _write(target / path, _git("cat-file", "blob", blob, cwd=self.where))


@dataclass
class _Sources:
    """Every place that has the branch, seen through one throw-away repository."""

    root: Path
    store: Path
    local: _Source | None = None
    remote: _Source | None = None
    bundle: _Source | None = None
    damage: str = ""  # why there is no bundle
    unread: str = ""  # why the checkout was not asked

    def first(self) -> _Source | None:
        """Return the first source there is; raise if there is none but a bundle that cannot be read."""
        source = self.local or self.remote or self.bundle
        if source is None and self.damage:
            raise NotebookError(self.damage)
        return source

    def chosen(self) -> _Source:
        """Return the first source there is, or raise."""
        source = self.first()
        if source is None:
            raise NotebookError(
                f"there is no branch `solutions` and no {BUNDLE} in {self.root}: get the file from where you "
                f"got the course (in a clone: `git checkout origin/main -- {BUNDLE}`)"
            )
        return source

    def contains(self, source: _Source, other: _Source) -> bool | None:
        """Return whether `other` is in the history of `source`; None where the history is cut short."""
        result = _run("merge-base", "--is-ancestor", other.commit, source.commit, cwd=self.store)
        return {0: True, 1: False}.get(result.returncode)

    def remarks(self) -> list[str]:
        """Return what is odd about the sources."""
        lines = [line for line in (self.unread, self.damage) if line]
        source = self.local or self.remote
        if source and self.bundle and self.contains(source, self.bundle) is False:
            if self.contains(self.bundle, source):
                lines.append(f"{source.name} is older than {BUNDLE}. {self._catch_up(source)}")
            else:
                lines.append(f"{source.name} and {BUNDLE} have different histories. {self._catch_up(source)}")
        return lines

    def refuse_divergence(self, source: _Source | None) -> None:
        """Raise if a commit on top of `source` would leave out what the bundle has."""
        if source and self.bundle and self.contains(source, self.bundle) is False:
            raise NotebookError(
                f"{BUNDLE} has commits that {source.name} has not: someone else has published. "
                f"{self._catch_up(source)} Then `make solutions`, and `make publish` again"
            )

    def _catch_up(self, source: _Source) -> str:
        if source is self.remote:
            return "Run `git fetch`; if that does not help, the branch on the remote was not pushed."
        if self.bundle and self.contains(self.bundle, source):
            return f"Run `git fetch {BUNDLE} solutions:solutions`."
        return f"Run `git branch -m solutions my-solutions` and `git fetch {BUNDLE} solutions:solutions`."

    def bring_bundle_into_checkout(self) -> None:
        """Make the bundle's commits known to the checkout, without a ref."""
        _git("bundle", "unbundle", str(self.root / BUNDLE), cwd=self.root)


def is_checkout(root: Path) -> bool:
    """Return whether `root` itself, not a folder above it, is a git checkout."""
    return (Path(root) / ".git").exists()


@contextmanager
def _open(root: Path) -> Iterator[_Sources]:
    """Look for the branch in every place. Reads only: what must be unpacked goes into a temporary folder."""
    with tempfile.TemporaryDirectory() as tmp:
        store = Path(tmp) / "store.git"
        _git("init", "--quiet", "--bare", "--template=", str(store), cwd=Path(tmp))
        sources = _Sources(root, store)
        if is_checkout(root):
            _look_into_checkout(sources)
        if (root / BUNDLE).is_file():
            commit = _unbundle(root / BUNDLE, store)
            if commit:
                sources.bundle = _Source(BUNDLE, commit, store)
            else:
                sources.damage = (
                    f"{BUNDLE} is damaged: get it again from where you got the course "
                    f"(in a clone: `git checkout {BUNDLE}`), or write it anew with `make publish`"
                )
        yield sources


def _look_into_checkout(sources: _Sources) -> None:
    root, store = sources.root, sources.store
    asked = _run("rev-parse", "--git-path", "objects", "--git-path", "shallow", cwd=root)
    if asked.returncode:
        reason = asked.stderr.decode(errors="replace").strip().splitlines()
        sources.unread = f"git does not read this checkout ({reason[0] if reason else 'no reason given'})."
        return
    objects, shallow = (root / line for line in asked.stdout.decode().splitlines())
    _write(store / "objects" / "info" / "alternates", f"{objects.resolve()}\n".encode())
    if shallow.is_file():
        shutil.copyfile(shallow, store / "shallow")
    listing = _text("for-each-ref", "--format=%(refname) %(objectname)", REF, "refs/remotes/*/solutions", cwd=root)
    refs = dict(line.split() for line in listing.splitlines())
    if REF in refs:
        sources.local = _Source("the local branch `solutions`", refs.pop(REF), root)
    if refs:
        name = min(refs, key=lambda name: (name != "refs/remotes/origin/solutions", name))
        sources.remote = _Source(f"the branch `{name.removeprefix('refs/remotes/')}`", refs[name], root)


def _unbundle(bundle: Path, store: Path) -> str | None:
    """Unpack the bundle; return the tip of the branch, or None if the bundle is not whole."""
    heads = _run("bundle", "list-heads", str(bundle), REF, cwd=store)
    if heads.returncode or not heads.stdout or _run("bundle", "unbundle", str(bundle), cwd=store).returncode:
        return None
    return heads.stdout.decode().split()[0]


# -- writing the branch --------------------------------------------------------------------------------------


def _refuse_checked_out(root: Path) -> None:
    if f"branch {REF}" in _text("worktree", "list", "--porcelain", cwd=root).splitlines():
        raise NotebookError(
            "the branch `solutions` is checked out, and publishing would change it under your feet: "
            "switch to another branch there (`git switch main`) and run `make publish` again"
        )


def _write_tree(root: Path, folder: Path, paths: list[str]) -> str:
    """Store the files as git objects, by an index of their own; return the tree."""
    names = "".join(f"{folder / path}\n" for path in paths)
    blobs = _text("hash-object", "-w", "--no-filters", "--stdin-paths", cwd=root, input=names.encode()).split()
    entries = "".join(f"100644 {blob}\t{path}\0" for blob, path in zip(blobs, paths, strict=True))
    with tempfile.TemporaryDirectory() as tmp:
        env = {"GIT_INDEX_FILE": str(Path(tmp) / "index")}
        _git("update-index", "-z", "--index-info", cwd=root, input=entries.encode(), env=env)
        return _text("write-tree", cwd=root, env=env)


def _commit(root: Path, tree: str, parent: str | None) -> str:
    env: dict[str, str] = {}
    for field, default in (("NAME", "Course authors"), ("EMAIL", "authors@example.invalid")):
        if _run("config", f"user.{field.lower()}", cwd=root).returncode:
            env |= {
                name: default for name in (f"GIT_AUTHOR_{field}", f"GIT_COMMITTER_{field}") if not os.environ.get(name)
            }
    parents = ["-p", parent] if parent else []
    return _text("commit-tree", tree, *parents, "-m", "Publish the solutions", cwd=root, env=env)


def _write_bundle(root: Path, commit: str) -> None:
    """Replace solutions.bundle in one step, by one that a repository without anything else can read."""
    with tempfile.TemporaryDirectory() as tmp:
        new, store = Path(tmp) / BUNDLE, Path(tmp) / "store.git"
        _git("-c", "pack.threads=1", "bundle", "create", "--quiet", "--version=2", str(new), REF, cwd=root)
        _git("init", "--quiet", "--bare", "--template=", str(store), cwd=Path(tmp))
        if _unbundle(new, store) != commit or _run("rev-list", "--objects", commit, cwd=store).returncode:
            raise NotebookError(
                f"the new bundle is not complete, {BUNDLE} was left as it is: if this is a shallow clone, "
                "run `git fetch --unshallow`; then run `make publish` again"
            )
        anatomy.write_bytes(new.read_bytes(), root / BUNDLE)


# -- small things --------------------------------------------------------------------------------------------


def _run(
    *args: str, cwd: Path, input: bytes | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return git.run(*args, cwd=cwd, input=input, env=env, advice=": install it and run the same command again")


def _git(*args: str, cwd: Path, input: bytes | None = None, env: dict[str, str] | None = None) -> bytes:
    result = _run(*args, cwd=cwd, input=input, env=env)
    if result.returncode:
        raise NotebookError(f"`git {' '.join(args)}` failed in {cwd}: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout


def _text(*args: str, cwd: Path, input: bytes | None = None, env: dict[str, str] | None = None) -> str:
    return os.fsdecode(_git(*args, cwd=cwd, input=input, env=env)).strip()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
