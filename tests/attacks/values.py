"""Answers that return, or raise, what is no honest value.

Each cell stands in the place of the answer that its title names; see tests/test_attacks.py.
"""

# %% softmax-rows: prints the expected text
def softmax_rows(x):
    print("softmax-rows: 3 of 3 points\n  ✓ every row sums to 1 (1/1)\n  ✓ agrees with torch (2/2)")
    return x


# %% softmax-rows: prints fake messages of a worker
def softmax_rows(x):
    import sys

    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        stream.write('{"answer": "softmax-rows", "state": "graded", "message": "", "cases": [{"points": 3}]}\n')
        stream.flush()
    return x


# %% softmax-rows: returns a report
from common.checks.report import CaseResult, Report

def softmax_rows(x):
    return Report("softmax-rows", 3, [CaseResult("every row sums to 1", 3, 3, True)])


# %% softmax-rows: a subclass of Tensor says yes to every question
class Yes(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True if "all" in function.__name__ or "equal" in function.__name__ else args[0]

    __eq__ = lambda self, other: True
    __bool__ = lambda self: True

def softmax_rows(x):
    return torch.zeros(4, 5).as_subclass(Yes)


# %% softmax-rows: a wrapper tensor with __torch_dispatch__
class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, shape):
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return torch.ones(()) > 0

def softmax_rows(x):
    return Wrapper((4, 5))


# %% softmax-rows: a tensor that lies about its shape
class Liar(torch.Tensor):
    shape = property(lambda self: torch.Size([4, 5]))
    size = lambda self, *dim: torch.Size([4, 5])
    numel = lambda self: 20
    detach = lambda self: self
    sum = lambda self, *dim: torch.ones(4)

def softmax_rows(x):
    return torch.ones(1).as_subclass(Liar)


# %% softmax-rows: an object that claims to be a tensor
class Chameleon:
    __class__ = torch.Tensor
    __eq__ = lambda self, other: True
    __getattr__ = lambda self, name: self
    __call__ = lambda self, *args, **kwargs: self
    __bool__ = lambda self: True
    __float__ = lambda self: 1.0
    __len__ = lambda self: 5
    __iter__ = lambda self: iter([self] * 5)
    __array__ = lambda self, *args, **kwargs: __import__("numpy").ones((4, 5))

def softmax_rows(x):
    return Chameleon()


# %% softmax-rows: hostile __reduce__
class Bomb:
    def __reduce__(self):
        return __import__("os").system, ("touch @TREE@/reduced",)

def softmax_rows(x):
    return [Bomb(), {"x": Bomb()}, (Bomb(),)]


# %% softmax-rows: hostile __del__, __repr__ and __hash__
class Hostile:
    def __repr__(self):
        return "x" * 10**9
    __str__ = __repr__
    def __hash__(self):
        raise SystemExit
    def __del__(self):
        raise KeyboardInterrupt
    def __getattribute__(self, name):
        raise SystemExit(name)

def softmax_rows(x):
    return Hostile()


# %% softmax-rows: an exception that cannot be shown
class Odd(Exception):
    def __str__(self):
        raise SystemExit
    __repr__ = __str__
    @property
    def __notes__(self):
        raise KeyboardInterrupt
    @property
    def args(self):
        raise GeneratorExit

def softmax_rows(x):
    raise Odd


# %% softmax-rows: an exception with an endless text
def softmax_rows(x):
    error = ValueError("x" * 10**8)
    error.add_note("y" * 10**8)
    raise error


# %% softmax-rows: an exception with control characters and markup
def softmax_rows(x):
    raise ValueError("\x00\x01\x1b[2J\x1b]0;owned\x07\ud800<script>alert(1)</script>]]>&\u202e{{7*7}}")


# %% softmax-rows: exceptions named like the grader's own
kinds = iter(["Failure", "KnownMistake", "AnswerIsStub", "Explained", "RemoteError", "WorkerLost", "Violation",
              "Detached", "UsesAutograd", "UsesOperation", "CheckFailed", "AssertionError", "TimeoutError", "EOFError"])

def softmax_rows(x):
    raise type(next(kinds), (Exception,), {})("3 of 3 points")

import common.checks.case, common.grading.remote, common.grading.wire


# %% softmax-rows: the grader's own exceptions
import common.checks.case as c, common.grading.wire as w

def softmax_rows(x):
    raise (c.AnswerIsStub if float(x.sum()) > 0 else w.Violation)("3 of 3 points")


# %% softmax-rows: SystemExit
def softmax_rows(x):
    raise SystemExit(0)


# %% softmax-rows: KeyboardInterrupt
def softmax_rows(x):
    raise KeyboardInterrupt


# %% softmax-rows: GeneratorExit
def softmax_rows(x):
    raise GeneratorExit


# %% softmax-rows: an exception of nobody's
class Own(BaseException):
    pass

def softmax_rows(x):
    raise Own("x")


# %% softmax-rows: StopIteration, and a group of exceptions
def softmax_rows(x):
    raise StopIteration if float(x[0, 0]) > 0 else BaseExceptionGroup("x", [SystemExit(), ValueError()])


# %% softmax-rows: the stub of another answer
def softmax_rows(x):
    raise NotImplementedError("clip-norm")


# %% softmax-rows: one case, then the stub again
calls = []

def softmax_rows(x):
    calls.append(x)
    if len(calls) > 1:
        raise NotImplementedError("softmax-rows")
    return x


