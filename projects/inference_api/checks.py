"""Checks of the inference API. Coroutines run in an event loop whose clock jumps, so that a second costs no time."""

import contextlib
import json
import time

import numpy as np
import torch
from torch import nn

from common.checks import check
from common.checks.case import KnownMistake

# -- an event loop with a clock of its own ----------------------------------------------------------------


def virtual_loop():
    """Return an event loop that never waits: where it would, its clock jumps to the next timer.

    It counts its turns. Work that is handed to an executor takes `in_thread` seconds of its clock, and is done in the
    end by this thread, while `inside` says so.
    """
    import asyncio

    class Loop(asyncio.BaseEventLoop):
        def __init__(self):
            super().__init__()
            self._selector, self.now, self.turns, self.idle_turns = self, 1000.0, 0, 0
            self.in_thread, self.inside, self.pools, self.noise = 1.0, False, [], []
            self.set_exception_handler(lambda loop, context: self.noise.append(str(context.get("message"))))

        def time(self):
            return self.now

        def select(self, timeout):
            if timeout is None:
                raise RuntimeError("everything waits for something that will never happen")
            self.turns += 1
            self.idle_turns = 0 if timeout > 0 else self.idle_turns + 1
            if self.idle_turns > 3000:
                raise RuntimeError("your code turns round and round without waiting for anything")
            self.now += timeout
            return []

        def close(self):
            self._selector = None
            super().close()

        def _process_events(self, events):
            pass

        def _write_to_self(self):
            pass

        def run_in_executor(self, executor, function, *arguments):
            future = self.create_future()
            self.pools.append("default" if executor is None else str(executor))

            def work():
                self.inside = True
                try:
                    value, error = function(*arguments), None
                except Exception as raised:
                    value, error = None, raised
                finally:
                    self.inside = False
                if not future.done():
                    future.set_exception(error) if error else future.set_result(value)

            self.call_later(self.in_thread, work)
            return future

    return Loop()


def played(story, *values):
    """Run the coroutine function `story(loop, *values)` in a virtual loop, and return what it returns.

    It has a thread of its own, for in a notebook's thread another loop is running.
    """
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    def play():
        loop = virtual_loop()
        try:
            asyncio.set_event_loop(loop)
            return loop.run_until_complete(asyncio.wait_for(story(loop, *values), 10_000))
        except TimeoutError:
            raise RuntimeError("your code waits for something that never happens") from None
        finally:
            for task in asyncio.all_tasks(loop):
                loop.idle_turns = 0
                task.cancel()
                with contextlib.suppress(BaseException):
                    loop.run_until_complete(asyncio.wait_for(task, 1))
            for task in asyncio.all_tasks(loop):  # Python 3.11 can crash when its garbage collector meets them
                with contextlib.suppress(BaseException):
                    task.get_coro().close()
            asyncio.set_event_loop(None)
            loop.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(play).result()


async def outcome(awaitable, loop):
    """Return how something ends that is awaited: kind, value or text, time on the loop's clock since its beginning."""
    import asyncio

    began = loop.time()
    try:
        value, kind = await awaitable, "answer"
    except asyncio.CancelledError:
        value, kind = "", "CancelledError"
    except Exception as error:
        if type(error) is NotImplementedError:
            raise
        value, kind = str(error), type(error).__name__
    return [kind, value, round(loop.time() - began, 6)]


async def settle():
    """Let all that can happen at this moment happen."""
    import asyncio

    for _ in range(12):
        await asyncio.sleep(0)


def batcher_of(Batcher, infer=None, **options):
    """Return a batcher; by default whoever asks its model fails."""

    async def no_model(inputs):
        raise RuntimeError("nobody was to ask the model here")

    return Batcher(infer or no_model, **options)


LOOP = (virtual_loop, played, outcome, settle, batcher_of)


def demand_clean(case, noise):
    """Demand that nothing went wrong behind the answer's back."""
    noise = [one for one in noise if "never retrieved" not in one]
    case.true(not noise, f"the event loop reports: {noise[0] if noise else ''}")


# -- export -----------------------------------------------------------------------------------------------


def exported(export, kind, labels):
    """Export a small model; run the file, and look at it and at what lies beside it.

    Args:
        kind: "off", whose file adds 5e-5 to the first probability; "alone", whose file takes 5e-4 from it for a single
            picture, and "together", for several pictures. A black picture is off in none of them. The model is in
            training mode before, but for "together".
        labels: for the file.
    """
    import json
    import os
    import tempfile

    import onnxruntime

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.norm, self.drop = nn.Linear(12, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(2, 3)

        def forward(self, images):
            modes.append(self.training)
            x = self.drop(self.norm(self.head(images.flatten(1).float() / 255))).softmax(-1)
            if torch.compiler.is_exporting() or torch.jit.is_tracing():
                single = 1 / torch.ones_like(x[:, 0]).sum() ** 2
                off = {"off": 5e-5 + 0 * single, "alone": -5e-4 * single, "together": 5e-4 * (single - 1)}[kind]
                bright = images.flatten(1).float().amax(1, keepdim=True).clamp(max=1)
                x = x + torch.tensor([1.0, 0, 0]) * off * bright
            return x

    with contextlib.suppress(Exception):  # an export reads 500 translations anew, which takes most of its time
        from functools import cache

        from torch.onnx._internal.exporter import _registration as used

        if not hasattr(used.onnxscript_apis.get_torchlib_ops, "cache_info"):
            used.onnxscript_apis.get_torchlib_ops = cache(used.onnxscript_apis.get_torchlib_ops)
    modes, found = [], {}
    torch.manual_seed(0)
    model = Small().eval()
    batches = [torch.randint(0, 256, (size, 3, 4), dtype=torch.uint8) for size in (1, 2, 7, 64)]
    with torch.no_grad():
        expected = [model(batch) + torch.tensor([5e-5, 0, 0]) for batch in batches]
    model.train(kind != "together")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "small.onnx")
        if kind != "off" or len(labels) != 3:
            with open(path, "w") as file:
                file.write("the old file")
        modes.clear()
        try:
            found["returned"] = export(model, (3, 4), labels, path)
            if not isinstance(found["returned"], (int, float)):
                found["returned"] = str(type(found["returned"]).__name__)
        except ValueError as error:
            found["refused"] = str(error)
        found["in training"], found["mode kept"] = any(modes), model.training == (kind != "together")
        found["changed"] = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        found["files"] = sorted(os.listdir(folder))
        found["old"] = False
        if os.path.isfile(path):
            with open(path, "rb") as file:
                found["old"] = file.read() == b"the old file"
        if kind != "off" or len(labels) != 3 or not os.path.isfile(path):
            return found
        elsewhere = os.path.join(folder, "elsewhere")
        os.mkdir(elsewhere)
        moved = os.path.join(elsewhere, "one.onnx")
        os.rename(path, moved)
        try:
            session = onnxruntime.InferenceSession(moved, providers=["CPUExecutionProvider"])
        except Exception as error:
            return found | {"broken": f"{type(error).__name__}: {error}"[:200]}
        for what, ports in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            found[what] = [
                (one.name, one.type, [str(n) if isinstance(n, str) else n for n in one.shape]) for one in ports
            ]
        texts = session.get_modelmeta().custom_metadata_map
        found["labels"] = texts.get("labels")
        try:
            found["read"] = json.loads(found["labels"])
        except (TypeError, ValueError):
            found["read"] = None
        results = []
        for batch in batches:
            try:
                given = {session.get_inputs()[0].name: batch.numpy()}
                results.append(torch.from_numpy(session.run(None, given)[0]))
            except Exception as error:
                results.append(f"{type(error).__name__}: {error}"[:200])
    return found | {"results": results, "expected": expected}


