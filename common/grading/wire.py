"""What crosses between a judge and a worker, as bytes: messages of plain values and tensors.

A message is a header (two lengths), JSON, and the raw bytes of its tensors one after another. Nothing in it is
code, and reading one trusts nothing: lengths are compared with the limits before memory is taken, every tag, shape
and dtype is looked at, and whatever does not fit raises `Violation`. There is no pickle.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

LONGEST_JSON = 2 * 2**20  # bytes of one message; as lists they take fifty times as much
LARGEST_BLOB = 256 * 2**20
DEEPEST = 50  # lists in lists
_HEADER = struct.Struct("!IQ")
_WIDTHS = {"uint": (8, 16, 32, 64), "int": (8, 16, 32, 64), "float": (16, 32, 64), "complex": (64, 128)}
_NAMES = ("bool", "bfloat16", *(f"{kind}{width}" for kind, widths in _WIDTHS.items() for width in widths))
_MOVED = {name: getattr(torch, name) for name in _NAMES}

Wrap = Callable[[Any], Any]


class Violation(Exception):
    """Bytes that are no message, or one that breaks a limit."""


class Channel:
    """One end of a socket over which messages travel."""

    def __init__(self, sock: socket.socket, wrap: Wrap, unwrap: Wrap) -> None:
        """Speak over `sock`.

        Args:
            sock: a connected stream socket.
            wrap: makes a JSON value of an object that is no plain value, or raises TypeError.
            unwrap: makes an object of what `wrap` at the other end has made.
        """
        self.sock, self._wrap, self._unwrap = sock, wrap, unwrap

    def send(self, message: Any, deadline: float | None = None) -> None:
        """Send a value.

        Args:
            message: the value.
            deadline: until when, by `time.monotonic`.

        Raises:
            TimeoutError: the deadline has passed.
            Violation: it is larger than the limits, or nested deeper.
            TypeError: there is something in it that cannot cross.
            OSError: nobody reads.
        """
        blobs: list[bytes] = []
        text = json.dumps(_pack(message, blobs, self._wrap, DEEPEST)).encode()
        size = sum(map(len, blobs))
        if len(text) > LONGEST_JSON or size > LARGEST_BLOB:
            raise Violation(f"too large: {max(len(text), size) / 2**20:.0f} MB")
        for part in (_HEADER.pack(len(text), size) + text, *blobs):
            self._wait_until(deadline)
            self.sock.sendall(part)

    def receive(self, deadline: float | None = None) -> Any:
        """Wait for a message and return its value.

        Args:
            deadline: until when, by `time.monotonic`.

        Raises:
            TimeoutError: the deadline has passed.
            EOFError: the other end is closed.
            Violation: what came is no message.
        """
        length, size = _HEADER.unpack(self._read(_HEADER.size, deadline))
        if length > LONGEST_JSON or size > LARGEST_BLOB:
            raise Violation("a message is too large")
        text, blob = self._read(length, deadline), self._read(size, deadline)
        try:
            unpacker = _Unpacker(blob, self._unwrap)
            value = unpacker.unpack(json.loads(bytes(text)))
        except Violation:
            raise
        except Exception as error:  # whatever json, numpy or torch makes of nonsense
            raise Violation(f"a message cannot be read ({type(error).__name__})") from None
        if unpacker.place != size:
            raise Violation("a message has more bytes than it says")
        return value

    def _read(self, size: int, deadline: float | None) -> bytearray:
        data = bytearray()
        while len(data) < size:
            self._wait_until(deadline)
            part = self.sock.recv(min(size - len(data), 2**20))
            if not part:
                raise EOFError
            data += part
        return data

    def _wait_until(self, deadline: float | None) -> None:
        """Let the next step at the socket take until then."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)


def _pack(value: Any, blobs: list[bytes], wrap: Wrap, depth: int) -> Any:
    """Make JSON of a value: plain ones as they are, all others as {tag: ...}."""
    if depth == 0:
        raise Violation("too deeply nested")
    if value is None or type(value) in (bool, int, float, str):
        return value

    def items(values: Any) -> list[Any]:
        return [_pack(item, blobs, wrap, depth - 1) for item in values]

    if isinstance(value, torch.Size):
        return {"size": list(value)}
    if isinstance(value, list):
        return items(value)
    if isinstance(value, tuple):
        return {"tuple": items(value)}
    if isinstance(value, (set, frozenset)):
        return {"set": items(value)}
    if isinstance(value, dict):
        return {"dict": items(value.items())}
    if isinstance(value, Tensor) and not value.is_nested and value.layout == torch.strided and not value.is_quantized:
        return _pack_tensor(value, blobs)
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        array = np.ascontiguousarray(value)
        blobs.append(array.tobytes())
        return {"array" if isinstance(value, np.ndarray) else "number": [array.dtype.str, list(np.shape(value))]}
    if isinstance(value, torch.dtype) and value in _MOVED.values():
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for plain in (bool, int, float, str):  # of a class of its own
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    return {"other": wrap(value)}


