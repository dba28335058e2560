"""How long a call takes and how much memory it needs."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
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


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