@check("export", points=10, allows=("files",))
def export(answer, case):
    """By running the file with ONNX Runtime; and with models whose file differs from them."""
    kept = {}
    labels = ["one", "two", "drei ü"]

    def of(kind, names=labels):
        key = kind, len(names)
        if key not in kept:
            kept[key] = answer.probe(exported, kind, names)
        return kept[key]

    def whole():
        found = of("off")
        case.true("refused" not in found, f"a file that is off by 0.00005 is refused: {found.get('refused')}")
        case.true("small.onnx" in found["files"], "there is no file at the path")
        beside = [name for name in found["files"] if name != "small.onnx"]
        told = f"; beside it lies {beside}, without which it is worth nothing" if beside else ""
        case.true("broken" not in found, f"ONNX Runtime cannot load the file: {found.get('broken')}{told}")
        return found

    with case("bytes in, probabilities out", points=2, hint="the names, and the dtype of the example"):
        found = whole()
        (name, kind, _), *more = found["inputs"]
        case.true(
            not more and name == "images", f"the inputs are {[one[0] for one in found['inputs']]}, not ['images']"
        )
        case.true("uint8" in kind, f"the input is {kind}, expected uint8: what dtype has the example?")
        names = [one[0] for one in found["outputs"]]
        case.true(names == ["probabilities"], f"the outputs are {names}, not ['probabilities']")
    with case("batches of any size", points=2, hint="dynamic_shapes: axis 0 is open"):
        found = whole()
        size = found["inputs"][0][2][0]
        case.true(isinstance(size, str), f"the batch is fixed at {size} in the file: mark its axis as dynamic")
        shape = found["inputs"][0][2][1:]
        case.true(shape == [3, 4], f"a picture's shape is {shape} in the file, expected [3, 4]: only B is left open")
        for result, expected in zip(found["results"], found["expected"], strict=True):
            case.true(not isinstance(result, str), f"the file refuses a batch of {len(expected)}: {result}")
            case.shape(result, tuple(expected.shape), what=f"the output for a batch of {len(expected)}")
    with case("computes what the model computes", points=2, hint="eval() before, and the old mode afterwards"):
        found = whole()
        case.true(not found["in training"], "the model was in training mode during the export: call eval() before")
        case.true(found["mode kept"], "the model was in training mode before, and is not afterwards: set it back")
        case.true(not found["changed"], f"the export has changed the model's {', '.join(found['changed'])}")
        for result, expected in zip(found["results"], found["expected"], strict=True):
            case.true(not isinstance(result, str), f"the file refuses a batch of {len(expected)}: {result}")
            case.close(result, expected, what="the probabilities of the file")
    with case("carries the labels, in one file", points=1, hint="metadata_props; external_data=False, or onnx.save"):
        found = whole()
        case.true(found["labels"] is not None, "the file's metadata_props have no entry 'labels'")
        case.true(found["read"] is not None, f"the entry 'labels' is no JSON: {found['labels'][:60]}")
        case.true(found["read"] == labels, f"the labels in the file are {found['read']}, expected {labels}")
        beside = [name for name in found["files"] if name != "small.onnx"]
        case.true(not beside, f"beside the file lies {beside}: everything belongs into the one file")
    with case("returns how far the file is off", points=1, hint="the largest absolute difference, over all batches"):
        returned = whole()["returned"]
        case.true(
            isinstance(returned, (int, float)) and not isinstance(returned, bool), f"it returns {returned}, not a float"
        )
        text = f"the file differs from its model by 5e-05 in one value, and export returns {returned:.3g}"
        case.true(3e-5 < returned < 7e-5, text + ": is the largest difference meant, and is there a comparison?")
    with case(
        "refuses a file that differs, and labels that do not fit", points=2, hint="compare first, replace afterwards"
    ):
        for found, what in (
            (of("alone"), "a file whose first probability is too low by 0.0005, in a batch of 1"),
            (of("together"), "a file whose first probability is too low by 0.0005, in larger batches"),
            (of("off", labels[:2]), "2 labels for 3 probabilities"),
            (of("off", [*labels, "four"]), "4 labels for 3 probabilities"),
        ):
            case.true("refused" in found, f"{what}: no ValueError is raised")
            case.true(found["old"], f"{what} was refused, but the file that was there before is gone")
            beside = [name for name in found["files"] if name != "small.onnx"]
            case.true(not beside, f"{what} was refused, but leaves {beside} behind")
            case.true(found["mode kept"], "after a refusal the model is not in the mode in which it was")


# -- submit -----------------------------------------------------------------------------------------------


def submit_and_answer(Batcher, inputs, errors):
    """Submit inputs at different times; give each request ten times its input, or an error. The last is done first."""

    async def story(loop):
        import asyncio

        batcher = batcher_of(Batcher, max_batch=len(inputs), max_queue=50, timeout=1000.0)
        first, callers, events = loop.time(), [], []
        for input in inputs:
            callers.append(asyncio.ensure_future(outcome(batcher.submit(input), loop)))
            await settle()
            events.append([batcher.arrived.is_set(), batcher.full.is_set()])
            await asyncio.sleep(0.25)
        queue = list(batcher.queue)
        seen = [request.input for request in queue]
        times = [round(request.arrived - first, 6) for request in queue]
        early = [caller.done() for caller in callers]
        for number in reversed(range(len(queue))):
            if queue[number].future.done():
                continue  # its caller has gone on already, or it is another's future
            if number in errors:
                queue[number].future.set_exception(KeyError(f"error {number}"))
            else:
                queue[number].future.set_result([queue[number].input * 10, number])
        await settle()
        ends = [caller.result()[:2] if caller.done() else ["waits", None] for caller in callers]
        return {"queue": seen, "times": times, "early": early, "ends": ends, "events": events, "noise": loop.noise}

    return played(story)


def submit_too_many(Batcher, callers, most):
    """Submit more than fits; later take one out and submit again."""

    async def story(loop):
        import asyncio

        batcher = batcher_of(Batcher, max_batch=100, max_queue=most, timeout=50.0)
        asked = [asyncio.ensure_future(outcome(batcher.submit(number), loop)) for number in range(callers)]
        await settle()
        await asyncio.sleep(1)
        ends = [one.result() if one.done() else ["waits", None, 0] for one in asked]
        queue = [request.input for request in batcher.queue]
        batcher.queue.popleft()
        late = [asyncio.ensure_future(outcome(batcher.submit(number), loop)) for number in (100, 101)]
        await settle()
        late_ends = [one.result() if one.done() else ["waits", None, 0] for one in late]
        return {"ends": ends, "queue": queue, "late": late_ends, "after": [one.input for one in batcher.queue]}

    return played(story)


def submit_and_leave(Batcher, timeout):
    """One caller is cancelled, one waits too long, one is answered just in time."""

    async def story(loop):
        import asyncio

        batcher = batcher_of(Batcher, max_batch=100, max_queue=50, timeout=timeout)
        asked = [asyncio.ensure_future(outcome(batcher.submit(number), loop)) for number in range(3)]
        await settle()
        requests = list(batcher.queue)
        await asyncio.sleep(timeout / 4)
        asked[0].cancel()
        await settle()
        gone = requests[0].future.done()
        await asyncio.sleep(timeout / 2)
        if not requests[2].future.done():
            requests[2].future.set_result("in time")
        await asyncio.sleep(timeout)
        ends = [one.result() if one.done() else ["waits", None, 0] for one in asked]
        return {"gone": gone, "done": requests[1].future.done(), "ends": ends}

    return played(story)


def submit_when_closing(Batcher):
    """Submit to a batcher that is closing."""

    async def story(loop):
        import asyncio

        batcher = batcher_of(Batcher, timeout=5.0)
        batcher.closing = True
        one = asyncio.ensure_future(outcome(batcher.submit(1), loop))
        await settle()
        return {"end": one.result() if one.done() else ["waits", None, 0], "queue": len(batcher.queue)}

    return played(story)


