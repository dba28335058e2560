"""The only door through which a case reaches an answer.

`Answer` stands for a function or a class, `ModuleAnswer` for a module that it returned, `ObjectAnswer` for any
other object of a class of the student's. Values go in and values come out: tensors, numbers, strings, and tuples,
lists and dicts of these. What goes in is a copy, so an answer that changes its inputs spoils nothing that a case
looks at afterwards.

A grader that runs answers in another process gives the cases objects with these same methods.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from common.checks import autograd

# Objects of classes from here cross the door as they are.
_PLAIN = {"builtins", "numpy", "torch"}


class Detached(Exception):
    """The answer's output carries no gradient back to its inputs."""


class Answer:
    """A student's function or class."""

    def __init__(self, target: Callable[..., Any], *, autograd: bool = True) -> None:
        """Stand for `target`; with `autograd=False`, a call that differentiates raises `UsesAutograd`."""
        self._target, self._autograd = target, autograd

    def without_autograd(self) -> Answer:
        """Return the same answer, with automatic differentiation forbidden to it."""
        return Answer(self._target, autograd=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the answer with copies of the arguments.

        A module that comes back is a `ModuleAnswer`, an object of a class of the student's an `ObjectAnswer`; also
        inside a tuple.
        """
        return self._wrapped(self._run(*_copy(args), **_copy(kwargs)))

    def _wrapped(self, result: Any) -> Any:
        if isinstance(result, nn.Module):
            return ModuleAnswer(result, autograd=self._autograd)
        if type(result) is tuple:
            return tuple(self._wrapped(part) for part in result)
        if isinstance(result, (Tensor, tuple, list, dict)) or type(result).__module__.split(".")[0] in _PLAIN:
            return result
        return ObjectAnswer(result, autograd=self._autograd)

    def inputs_after(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call the answer and return its positional arguments as the call left them."""
        args = _copy(args)
        self._run(*args, **_copy(kwargs))
        return args

    def gradients(self, *args: Any, output: int | None = None, upstream: Tensor, **kwargs: Any) -> tuple[Tensor, ...]:
        """Return the gradients of `sum(output * upstream)` for every floating-point tensor in `args`.

        Args:
            output: which element of the result to differentiate, when the result is a tuple.
            upstream: a tensor of the output's shape.

        Raises:
            Detached: when the output does not depend on an input by differentiable operations.
        """
        args = _copy(args)
        leaves = [arg.requires_grad_() for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()]
        return self._gradients(self._run(*args, **_copy(kwargs)), output, upstream, leaves)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with nullcontext() if self._autograd else autograd.forbidden():
                return self._target(*args, **kwargs)
        except Exception as error:
            if shapes := self._shapes(args, kwargs):
                error.add_note(f"called with {shapes}")
            raise

    def _shapes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return the names and shapes of the tensors in a call, for a message; "" when there are none."""
        function = self._target.forward if isinstance(self._target, nn.Module) else self._target
        try:
            given = inspect.signature(function).bind(*args, **kwargs).arguments
        except (TypeError, ValueError):  # the call does not fit, which is what the error says
            return ""
        return ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items() if isinstance(value, Tensor))

    @staticmethod
    def _gradients(result: Any, output: int | None, upstream: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        result = result if output is None else result[output]
        if not isinstance(result, Tensor) or not result.requires_grad:
            raise Detached
        found = torch.autograd.grad((result * upstream).sum(), leaves, allow_unused=True)
        if any(gradient is None for gradient in found):
            raise Detached
        return found


class ModuleAnswer(Answer):
    """A module that a student's class built."""

    _target: nn.Module

    def parameters(self) -> dict[str, Tensor]:
        """Return copies of the learned parameters by name; a parameter that is shared appears once."""
        return {name: parameter.detach().clone() for name, parameter in self._target.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite the parameters and buffers of these names; all others stay as they are.

        Raises:
            KeyError: when there is no parameter or buffer of a name.
            RuntimeError: when a shape does not fit.
        """
        _fill(dict(self._target.named_parameters()) | dict(self._target.named_buffers()), state)

    def train(self, mode: bool = True) -> ModuleAnswer:
        """Switch to training mode, or with `mode=False` to evaluation mode."""
        self._target.train(mode)
        return self

    def eval(self) -> ModuleAnswer:
        """Switch to evaluation mode."""
        return self.train(False)

    def parameter_gradients(
        self, *args: Any, output: int | None = None, upstream: Tensor, **kwargs: Any
    ) -> dict[str, Tensor | None]:
        """Return the gradient of `sum(output * upstream)` for every parameter, None where none arrives."""
        result = self._run(*_copy(args), **_copy(kwargs))
        result = result if output is None else result[output]
        if not isinstance(result, Tensor) or not result.requires_grad:
            raise Detached
        named = dict(self._target.named_parameters())
        found = torch.autograd.grad((result * upstream).sum(), list(named.values()), allow_unused=True)
        return dict(zip(named, found, strict=True))


class ObjectAnswer:
    """An object, no module, that a student's class built."""

    def __init__(self, target: Any, *, autograd: bool = True) -> None:
        """Stand for `target`; `autograd` as for an `Answer`."""
        self._target, self._autograd = target, autograd

    @property
    def kind(self) -> str:
        """The name of the object's class."""
        return type(self._target).__name__

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method with copies of the arguments; what comes back is what calling an `Answer` gives."""
        return Answer(getattr(self._target, method), autograd=self._autograd)(*args, **kwargs)

    def read(self, attribute: str) -> Any:
        """Return a copy of an attribute: a plain value."""
        return _copy(getattr(self._target, attribute))

    def fill(self, attribute: str, values: Mapping[str, Tensor]) -> None:
        """Overwrite tensors, in place, in an attribute that is a dict of them.

        Raises:
            KeyError: when the dict has no tensor of a name.
            RuntimeError: when a shape does not fit.
        """
        _fill(getattr(self._target, attribute), values)


def _fill(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            if own[name].shape != value.shape:  # copy_ would broadcast
                raise RuntimeError(f"{name} has shape {tuple(own[name].shape)}, expected {tuple(value.shape)}")
            own[name].copy_(value)


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (tuple, list)):
        return type(value)(_copy(item) for item in value)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return value