def _pack_tensor(value: Tensor, blobs: list[bytes]) -> Any:
    name = str(value.dtype).removeprefix("torch.")
    if value.numel() * value.element_size() > LARGEST_BLOB:  # an expanded one may be small in memory
        raise Violation(f"too large: a tensor of shape {tuple(value.shape)}")
    if name not in _MOVED:
        raise TypeError(f"a tensor of {name}")
    requires_grad = bool(value.requires_grad)
    value = value.detach().resolve_conj().resolve_neg().cpu()
    strides = _strides(value)
    if strides is None:
        value = value.contiguous()
        strides = list(value.stride())
    flat = torch.zeros(_span(value.shape, strides), dtype=value.dtype)  # never what lies between its elements
    once = value[tuple(slice(1) if stride == 0 else slice(None) for stride in strides)]
    flat.as_strided(once.shape, strides).copy_(once)
    blobs.append(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return {"tensor": [name, list(value.shape), strides, requires_grad]}


def _strides(value: Tensor) -> list[int] | None:
    """The strides of a tensor, or None where they waste memory or let elements overlap."""
    strides, reach = list(value.stride()), 1
    for stride, size in sorted(zip(strides, value.shape, strict=True)):
        if size > 1 and stride:
            if stride < reach:
                return None
            reach = stride * (size - 1) + reach
    return strides if reach <= 8 * value.numel() + 64 else None


def _span(shape: Sequence[int], strides: Sequence[int]) -> int:
    """How many elements lie between the first and the last of a tensor, both counted."""
    if not all(shape):
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


class _Unpacker:
    """Reads the JSON of a message, and its tensors out of the bytes behind it."""

    def __init__(self, blob: bytearray, unwrap: Wrap) -> None:
        self._blob, self._unwrap, self.place = blob, unwrap, 0

    def unpack(self, packed: Any, depth: int = DEEPEST) -> Any:
        if depth == 0:
            raise Violation("a message is too deeply nested")
        if packed is None or isinstance(packed, (bool, int, float, str)):
            return packed

        def items(values: Any) -> list[Any]:
            if not isinstance(values, list):
                raise Violation("a message is not well formed")
            return [self.unpack(item, depth - 1) for item in values]

        if isinstance(packed, list):
            return items(packed)
        if not isinstance(packed, dict) or len(packed) != 1:
            raise Violation("a message is not well formed")
        ((tag, content),) = packed.items()
        if tag == "tuple":
            return tuple(items(content))
        if tag == "set":
            return set(items(content))
        if tag == "dict":
            return dict(items(content))
        if tag == "tensor":
            return self._tensor(*content)
        if tag in ("array", "number"):
            return self._array(*content, number=tag == "number")
        if tag == "size":
            return torch.Size(_shape(content))
        if tag == "dtype":
            return _MOVED[content]
        if tag == "device":
            return torch.device(content)
        if tag == "complex":
            return complex(*content)
        if tag == "other":
            return self._unwrap(content)
        raise Violation("a message is not well formed")

    def _take(self, count: int, item: int) -> bytearray:
        begin, self.place = self.place, self.place + count * item
        if self.place > len(self._blob):
            raise Violation("a message has fewer bytes than it says")
        return self._blob[begin : self.place]  # a copy, so that every tensor has memory of its own

    def _tensor(self, name: str, shape: Any, strides: Any, requires_grad: Any) -> Tensor:
        dtype, sizes, steps = _MOVED[name], _shape(shape), _shape(strides)
        if math.prod(sizes) * dtype.itemsize > LARGEST_BLOB or len(steps) != len(sizes):
            raise Violation("a tensor without a proper shape")
        data = self._take(_span(sizes, steps), dtype.itemsize)
        if not data:
            return torch.empty(sizes, dtype=dtype)
        if dtype == torch.bool:  # a byte that is neither 0 nor 1 would be a third truth value
            flat = torch.frombuffer(data, dtype=torch.uint8) != 0
        else:
            flat = torch.frombuffer(data, dtype=dtype)
        tensor = flat.as_strided(sizes, steps)
        return tensor.requires_grad_() if requires_grad and (dtype.is_floating_point or dtype.is_complex) else tensor

    def _array(self, name: str, shape: Any, *, number: bool) -> Any:
        dtype, sizes = np.dtype(name), _shape(shape)
        if dtype.kind not in "biufc":
            raise Violation("an array of objects")
        data = self._take(math.prod(sizes), dtype.itemsize)
        found = np.frombuffer(data, np.uint8) != 0 if dtype.kind == "b" else np.frombuffer(data, dtype)
        return found.reshape(sizes)[()] if number else found.reshape(sizes)


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or len(sizes) > 32:
        raise Violation("a tensor without a proper shape")
    if any(type(size) is not int or not 0 <= size < 2**31 for size in sizes):
        raise Violation("a tensor without a proper shape")
    if math.prod(max(1, size) for size in sizes) >= 2**48:
        raise Violation("a tensor without a proper shape")
    return tuple(sizes)