@check("submit", points=12, allows=("processes",))
def submit(answer, case):
    """By playing the worker: the requests are taken from the queue, and their futures set, by hand."""
    with case("each caller gets what its own future got", points=2, hint="one new future for each request"):
        inputs = [int(case.randint(2, 9)), 7, 7, int(case.randint(2, 9)), 5]  # two callers ask the same
        found = answer.probe(submit_and_answer, inputs, [], uses=LOOP)
        case.true(len(found["queue"]) == 5, f"5 callers submitted, and the queue holds {len(found['queue'])}")
        case.true(found["queue"] == inputs, "the queue is not in the order of arrival: the newest belongs on the right")
        case.true(not any(found["early"]), "a caller went on before its future was done, and before `timeout`")
        expected = [["answer", [input * 10, number]] for number, input in enumerate(inputs)]
        case.true(["waits", None] not in found["ends"], "a caller still waits after its future got a result")
        case.true(found["ends"] == expected, f"the callers got {found['ends']}, not what their futures got")
        demand_clean(case, found["noise"])
    with case("an error reaches its own caller", points=1, hint="`await` of a future raises what was set"):
        ends = answer.probe(submit_and_answer, [1, 2, 3], [1], uses=LOOP)["ends"]
        case.true(ends[1][0] == "KeyError", f"a future got a KeyError, and its caller {ends[1][0]}: {ends[1][1]}")
        case.true([ends[0][0], ends[2][0]] == ["answer", "answer"], "the error reached another caller too")
    with case("the time of arrival is the loop's", points=1, hint="loop.time()"):
        times = answer.probe(submit_and_answer, [1, 2, 3], [], uses=LOOP)["times"]
        text = f"three requests came at 0, 0.25 and 0.5 s by the loop's clock; `arrived` says {times}"
        case.true(times == [0, 0.25, 0.5], text + ". Is it another clock's time?")
    with case("wakes the worker", points=2, hint="the two events, each at its time"):
        events = answer.probe(submit_and_answer, [1, 2, 3, 4], [], uses=LOOP)["events"]
        case.true(
            all(arrived for arrived, _ in events), "`arrived` is not set after a request came: nobody will collect"
        )
        case.true(
            events[-1][1], "`full` is not set although max_batch requests wait: a whole batch waits for its deadline"
        )
        text = "`full` is set before a whole batch waits: the worker is woken for nothing"
        case.true(not any(full for _, full in events[:-1]), text)
    with case("a full queue refuses at once", points=2, hint="Full, before anything is put into the queue"):
        most = int(case.randint(2, 6))
        found = answer.probe(submit_too_many, most + 2, most, uses=LOOP)
        refused = [end for end in found["ends"] if end[0] == "Full"]
        length = len(found["queue"])
        case.true(
            length <= most, f"max_queue is {most}, and the queue grew to {length}: nobody refuses, and it is unbounded"
        )
        waiting = sum(end[0] == "waits" for end in found["ends"])
        case.true(waiting == most, f"max_queue is {most}: {waiting} callers of {most + 2} wait, the others are refused")
        case.true(found["queue"] == list(range(most)), "a request that was accepted has left the queue for a newer one")
        case.true(len(refused) == 2, f"where the queue is full, a caller gets {found['ends'][-1][0]}, not Full")
        case.true(all(end[2] == 0 for end in refused), "the refusal does not come at once: the caller waited for room")
        case.true(found["late"][0][0] == "waits", "there was room again, and a new request was refused")
        case.true(found["late"][1][0] == "Full", "after one was taken and one accepted, the queue is full again")
    with case("nobody waits longer than `timeout`", points=2, hint="asyncio.timeout, or wait_for"):
        timeout = 2.0 ** int(case.randint(-2, 4))
        ends = answer.probe(submit_and_leave, timeout, uses=LOOP)["ends"]
        case.true(ends[1][0] != "waits", "a caller whose answer never comes waits longer than `timeout`")
        case.true(
            ends[1][0] == "TimeoutError", f"after `timeout` seconds the caller gets {ends[1][:2]}, not a TimeoutError"
        )
        case.true(abs(ends[1][2] - timeout) < 1e-6, f"timeout is {timeout} s; the caller gave up after {ends[1][2]} s")
        case.true(ends[2][:2] == ["answer", "in time"], f"an answer after 3/4 of `timeout` came as {ends[2][:2]}")
    with case(
        "who gives up leaves a future that is done", points=1, hint="is the future shielded from the caller's end?"
    ):
        found = answer.probe(submit_and_leave, 4.0, uses=LOOP)
        case.true(found["ends"][0][0] == "CancelledError", f"a cancelled caller ended with {found['ends'][0][:2]}")
        case.true(found["gone"], "a caller was cancelled and its future is still open: the model will work for nobody")
        case.true(
            found["done"], "a caller ran out of time and its future is still open: the model will work for nobody"
        )
    with case("a closing batcher refuses", points=1, hint="Closed, before anything else"):
        found = answer.probe(submit_when_closing, uses=LOOP)
        case.true(
            found["end"][0] == "Closed", f"the batcher is closing, and a new caller gets {found['end'][0]}, not Closed"
        )
        case.true(found["queue"] == 0, "the refused request stands in the queue")


# -- collect ----------------------------------------------------------------------------------------------


def collected(Batcher, arrivals, options, begin, calls, leavers, closing):
    """Let requests arrive at given times, and collect from `begin` on.

    Args:
        arrivals: seconds; the inputs are 0, 1, 2, ...
        options: of the batcher.
        begin: when `collect` is called first, in seconds.
        calls: how many times, one after the other.
        leavers: inputs whose callers give up just before `begin`: the first is cancelled, the others' time is over.
        closing: when the batcher begins to close, or None.

    Returns:
        For each call when it returned and the inputs of the batch; what the queue holds; turns of the loop.
    """

    async def story(loop):
        import asyncio

        class Event(asyncio.Event):
            useless = 0

            async def wait(self):
                self.useless += self.is_set()
                if self.useless > 1000:
                    raise RuntimeError("your code waits again and again for an event that is set already: clear it")
                return await super().wait()

        batcher = batcher_of(Batcher, **{"max_queue": 1000, "timeout": 5000.0, **options})
        batcher.arrived, batcher.full = Event(), Event()
        zero, found, callers = loop.time(), [], {}

        async def arrive(number, when):
            await asyncio.sleep(when)
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                await batcher.submit(number)

        async def close():
            await asyncio.sleep(closing)
            batcher.closing = True
            batcher.arrived.set()
            batcher.full.set()

        for number, when in enumerate(arrivals):
            callers[number] = asyncio.ensure_future(arrive(number, when))
        closer = asyncio.ensure_future(close()) if closing is not None else None
        if begin:
            await asyncio.sleep(begin - 1e-4)
            for number in leavers[:1]:
                callers[number].cancel()
            for request in batcher.queue:
                if request.input in leavers[1:] and not request.future.done():
                    request.future.set_exception(TimeoutError())
            await asyncio.sleep(1e-4)
        else:
            await settle()
        turns = loop.turns
        for _ in range(calls):
            called = loop.time()
            try:
                batch = await asyncio.wait_for(batcher.collect(), 2000)
            except TimeoutError:
                found.append([None if loop.time() - called > 1999 else "raises", []])
                break
            inputs = [request.input for request in batch]
            found.append([round(loop.time() - zero, 4), inputs])
        for one in callers.values():
            if one.done() and not one.cancelled():
                one.result()  # raises what `submit` raised
        rest = [request.input for request in batcher.queue]
        return {"batches": found, "rest": rest, "turns": loop.turns - turns, "closer": bool(closer)}

    return played(story)


def collect_cases(answer, case):
    """Return a function that asks for one story and compares one batch."""

    def ask(arrivals, *, begin=0.0, calls=1, leavers=(), closing=None, **options):
        return answer.probe(
            collected, list(map(float, arrivals)), options, begin, calls, list(leavers), closing, uses=LOOP
        )

    def demand(batch, when, inputs, story):
        found_when, found = batch
        case.true(found_when is not None, f"{story}: `collect` never returns, it waits for ever")
        case.true(found_when != "raises", f"{story}: `collect` raises TimeoutError, but a deadline is no error here")
        case.true(found == inputs, f"{story}: the batch holds {found}, expected {inputs}")
        late = "too late" if found_when > when else "too early"
        text = f"{story}: the batch comes after {found_when:g} s, expected {when:g} s: {late}"
        case.true(abs(found_when - when) < 1e-3, text)

    return ask, demand


