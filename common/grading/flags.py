"""Finds the lines of answers that a person should look at. Nothing is run, and no flag costs a point.

Two kinds: a library function that is the answer where the answer is to be written from scratch, and code that has
no business in an answer at all, such as a look at the frames of other functions. Names are looked for in the syntax
tree, so an alias, `getattr` or another way to the same function makes no difference. A name that is put together
while the code runs cannot be read off it: that is flagged as such.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from common.notebooks import anatomy

MOST = 50  # flags of one submission

AUTOGRAD = {
    *("autograd", "backward", "func", "functorch", "grad", "grad_and_value", "value_and_grad", "grad_fn", "vjp", "jvp"),
    *("jacobian", "jacrev", "jacfwd", "hessian", "vhp", "hvp", "linearize", "forward_ad", "make_dual", "dual_level"),
    *("requires_grad", "retain_grad", "enable_grad", "register_hook"),
}
PROGRAM, PROCESSES, FILES = "looks into the running program", "starts or ends processes", "reads or writes files"
UNSEEN, CHANGES = "runs code that cannot be seen here", "changes Python, IPython or a library"
NETWORK, CHECKS = "uses the network", "goes to the course's checks"
COMPUTED, POSES = "takes a name that is put together", "an object that answers for itself when it is compared"

_MODULES = {  # that no answer needs
    CHECKS: "checks hidden_checks common.checks common.grading common.notebooks",
    PROGRAM: "inspect gc ctypes traceback linecache faulthandler dis tracemalloc",
    PROCESSES: "subprocess multiprocessing threading _thread concurrent asyncio signal atexit pty posix resource",
    NETWORK: "socket ssl urllib http ftplib smtplib socketserver requests httpx",
    FILES: "shutil tempfile glob pathlib io mmap fcntl sqlite3",
    UNSEEN: "importlib runpy pkgutil pickle marshal cloudpickle dill code codecs base64 types",
    CHANGES: "IPython builtins unittest site",
}
_NAMES = {  # of functions and attributes, wherever they come from
    PROGRAM: "_getframe _current_frames currentframe f_back f_locals f_globals gi_frame cr_frame tb_frame "
    "__traceback__ get_objects get_referrers get_referents settrace setprofile __globals__ __closure__ __code__ "
    "__builtins__ __subclasses__ __wrapped__ __mro__",
    PROCESSES: "_exit fork forkpty posix_spawn killpg breakpoint",
    FILES: "fdopen from_file fromfile memmap loadtxt genfromtxt load_state_dict_from_url",
    UNSEEN: "__import__ CompilationUnit cpp_extension load_inline load_library attrgetter methodcaller __reduce__ "
    "__reduce_ex__",
    CHANGES: "get_ipython input_transformers_cleanup input_transformers_post excepthook meta_path path_hooks "
    "TorchDispatchMode TorchFunctionMode _python_dispatch set_default_dtype set_default_tensor_type set_default_device "
    "register_module_forward_hook register_module_forward_pre_hook register_module_full_backward_hook",
}
_WORDS = {FILES: "open", UNSEEN: "eval exec compile globals", PROGRAM: "vars"}  # builtins: model.eval() is fine
_OF_MODULE = {  # attributes of a module, and what they do
    "sys": (PROGRAM, {"modules", "path", "stdout", "stderr", "stdin", "argv", "exc_info", "exit", "monitoring"}),
    "torch": (FILES, {"load", "save", "hub"}),
    "numpy": (FILES, {"load", "save", "savez"}),
}
_OS_IS_FINE = {"path", "sep", "linesep"}
_OS_FILES = {
    *("open", "close", "fsync", "replace", "rename", "remove", "unlink", "mkdir", "makedirs", "listdir", "scandir"),
}
ALLOWED = {"files": FILES, "processes": PROCESSES, "network": NETWORK}  # what a task may ask for
_PARENTS = {"Tensor", "Parameter", "ndarray"}
_POSES = {"__torch_function__", "__torch_dispatch__", "__class__", "__eq__", "__bool__", "__getattribute__"}
_GIVEN = {
    "torch": "torch",
    "nn": "torch.nn",
    "F": "torch.nn.functional",
    "np": "numpy",
    "math": "math",
}  # by setup cells
_BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "__getattribute__", "__getattr__", "__setattr__"}
_FINE_MAGIC = r"\s*%%?(?:matplotlib|time|timeit|load_ext|autoreload|config|precision)\b"


def _reasons(words: Mapping[str, str]) -> dict[str, str]:
    return {name: reason for reason, names in words.items() for name in names.split()}


_REASON_OF_MODULE, _REASON_OF_NAME, _REASON_OF_WORD = _reasons(_MODULES), _reasons(_NAMES), _reasons(_WORDS)


class Rule(NamedTuple):
    """What `@check(...)` says of an answer.

    Attributes:
        from_scratch: names that would be the whole answer.
        autograd: whether automatic differentiation is allowed.
        allows: keys of `ALLOWED`, for what the task itself asks for.
    """

    from_scratch: tuple[str, ...] = ()
    autograd: bool = True
    allows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Code:
    """One cell or file of a submission.

    Attributes:
        place: the slug of the cell, or the name of the file.
        source: what the student wrote.
        answers: slugs, by class and method, or by "" and the name at the top level, that is the answer.
        given: what the course had given there; its lines are not flagged.
    """

    place: str
    source: str
    answers: Mapping[tuple[str, str], str]
    given: str = ""

    @cached_property
    def modules(self) -> dict[str, str]:
        """What its names stand for that are imported, and those that setup cells import."""
        found = dict(_GIVEN)
        for node in ast.walk(anatomy.python(self.source) or ast.Module([], [])):
            if isinstance(node, ast.Import):
                for one in node.names:
                    found[one.asname or one.name.split(".")[0]] = one.name if one.asname else one.name.split(".")[0]
            elif isinstance(node, ast.ImportFrom):
                found |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
        return found


def places(todos: Sequence[anatomy.Answer]) -> dict[tuple[str, str], str]:
    """Return the slugs of an answer file by class and method; the class is "" for a function."""
    found = {}
    for todo in todos:
        own = re.match(r"(?:async\s+)?(?:def|class)\s+(\w+)", todo.source)
        name = own[1] if own else todo.name or ""
        found["" if name == todo.name else todo.name or "", name] = todo.slug
    return found


def declared(checks: str) -> dict[str, dict[str, Any]]:
    """Read what each `@check("slug", ...)` says from the source of a checks.py, which is not imported.

    An argument is a literal, a name that the file gives to one above, or a tuple of these.
    """
    constants: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    tree = anatomy.python(checks)
    for statement in tree.body if tree else []:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            constants[statement.targets[0].id] = _literal(statement.value, constants)
        for call in getattr(statement, "decorator_list", []):
            if isinstance(call, ast.Call) and call.args and isinstance(call.func, ast.Name) and call.func.id == "check":
                values = {one.arg: _literal(one.value, constants) for one in call.keywords if one.arg}
                found[str(_literal(call.args[0], constants))] = values
    return found


def rules(checks: str) -> dict[str, Rule]:
    """Return the rule of each answer, from the source of a checks.py."""
    said = declared(checks)
    return {
        slug: Rule(tuple(one.get("from_scratch") or ()), one.get("autograd", True), tuple(one.get("allows") or ()))
        for slug, one in said.items()
    }


def _literal(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return constants.get(node.id)
    if isinstance(node, ast.Starred):
        return _literal(node.value, constants) or ()
    if isinstance(node, ast.Tuple):
        parts = [(_literal(part, constants), isinstance(part, ast.Starred)) for part in node.elts]
        return tuple(one for value, several in parts for one in (value if several else [value]))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def find(codes: Sequence[Code], rules: Mapping[str, Rule]) -> list[dict[str, Any]]:
    """Return the flags of a notebook with its answer files: dictionaries of slug, place, line, code and reason.

    What an answer uses by name is read with it, wherever it is defined: a helper in another cell, an import. `slug`
    is "" for code that belongs to no answer.
    """
    pieces = [piece for code in codes for piece in _pieces(code)]
    helpers: dict[str, list[_Piece]] = {}
    own = {name for piece in pieces for name in piece.own}
    for piece in pieces:
        for name in piece.binds:
            helpers.setdefault(name, []).append(piece)
    found: dict[tuple[str, int, str], dict[str, Any]] = {}

    def add(code: Code, slug: str, line: int, reason: str) -> None:
        text = (code.source.splitlines() or [""])[line - 1].strip()
        if text not in (given.strip() for given in code.given.splitlines()):
            flag = {"slug": slug, "place": code.place, "line": line, "code": text[:200], "reason": reason}
            if not found.get((code.place, line, reason), {}).get("slug"):
                found[code.place, line, reason] = flag

    allowed: dict[int, list[set[str]]] = {}  # of each piece, what each answer that uses it may do
    for piece in pieces:
        if piece.slug in rules:
            for part in _with_helpers(piece, helpers):
                allowed.setdefault(id(part), []).append({ALLOWED[word] for word in rules[piece.slug].allows})
                for line, reason in _forbidden(part.nodes, rules[piece.slug], own):
                    add(part.code, piece.slug, line, reason)
    for piece in pieces:
        fine = set.intersection(*allowed.get(id(piece), [set()]))
        for line, reason in _foreign(piece.nodes, piece.code.modules, own):
            if reason not in fine:
                add(piece.code, piece.slug, line, reason)
    for code in codes:
        for line in _commands(code.source):
            add(code, "", line, "a command of IPython or of the system")
    flags = sorted(found.values(), key=lambda flag: (flag["place"], flag["line"], flag["reason"]))
    return flags[:MOST]


def _commands(source: str) -> list[int]:
    """The lines that only IPython understands, without harmless ones; where it is no Python, autocalls too."""
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        ast.parse(source)
        return []
    signs = r"[%!]|[\w, ]+=\s*[%!]" + ("" if anatomy.python(source) else r"|[/,;]\s*\w")
    lines = enumerate(source.splitlines(), 1)
    return [line for line, text in lines if re.match(rf"\s*(?:{signs})", text) and not re.match(_FINE_MAGIC, text)]


@dataclass(frozen=True)
class _Piece:
    """Code that is an answer, or that is beside one: `slug` is "" then, and it counts where its names are used."""

    code: Code
    slug: str
    binds: tuple[str, ...]
    node: ast.AST

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.node))

    @cached_property
    def used(self) -> set[str]:
        return {one.id for one in self.nodes if isinstance(one, ast.Name)} | {
            one.attr for one in self.nodes if isinstance(one, ast.Attribute)
        }

    @cached_property
    def own(self) -> set[str]:
        """The names that it defines, also inside functions, without what it imports."""
        found = {one.id for one in self.nodes if isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load)}
        found |= {one.attr for one in self.nodes if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store)}
        found |= {one.name for one in self.nodes if isinstance(one, anatomy.Function | ast.ClassDef)}
        return found | {one.arg for one in self.nodes if isinstance(one, ast.arg)}


def _pieces(code: Code) -> Iterator[_Piece]:
    classes = {cls for cls, _ in code.answers if cls}
    tree = anatomy.python(code.source)
    for statement in tree.body if tree else []:
        if isinstance(statement, ast.ClassDef) and statement.name in classes:
            for part in statement.body:
                name = getattr(part, "name", "")
                yield _Piece(code, code.answers.get((statement.name, name), ""), (name, statement.name), part)
            statement = ast.copy_location(
                ast.ClassDef(statement.name, statement.bases, statement.keywords, [], statement.decorator_list),
                statement,
            )
        binds = [*anatomy.bound_names(statement), *(name for name in map(_root, _targets(statement)) if name)]
        slug = next((code.answers["", name] for name in binds if ("", name) in code.answers), "")
        yield _Piece(code, slug, tuple(binds), statement)


def _with_helpers(piece: _Piece, helpers: Mapping[str, Sequence[_Piece]]) -> list[_Piece]:
    reached, names = [piece], set(piece.used)
    seen: set[str] = set()
    while names - seen:
        name = (names - seen).pop()
        seen.add(name)
        for helper in helpers.get(name, ()):
            if helper not in reached:
                reached.append(helper)
                names |= helper.used
    return reached


# -- library functions where the answer is to be written from scratch ------------------------------------------


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _forbidden(nodes: Sequence[ast.AST], rule: Rule, own: set[str]) -> Iterator[tuple[int, str]]:
    """Lines with names of the library that stand against a rule, and what to say of each line."""
    wanted = [_plain(name) for name in rule.from_scratch]
    lines: dict[tuple[int, str], list[str]] = {}
    for line, name in _library_names(nodes, own):
        if any(part in _plain(name) for part in wanted):
            lines.setdefault((line, "from scratch"), []).append(name)
        elif not rule.autograd and (name.strip("_") in AUTOGRAD or name.endswith("_backward")):
            lines.setdefault((line, "without automatic differentiation"), []).append(name)
    for (line, how), names in lines.items():
        yield line, f"{', '.join(dict.fromkeys(names))}: the answer is to be written {how}"


def _library_names(nodes: Sequence[ast.AST], own: set[str]) -> Iterator[tuple[int, str]]:
    """Names that may stand for something of a library, with their lines."""
    prose = {id(one.value) for one in nodes if isinstance(one, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            if not (_is_self(node.value) and node.attr in own) and not isinstance(node.ctx, ast.Store):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            whole = [getattr(node, "module", "") or "", *(one.name for one in node.names)]
            for part in ".".join(whole).split("."):
                yield node.lineno, part
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in own:
            yield node.lineno, node.id
        elif isinstance(node, ast.keyword) and node.arg and not _is_no(node.value):
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            for part in node.value.split(".") if re.fullmatch(r"[A-Za-z_][\w.:]*", node.value) else ():
                if part not in own:
                    yield node.lineno, part


def _is_self(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id in ("self", "cls")) or (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    )


def _is_no(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not node.value


# -- code that has no business in an answer --------------------------------------------------------------------


def _foreign(nodes: Sequence[ast.AST], modules: Mapping[str, str], own: set[str]) -> Iterator[tuple[int, str]]:
    looks: dict[type, Callable[..., Iterator[str]]] = {
        ast.Import: _foreign_import,
        ast.ImportFrom: _foreign_import,
        ast.Attribute: _foreign_attribute,
        ast.Name: _foreign_name,
        ast.Call: _foreign_call,
        ast.ClassDef: _foreign_class,
        ast.Constant: _foreign_text,
    }
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    for node in nodes:
        if look := looks.get(type(node)):
            if isinstance(node, ast.Attribute) and id(node) in called and _root(node) == "checks":
                continue  # checks.causal_mask(causal_mask), as the check cell below has it
            for reason in look(node, modules, own):
                yield node.lineno, reason  # type: ignore[attr-defined]
        for target in _targets(node):
            root = _root(target)
            if isinstance(target, ast.Attribute) and (_is_dunder(target.attr) or root in modules):
                yield target.lineno, CHANGES


def _foreign_import(node: ast.Import | ast.ImportFrom, modules: Mapping[str, str], own: set[str]) -> Iterator[str]:
    of = getattr(node, "module", None)
    for one in node.names:
        name = f"{of}.{one.name}" if of else one.name
        parts = name.split(".")
        reasons = {_REASON_OF_MODULE.get(".".join(parts[:end])) for end in range(1, len(parts) + 1)}
        yield from filter(None, reasons or ())
        if of and one.name in _REASON_OF_NAME:
            yield _REASON_OF_NAME[one.name]
        elif of == "os" and one.name not in _OS_IS_FINE:
            yield FILES if one.name in _OS_FILES else PROCESSES
        elif of in _OF_MODULE and one.name in _OF_MODULE[of][1]:
            yield _OF_MODULE[of][0]


def _foreign_attribute(node: ast.Attribute, modules: Mapping[str, str], own: set[str]) -> Iterator[str]:
    name = node.value.id if isinstance(node.value, ast.Name) else ""
    module = modules.get(name, name if name not in own else "")
    if node.attr in _REASON_OF_NAME:
        yield _REASON_OF_NAME[node.attr]
    elif module in _OF_MODULE and node.attr in _OF_MODULE[module][1]:
        yield _OF_MODULE[module][0]
    elif module == "os" and node.attr not in _OS_IS_FINE:
        yield FILES if node.attr in _OS_FILES else PROCESSES
    elif node.attr == "__dict__" and not _is_self(node.value):
        yield PROGRAM
    elif module == "checks":
        yield CHECKS


def _foreign_name(node: ast.Name, modules: Mapping[str, str], own: set[str]) -> Iterator[str]:
    reason = _REASON_OF_NAME.get(node.id) or _REASON_OF_WORD.get(node.id)
    if reason and isinstance(node.ctx, ast.Load) and node.id not in own:
        yield reason


def _foreign_call(node: ast.Call, modules: Mapping[str, str], own: set[str]) -> Iterator[str]:
    name = getattr(node.func, "id", "") or getattr(node.func, "attr", "")
    if name not in _BY_NAME or not node.args:
        return
    of = 1 if isinstance(node.func, ast.Name) or len(node.args) > 1 + (name == "__setattr__") else 0
    if len(node.args) > of and not isinstance(node.args[of], ast.Constant) and not _is_self(node.args[0]):
        yield COMPUTED
    if name in ("setattr", "delattr") and _root(node.args[0]) in modules:
        yield CHANGES


def _foreign_class(node: ast.ClassDef, modules: Mapping[str, str], own: set[str]) -> Iterator[str]:
    parents = {getattr(base, "attr", getattr(base, "id", "")) for base in node.bases}
    methods = {name for part in node.body for name in anatomy.bound_names(part)}
    if parents & _PARENTS or methods & _POSES:
        yield POSES


def _foreign_text(node: ast.Constant, modules: Mapping[str, str], own: set[str]) -> Iterator[str]:
    if isinstance(node.value, str) and re.fullmatch(r"[\w.]+", node.value):
        for part in node.value.split("."):
            if "_" in part and part in _REASON_OF_NAME:
                yield _REASON_OF_NAME[part]


def _targets(node: ast.AST) -> list[ast.expr]:
    found = list(getattr(node, "targets", ())) if isinstance(node, ast.Assign | ast.Delete) else []
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        found = [node.target]
    return [part for target in found for part in getattr(target, "elts", [target])]


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return getattr(node, "id", "")


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")
