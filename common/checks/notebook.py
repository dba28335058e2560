"""What a notebook shows while some of its TODOs are open.

A cell that uses an answer which is still a stub should say so in one line, not with a traceback, and a cell
that uses the result of such a cell likewise. Everything else keeps its ordinary traceback.
"""

from __future__ import annotations

import ast
import linecache
from types import TracebackType
from typing import Any

from common.checks.case import stub_of

_waiting: dict[str, str] = {}  # a name that a waiting cell would have defined -> the slug it waits for


def install() -> None:
    """Show the notice in the running IPython kernel; do nothing elsewhere."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    if shell is not None:
        shell.set_custom_exc((NotImplementedError, NameError), _show)


def _show(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    tb: TracebackType | None,
    tb_offset: int | None = None,
) -> None:
    slug = _waits_for(error)
    if slug is None:
        shell.showtraceback((kind, error, tb), tb_offset=tb_offset)
        return
    for name in _defined_names(_cell_source(tb)):
        _waiting.setdefault(name, slug)
        shell.user_ns.pop(name, None)  # an older value under this name would mislead the cells below
    print(f"This cell waits for your answer to {slug}. Run it again when that answer passes its check.")


def _waits_for(error: BaseException) -> str | None:
    if isinstance(error, NameError):
        return _waiting.get(error.name or "")
    return stub_of(error)


def _defined_names(source: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a cell with a magic: nothing is known of it
        return set()
    defined: set[str] = set()
    todo: list[ast.AST] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined.add(node.name)  # what is stored inside it is its own
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        if not isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            todo += ast.iter_child_nodes(node)
    return defined


def _cell_source(tb: TracebackType | None) -> str:
    """The cell that raised: IPython keeps its text in linecache (`In` is not filled by nbval)."""
    while tb is not None:
        frame = tb.tb_frame
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "__main__":
            return "".join(linecache.getlines(frame.f_code.co_filename))
        tb = tb.tb_next
    return ""
