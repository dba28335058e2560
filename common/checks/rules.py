"""What may be forbidden to an answer: automatic differentiation, and torch's own operations of some names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch.autograd.forward_ad
import torch.func  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode

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


class UsesOperation(Exception):
    """An answer called an operation of torch's that it was to build itself."""


@contextmanager
def enforced(*, autograd: bool = True, forbidden: Collection[str] = ()) -> Iterator[None]:
    """Watch over what a block does, under whatever name it has imported torch's functions.

    Args:
        autograd: whether the block may differentiate. Recording a graph is harmless and passes.
        forbidden: names, or parts of names, of torch's own operations (such as `conv2d`, or `batch_norm`, which is
            also a part of `native_batch_norm`) that it may not use.

    Raises:
        UsesAutograd: the block differentiates where it may not.
        UsesOperation: it has used an operation that is forbidden.
    """
    with ExitStack() as stack:
        if not autograd:
            stack.enter_context(_without_autograd())
        if forbidden:
            stack.enter_context(_without_operations(forbidden))
        yield


@contextmanager
def _without_autograd() -> Iterator[None]:
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


@contextmanager
def _without_operations(forbidden: Collection[str]) -> Iterator[None]:
    with _Watch(forbidden) as watch:
        yield
    if watch.used:
        raise UsesOperation(watch.used[0])


class _Watch(TorchDispatchMode):
    """Lets every operation run, and notes those of some names."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names, self.used = names, list[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if any(part in name for part in self.names):
            self.used.append(name)
        return function(*args, **(kwargs or {}))
