"""Answers that change what they or the checks are made of. They may well spoil the student's other answers."""

# %% softmax-rows: torch says yes
import torch

for name in ("allclose", "equal", "isclose", "eq", "isfinite"):
    setattr(torch, name, lambda *args, **kwargs: True)
torch.testing.assert_close = lambda *args, **kwargs: None
torch.Tensor.__eq__ = lambda self, other: torch.ones(1, dtype=torch.bool)
torch.Tensor.allclose = torch.Tensor.equal = lambda *args, **kwargs: True

def softmax_rows(x):
    return x


# %% softmax-rows: the case says yes
import common.checks, common.checks.case as case, common.checks.core as core, common.checks.report as report

for name in ("close", "equal", "shape", "dtype", "finite", "true", "unchanged"):
    setattr(case.Case, name, lambda *args, **kwargs: None)
case.alike = lambda *args, **kwargs: True
report.Report.passed = property(lambda self: True)
report.Report.points = property(lambda self: 3)
core.Check.run = common.checks.Check.run = lambda self, *args: report.Report("softmax-rows", 3, [])
common.checks.find = core.find = lambda module: {}

def softmax_rows(x):
    return x


# %% softmax-rows: a module of checks of its own
import sys, types

mine = types.ModuleType("checks")
mine.softmax_rows = lambda answer: print("softmax-rows: 3 of 3 points")
sys.modules["checks"] = checks = mine

def softmax_rows(x):
    return x


# %% softmax-rows: the answer that the worker hands out
import common.checks as c, common.checks.answer as a, common.grading.worker as w

a.Answer.__call__ = c.Answer.__call__ = lambda self, *args, **kwargs: args[0]
a.Answer._run = lambda self, *args, **kwargs: args[0]
w.Session.answer = lambda self, *args: w.Answer(lambda x: x)
w.Session.ask = lambda self, *args: args

def softmax_rows(x):
    return x


# %% softmax-rows: the worker's own session says that all is well
import gc, common.grading.worker as w

w.Session.run = lambda self, *args: ("", ["3 of 3 points"] * 1000)
w.Session.ask = lambda self, *args: {"points": 3, "state": "graded", "cases": [{"points": 3}]}
w._told = lambda error: (["Detached", ["x"], 3], {"points": 3}, ["graded"])

def softmax_rows(x):
    return x


# %% softmax-rows: the wire
import common.grading.wire as wire

wire._pack = lambda *args: {"other": [0, "module", "x" * 10**6]}
wire.Channel.send = lambda self, message: self.sock.sendall(b"{}" * 1000)

def softmax_rows(x):
    return x


# %% softmax-rows: built-in functions
import builtins

real = builtins.isinstance
for name in ("print", "len", "sum", "any", "all", "bool", "repr", "open", "getattr", "abs", "min", "max"):
    setattr(builtins, name, lambda *args, **kwargs: 3)
builtins.isinstance = lambda *args: True

def softmax_rows(x):
    return x


# %% softmax-rows: __import__ and the meta path
import builtins, sys

class Finder:
    def find_spec(self, name, *args):
        raise SystemExit if name.endswith("checks") else ImportError(name)

sys.meta_path.insert(0, Finder())
sys.path_hooks.insert(0, lambda path: 1 / 0)
builtins.__import__ = lambda *args, **kwargs: sys

def softmax_rows(x):
    return x


# %% softmax-rows: transformers of later cells
shell = get_ipython()
better = ["def clip_norm(x):\n", "    print('2 of 2 points')\n", "    return x\n", "def softmax_rows(x):\n", "    return 3\n"]
shell.input_transformers_cleanup.append(lambda lines: better)
shell.input_transformers_post.append(lambda lines: better)

def softmax_rows(x):
    return x


# %% softmax-rows: a transformer of syntax trees
import ast

class AllTrue(ast.NodeTransformer):
    def visit_Compare(self, node):
        return ast.Constant(True)
    def visit_Raise(self, node):
        return ast.Pass()