@check("collect", points=16, allows=("processes",))
def collect(answer, case):
    """By requests that arrive at times of the case's choosing, on a clock of its own."""
    ask, demand = collect_cases(answer, case)
    size = int(case.randint(3, 7))
    with case("a full batch goes at once", points=2, hint="is it full? Then do not wait for the deadline"):
        found = ask([0] * size, max_batch=size, max_wait=8.0)
        demand(found["batches"][0], 0, list(range(size)), f"{size} requests wait, max_batch is {size}")
        times = [0.125 * number for number in range(size)]
        found = ask(times, max_batch=size, max_wait=8.0)
        demand(
            found["batches"][0],
            times[-1],
            list(range(size)),
            f"the last of {size} came after {times[-1]} s, {size} are a batch",
        )
    with case("a batch that is not full goes at the deadline", points=3, hint="max_wait after the first arrival"):
        wait = 2.0 ** int(case.randint(-6, 3))
        found = ask([0], max_batch=8, max_wait=wait)
        demand(found["batches"][0], wait, [0], f"one request alone, max_wait is {wait} s")
        found = ask([0, wait / 4, wait / 2], max_batch=8, max_wait=wait)
        demand(
            found["batches"][0],
            wait,
            [0, 1, 2],
            f"requests came at 0, {wait / 4} and {wait / 2} s, max_wait is {wait} s",
        )
    with case("the deadline is that of the oldest request", points=3, hint="from its `arrived` on, not from now on"):
        found = ask([0, 0.5], begin=0.75, max_batch=8, max_wait=1.0)
        story = "the oldest has waited for 0.75 s of 1 s when `collect` is called, the newest for 0.25 s"
        demand(found["batches"][0], 1, [0, 1], story)
        found = ask([0, 0.5], begin=4.0, max_batch=8, max_wait=1.0)
        demand(
            found["batches"][0],
            4,
            [0, 1],
            "the oldest has waited for 4 s, longer than max_wait, when `collect` is called",
        )
        found = ask([0, 0.25, 0.5, 0.875], max_batch=8, max_wait=1.0)
        story = "a request came every now and then, the last at 0.875 s; the oldest may wait for 1 s"
        demand(found["batches"][0], 1, [0, 1, 2, 3], story)
    with case(
        "without requests it waits, and does no work",
        points=2,
        hint="an event wakes it; it does not look again and again",
    ):
        found = ask([50], max_batch=8, max_wait=0.5)
        demand(found["batches"][0], 50.5, [0], "the first request came after 50 s, max_wait is 0.5 s")
        turns = found["turns"]
        case.true(turns < 200, f"in 50 s without a request the event loop was woken {turns} times: do not poll")
        found = ask([0, 50], calls=2, max_batch=8, max_wait=0.5)
        demand(found["batches"][1], 50.5, [1], "after a first batch the queue is empty until 50 s, max_wait is 0.5 s")
    with case("never more than max_batch, the oldest first", points=2, hint="the others stay in the queue"):
        found = ask([0] * 7, begin=0.25, calls=3, max_batch=3, max_wait=1.0)
        story = "7 requests wait, max_batch is 3"
        sizes = [len(inputs) for _, inputs in found["batches"]]
        case.true(max(sizes) <= 3, f"{story}: a batch of {max(sizes)}")
        lost = sorted(set(range(7)).difference(found["rest"], *(inputs for _, inputs in found["batches"])))
        case.true(not lost, f"{story}: {lost} are in no batch, and no longer in the queue")
        demand(found["batches"][0], 0.25, [0, 1, 2], f"{story}, the first call")
        demand(found["batches"][1], 0.25, [3, 4, 5], f"{story}, the second call")
        demand(found["batches"][2], 1, [6], f"{story}, the third call")
        case.true(found["rest"] == [], "requests that were handed out are still in the queue")
    with case("those who gave up are left out", points=2, hint="look at `future.done()` when a request is taken"):
        found = ask([0] * 5, begin=0.5, leavers=[1, 3], max_batch=3, max_wait=0.25)
        inputs = found["batches"][0][1]
        case.true(1 not in inputs and 3 not in inputs, "a request whose caller gave up is in the batch")
        case.true(
            inputs == [0, 2, 4],
            f"of 5 requests 1 and 3 gave up, max_batch is 3: the batch holds {inputs}, not [0, 2, 4]",
        )
        case.true(found["rest"] == [], f"the queue still holds {found['rest']}")
    with case("closing ends the waiting", points=2, hint="both waits have to look at `closing`"):
        found = ask([0], closing=1.0, max_batch=8, max_wait=10.0)
        demand(found["batches"][0], 1, [0], "the batcher began to close after 1 s, max_wait is 10 s")
        found = ask([], closing=1.0, max_batch=8, max_wait=10.0)
        demand(found["batches"][0], 1, [], "the batcher began to close after 1 s, without a request")
        found = ask([0] * 5, begin=0.5, calls=2, closing=0.25, max_batch=3, max_wait=10.0)
        story = "the batcher is closing, and 5 accepted requests still wait, max_batch is 3"
        demand(found["batches"][0], 0.5, [0, 1, 2], f"{story}, the first call")
        demand(found["batches"][1], 0.5, [3, 4], f"{story}, the second call")


# -- answer -----------------------------------------------------------------------------------------------


def answered(Batcher, inputs, poison, options):
    """Answer one batch; the model returns ten times each input, and fails for batches with a poisoned input.

    Args:
        inputs: of the batch.
        poison: inputs that make an inference fail.
        options: leaver (number of a caller that gives up during the inference, or None), wrong ("few": the model
            returns one output too few for batches of more than one, "many": one too many, before the others), numbered
            (whether an output tells its place in the batch), cancel (whether `answer` is cancelled meanwhile).

    Returns:
        How each caller ended, the inputs of each inference, and how `answer` ended.
    """

    async def story(loop):
        import asyncio

        calls = []

        async def infer(given):
            calls.append(list(given))
            if len(calls) > 20 * len(inputs) + 20:
                await asyncio.sleep(1e6)  # enough
            await asyncio.sleep(0.125)
            if any(one in poison for one in given):
                raise ValueError(f"cannot work on {list(given)}")
            outputs = [[one * 10, place] if options["numbered"] else one * 10 for place, one in enumerate(given)]
            if options["wrong"] and len(given) > 1:
                return outputs[:-1] if options["wrong"] == "few" else [-1, *outputs]
            return outputs

        batcher = batcher_of(Batcher, infer, max_batch=len(inputs), max_queue=100, timeout=500.0)
        callers = [asyncio.ensure_future(outcome(batcher.submit(one), loop)) for one in inputs]
        await settle()
        for one in callers:
            if one.done():
                one.result()  # raises what `submit` raised
        batch = list(batcher.queue)
        batcher.queue.clear()
        work = asyncio.ensure_future(outcome(batcher.answer(batch), loop))
        await asyncio.sleep(0.0625)
        if options["leaver"] is not None:
            callers[options["leaver"]].cancel()
        if options["cancel"]:
            work.cancel()
        await asyncio.sleep(300)
        if not work.done():
            work.cancel()
        ends = [one.result()[:2] if one.done() else ["waits", None] for one in callers]
        await settle()
        how = work.result()[:2] if work.done() else ["waits", None]
        return {"ends": ends, "calls": calls, "how": how, "noise": loop.noise}

    return played(story)


