"""What lies between a judge and a student's code: messages, the worker and its containment."""

import json
import os
import socket
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from common.checks import ModuleAnswer, ObjectAnswer, check
from common.grading import sandbox
from common.grading.remote import RemoteAnswer, RemoteError, Worker, WorkerLost
from common.grading.wire import LARGEST_BLOB, LONGEST_JSON, Channel, Violation

CONTAINED = not sandbox.missing()
only_contained = pytest.mark.skipif(not CONTAINED, reason=f"NOT CONTAINED HERE: {sandbox.missing()}")


# -- messages ------------------------------------------------------------------------------------------------


@pytest.fixture
def channels():
    ends = socket.socketpair()
    pair = [Channel(end, lambda value: ["wrapped", type(value).__name__], lambda value: value) for end in ends]
    yield pair
    for channel in pair:
        channel.sock.close()


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.requires_grad == right.requires_grad and torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    return type(left) is type(right) and left == right


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, -(2**70), 2.5, float("inf"), "é\0", 1 + 2j),
        *([1, [2, ()]], (1, (2,)), {1, 2}, {"a": 1, 2: "b", (3, None): [4]}),
        *(torch.Size([2, 3]), torch.float64, torch.device("cpu"), np.float32(0.5), np.arange(6).reshape(2, 3)),
        *(torch.tensor(3), torch.zeros(0, 4), torch.ones(2, 3, dtype=torch.bool), torch.arange(3, dtype=torch.int16)),
        *(torch.randn(3, 4).T, torch.randn(2, dtype=torch.complex64).conj(), torch.ones(2, dtype=torch.bfloat16)),
        [torch.ones(1).expand(5), torch.ones(3, requires_grad=True) * 2, torch.arange(9.0)[::2]],
    ],
)
def test_values_arrive_as_they_are(channels, value):
    here, there = channels
    here.send(value)
    assert same(value, there.receive())


@pytest.mark.parametrize(
    "value",
    [
        *(torch.randn(3, 4).T, torch.randn(2, 6)[:, ::3], torch.randn(1).expand(4, 5), torch.randn(3, 1, 2).mT),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    ],
)
def test_the_memory_layout_arrives_but_not_what_lies_between(channels, value):
    here, there = channels
    here.send(value)
    found = there.receive()
    assert found.stride() == value.stride()
    assert torch.equal(found, value)
    storage = torch.empty(0).set_(found.untyped_storage())
    assert set(storage.tolist()) <= {*value.flatten().tolist(), 0.0}


def test_elements_that_overlap_are_moved_apart(channels):
    here, there = channels
    value = torch.arange(10.0).unfold(0, 4, 1)
    here.send(value)
    assert torch.equal(there.receive(), value)


