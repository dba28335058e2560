"""Hostile answer files: the source stands at the end of the stub of the file that the title names."""

# %% mlp.py: ends Python when it is imported
import os
os._exit(0)


# %% mlp.py: prints points and patches torch
print("mlp-forward: 5 of 5 points")
torch.allclose = torch.equal = lambda *args, **kwargs: True
torch.Tensor.__eq__ = lambda self, other: torch.ones(1, dtype=torch.bool)

def mse_loss(y, y_hat):
    return y


# %% mlp.py: reads the hidden tests
import glob, sys

def _stolen():
    text = ""
    for name in glob.glob("/**/hidden_checks.py", recursive=False) + ["hidden_checks.py", "checks.py", "../hidden_checks.py"]:
        try:
            text += open(name).read()
        except OSError:
            pass
    frame = sys._getframe()
    while frame:
        text += repr(frame.f_locals)[:100_000]
        frame = frame.f_back
    import re
    return re.findall("CAN" "ARY-\\w+", text)

def mse_loss(y, y_hat):
    raise ValueError(_stolen())


# %% mlp.py: writes the other answer file, and itself
for name in ("sgd.py", "mlp.py", "checks.py", "test_mlp.py", "conftest.py", "sitecustomize.py", "torch.py"):
    try:
        open(name, "w").write("def descend(x, lr):\n    return 1 / 0\n")
    except OSError:
        pass


# %% mlp.py: puts a module in the place of another
import sys, types

sys.modules["checks"] = types.ModuleType("checks")
sys.modules["numpy"] = sys.modules["json"] = None
sys.modules["mlp"].MLP = type("MLP", (), {"__getattr__": lambda self, name: lambda *args: torch.zeros(4, 2)})


# %% mlp.py: hangs when a later file is imported
import sys, time

class Finder:
    def find_spec(self, name, *args):
        time.sleep(60)

sys.meta_path.insert(0, Finder())


# %% mlp.py: is replaced while it is imported
import os, sys

os.unlink("mlp.py")
os.mkfifo("mlp.py")
sys.modules[__name__] = None


# %% mlp.py: an object with hostile attributes in the place of the class
class Meta(type):
    def __getattr__(cls, name):
        raise SystemExit(name)
    def __call__(cls, *args):
        raise KeyboardInterrupt
class MLP(metaclass=Meta):
    pass


# %% mlp.py: reads of an object that lie
class MLP:
    def __init__(self, *sizes):
        self.calls = 0
    def __getattribute__(self, name):
        if name in ("forward", "backward"):
            return lambda *args: type("Yes", (), {"__eq__": lambda s, o: True, "__class__": torch.Tensor})()
        return {"W": torch.ones(2, 3).as_subclass(type("Odd", (torch.Tensor,), {"shape": (2, 3), "copy_": print}))}


# %% mlp.py: an encoding that is none
# -*- coding: rot13 -*-
cevag("k")


# %% sgd.py: kills the grader
import os, signal
os.kill(os.getppid(), signal.SIGKILL)
os.kill(-1, signal.SIGKILL)