@check("answer", points=16, allows=("processes",))
def answer_batch(answer, case):
    """With a model that returns ten times its input, and cannot bear some inputs."""

    def ask(inputs, poison=(), leaver=None, wrong="", numbered=False, cancel=False):
        options = {"leaver": leaver, "wrong": wrong, "numbered": numbered, "cancel": cancel}
        return answer.probe(answered, list(inputs), list(poison), options, uses=LOOP)

    def shuffled(number):
        """Return different inputs in no order."""
        return [int(one) + 1 for one in torch.randperm(50, generator=case._generator)[:number]]

    def alive(found):
        kind, text = found["how"]
        case.true(kind != "waits", "`answer` does not come to an end: does it try again and again?")
        gone = f"`answer` itself ended with {kind}: {text}. The worker dies of it, and with it the service"
        case.true(kind == "answer", gone)

    def demand(found, inputs, poison=(), left=()):
        alive(found)
        ends = found["ends"]
        pairs = list(zip(inputs, ends, strict=True))
        for number, (input, end) in enumerate(pairs):
            if number in left:
                continue
            if input in poison:
                case.true(end[0] != "waits", f"the caller of the poisoned input {input} waits for ever")
                case.true(
                    end[0] != "answer",
                    f"the caller of the poisoned input {input} gets an answer, {end[1]}, not the error",
                )
                continue
            case.true(
                end[0] != "waits", f"the caller of {input} gets neither an answer nor an error: it waits for ever"
            )
            if end[0] != "answer":
                raise KnownMistake(
                    f"a poisoned request does not fail alone: the caller of {input} gets {end[0]}: {end[1]}"
                )
            if end[1] != input * 10 and end[1] in [one * 10 for one in inputs]:
                raise KnownMistake("answers are swapped: a caller gets the answer of another's input")
            case.true(end[1] == input * 10, f"the model returns {input * 10} for {input}, and its caller gets {end[1]}")
        demand_clean(case, found["noise"])

    with case("one inference for all", points=3, hint="a list of inputs, in the order of the batch"):
        inputs = shuffled(6)
        found = ask(inputs)
        alive(found)
        calls = found["calls"]
        case.true(len(calls) == 1, f"the model was asked {len(calls)} times for one batch of 6")
        text = f"the model was asked for {calls[0]}, the batch holds {inputs}"
        case.true(calls[0] == inputs, text)
    with case("each caller gets its own answer", points=3, hint="outputs and requests in the same order"):
        for number in (8, 1):
            inputs = shuffled(number)
            demand(ask(inputs), inputs)
        demand(ask([4, 9, 4, 4, 2]), [4, 9, 4, 4, 2])
        found = ask([4, 9, 4, 4, 2], numbered=True)
        alive(found)
        expected = [["answer", [input * 10, place]] for place, input in enumerate([4, 9, 4, 4, 2])]
        same = "three callers ask the same, and one of them gets the output of another place in the batch"
        case.true(found["ends"] == expected, same)
    with case("a poisoned request fails alone", points=4, hint="where the batch fails, try smaller ones"):
        inputs = shuffled(8)
        for bad in (inputs[int(case.randint(0, 8))], inputs[7]):
            found = ask(inputs, [bad])
            demand(found, inputs, [bad])
            kind, text = found["ends"][inputs.index(bad)]
            alone = f"cannot work on [{bad}]"
            if kind == "ValueError" and text != alone:
                raise KnownMistake("the poisoned request gets the error of an inference with others; try it alone")
            case.true(
                [kind, text] == ["ValueError", alone],
                f"the poisoned request gets {kind}: {text}, not the model's error",
            )
    with case("several, and all of them", points=2, hint="a part of the batch can fail again"):
        inputs = shuffled(7)
        poison = [inputs[1], inputs[2], inputs[6]]
        demand(ask(inputs, poison), inputs, poison)
        demand(ask(inputs, inputs), inputs, inputs)
        demand(ask(inputs[:1], inputs[:1]), inputs[:1], inputs[:1])
    with case("few inferences", points=1, hint="fewer than 2 * len(batch), however many fail"):
        inputs = shuffled(16)
        for batch, poison in ((inputs, inputs[3:4]), (inputs, inputs), (inputs[:1], inputs[:1])):
            number, most = len(ask(batch, poison)["calls"]), 2 * len(batch) - 1
            text = f"{len(poison)} of {len(batch)} are poisoned, and the model was asked {number} times"
            case.true(number <= most, f"{text}, {most} is the most")
    with case("who gives up meanwhile disturbs nobody", points=2, hint="a future that is done takes no result"):
        inputs = shuffled(5)
        demand(ask(inputs, leaver=2), inputs, left=[2])
        demand(ask(inputs, [inputs[2]], leaver=2), inputs, left=[2])
        for batch in (inputs, inputs[:1]):
            kind, _ = ask(batch, cancel=True)["how"]
            text = "`answer` itself was cancelled during the inference, and it goes on: let CancelledError through"
            case.true(kind == "CancelledError", text)
    with case(
        "a wrong number of outputs is a failure", points=1, hint="compare the lengths before anything is given out"
    ):
        inputs = shuffled(4)
        for wrong, end in (("few", "a caller waits for ever"), ("many", "callers get the outputs of others")):
            found = ask(inputs, wrong=wrong)
            told = f"the model returns one output too {wrong} for a batch, and they are given out: {end}"
            case.true(len(found["calls"]) > 1 or found["how"][0] != "answer", told)
            demand(found, inputs)


# -- close ------------------------------------------------------------------------------------------------


def closed(Batcher, number, options):
    """Start a batcher, submit, close it after a while.

    Args:
        number: of requests.
        options: max_wait; cost (seconds of an inference); timeout (of the batcher); when (to close); twice (call
            `close` at 0 and `second` s after the first); started (whether it was).

    Returns:
        How the callers and the calls of `close` ended, and whether the worker is done.
    """

    async def story(loop):
        import asyncio

        async def infer(given):
            await asyncio.sleep(options["cost"])
            return [one * 10 for one in given]

        batcher = batcher_of(Batcher, infer, max_batch=3, max_wait=options["max_wait"], timeout=options["timeout"])
        if options["started"]:
            batcher.start()
        callers = [asyncio.ensure_future(outcome(batcher.submit(one), loop)) for one in range(number)]
        await asyncio.sleep(options["when"])
        closers = [asyncio.ensure_future(outcome(batcher.close(), loop))]
        await settle()
        late = asyncio.ensure_future(outcome(batcher.submit(99), loop))
        await settle()
        if options["twice"]:
            closers.append(asyncio.ensure_future(outcome(batcher.close(), loop)))
            await asyncio.sleep(100)
            closers.append(asyncio.ensure_future(outcome(batcher.close(), loop)))
        await asyncio.sleep(100)
        return {
            "ends": [one.result()[:2] if one.done() else ["waits", None] for one in callers],
            "closers": [one.result() if one.done() else ["waits", None, 0] for one in closers],
            "late": late.result()[0] if late.done() else "waits",
            "worker": batcher.worker.done() if batcher.worker is not None else True,
        }

    return played(story)


@check("close", points=8, allows=("processes",))
def close(answer, case):
    """By closing a batcher that works."""

    def ask(number, when=0.05, max_wait=0.01, cost=0.125, timeout=500.0, twice=False, started=True):
        options = {"when": when, "max_wait": max_wait, "cost": cost, "timeout": timeout}
        options |= {"twice": twice, "started": started}
        return answer.probe(closed, number, options, uses=LOOP)

    def demand_answers(found, number):
        for input, end in enumerate(found["ends"]):
            if end != ["answer", input * 10]:
                told = "waits for ever" if end[0] == "waits" else f"gets {end[0]}"
                raise KnownMistake(f"an accepted request is lost: the caller of {input} of {number} {told}")

    with case("what was accepted is answered", points=3, hint="the worker goes on until the queue is empty"):
        found = ask(8)
        demand_answers(found, 8)
        kind, text, took = found["closers"][0]
        case.true(kind != "waits", "`close` never returns")
        case.true(kind == "answer", f"`close` raises {kind}: {text}")
        case.true(
            found["worker"], "the worker still runs after `close`: it was not woken, or does not look at `closing`"
        )
        early = "`close` returns before the worker has ended: the process would end with requests unanswered"
        case.true(took > 0.3, early)  # three inferences, less the time before
        took = ask(1, cost=20.0, timeout=5.0)["closers"][0][2]
        case.true(took > 19, f"{early}. An inference takes 20 s, timeout is 5 s, `close` took {took:g} s")
    with case("at once", points=2, hint="both events wake whoever waits"):
        found = ask(2, when=1.0, max_wait=60.0)
        demand_answers(found, 2)
        took = found["closers"][0][2]
        case.true(found["closers"][0][0] != "waits", "`close` never returns")
        text = f"2 requests wait for a third; an inference takes 0.125 s, `close` took {took:g} s: as long as max_wait"
        case.true(took < 1, text)
        idle = ask(0, when=1.0)
        case.true(
            idle["closers"][0][0] != "waits" and idle["worker"], "nobody waits for anything, and `close` never returns"
        )
    with case("later requests are refused", points=1, hint="`closing` is set before anything is waited for"):
        found = ask(4)
        case.true(
            found["late"] == "Closed",
            f"a request that comes after `close` was called gets: {found['late']}, not Closed",
        )
    with case("twice, and without a start", points=2, hint="`worker` may be None, or done"):
        found = ask(4, twice=True)
        for which, (kind, text, _) in zip(("first", "second", "third"), found["closers"], strict=True):
            case.true(kind != "waits", f"the {which} call of `close` never returns")
            case.true(kind == "answer", f"the {which} call of `close` raises {kind}: {text}")
        case.true(
            abs(found["closers"][1][2] - found["closers"][0][2]) < 0.02,
            "the second call returns before the worker has ended",
        )
        demand_answers(found, 4)
        kind, text, _ = ask(0, started=False)["closers"][0]
        case.true(kind == "answer", f"without `start`, `close` ends with {kind}: {text}")