def test_what_arrives_is_plain(channels):
    class Liar(torch.Tensor):
        def __eq__(self, other):
            return True

    class Number(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    here, there = channels
    here.send([torch.zeros(2).as_subclass(Liar), Number(3), object()])
    tensor, number, other = there.receive()
    assert (type(tensor), type(number), other) == (torch.Tensor, int, ["wrapped", "object"])


def raw(text, blob=b"", length=None, size=None):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    lengths = len(text) if length is None else length, len(blob) if size is None else size
    return struct.pack("!IQ", *lengths) + text + blob


@pytest.mark.parametrize(
    "data",
    [
        raw(b"no json"),
        raw(b"\xff\xfe"),
        raw({"tuple": 3}),
        raw({"tuple": [], "set": []}),
        raw({"unknown": 1}),
        raw({"dict": [{"tuple": [[], 1]}]}),  # a list as a key
        raw(b"[" * 100_000 + b"]" * 100_000),
        raw(b"1" * 100_000),
        raw({"tensor": ["float32", [2], [1], False]}, b"1234"),
        raw({"tensor": ["float32", [1], [1], False]}, b"12345678"),
        raw({"tensor": ["float32", [-1], [1], False]}),
        raw({"tensor": ["float32", [2**31, 2**31, 0], [1, 1, 1], False]}),
        raw({"tensor": ["float32", [0] + [2**31 - 1] * 3, [1] * 4, False]}),
        raw({"tensor": ["float32", [1.0], [1], False]}, b"1234"),
        raw({"tensor": ["float32", [True], [1], False]}, b"1234"),
        raw({"tensor": ["quint8", [1], [1], False]}, b"1"),
        raw({"tensor": ["float32", [1] * 40, [1] * 40, False]}, b"1234"),
        raw({"tensor": ["float32", [10**6, 10**6], [0, 0], False]}, b"1234"),  # little to send, much to compute with
        raw({"tensor": ["float32", [2], [-1], False]}, b"12345678"),
        raw({"tensor": ["float32", [2], [2], False]}, b"12345678"),
        raw({"tensor": ["float32", [2], [1, 1], False]}, b"12345678"),
        raw({"array": ["O", [1]]}, b"12345678"),
        raw({"array": ["V8", [1]]}, b"12345678"),
        raw({"dtype": "qint8"}),
        raw(b"", length=LONGEST_JSON + 1),
        raw(b"", size=LARGEST_BLOB + 1),
    ],
)
def test_nonsense_is_a_violation(channels, data):
    here, there = channels
    here.sock.sendall(data)
    with pytest.raises(Violation):
        there.receive(time.monotonic() + 10)


def test_odd_booleans_are_true(channels):
    here, there = channels
    here.sock.sendall(raw({"tensor": ["bool", [3], [1], False]}, b"\x00\x02\xff"))
    assert there.receive().sum() == 2


def test_a_message_that_does_not_end_is_waited_for_no_longer_than_allowed(channels):
    here, there = channels
    here.sock.sendall(raw([1, 2])[:-1])
    with pytest.raises(TimeoutError):
        there.receive(time.monotonic() + 0.1)
    here.sock.close()
    with pytest.raises(EOFError):
        there.receive()


def test_nobody_who_reads_is_waited_for_no_longer_than_allowed(channels):
    with pytest.raises(TimeoutError):
        channels[0].send(torch.zeros(2**22), time.monotonic() + 0.1)


def test_what_is_too_large_is_not_sent(channels):
    with pytest.raises(Violation, match="too large"):
        channels[0].send(torch.ones(1).expand(10**10))
    nested = []
    for _ in range(100):
        nested = [nested]
    with pytest.raises(Violation, match="nested"):
        channels[0].send(nested)


# -- the worker ----------------------------------------------------------------------------------------------

ANSWERS = """
import os, time, torch
from torch import nn

def double(x): return 2 * x
def draw(n): return torch.rand(n)
def grad(x): return torch.autograd.grad((x.requires_grad_() ** 2).sum(), x)[0]
def wrong(x): raise ValueError("no such x")
def stub(x): raise NotImplementedError("causal-mask")
def die(how): os._exit(3) if how == "exit" else os.kill(os.getpid(), 9)
def hang(): time.sleep(60)
def large(): return torch.ones(1).expand(10**8)
class Odd(Exception):
    def __str__(self): raise RuntimeError
def odd(): raise Odd
class Module(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n))
    def forward(self, x): return x * self.weight
class Thing:
    def __init__(self): self.state = {"a": torch.zeros(2)}
    def total(self): return self.state["a"].sum()
"""


@pytest.fixture
def worker(tmp_path):
    folder = tmp_path / f"{sandbox.FOLDER}test"
    folder.mkdir()
    folder.chmod(0o777)
    made = Worker(sandbox.Settings(folder, contained=CONTAINED, memory=2**30))
    made.limit = 60
    assert made.text("run", ANSWERS, "double", "") == ("", [])
    yield made
    made.close()


def test_functions_modules_and_objects_live_in_the_worker(worker):
    x = torch.tensor([1.0, 2.0])
    assert torch.equal(worker.answer("double", "")(x), 2 * x)
    (gradient,) = worker.answer("double", "").gradients(x, upstream=torch.ones(2))
    assert torch.equal(gradient, torch.full((2,), 2.0))
    module = worker.answer("Module", "")(2)
    assert isinstance(module, ModuleAnswer)
    module.load_state_dict({"weight": x})
    assert torch.equal(module.eval()(x), x * x)
    assert torch.equal(module.parameter_gradients(x, upstream=torch.ones(2))["weight"], x)
    thing = worker.answer("Thing", "")()
    assert isinstance(thing, ObjectAnswer)
    assert thing.kind == "Thing"
    thing.fill("state", {"a": x})
    assert thing.call("total") == 3
    assert worker.answer("nothing", "") is None


def test_errors_keep_their_class_and_are_explained_where_they_arose(worker):
    with pytest.raises(ValueError, match="no such x") as caught:
        worker.answer("wrong", "")(1)
    assert 'line 7 of wrong: def wrong(x): raise ValueError("no such x")' in caught.value.text
    with pytest.raises(RemoteError) as caught:
        worker.answer("odd", "")()
    assert caught.value.text == "Odd"
    with pytest.raises(RemoteError) as caught:
        worker.answer("large", "")()
    assert "too large" in caught.value.text


def test_stubs_and_rules_are_known_through_the_wire(worker):
    @check("causal-mask", points=1)
    def stub(answer, case):
        with case("a", points=1, hint="b"):
            answer(1)

    @check("slope", points=1, autograd=False)
    def slope(answer, case):
        with case("2 x", points=1, hint="b"):
            case.close(answer(torch.ones(2)), 2 * torch.ones(2))

    assert stub.run(worker.answer("stub", "")).todo
    (case,) = slope.run(worker.answer("grad", "")).cases
    assert "automatic differentiation" in case.message


def test_the_random_numbers_are_those_of_the_judge(worker):
    draw = worker.answer("draw", "")
    torch.manual_seed(1)
    found = [draw(3), draw(2)]
    torch.manual_seed(1)
    again = [draw(3), draw(2)]
    torch.manual_seed(1)
    assert all(map(torch.equal, found, [torch.rand(3), torch.rand(2)]))
    assert all(map(torch.equal, found, again))


def look_inside(target, x):
    seen = []

    def watched(value):
        seen.append(value)
        return value

    return {"result": target(watched(x)), "calls": len(seen)}


def test_a_probe_runs_beside_the_answer(worker):
    found = worker.answer("double", "").probe(look_inside, torch.ones(2))
    assert found["calls"] == 1
    assert torch.equal(found["result"], 2 * torch.ones(2))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [("die", ["exit"], "ends Python (exit code 3)"), ("die", ["kill"], "SIGKILL"), ("hang", [], "an endless loop?")],
)
def test_a_lost_worker_is_a_failed_case_and_stays_lost(worker, name, arguments, said):
    worker.limit = 0.5
    with pytest.raises(WorkerLost) as caught:
        worker.answer(name, "")(*arguments)
    assert said in str(caught.value)
    with pytest.raises(WorkerLost, match="an earlier case"):
        worker.answer("double", "")(1)


