"""The one training loop of the course."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

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
) -> list[float]:
    """Train `model` with AdamW and return the loss of every step.

    The learning rate rises linearly over `warmup` steps and then falls along a cosine to a tenth of `lr`.

    Args:
        model: what is trained, in place; left in evaluation mode.
        batches: gives one batch for each step; must not run out before `steps` are done.
        loss_of: returns the mean loss of a batch as a scalar.
        lr: the highest learning rate.
        steps: how many batches are used.
        warmup: steps until `lr` is reached.
        weight_decay: AdamW's decoupled decay.
        clip: the largest norm that the gradient of all parameters together may have.

    Raises:
        FloatingPointError: when the loss is no longer finite.
        ValueError: when `batches` runs out early.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, steps, warmup))
    losses: list[float] = []
    model.train()
    with tqdm(total=steps, desc="training", unit=" steps", leave=False, mininterval=0.5) as bar:
        for _, batch in zip(range(steps), batches, strict=False):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(model, batch)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} at step {len(losses)}; try a smaller lr")
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            bar.update()
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    model.eval()
    if len(losses) < steps:
        raise ValueError(f"the batches ran out after {len(losses)} of {steps} steps")
    return losses


def _factor(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))
