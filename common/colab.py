"""What the first cell of every notebook calls on Google Colab. Needs the standard library only."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from common import course

# Colab brings these, built for its own drivers; another version of one would break the running kernel.
COLAB_KEEPS = ("torch", "torchvision", "numpy")


def enter(unit: str) -> None:
    """Install what the course needs and Colab lacks, then change into the unit's folder.

    Args:
        unit: the unit's folder from the root of the course, such as ``phase2_transformers/lab1_attention``.

    Raises:
        FileNotFoundError: when the course has no such folder.
        RuntimeError: when a package could not be installed.
    """
    root = Path(__file__).resolve().parents[1]
    folder = root / unit
    if not folder.is_dir():
        raise FileNotFoundError(f"The course in {root} has no folder {unit}: is the notebook of another version?")
    install(missing((root / "requirements.txt").read_text(encoding="utf-8")))
    os.chdir(folder)
    for path in (str(root), str(folder)):  # common is imported from the one, checks from the other
        if path not in sys.path:
            sys.path.insert(0, path)
    print(f"Ready: the course is in {root}, this notebook's unit in {unit}.")
    listed = course.load(root).by_folder.get(unit)
    files = [name for notebook in listed.notebooks for name in notebook.answer_files] if listed else []
    if files:
        print(f"Edit {' and '.join(files)} there, and download them before you leave: Colab keeps no files.")


def missing(requirements: str) -> list[str]:
    """What Colab should have and lacks in any version, such as ``["onnxruntime<=1.31.1"]``.

    The pinned version becomes the newest allowed one: only an older one may suit Colab's own packages.

    Args:
        requirements: the text of ``requirements.txt``; what follows its line ``# Not on Colab`` is left out.
    """
    wanted = requirements.split("# Not on Colab")[0]
    found = re.findall(r"^([\w.-]+)==(\S+)", wanted, flags=re.MULTILINE)
    lacking = [(name, version) for name, version in found if name not in COLAB_KEEPS and not _installed(name)]
    return [f"{name}<={version}" for name, version in lacking]


def install(requirements: list[str]) -> None:
    """Install packages with pip, without letting them change those that Colab must keep.

    Raises:
        RuntimeError: when pip fails.
    """
    if not requirements:
        return
    print("Installing", " ".join(requirements), "...", flush=True)
    kept = [f"{name}=={importlib.metadata.version(name)}" for name in COLAB_KEEPS if _installed(name)]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(kept), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{done.stderr.strip()[-2000:]}\n"
            f"pip could not install {' '.join(requirements)}: its message is above. "
            "Check the network, then run this cell again."
        )


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