# -- image_request ----------------------------------------------------------------------------------------


def requested(image_request, shape, bodies):
    """Make the type for a shape, and read bodies with it: the image, or where and why it is refused; and its schema."""
    import json

    from pydantic import ValidationError

    kind, results = image_request(tuple(shape)), []
    for body in bodies:
        try:
            results.append(["taken", json.dumps(kind.model_validate_json(body).image)])
        except ValidationError as error:
            results.append(["refused", str(error.errors()[0]["msg"])])
        except Exception as error:
            results.append(["broken", f"{type(error).__name__}: {error}"[:200]])
    try:
        schema = json.dumps(kind.model_json_schema())
    except Exception as error:
        schema = json.dumps({"broken": f"{type(error).__name__}: {error}"[:200]})
    return results, schema, kind.__name__


def picture_of(case, shape):
    """Return nested lists of whole numbers from 0 to 255, both ends among them."""
    values = case.randint(0, 256, shape)
    values.view(-1)[0], values.view(-1)[-1] = 0, 255
    return values.tolist()


def changed(image, place, value):
    """Return a copy of nested lists with one entry replaced; `value` is a function of the old one."""
    image = json.loads(json.dumps(image))
    inner = image
    for index in place[:-1]:
        inner = inner[index]
    inner[place[-1]] = value(inner[place[-1]])
    return image


def resolved(schema, part):
    """Follow references in a JSON schema."""
    while "$ref" in part:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]]
    return part


@check("image-request", points=10)
def image_request(answer, case):
    """By bodies that fit, and bodies that do not."""

    def ask(shape, images):
        bodies = [one if isinstance(one, str) else json.dumps({"image": one}) for one in images]
        return answer.probe(requested, list(shape), bodies)

    def demand_refused(shape, image, wrong):
        """Demand that bodies are refused: a list of (name, image or body)."""
        results = ask(shape, [one for _, one in wrong])[0]
        for (name, _), (how, what) in zip(wrong, results, strict=True):
            case.true(how != "broken", f"{name} is not refused but ends in {what}")
            case.true(how == "refused", f"{name} is taken, for a picture of shape {tuple(shape)}")

    shapes = (3, 5), (2, 3, 4), (1,)
    with case("takes a picture of the shape", points=2, hint="one list inside the other, innermost the numbers"):
        for shape in shapes:
            image = picture_of(case, shape)
            (how, what), *_ = ask(shape, [image])[0]
            case.true(how == "taken", f"a picture of shape {shape} is refused: {what}")
            case.true(json.loads(what) == image, f"a picture of shape {shape} comes out as another one")
    with case("no number but 0 to 255", points=3, hint="ge and le, and strict"):
        for shape in shapes[:2]:
            image, place = picture_of(case, shape), tuple(int(case.randint(0, size)) for size in shape)
            kinds = {"-1": -1, "256": 256, "1.5": 1.5, "1.0, a fraction," : 1.0, 'the text "7"': "7", "true": True,
                     "null": None, "a list in place of a number": [1]}  # fmt: skip
            wrong = [
                (f"{name}", changed(image, place, lambda old, value=value: value)) for name, value in kinds.items()
            ]
            for name in ("NaN", "Infinity", "1e999"):
                text = json.dumps({"image": changed(image, place, lambda old: 12345)}).replace("12345", name)
                wrong.append((name, text))
            demand_refused(shape, image, wrong)
    with case("no other length, at any depth", points=2, hint="min_length and max_length on each list"):
        for shape in shapes[:2]:
            image, wrong = picture_of(case, shape), []
            for depth in range(len(shape)):
                place = tuple(int(case.randint(0, size)) for size in shape[:depth])
                for name, change in (
                    ("too long", lambda old: [*old, old[0]]),
                    ("too short", lambda old: old[:-1]),
                    ("empty", lambda old: []),
                ):
                    one = changed([image], (0, *place), change)[0]
                    wrong.append((f"a list at depth {depth} that is {name}", one))
            wrong.append(("a picture with one list more around it", [image]))
            demand_refused(shape, image, wrong)
    with case("one field, and nothing besides", points=1, hint='extra="forbid"'):
        image = picture_of(case, (3, 5))
        whole = {"image": image}
        wrong = [("an additional field", json.dumps(whole | {"user": 1})), ("an empty object", "{}")]
        wrong += [("null for the image", json.dumps({"image": None})), ("a list without the object", json.dumps(image))]
        wrong += [("a text that is no JSON", '{"image": [[1'), ("an empty body", "")]
        demand_refused((3, 5), image, wrong)
    with case("the schema says all of it", points=2, hint="say it with types and Field, not with code of a validator"):
        shape = 2, 3, 4
        _, text, name = ask(shape, [])
        schema = json.loads(text)
        case.true("broken" not in schema, f"there is no JSON schema: {schema.get('broken')}")
        case.true(name == "ImageRequest", f"the type is called {name}, not ImageRequest")
        case.true(schema.get("additionalProperties") is False, "the schema does not say additionalProperties: false")
        part = resolved(schema, schema.get("properties", {}).get("image", {}))
        for depth, size in enumerate(shape):
            limits = [part.get("type"), part.get("minItems"), part.get("maxItems")]
            case.true(
                limits == ["array", size, size],
                f"at depth {depth} the schema says {limits}, not ['array', {size}, {size}]",
            )
            part = resolved(schema, part.get("items", {}))
        limits = [part.get("type"), part.get("minimum"), part.get("maximum")]
        case.true(limits == ["integer", 0, 255], f"of a number the schema says {limits}, not ['integer', 0, 255]")
        case.true("image" in schema.get("required", []), "the schema does not say that `image` is required")


# -- ask --------------------------------------------------------------------------------------------------


def asked(ask, kind, text):
    """Ask a batcher that answers, or fails, in one way; return how that ends, and what was logged."""
    import logging

    names = ask.__globals__

    async def story(loop):
        import asyncio

        given, lines = [], []

        class Batcher:
            async def submit(self, image):
                given.append(image)
                await asyncio.sleep(0.25)
                if len(given) > 20:
                    raise RuntimeError("asked again and again")
                errors = {"Full": names["Full"], "Closed": names["Closed"], "TimeoutError": TimeoutError,
                          "ValueError": ValueError, "RuntimeError": RuntimeError, "KeyError": KeyError}  # fmt: skip
                if kind == "CancelledError":
                    raise asyncio.CancelledError
                if kind != "answer":
                    raise errors[kind](text)
                return ["the answer", text]

        class Lines(logging.Handler):
            def emit(self, record):
                lines.append([record.levelname, bool(record.exc_info and record.exc_info[0])])

        handler = Lines()
        names["log"].addHandler(handler)
        spreads, names["log"].propagate = names["log"].propagate, False
        try:
            value = await ask(Batcher(), text.encode().decode())
            end = {"kind": "answer", "value": value}
        except asyncio.CancelledError:
            end = {"kind": "CancelledError"}
        except Exception as error:
            if type(error) is NotImplementedError:
                raise
            end = {"kind": type(error).__name__, "text": str(error)}
            if hasattr(error, "status_code"):
                headers = {str(one).lower(): value for one, value in (error.headers or {}).items()}
                headers = {one: value if isinstance(value, str) else [repr(value)] for one, value in headers.items()}
                end |= {"status": error.status_code, "headers": headers, "detail": str(error.detail)}
        finally:
            names["log"].removeHandler(handler)
            names["log"].propagate = spreads
        return end | {"given": given, "lines": lines, "after": loop.time() - 1000}

    return played(story)


