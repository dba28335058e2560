"""Where and how large a notebook runs: seeds, device, scale, and the results that it measures."""

from __future__ import annotations

import json
import os
import platform
import random
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

T = TypeVar("T")


def start(seed: int = 0) -> torch.device:
    """Seed every generator, print what the notebook runs on, and return the device to use.

    Source of the seeds' limits: https://pytorch.org/docs/stable/notes/randomness.html
    """
    seed_everything(seed)
    print(f"{hardware()}; PyTorch {torch.__version__}; scale: {scale()}")
    _write("hardware", hardware())
    return device()


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def device() -> torch.device:
    """Return the CUDA device, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def hardware() -> str:
    """Describe what a computation runs on, for a report: the GPU with its memory, or the CPU with its threads."""
    chosen = device()
    if chosen.type == "cuda":
        card = torch.cuda.get_device_properties(chosen)
        return f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    if chosen.type == "mps":
        return "Apple GPU"
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def autocast_dtype() -> torch.dtype:
    """Return bfloat16 where the device has instructions for it, else float32, which is several times as fast there."""
    chosen = device()
    if chosen.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        names = "amx_bf16", "avx512_bf16", "bf16"
        has = chosen.type == "cpu" and any(torch.cpu.get_capabilities().get(name) for name in names)
    return torch.bfloat16 if has else torch.float32


def scale() -> str:
    """Return `quick` or `full`, as the environment variable COURSE_SCALE says; `quick` when it is not set.

    Raises:
        ValueError: when the variable holds anything else.
    """
    value = os.environ.get("COURSE_SCALE", "quick")
    if value not in ("quick", "full"):
        raise ValueError(f"COURSE_SCALE is {value!r}; set it to 'quick' or 'full', or unset it")
    return value


def pick(quick: T, full: T) -> T:
    """Return the argument that belongs to the scale in force."""
    return full if scale() == "full" else quick


def record(measure: str, value: str) -> None:
    """Write down a measured result; `make results` collects them into the tables of the READMEs.

    Args:
        measure: what was measured.
        value: the figure with its unit, rounded as a reader should see it.
    """
    print(f"{measure}: {value}")
    _write(measure, value)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return f"CPU ({platform.machine()})"


def _write(measure: str, value: str) -> None:
    if target := os.environ.get("COURSE_RESULTS"):
        with Path(target).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps([measure, value]) + "\n")
