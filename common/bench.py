"""How long a call takes, how much memory it needs, and an environment for what it is compared with."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of every start and stop on stderr


def median_seconds(call: Callable[[], Any], *, repeats: int = 5) -> float:
    """Return the median time of one call in seconds, after one call that is not counted."""
    times = []
    for _ in range(repeats + 1):
        _wait()
        begin = time.perf_counter()
        call()
        _wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def peak_bytes(call: Callable[[], Any]) -> int:
    """Return the most memory that one call holds at any moment in tensors that it makes, in bytes.

    On a GPU this is read from the allocator. On the CPU, where PyTorch keeps no such figure, every allocation
    and release of the profiler's record is added up.
    """
    call()
    if torch.cuda.is_available():
        _wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        _wait()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    held = peak = 0
    results = record.profiler.kineto_results  # type: ignore[union-attr]
    for event in sorted(results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def peers(folder: Path, *packages: str, alone: bool = False) -> Path:
    """Install other programs, to compare with, into an environment of their own; return its Python.

    Args:
        folder: where; an environment that is there already is used as it is.
        packages: what is installed, as pip takes it.
        alone: without the packages of this environment, which otherwise lie behind the installed ones, so that torch
            is not installed twice.

    Raises:
        subprocess.CalledProcessError: pip has said what is wrong. The next call begins anew.
    """
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.is_file():
        print(f"Installing {' and '.join(packages)} into {folder} ...", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        if not alone:
            [own] = folder.glob("lib/*/site-packages")
            paths = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))]
            lines = (f"import site; site.addsitedir({path!r})\n" for path in dict.fromkeys(paths))
            (own / "course.pth").write_text("".join(lines))
        ready.touch()
    return python


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
