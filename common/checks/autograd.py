"""Finds out whether an answer that is to be a formula was left to automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch.autograd.forward_ad
import torch.func  # noqa: F401

# Every way into torch's differentiation, by the names that students call, and the one way through it backwards.
_MODULES = {
    "torch.autograd": ["grad", "backward", "_engine_run_backward"],
    "torch.autograd.functional": ["jacobian", "hessian", "vjp", "jvp", "vhp", "hvp"],
    "torch.autograd.forward_ad": ["make_dual"],
    "torch.func": ["grad", "grad_and_value", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "linearize"],
    "torch.Tensor": ["backward"],
}


class UsesAutograd(Exception):
    """An answer called automatic differentiation where a formula was asked for."""


@contextmanager
def forbidden() -> Iterator[None]:
    """Raise `UsesAutograd` when the block differentiates, under whatever name it has imported torch's functions.

    Recording a graph is harmless and passes.
    """
    used: list[str] = []

    def refuse(name: str) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            used.append(name)
            raise UsesAutograd(name)

        return called

    with ExitStack() as stack:
        for module, names in _MODULES.items():
            for name in names:
                # A function that was imported by name is not replaced, but runs into one that is.
                public = "a backward pass" if name.startswith("_") else f"{module}.{name}"
                stack.enter_context(mock.patch(f"{module}.{name}", refuse(public)))
        yield
    if used:  # and the block has caught it
        raise UsesAutograd(used[0])
