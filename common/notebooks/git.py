"""Runs git in the folder it is told, whatever git's own environment says."""

import os
import subprocess
from pathlib import Path

from common.notebooks.anatomy import NotebookError

# Set inside git hooks, among others: they would point git at another repository than the one in its folder.
_ELSEWHERE = {
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
}


def run(
    *args: str, cwd: Path, input: bytes | None = None, env: dict[str, str] | None = None, advice: str = ""
) -> subprocess.CompletedProcess[bytes]:
    """Run git in `cwd`, never in a repository around it, in English and without asking for a password.

    Args:
        args: git's arguments.
        cwd: a repository, or the folder of a checkout.
        input: what git reads.
        env: variables to set for this call.
        advice: what to do where git is not installed.

    Raises:
        NotebookError: git is not installed.
    """
    clean = {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}
    clean |= {"GIT_CEILING_DIRECTORIES": str(cwd.parent), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"} | (env or {})
    try:
        return subprocess.run(
            ["git", "-c", "safe.bareRepository=all", "-c", "core.quotePath=false", *args],
            cwd=cwd,
            input=input,
            env=clean,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        raise NotebookError(f"git is not installed{advice}") from None
