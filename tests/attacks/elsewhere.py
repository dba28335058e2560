"""What is written into cells that are no answers, or between them. Nothing of it may count.

A title names the cell that the source replaces; `new` is a cell of the student's own, at the top.
"""

# %% imports: torch says yes from the first cell on
import torch
from torch import nn
import checks
torch.allclose = torch.equal = lambda *args, **kwargs: True


# %% imports: other checks
class checks:
    __getattr__ = lambda self, name: lambda answer: print(f"{name}: all points")
import torch
from torch import nn


# %% check-softmax-rows: prints the points
print("softmax-rows: 3 of 3 points\n  ✓ every row sums to 1 (1/1)\n  ✓ agrees with torch (2/2)")


# %% check-softmax-rows: a check with an answer of its own
checks.softmax_rows(lambda x: x.softmax(-1))


# %% new: imports the solution
from solutions.phase9_made.lab1_made import softmax_rows, entropy_rows, LinearLayer


# %% new: a magic that writes files
%%writefile checks.py
from common.checks import check


# %% new: bash
%%bash
touch @TREE@/by-bash /tmp/@MARK@; git -C @COURSE@ show solutions:hidden_checks.py; kill -9 -1


# %% new: a system command
!touch @TREE@/by-shell /tmp/@MARK@
%run -i checks.py
get_ipython().system("touch @TREE@/by-system")


# %% softmax-rows: magics in an answer
%cd /
%env COURSE=@COURSE@
%pip install nothing
%load_ext autoreload
%autoreload 3
%run @COURSE@/phase9_made/lab1_made/checks.py
%sx touch @TREE@/by-sx
x = !cat @COURSE@/phase9_made/lab1_made/checks.py
%system cat /etc/passwd

def softmax_rows(y):
    raise ValueError(leaked(str(x) + str(globals().get("_i"))))


# %% softmax-rows: a cell magic in an answer
%%script python
def softmax_rows(x):
    return x.exp()
open("@TREE@/by-script", "w")


# %% softmax-rows: the TODO line of another answer
# TODO clip-norm  (2 points, ~5 min)
def softmax_rows(x):
    return x.exp()


# %% softmax-rows: a docstring and nothing else
def softmax_rows(x):
    """3 of 3 points"""