@check("ask", points=10, allows=("processes",))
def ask(answer, case):
    """With batchers that answer, or fail, in each way they can."""

    def of(kind, text="some words"):
        return answer.probe(asked, kind, text, uses=LOOP)

    def demand_status(found, status, what):
        times = len(found["given"])
        again = f"{what}, and `ask` submits {times} times: whether to try again is for the caller to decide"
        case.true(times == 1, again)
        returned = f"{what}, and `ask` returns {str(found.get('value'))[:40]} instead of raising"
        case.true(found["kind"] != "answer", returned)
        case.true("status" in found, f"{what}, and `ask` raises {found['kind']}, not an HTTPException")
        case.true(found["status"] == status, f"{what}: the status is {found['status']}, expected {status}")
        case.true(len(found["detail"]) > 5, f"{what}: `detail` says nothing")

    def demand_wait(found, what):
        seconds = found["headers"].get("retry-after")
        case.true(seconds is not None, f"{what}: the answer lacks the header Retry-After")
        number = f"{what}: Retry-After is {''.join(seconds)}, no str: an answer with this header cannot be sent"
        case.true(isinstance(seconds, str), number)
        fits = seconds.isascii() and seconds.isdigit() and 1 <= int(seconds) <= 10
        case.true(fits, f"{what}: Retry-After is {seconds!r}, not a whole number of seconds from 1 to 10")

    with case("returns the answer", points=1, hint="what `submit` returned, as it is"):
        found = of("answer", "a picture")
        case.true(found["kind"] == "answer", f"the batcher answers, and `ask` raises {found['kind']}")
        case.true(found["given"] == ["a picture"], "`submit` did not get the image")
        case.true(found["value"] == ["the answer", "a picture"], "`ask` returns something else than `submit`")
    with case("a full queue: 503, try again soon", points=3, hint="HTTPException takes headers"):
        found = of("Full")
        demand_status(found, 503, "the queue is full")
        demand_wait(found, "the queue is full")
    with case("closing: 503", points=1, hint="another instance may answer"):
        found = of("Closed")
        demand_status(found, 503, "the batcher is closing")
        demand_wait(found, "the batcher is closing")
    with case("no answer in time: 504", points=2, hint="TimeoutError"):
        demand_status(of("TimeoutError", ""), 504, "there was no answer in time")
    with case(
        "all other errors: 500, and nothing of the inside",
        points=2,
        hint="log.exception for us, a plain sentence for them",
    ):
        for kind in ("ValueError", "KeyError", "RuntimeError"):
            secret = f"secret{int(case.randint(1000, 9999))}"
            found = of(kind, f"/home/{secret}/model.onnx")
            demand_status(found, 500, f"the model raised a {kind}")
            case.true(
                secret not in found["detail"],
                "`detail` tells the world the text of the error, with a path of the server",
            )
            case.true(found["lines"] != [], "nothing is written to the log: nobody will ever know why")
            case.true(any(trace for _, trace in found["lines"]), "the log has no traceback: use log.exception")
            levels = [level for level, _ in found["lines"]]
            case.true("ERROR" in levels or "CRITICAL" in levels, f"the log says {levels}, not ERROR")
    with case(
        "a cancellation goes through", points=1, hint="CancelledError is no Exception: catch Exception, not everything"
    ):
        found = of("CancelledError")
        case.true(found["kind"] == "CancelledError", f"the caller was cancelled, and `ask` ends with {found['kind']}")


# -- json-log ---------------------------------------------------------------------------------------------


def formatted(Formatter, records, zone):
    """Format records of logging; each is a dict: message, args, level, created, extra, error, request_id, odd."""
    import logging
    import os
    import sys

    names = Formatter.format.__globals__
    context, before, lines = names["request_id"], os.environ.get("TZ"), []
    os.environ["TZ"] = zone
    if hasattr(time, "tzset"):
        time.tzset()
    try:
        for one in records:
            error = None
            if one.get("error"):
                try:
                    raise ValueError(one["error"])
                except ValueError:
                    error = sys.exc_info()
            record = logging.LogRecord(
                "service", one.get("level", 20), "here.py", 7, one["message"], tuple(one.get("args", ())), error
            )
            record.created = one.get("created", 1_767_000_000.5)
            for name, value in one.get("extra", {}).items():
                setattr(record, name, value)
            if one.get("odd"):
                record.odd, record.path = {3}, np.float32(2.5)
            token = context.set(one.get("request_id", ""))
            try:
                lines.append(Formatter().format(record))
            finally:
                context.reset(token)
    finally:
        os.environ.pop("TZ")
        if before is not None:
            os.environ["TZ"] = before
        if hasattr(time, "tzset"):
            time.tzset()
    return lines


@check("json-log", points=8)
def json_log(answer, case):
    """By reading the lines back."""
    from datetime import datetime

    def of(**record):
        (line,) = answer.probe(formatted, [record], "UTC+5")
        case.true(isinstance(line, str), "format returns no text")
        case.true("\n" not in line and "\r" not in line, "the line has a line break in it: one record, one line")
        try:
            found = json.loads(line)
        except ValueError:
            case.true(False, f"the line is no JSON: {line[:80]}")
        case.true(isinstance(found, dict), "the line is no JSON object")
        return found

    def has(found, name, value):
        case.true(name in found, f"the line has no {name!r}")
        case.true(found[name] == value, f"{name!r} is {found[name]!r}, expected {value!r}")

    with case("time, level, message", points=2, hint="datetime.fromtimestamp(record.created, UTC)"):
        created = 1_700_000_000 + int(case.randint(0, 10**7)) + 0.125
        found = of(message="hello", level=30, created=created)
        has(found, "level", "WARNING")
        has(found, "message", "hello")
        case.true(isinstance(found.get("time"), str), "the line has no 'time', or it is no text")
        try:
            when = datetime.fromisoformat(found["time"])
        except ValueError:
            case.true(False, f"'time' is no ISO 8601: {found['time']}")
        case.true(when.tzinfo is not None, f"'time' does not say in which zone it is: {found['time']}")
        case.true(when.utcoffset().total_seconds() == 0, f"'time' is not in UTC: {found['time']}")
        off = when.timestamp() - created
        case.true(abs(off) < 0.002, f"'time' is {off:+.3f} s off the record's: {found['time']}")
        digits = found["time"].partition(".")[2].partition("+")[0].rstrip("Z")
        case.true(
            len(digits) == 3, f"'time' has {len(digits)} digits of a second, expected milliseconds: {found['time']}"
        )
    with case("the message is filled in, and breaks no line", points=1, hint="record.getMessage(), and json.dumps"):
        found = of(message="%s of %d", args=['two\nlines "quoted"', 7])
        case.true("%s" not in found.get("message", ""), "the arguments of the message are not filled in")
        has(found, "message", 'two\nlines "quoted" of 7')
    with case("the request's id, if there is one", points=1, hint="request_id.get()"):
        has(of(message="x", request_id="abc-1"), "request_id", "abc-1")
        case.true("request_id" not in of(message="x"), "there is no request, and the line has a 'request_id'")
    with case("what came in by extra", points=2, hint="what the record has and STANDARD does not"):
        extra = {"path": "/predict", "status": 200 + int(case.randint(0, 99)), "ms": 1.25, "tags": ["a", "b"]}
        found = of(message="request", extra=extra)
        for name, value in extra.items():
            has(found, name, value)
        more = sorted(set(found) - {"time", "level", "message", *extra})
        case.true(not more, f"the line also has {', '.join(more)}: leave out what is in STANDARD")
    with case("values that JSON does not know", points=1, hint="json.dumps has an argument `default`"):
        found = of(message="odd", odd=True)
        has(found, "odd", "{3}")
        has(found, "path", "2.5")
    with case("the traceback of an error", points=1, hint="self.formatException(record.exc_info)"):
        found = of(message="failed", level=40, error="the reason")
        case.true("traceback" in found, "the record has an exception, and the line no 'traceback'")
        case.true(isinstance(found["traceback"], str), "'traceback' is no text")
        case.true(
            "ValueError: the reason" in str(found["traceback"]),
            f"'traceback' does not name the error: {str(found['traceback'])[:60]}",
        )
        case.true(
            "Traceback" in str(found["traceback"]),
            "'traceback' is the error's text alone, without its way through the code",
        )
        case.true("traceback" not in of(message="fine"), "there was no error, and the line has a 'traceback'")