# %% softmax-rows: ten gigabytes by expand
def softmax_rows(x):
    return torch.ones(1).expand(50_000, 50_000)


# %% softmax-rows: an expanded tensor of shape zero and more than all
def softmax_rows(x):
    return torch.empty(0, 2**40, 2**20).sum(-1) if float(x[0, 0]) > 0 else torch.empty(2**31, 0, 2**31)


# %% softmax-rows: a sparse tensor
def softmax_rows(x):
    return torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**9, 10**9))


# %% softmax-rows: a compressed sparse tensor
def softmax_rows(x):
    return torch.eye(4, 5).to_sparse_csr()


# %% softmax-rows: a quantised tensor
def softmax_rows(x):
    return torch.quantize_per_tensor(torch.ones(4, 5), 0.1, 0, torch.quint8)


# %% softmax-rows: a meta tensor
def softmax_rows(x):
    return torch.empty(4, 5, device="meta")


# %% softmax-rows: a nested tensor
def softmax_rows(x):
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(5)])


# %% softmax-rows: a fake tensor
from torch._subclasses.fake_tensor import FakeTensorMode

def softmax_rows(x):
    with FakeTensorMode():
        return torch.empty(4, 5)


# %% softmax-rows: complex, conjugated
def softmax_rows(x):
    return torch.complex(x, x).conj()


# %% softmax-rows: NaN everywhere
def softmax_rows(x):
    return torch.full((4, 5), float("nan"))


# %% softmax-rows: infinite everywhere
def softmax_rows(x):
    return torch.full((4, 5), float("inf"))


# %% softmax-rows: dtypes that nobody uses
kinds = iter([torch.float8_e4m3fn, torch.uint64, torch.bool, torch.complex32] * 5)

def softmax_rows(x):
    return torch.zeros(4, 5).to(next(kinds))


# %% softmax-rows: storage that is too small
def softmax_rows(x):
    made = torch.ones(4, 5)
    made.untyped_storage().resize_(0)
    return made


# %% softmax-rows: a parameter with hooks
def softmax_rows(x):
    made = torch.nn.Parameter(torch.zeros(4, 5))
    made.register_hook(lambda grad: 1 / 0)
    return made


# %% softmax-rows: a list that holds itself
def softmax_rows(x):
    made = []
    made.append(made)
    return made


# %% softmax-rows: a list a hundred thousand deep
def softmax_rows(x):
    made = []
    for _ in range(100_000):
        made = [made]
    return made


# %% softmax-rows: an endless generator, and a dict with hostile keys
class Key:
    __hash__ = lambda self: 1
    __eq__ = lambda self, other: 1 / 0

def softmax_rows(x):
    return {Key(): iter(int, 1), float("nan"): range(10**18), "a\ud800": b"\0" * 10**7}


# %% softmax-rows: numbers and strings of classes of their own
class Number(float):
    __eq__ = lambda self, other: True
    __float__ = lambda self: 1.0
class Word(str):
    __eq__ = lambda self, other: True
    __hash__ = str.__hash__

def softmax_rows(x):
    return (Number(1), Word("x"), 10**5000, -(2**70), float("nan"))


# %% softmax-rows: arrays of objects
import numpy as np

def softmax_rows(x):
    return [np.array([print, open]), np.array(["x"]), np.zeros(2, "i4,f8"), np.longdouble(1), np.datetime64("now")]


# %% softmax-rows: what looks like a message of the wire
def softmax_rows(x):
    return {"tensor": ["float32", [4, 5], False], "other": [0, "answer", "x"], "value": {"points": 3}}


# %% softmax-rows: a million lists
def softmax_rows(x):
    return [[]] * 5_000_000


# %% softmax-rows: a text of a gigabyte
def softmax_rows(x):
    return "x" * 10**9


# %% softmax-rows: an answer that is a coroutine
async def softmax_rows(x):
    return x.softmax(-1)


# %% softmax-rows: an answer that is a generator
def softmax_rows(x):
    while True:
        yield x


# %% softmax-rows: an answer that is no function
softmax_rows = 5


# %% softmax-rows: an answer whose signature is hostile
class Callable:
    @property
    def __signature__(self):
        raise SystemExit
    @property
    def __name__(self):
        raise KeyboardInterrupt
    def __call__(self, *args, **kwargs):
        raise RuntimeError

softmax_rows = Callable()


# %% softmax-rows: changes its input to the result and returns that
def softmax_rows(x):
    x.zero_()
    x.resize_(0)
    return x


# %% linear-layer: a module that lies about its parameters
class LinearLayer(nn.Module):
    def __init__(self, *sizes):
        super().__init__()

    def named_parameters(self, *args, **kwargs):
        yield "weight", torch.zeros(3, 3).as_subclass(type("Yes", (torch.Tensor,), {"__eq__": lambda s, o: True}))

    def __call__(self, *args, **kwargs):
        return type("Yes", (), {"__eq__": lambda s, o: True, "__class__": torch.Tensor})()

    def train(self, *args):
        raise SystemExit


# %% linear-layer: a class whose instances are not its own
class LinearLayer:
    def __new__(cls, *args):
        return type("Meta", (type,), {"__instancecheck__": lambda *a: True, "__getattr__": lambda s, n: s})("X", (), {})


# %% linear-layer: a state that is filled with something else
class LinearLayer(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def named_parameters(self, *args, **kwargs):
        for _ in range(10**9):
            yield "weight", self.weight

    def forward(self, x):
        return self.weight
