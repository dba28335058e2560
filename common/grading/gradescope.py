"""Grading in Gradescope: makes the zip of an autograder, and is what runs in it.

    python -m common.grading.gradescope zip phase2_transformers/lab1_attention
    python -m common.grading.gradescope grade /autograder

The zip holds what grades one unit: `common`, the unit with its checks, and its hidden tests, but no solution. It is
unpacked in `/autograder/source`, where `setup.sh` makes the environment, once. For each submission, `run_autograder`
calls `grade`, which runs `python -m common.grading` as root. Namespaces can hardly be had there, so answers run as
the user nobody, for whom everything but Python and `common` is closed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common import course
from common.grading import collect, sandbox
from common.notebooks import anatomy, branch
from common.notebooks.anatomy import NotebookError

SCRIPTS = Path(__file__).parent / "container" / "gradescope"
OPEN = (".venv", "common")  # in source: what everybody may read
SECONDS = 540  # for one submission; Gradescope's own limit is 10 minutes unless somebody changes it
FAILED = "This submission could not be graded, by no fault of yours: {}. Your instructor can see why in the output."


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a zip, or grade the submission in an autograder's folder; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m common.grading.gradescope")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("zip", help="make an autograder for Gradescope")
    add.add_argument("unit", help="such as phase2_transformers/lab1_attention")
    add.add_argument("--out", type=Path, help="the file to write (grades/autograder-<unit>.zip)")
    add.add_argument("--course", type=Path, help="the course (the one this command belongs to)")
    add = commands.add_parser("grade", help="what run_autograder does")
    add.add_argument("folder", type=Path, help="/autograder")
    options = parser.parse_args(arguments)
    if options.command == "grade":
        anatomy.write_bytes(json.dumps(grade(options.folder)).encode(), options.folder / "results" / "results.json")
        return 0
    unit = options.unit.rstrip("/")
    path = options.out or Path("grades") / f"autograder-{unit.rpartition('/')[2]}.zip"
    try:
        pack(course.find_root(options.course), unit, path)
    except (NotebookError, FileNotFoundError, ValueError) as error:
        print(f"No autograder made: {error}", file=sys.stderr)
        return 1
    print(f"{path}: for Gradescope, under Configure Autograder. It may hold hidden tests: keep it to yourself.")
    return 0


def pack(root: Path, unit: str, path: Path) -> None:
    """Write the autograder of a unit.

    Args:
        root: the course.
        unit: the unit's folder from there.
        path: the zip file to write.

    Raises:
        NotebookError: there is no such unit, or its hidden tests cannot be read, or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        made = Path(tmp) / "autograder.zip"
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in sorted(_contents(root, unit, Path(tmp) / "solutions")):
                entry = zipfile.ZipInfo(name)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (stat.S_IFREG | (0o755 if (SCRIPTS / name).is_file() else 0o644)) << 16
                archive.writestr(entry, content)
        anatomy.write_bytes(made.read_bytes(), path)


def _contents(root: Path, unit: str, tmp: Path) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the files in the zip."""
    (base,) = collect.load_units(root, unit)
    package = Path(collect.__file__).parents[1]
    files = {script.name: script for script in SCRIPTS.iterdir()}
    files |= {name: package.parent / name for name in ("requirements.txt", "pyproject.toml")}
    files |= {f"common/{path.relative_to(package).as_posix()}": path for path in package.rglob("*.*")}
    files["common/course.toml"] = root / "common" / "course.toml"
    files |= {f"{unit}/{name}": base.folder / name for name in base.todos}
    files |= {f"{unit}/{path.name}": path for path in base.folder.glob("*.py")}
    if base.hidden:
        hidden = f"{unit}/hidden_checks.py"
        files[f"{branch.FOLDER}/{hidden}"] = branch.preview(root, tmp) / hidden
        if not files[f"{branch.FOLDER}/{hidden}"].is_file():
            raise NotebookError(f"the hidden tests of {unit} were not found: {sum(base.hidden.values()):g} points")
    for name, path in files.items():
        if path.is_file() and path.suffix != ".pyc":
            yield name, path.read_bytes()


# -- in Gradescope -----------------------------------------------------------------------------------------------


def grade(folder: Path, seconds: float = SECONDS) -> dict[str, Any]:
    """Grade the one submission in an autograder's folder.

    Args:
        folder: what Gradescope calls /autograder.
        seconds: after which the grading is ended.

    Returns:
        What results.json is to say; when there is no grade, that, with no points. The reason is printed, which
        only the instructor sees.
    """
    try:
        return _grade(folder, seconds) | {"stdout_visibility": "hidden"}
    except subprocess.TimeoutExpired:
        why = f"it was not ready after {seconds:.0f} s"
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        why = "the grader has failed"
    return {"score": 0, "output": FAILED.format(why), "output_format": "text", "stdout_visibility": "hidden"}


def _grade(folder: Path, seconds: float) -> dict[str, Any]:
    source = folder / "source"
    close(folder)
    missing = sandbox.missing()
    if missing and not sandbox.own_users():
        raise PermissionError(f"answers would run with the grader's own rights (not contained: {missing})")
    (base,) = collect.load_units(source)
    with tempfile.TemporaryDirectory() as tmp:
        handed_in, out = Path(tmp) / "in", Path(tmp) / "out"
        # Its folder is the student's; links in it stay links, which the grader does not follow.
        shutil.copytree(folder / "submission", handed_in / "submission", symlinks=True, ignore=_special)
        options = ["--unit", base.unit, "--out", out, "--course", source, "--memory", min(4, _memory() / 2)]
        command = map(str, [sys.executable, "-m", "common.grading", handed_in, *options])
        package = Path(collect.__file__).parents[2]
        subprocess.run([*command], cwd=package, stdin=subprocess.DEVNULL, timeout=seconds, check=True)
        (result,) = (out / "gradescope").glob("*.json")
        return dict(json.loads(result.read_text(encoding="utf-8")))


def close(folder: Path) -> None:
    """Close everything in an autograder's folder for other users, but what Python needs.

    Raises:
        OSError: that cannot be done.
    """
    for place in (folder, folder / "source"):
        place.chmod(0o711)
        for path in place.iterdir():
            if path != folder / "source" and path.name not in OPEN and not path.is_symlink():
                path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
                os.chown(path, os.getuid(), os.getgid())


def _special(folder: str, names: list[str]) -> list[str]:
    """The names of what is no file, folder or link, and would keep a copy waiting."""
    plain = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
    return [name for name in names if stat.S_IFMT((Path(folder) / name).lstat().st_mode) not in plain]


def _memory() -> float:
    """GiB that this container has, or this machine."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(path).read_text()))
    return min(found) / 2**30


if __name__ == "__main__":
    sys.exit(main())
