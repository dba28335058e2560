"""The one training loop of the course."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

Batch = TypeVar("Batch")


def fit(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_of: Callable[[nn.Module, Batch], Tensor],
    *,
    lr: float,
    steps: int,
    warmup: int = 0,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    accumulate: int = 1,
    precision: torch.dtype = torch.float32,
    measure: Callable[[], Mapping[str, float]] | None = None,
    measure_every: int = 0,
    log: str | Path | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 100,
) -> list[float]:
    """Train `model` with AdamW and return the loss of every step.

    The learning rate rises linearly over `warmup` steps and then falls along a cosine to a tenth of `lr`.

    A training that was killed goes on from its checkpoint when the same call is made again: `batches` is gone
    through up to where it was, so it has to give the same batches each time, and the states of the model, the
    optimizer and PyTorch's generator are taken back; the final weights are those of a training in one go.

    Args:
        model: what is trained, in place; left in evaluation mode.
        batches: gives `accumulate` batches for each step; must not run out before `steps` are done.
        loss_of: returns the mean loss of a batch as a scalar.
        lr: the highest learning rate.
        steps: how many times the weights are changed.
        warmup: steps until `lr` is reached.
        weight_decay: AdamW's decoupled decay.
        clip: the largest norm that the gradient of all parameters together may have.
        accumulate: how many batches' gradients are averaged for one step.
        precision: `torch.bfloat16` or `torch.float16` computes the forward pass by autocast, and for float16 scales
            the loss; the weights stay in float32.
        measure: is called every `measure_every` steps and at the end, with the model in evaluation mode.
        log: a folder for TensorBoard: loss, learning rate, norm of the gradient, and what `measure` returns.
        checkpoint: a file, written anew every `checkpoint_every` steps and at the end, whole or not at all.
        checkpoint_every: steps between two writings.

    Raises:
        FloatingPointError: when the loss is no longer finite.
        ValueError: when `batches` runs out early, or the checkpoint is damaged or of another training.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, steps, warmup))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler}
    file = None if checkpoint is None else Path(checkpoint)
    losses = _resume(file, parts, device) if file is not None and file.exists() else []
    supply = islice(iter(batches), len(losses) * accumulate, None)
    model.train()
    with _writer(log) as write, tqdm(total=steps, desc="training", unit=" steps", leave=False, mininterval=0.5) as bar:
        bar.update(len(losses))
        while len(losses) < steps:
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for _ in range(accumulate):
                batch = next(supply, _END)
                if batch is _END:
                    raise ValueError(f"the batches ran out after {len(losses)} of {steps} steps")
                with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    loss = loss_of(model, batch)  # type: ignore[arg-type]
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss.item()} at step {len(losses)}; try a smaller lr")
                scaler.scale(loss / accumulate).backward()
                total += loss.item() / accumulate
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
            scaler.step(optimizer)
            scale, rate = scaler.get_scale(), float(schedule.get_last_lr()[0])
            scaler.update()
            if scaler.get_scale() >= scale:  # else the gradient was infinite in float16, and nothing was changed
                schedule.step()
            losses.append(total)
            done = len(losses)
            write(done, {"train/loss": total, "train/lr": rate, "train/gradient norm": norm.item()})
            if measure is not None and (done == steps or (measure_every and done % measure_every == 0)):
                write(done, _measured(model, measure))
            if file is not None and (done == steps or done % checkpoint_every == 0):
                _save(file, parts, device, losses)
            bar.update()
            bar.set_postfix(loss=f"{total:.3f}", refresh=False)
    model.eval()
    return losses


_END: Any = object()


def _factor(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


def _measured(model: nn.Module, measure: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
    model.eval()
    with torch.no_grad():
        result = measure()
    model.train()
    return result


@contextlib.contextmanager
def _writer(log: str | Path | None) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    if log is None:
        yield lambda step, values: None
        return
    from torch.utils.tensorboard import SummaryWriter  # takes seconds

    with SummaryWriter(os.fspath(log)) as writer:

        def write(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield write


def _save(file: Path, parts: Mapping[str, Any], device: torch.device, losses: list[float]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {name: part.state_dict() for name, part in parts.items()}
    generators = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(device)
    half = file.with_name(file.name + ".half")
    torch.save(state | {"generators": generators, "losses": losses}, half)
    with half.open("rb") as written:
        os.fsync(written.fileno())
    half.replace(file)


def _resume(file: Path, parts: Mapping[str, Any], device: torch.device) -> list[float]:
    try:
        state = torch.load(file, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, KeyError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{file} is no checkpoint of this training ({str(error).splitlines()[0]}). "
            "Delete it to start anew, or give this training a file of its own."
        ) from error
    torch.set_rng_state(state["generators"]["cpu"].cpu())
    if "cuda" in state["generators"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["generators"]["cuda"].cpu(), device)
    return list(state["losses"])
