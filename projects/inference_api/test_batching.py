"""Example tests of batching.py: run `pytest` in this folder. They are few; write your own."""

import asyncio
import gc

import pytest
from batching import Batcher, Closed, Full


def play(story):
    """Run a coroutine to its end, for 5 seconds at most."""
    try:
        return asyncio.run(asyncio.wait_for(story, 5))
    finally:
        gc.collect()  # a task that failed says so here, not in the middle of another test


class Tenfold:
    """A model that returns ten times each input, remembers its batches, and cannot bear the input 13."""

    def __init__(self):
        """Nobody has asked yet."""
        self.batches = []

    async def __call__(self, inputs):
        """Answer a batch."""
        self.batches.append(inputs)
        await asyncio.sleep(0.01)
        if 13 in inputs:
            raise ValueError("13 brings bad luck")
        return [one * 10 for one in inputs]


def test_one_batch_and_to_each_its_own():
    async def story():
        model = Tenfold()
        batcher = Batcher(model, max_batch=4, max_wait=1.0)
        batcher.start()
        answers = await asyncio.gather(*(batcher.submit(one) for one in (3, 1, 4, 1)))
        await batcher.close()
        return answers, model.batches

    assert play(story()) == ([30, 10, 40, 10], [[3, 1, 4, 1]])


def test_a_batch_that_is_not_full_goes_all_the_same():
    async def story():
        batcher = Batcher(Tenfold(), max_batch=4, max_wait=0.02)
        batcher.start()
        answer = await batcher.submit(5)
        await batcher.close()
        return answer

    assert play(story()) == 50


def test_a_poisoned_request_fails_alone():
    async def story():
        batcher = Batcher(Tenfold(), max_batch=4, max_wait=0.02)
        batcher.start()
        ends = await asyncio.gather(*(batcher.submit(one) for one in (1, 13, 2)), return_exceptions=True)
        await batcher.close()
        return ends

    first, poisoned, last = play(story())
    assert (first, last) == (10, 20)
    assert isinstance(poisoned, ValueError)


def test_refuses_when_full_and_when_closing():
    async def story():
        batcher = Batcher(Tenfold(), max_batch=4, max_wait=0.02, max_queue=2)
        waiting = [asyncio.ensure_future(batcher.submit(one)) for one in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await batcher.submit(3)
        batcher.start()
        await batcher.close()
        with pytest.raises(Closed):
            await batcher.submit(4)
        return await asyncio.gather(*waiting)

    assert play(story()) == [10, 20]


def test_gives_up_after_the_timeout():
    async def story():
        batcher = Batcher(Tenfold(), timeout=0.02)  # never started
        with pytest.raises(TimeoutError):
            await batcher.submit(1)
        return batcher.queue[0].future.done()

    assert play(story())