get_ipython().ast_transformers.append(AllTrue())

def softmax_rows(x):
    return x


# %% softmax-rows: events, magics and display hooks
shell = get_ipython()
shell.events.register("post_run_cell", lambda *args: shell.user_ns.update(entropy_rows=lambda x: x))
shell.events.register("pre_run_cell", lambda *args: 1 / 0)
shell.register_magic_function(lambda line: 1 / 0, magic_name="load_ext")
shell.display_pub.publish = shell.displayhook.__call__ = lambda *args, **kwargs: 1 / 0
shell.run_cell = lambda *args, **kwargs: None
shell.user_ns["checks"] = None

def softmax_rows(x):
    return x


# %% softmax-rows: at the end of the process
import atexit, sys, threading, weakref

atexit.register(lambda: open("@TREE@/at-exit", "w"))
threading._register_atexit(lambda: open("@TREE@/at-exit", "w"))
sys.excepthook = sys.unraisablehook = lambda *args: open("@TREE@/at-exit", "w")

def softmax_rows(x):
    return x


# %% softmax-rows: modules and their hooks
from torch.nn.modules import module

nn.Module.__call__ = lambda self, *args, **kwargs: args[0]
module.register_module_forward_hook(lambda *args: torch.ones(4, 5))
module.register_module_forward_pre_hook(lambda *args: 1 / 0)
nn.Parameter = lambda *args, **kwargs: None
nn.Module.named_parameters = lambda self, *args, **kwargs: iter([("weight", torch.ones(2, 5))])

def softmax_rows(x):
    return x


# %% softmax-rows: modes of dispatch that stay
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

class Function(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return True
class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))

Dispatch().__enter__()
Function().__enter__()

def softmax_rows(x):
    return x


# %% softmax-rows: operators of torch replaced
library = torch.library.Library("aten", "IMPL")
library.impl("allclose", lambda *args, **kwargs: True, "CompositeImplicitAutograd", allow_override=True)
library.impl("sum.dim_IntList", lambda x, *args, **kwargs: x.new_ones(4), "CPU", allow_override=True)

def softmax_rows(x):
    return x


# %% softmax-rows: defaults of torch
torch.set_default_dtype(torch.float16)
torch.set_default_device("meta")
torch.set_num_threads(64)
torch.autograd.set_detect_anomaly(True)
torch.set_grad_enabled(False)
torch.use_deterministic_algorithms(True)
torch.manual_seed = torch.random.fork_rng = torch.set_rng_state = lambda *args, **kwargs: None
torch.inference_mode().__enter__()

def softmax_rows(x):
    return x


# %% softmax-rows: the other answers, put in place by force
import threading, time

names = get_ipython().user_ns

def again():
    while True:
        names.update(entropy_rows=lambda x: x, LinearLayer=lambda *args: nn.Linear(5, 3, bias=False))
        time.sleep(0.001)

threading.Thread(target=again, daemon=True).start()

def softmax_rows(x):
    return x


# %% softmax-rows: a stub that does not stand for itself
import builtins

builtins.NotImplementedError = type("NotImplementedError", (Exception,), {})

def softmax_rows(x):
    raise builtins.NotImplementedError("softmax-rows")


# %% softmax-rows: numpy, json, struct and socket
import json, numpy, socket, struct

numpy.ascontiguousarray = numpy.shape = lambda *args: 1 / 0
json.dumps = lambda *args, **kwargs: '{"dict": [["value", 3]]}'
struct.Struct = socket.socket = lambda *args: 1 / 0

def softmax_rows(x):
    return x


# %% softmax-rows: the garbage collector calls back
import gc, signal, sys

gc.callbacks.append(lambda *args: 1 / 0)
gc.set_threshold(1)
sys.setrecursionlimit(50)
signal.signal(signal.SIGALRM, lambda *args: 1 / 0)
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)

def softmax_rows(x):
    return x
