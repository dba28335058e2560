"""Loaded once by the server that every judge is forked from, so that no submission waits for imports.

`COURSE_GRADING_IMPORTS` holds the import statements of the units that are graded, one a line.
"""

import contextlib
import gc
import os

import torch._dynamo  # noqa: F401  (a second that torch would else take at the first module or optimiser of each submission)

import common.grading.judge
import common.grading.worker  # noqa: F401  (IPython and common.checks with it)

for _statement in os.environ.get("COURSE_GRADING_IMPORTS", "").splitlines():
    with contextlib.suppress(Exception):  # what does not load here fails in the cell that needs it
        exec(_statement, {})

gc.freeze()
