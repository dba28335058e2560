"""The only door through which a case reaches an answer.

`Answer` stands for a function or a class, `ModuleAnswer` for a module that it returned, `ObjectAnswer` for any
other object that is no value. Values go in and values come out: tensors and NumPy's arrays, numbers, booleans,
strings, None, dtypes, devices and sizes, and tuples, lists, sets and dicts of these. Both ways they are copies, so
that nothing changes behind a case's back; of a tensor that comes out, the graph is left behind and `requires_grad`
kept.

A grader that runs answers in another process gives the cases objects with these same methods. So that an author
notices at once what could not cross, anything else that a case hands in is a TypeError here, too; see `Answer.probe`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from common.checks import rules


class Detached(Exception):
    """The answer's output carries no gradient back to its inputs."""


class Answer:
    """A student's function or class."""

    def __init__(self, target: Callable[..., Any], **forbidding: Any) -> None:
        """Stand for `target`, which has to keep to the rules that `common.checks.rules.enforced` takes."""
        self._target, self.rules = target, forbidding

    def without_autograd(self) -> Self:
        """Return the same answer; a call of it that differentiates raises `UsesAutograd`."""
        return self._with(autograd=False)

    def without(self, *operations: str) -> Self:
        """Return the same answer; a call of it raises `UsesOperation` when it uses one of these operations of torch's.

        Args:
            operations: their names, or parts of their names, such as `"conv2d"`.
        """
        return self._with(forbidden=operations)

    def _with(self, **more: Any) -> Self:
        other = copy.copy(self)
        other.rules = self.rules | more
        return other

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the answer with copies of the arguments.

        A module that comes back is a `ModuleAnswer`, any other object that is no value an `ObjectAnswer`; also inside
        tuples, lists and dicts.
        """
        return self._wrapped(self._run(*_copy(args), **_copy(kwargs)))

    def probe(self, function: Callable[..., Any], *values: Any, uses: Sequence[Any] = ()) -> Any:
        """Return what `function(target, *values)` does, where `target` is the student's own object.

        For what a case cannot do from outside: hand a model to the answer, or look at what a call leaves behind. The
        function runs beside the answer, so it holds nothing that a student may not see: it makes inputs and returns
        values; to judge them is left to the case. What is forbidden to the answer is forbidden to the function.

        Args:
            function: from the top level of a checks.py. It may use torch, nn, F, np, math, time, gc, weakref, itertools
                and contextlib by these names.
            values: are copied.
            uses: the functions and classes of the same file that it needs, in the order of their definition.
        """
        del uses  # only an answer in another process has to be sent them
        with rules.enforced(**self.rules):
            result = function(self._target, *_copy(values))
        return self._wrapped(result)

    def _wrapped(self, result: Any) -> Any:
        return _out(result, self.rules)

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
            with rules.enforced(**self.rules):
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

    def __init__(self, target: Any, **forbidding: Any) -> None:
        """Stand for `target`; the rules are those of an `Answer`."""
        self._target, self.rules = target, forbidding

    @property
    def kind(self) -> str:
        """The name of the object's class."""
        return type(self._target).__name__

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method with copies of the arguments; what comes back is what calling an `Answer` gives."""
        return self.method(method)(*args, **kwargs)

    def method(self, name: str) -> Answer:
        """Return what stands for a method."""
        return Answer(getattr(self._target, name), **self.rules)

    def read(self, attribute: str) -> Any:
        """Return a copy of an attribute, as calling an `Answer` would return it."""
        return _out(getattr(self._target, attribute), self.rules)

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
    """Return a copy of what a case hands to an answer."""

    def refuse(other: Any) -> Any:
        raise TypeError(
            f"a case hands a {type(other).__name__} to an answer, which takes only values; let the function of an "
            "`Answer.probe` make it beside the answer"
        )

    return _values(value, lambda tensor: tensor.detach().clone(), refuse)


def _out(value: Any, forbidding: dict[str, Any]) -> Any:
    """Return a copy of what an answer has returned."""

    def copied(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)

    def wrapped(other: Any) -> Any:
        return (ModuleAnswer if isinstance(other, nn.Module) else ObjectAnswer)(other, **forbidding)

    return _values(value, copied, wrapped)


def _values(value: Any, of_tensor: Callable[[Tensor], Tensor], of_other: Callable[[Any], Any]) -> Any:
    """Return a copy of a value, in which `of_tensor` and `of_other` have replaced each tensor and what is no value."""
    if value is None or isinstance(value, (bool, int, float, complex, str, torch.Size, torch.dtype, torch.device)):
        return value
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return of_tensor(value)
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        return value.copy()
    for kind in (tuple, list, set, frozenset):
        if isinstance(value, kind):
            return kind(_values(item, of_tensor, of_other) for item in value)
    if isinstance(value, dict):
        return {key: _values(item, of_tensor, of_other) for key, item in value.items()}
    return of_other(value)
