"""Dynamic batching: many callers, one inference.

    caller A ── submit ──┐                                   ┌── answer A
    caller B ── submit ──┼── queue ── collect ── infer(batch) ┼── answer B
    caller C ── submit ──┘                                   └── answer C

Complete the TODOs in this order; inference_api.ipynb explains each of them and checks it. `pytest` in this folder runs
the example tests.

Everything here runs on one event loop, in one thread: between two `await`s nothing else happens.
"""

import asyncio
import contextlib  # noqa: F401 (for your answers)
from collections import deque
from dataclasses import dataclass
from typing import Any


class Full(Exception):
    """The queue holds as many requests as it may; try again later."""


class Closed(Exception):
    """The batcher is closing down and accepts nothing any more."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A request that waits for its answer.

    Attributes:
        input: what the model is to be asked.
        future: gets the answer, or the error. It is done as soon as it has either, or its caller has given up.
        arrived: when it came, by the clock of the event loop, in seconds.
    """

    input: Any
    future: asyncio.Future
    arrived: float


class Batcher:
    """Collects the inputs of many callers into batches, and gives each caller its own answer.

    Attributes:
        queue: the requests (`Waiting`) that were accepted and are in no batch yet, the oldest on the left.
        closing: whether `close` has been called.
        arrived: event for `collect` to wait for: there is a request, or the batcher is closing.
        full: event for `collect` to wait for: there are enough requests for a batch, or the batcher is closing.

    Args:
        infer: coroutine function that takes a list of inputs and returns a list of as many outputs, in that order.
        max_batch: most inputs of one inference.
        max_wait: seconds that the oldest request may wait for others to fill its batch.
        max_queue: most requests in the queue.
        timeout: seconds after which a caller gives up.
    """

    def __init__(self, infer, *, max_batch=32, max_wait=0.002, max_queue=256, timeout=2.0):
        """Remember the settings; `start` begins the work."""
        self.infer = infer
        self.max_batch, self.max_wait = max_batch, max_wait
        self.max_queue, self.timeout = max_queue, timeout
        self.queue = deque()
        self.closing = False
        self.arrived, self.full = asyncio.Event(), asyncio.Event()
        self.worker = None

    def start(self):
        """Begin to collect and answer, in a task of its own."""
        self.worker = asyncio.get_running_loop().create_task(self.run())

    async def run(self):
        """Collect a batch, answer it, and so on; end when the batcher is closing and the queue is empty."""
        while self.queue or not self.closing:
            batch = await self.collect()
            if batch:
                await self.answer(batch)

    # TODO submit  (12 points, ~30 min)
    async def submit(self, input):
        """Put one input into the queue and wait for its answer.

        Appends a `Waiting` to `queue`, with a new future and the time by the loop's clock, sets `arrived`, and sets
        `full` too when the queue now holds a whole batch. Then waits for the future, `timeout` seconds at most.

        Args:
            input: for `infer`.

        Returns:
            What `infer` returned for this input.

        Raises:
            Closed: at once, when the batcher is closing.
            Full: at once, when the queue holds `max_queue` requests already; it stays as it is.
            TimeoutError: when there is no answer in time. The future is then cancelled, so that nobody works for it.
            Exception: what `infer` raised for this input.
        """
        raise NotImplementedError("submit")

    # TODO collect  (16 points, ~45 min)
    async def collect(self):
        """Wait for a batch and take it out of the queue.

        Waits, without using the processor, until there is a request. Then until there are `max_batch` of them, or
        the **oldest** has waited for `max_wait` seconds since its arrival, or the batcher is closing, whichever comes
        first; not at all when that is so already.

        Returns:
            A list of at most `max_batch` requests (`Waiting`), in the order of their arrival, without those whose
            future is done: their callers have given up. They leave the queue too, and take nobody's place in the
            batch. The list is empty only when all callers have given up, or when the batcher is closing and nobody
            waits any more.
        """
        raise NotImplementedError("collect")

    # TODO answer  (16 points, ~45 min)
    async def answer(self, batch):
        """Ask the model once for the whole batch, and give each request its own answer.

        Where that inference fails, the fault may lie in a single input. Then the requests are tried again in smaller
        groups, down to one by one, so that every request which can be answered is, and each of the others gets the
        error of an inference with its input alone. Fewer than `2 * len(batch)` inferences are made in all.

        An inference that returns another number of outputs than there were inputs has failed (ValueError). A
        cancellation (CancelledError) is no failure of the inference: it goes through.

        Args:
            batch: list of at least one `Waiting`. A caller may give up at any moment; its future, being done, is left
                alone.
        """
        raise NotImplementedError("answer")

    # TODO close  (8 points, ~15 min)
    async def close(self):
        """Accept nothing more, answer at once all that was accepted, and end the worker.

        After this call `submit` raises `Closed`. It returns when the worker has ended. A second call, also while the
        first still waits, does the same; without a `start` there is nothing to wait for.
        """
        raise NotImplementedError("close")