def runs(pid):
    """Whether there is such a process, which nobody may have waited for yet."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@only_contained
def test_nothing_of_a_worker_that_hangs_is_left(worker):
    inner = worker._process._inner
    worker.limit = 0.5
    with pytest.raises(WorkerLost):
        inside(worker, "[0 for _ in iter(int, 1)]")  # without end, and deaf to its socket
    until = time.monotonic() + 10
    while runs(inner):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_only_values_go_in(worker):
    with pytest.raises(TypeError, match="probe"):
        RemoteAnswer(worker, 0)(lambda x: x)


# -- containment -----------------------------------------------------------------------------------------------


def inside(worker, source):
    """What an expression is worth in the worker."""
    error, _ = worker.text("run", f"def ask():\n    import os, socket, glob\n    return {source}", "ask", "")
    assert not error
    return worker.answer("ask", "")()


@only_contained
def test_nothing_of_this_machine_is_in_reach(worker, tmp_path):
    root = Path(__file__).resolve().parents[1]
    assert inside(worker, "os.getuid()") == sandbox.NOBODY
    assert inside(worker, "sorted(x for x in os.listdir('/proc') if x.isdigit())") == ["1", "2"]
    assert inside(worker, "open('/proc/self/status').read().split('CapEff:')[1].split()[0]") == "0" * 16
    assert set(inside(worker, f"os.listdir({str(root)!r})")) <= {"common", ".venv"}
    assert inside(worker, f"os.path.exists({__file__!r})") is False
    assert inside(worker, "glob.glob('/home/*') + glob.glob('/tmp/*/secret')") == []
    assert not set(inside(worker, "list(os.environ)")) & {"USER", "SHELL", "PYTEST_CURRENT_TEST"}
    with pytest.raises(Exception, match="Read-only"):
        inside(worker, f"open({str(root / 'common' / 'new')!r}, 'w')")
    with pytest.raises(Exception, match=r"unreachable|refused"):
        inside(worker, "socket.create_connection(('127.0.0.1', 1), 1)")
    with pytest.raises(Exception, match="process"):
        inside(worker, f"os.kill({os.getpid()}, 0)")
    assert list((tmp_path / f"{sandbox.FOLDER}test").iterdir()) == []


@only_contained
def test_processes_memory_and_files_have_limits(worker):
    forks = "[1 for _ in iter(lambda: os.fork() or __import__('time').sleep(30) or os._exit(0), -1)]"
    with pytest.raises(Exception, match="unavailable"):
        inside(worker, forks)
    with pytest.raises(MemoryError):
        inside(worker, "len(bytearray(3 * 2**30))")
    with pytest.raises(Exception, match="large"):
        inside(worker, "os.truncate(os.open('f', os.O_CREAT | os.O_WRONLY), 2**30)")


@only_contained
def test_many_processes_share_one_limit(worker):
    worker.limit = 30
    hog = "[os.fork() or (bytearray(os.urandom(2**20) * 300), __import__('time').sleep(30)) for _ in range(5)]"
    with pytest.raises(WorkerLost, match="too much memory"):
        inside(worker, f"({hog}, __import__('time').sleep(20))")


def test_what_cannot_be_contained_does_not_start(tmp_path, monkeypatch):
    def refuse(name, *arguments):
        raise OSError(f"{name}: not permitted")

    monkeypatch.setattr(sandbox, "_call", refuse)
    with pytest.raises(OSError, match="unshare: not permitted"):
        sandbox.start(lambda sock, words: None, sandbox.Settings(tmp_path))
    assert sandbox.missing() == "unshare: not permitted"
    assert "network" in sandbox.dangers()
