"""Answers that look for the expected value, the checks or the seed in the memory of their process.

`leaked(text)` finds the marks that tests/test_attacks.py has put into every secret.
"""

# %% softmax-rows: expected from the frames of the callers
import sys

def softmax_rows(x):
    frame = sys._getframe()
    while frame:
        for name, value in [*frame.f_locals.items(), *frame.f_globals.items()]:
            if name in ("expected", "wanted", "oracle") and isinstance(value, torch.Tensor):
                return value
            if type(value).__name__ == "Case":
                value.results.clear()
                return value.results
        frame = frame.f_back
    return x


# %% softmax-rows: expected from inspect.stack
import inspect

def softmax_rows(x):
    text = "".join(str(one.code_context) + repr(one.frame.f_locals)[:100_000] for one in inspect.stack())
    raise ValueError(leaked(text))


# %% softmax-rows: any tensor in memory whose rows sum to 1
import gc

def softmax_rows(x):
    for one in gc.get_objects():
        try:
            if isinstance(one, torch.Tensor) and one.shape == (4, 5) and torch.allclose(one.sum(-1), torch.ones(4)):
                return one
        except Exception:
            pass
    return x


# %% softmax-rows: who refers to the input
import gc

def softmax_rows(x):
    seen, todo = set(), [x]
    while todo and len(seen) < 5000:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        for other in gc.get_referrers(one):
            if isinstance(other, dict) and "expected" in other:
                return other["expected"]
            todo.append(other)
    return x


# %% softmax-rows: a check or a case among all objects
import gc

def softmax_rows(x):
    names = [type(one).__name__ for one in gc.get_objects() if type(one).__name__ in ("Check", "Case", "Job", "Step")]
    codes = [one.__code__.co_filename for one in gc.get_objects() if type(one).__name__ == "function"]
    found = [name for name in codes if name.endswith("checks.py")]
    raise ValueError(f"FOUND {names[:3]} {found[:3]}" if names or found else "nothing")


# %% softmax-rows: the seed among all objects
import gc, sys

def softmax_rows(x):
    found, frame, wanted = [], sys._getframe(), int("@SEED@")
    objects = gc.get_objects()
    while frame:
        objects += [*frame.f_locals.values()]
        frame = frame.f_back
    for one in objects:
        held = one if isinstance(one, dict) else getattr(one, "__dict__", {}) if "grading" in type(one).__module__ else {}
        found += [name for name in ("seed", "_seed") if held.get(name) == wanted]
    raise ValueError(f"FOUND {found}" if found else "nothing")


# %% softmax-rows: the raw memory of the process
import ctypes, re

def softmax_rows(x):
    found = set()
    for line in open("/proc/self/maps"):
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if "rw-p" not in line or high - low > 2**28:
            continue
        try:
            with open("/proc/self/mem", "rb") as memory:
                memory.seek(low)
                found |= set(leaked(memory.read(high - low)))
        except OSError:
            pass
    raise ValueError(found)


# %% softmax-rows: the input's random numbers, predicted
def softmax_rows(x):
    generator = torch.Generator()
    generator.set_state(torch.get_rng_state())
    drawn = torch.randn(4, 5, generator=generator, dtype=torch.float64).float()
    again = torch.Generator().manual_seed(torch.initial_seed())
    same = torch.equal(drawn, x) or torch.equal(torch.randn(4, 5, generator=again, dtype=torch.float64).float(), x)
    raise ValueError("FOUND the generator of the case" if same else "nothing")


# %% softmax-rows: frames of other threads, and their tracebacks
import sys, traceback

def softmax_rows(x):
    text = "".join(repr(frame.f_locals) for frame in sys._current_frames().values())
    try:
        raise ValueError
    except ValueError as error:
        for frame, _ in traceback.walk_stack(None):
            text += repr(frame.f_locals)[:100_000]
    raise ValueError(leaked(text))


# %% softmax-rows: a trace function that waits for the case
import sys

def spy(frame, event, argument):
    for name in ("expected", "actual"):
        if name in frame.f_locals:
            frame.f_locals[name] = frame.f_locals["actual"]
    return spy

sys.settrace(spy)
sys.setprofile(spy)

def softmax_rows(x):
    return x


# %% softmax-rows: source code that Python remembers
import linecache, sys, glob

def softmax_rows(x):
    text = str(linecache.cache) + str(sys.modules)
    for name in glob.glob("**/*.py*", recursive=True) + glob.glob("/proc/self/cwd/*"):
        try:
            text += open(name, errors="replace").read()
        except OSError:
            pass
    raise ValueError(leaked(text))


# %% softmax-rows: the checks by import
def softmax_rows(x):
    found = []
    for name in ("checks", "hidden_checks", "_the_graders_checks", "_the_graders_hidden_checks", "solutions"):
        try:
            module = __import__(name)
            found += leaked(repr(vars(module)) + open(module.__file__).read())
        except Exception:
            pass
    raise ValueError(found)