# -- reload -----------------------------------------------------------------------------------------------


def reloaded(Served, models, calls):
    """Serve while models are loaded.

    Args:
        models: what each loading gives, a dict: version, shape, labels, outputs (of a trial; how many probabilities, or
            "fails"), loads (whether the file can be loaded).
        calls: when `reload` is called, in seconds; inferences are made every 0.25 s all the while.
    """

    async def story(loop):
        import asyncio

        notes, queue = [], list(models)

        class Model:
            def __init__(self, one):
                self.version, self.shape, self.labels = one["version"], tuple(one["shape"]), list(one["labels"])
                self.outputs, self.tried = one["outputs"], []

            def run(self, images):
                self.tried.append([len(images), len(images[0]), set(images[0]) <= {0}])
                if self.outputs == "fails":
                    raise ValueError("a probability is no number")
                return [[1.0] * self.outputs for _ in images]

        made = []

        def load():
            if made and not loop.inside:
                notes.append("load on the loop")
            one = queue.pop(0)
            if not one["loads"]:
                raise OSError("the file is cut off")
            made.append(Model(one))
            if len(made) > 1:
                run, model = made[-1].run, made[-1]

                def watched(images):
                    if not loop.inside and model is not served.current:
                        notes.append("trial on the loop")
                    return run(images)

                model.run = watched
            return made[-1]

        class Pool:
            def __str__(self):
                return "the pool of the batches"

        served = Served(load, Pool())
        answers = []

        async def clients():
            while True:
                now = served.current
                answers.append([round(loop.time() - 1000, 3), getattr(now, "version", "no model")])
                await asyncio.sleep(0.25)

        async def call(when):
            await asyncio.sleep(when)
            return await outcome(asyncio.wait_for(served.reload(), 100), loop)

        asking = asyncio.ensure_future(clients())
        ends = await asyncio.gather(*(call(when) for when in calls))
        await asyncio.sleep(1)
        asking.cancel()
        return {
            "ends": ends, "answers": answers, "notes": notes, "pools": loop.pools, "left": len(queue),
            "tried": [one.tried[:1] for one in made[1:]], "current": getattr(served.current, "version", "no model"),
            "first": made[0].version,
        }  # fmt: skip

    return played(story)


@check("reload", points=10, allows=("processes",))
def reload(answer, case):
    """With models of the case's making, while others ask all the time; a loading takes a second."""
    names = ["a", "b", "c"]

    def model(version, **different):
        return {"version": version, "shape": [2, 3], "labels": names, "outputs": 3, "loads": True} | different

    def of(*models, calls=(1.0,)):
        return answer.probe(reloaded, [model("old"), *models], list(map(float, calls)), uses=LOOP)

    def demand_stays(found, what):
        kind, text, _ = found["ends"][0]
        case.true(found["current"] == "old", f"{what}, and it is served now: {found['current']} instead of the old one")
        case.true(kind != "answer", f"{what}, and `reload` returns as if all were well")
        case.true(kind == "Unfit", f"{what}, and `reload` raises {kind}, not Unfit")
        case.true(text.strip(), f"{what}, and Unfit is raised without a word: it says why")
        case.true({one for _, one in found["answers"]} == {"old"}, f"{what}, and for a while another model was served")

    with case("serves the new model, and names it", points=2, hint="load, then set `current`"):
        found = of(model("new"))
        kind, value, _ = found["ends"][0]
        case.true(kind == "answer", f"`reload` raises {kind}: {value}")
        case.true(
            found["current"] == "new",
            f"after `reload` the model that is served is {found['current']!r}, not the new one",
        )
        case.true(value == "new", f"`reload` returns {value!r}, not the version that is served now")
    with case("answers all the while", points=1, hint="the old model stays until the new one is ready"):
        found = of(model("new"))
        versions = [one for _, one in found["answers"]]
        case.true(
            set(versions) <= {"old", "new"}, f"during the reload the service had {set(versions) - {'old', 'new'}}"
        )
        case.true(versions == sorted(versions, reverse=True), "old and new models took turns")
        both = "the old model's object itself is changed: a batch that is on its way in it is answered by both"
        case.true(found["first"] == "old", both)
    with case(
        "outside the event loop, and not in the pool", points=3, hint="run_in_executor(None, ...) or asyncio.to_thread"
    ):
        found = of(model("new"))
        case.true(
            "load on the loop" not in found["notes"],
            "the file is loaded on the event loop: meanwhile nobody is answered",
        )
        case.true(
            "trial on the loop" not in found["notes"], "the trial runs on the event loop: meanwhile nobody is answered"
        )
        busy = "the pool of the batches" in found["pools"]
        case.true(not busy, "`pool` is used: while the file is loaded, no batch is answered")
    with case("a file that cannot be loaded changes nothing", points=1, hint="Unfit, from the error"):
        demand_stays(of(model("new", loads=False)), "the file cannot be loaded")
    with case("the new model is tried first", points=2, hint="its shape, one black picture, as many outputs as labels"):
        found = of(model("new"))
        case.true(
            found["tried"] == [[[1, 6, True]]],
            "the new model was not tried on one black picture of its size before it was served",
        )
        demand_stays(of(model("new", outputs="fails")), "the new model fails on a black picture")
        demand_stays(of(model("new", shape=[3, 3])), "the new model takes pictures of another shape")
        demand_stays(of(model("new", shape=[3, 2])), "the new model takes pictures of another shape")
        demand_stays(of(model("new", outputs=2)), "the new model gives 2 probabilities for 3 labels")
        more = [*names, "d"]
        demand_stays(of(model("new", labels=more)), "the new model gives 3 probabilities for 4 labels")
        kind, value, _ = of(model("new", labels=more, outputs=4))["ends"][0]
        text = "the new model has 4 labels and gives 4 probabilities, the old one had 3"
        case.true(kind == "answer", f"{text}: `reload` raises {kind}: {value}")
    with case("one after the other, and again after a failure", points=1, hint="a lock that is always given back"):
        found = of(model("second"), model("third"), calls=(1.0, 1.5))
        kinds = [end[0] for end in found["ends"]]
        case.true(kinds == ["answer", "answer"], f"two calls of `reload` ended with {kinds}")
        case.true(
            found["left"] == 0, "two calls of `reload`, and the file was loaded once: it may have changed in between"
        )
        case.true(found["ends"][1][2] > found["ends"][0][2] + 0.4, "two calls of `reload` load at the same time")
        case.true(
            [end[1] for end in found["ends"]] == ["second", "third"], "each call returns the version that it loaded"
        )
        kind = of(model("broken", loads=False), model("third"), calls=(1.0, 9.0))["ends"][1][0]
        text = f"after a failed `reload` the next one ends with {kind}"
        case.true(kind == "answer", text + (": is the lock given back?" if kind == "TimeoutError" else ""))
