"""Small mistakes, made by machine: what share of them in each reference answer costs points?

A mutant is the reference answer with one change: a comparison, a sign, an operator, a constant, an axis, a flag, the
bound of a slice, a statement or call left out, arguments exchanged, a condition negated. Left alone is what students
are given or no check need see: signatures, docstrings, annotations, imports, the texts of errors, `strict=`, `device=`.

`python -m common.grading.mutants [unit ...]` proves the units (see `common.grading.proofs`), adds the share of mutants
caught to the table, and lists the survivors. A survivor is either as right as the reference, or a hole in the checks.
"""

from __future__ import annotations

import ast
import difflib
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from common.grading import proofs
from common.grading.proofs import Snippet
from common.notebooks import anatomy
from common.notebooks.anatomy import Answer, NotebookError

MOST = 60  # mutants of one TODO
MARGIN = 40  # characters that are shown before and after a change

_OPERATORS: dict[type[cst.CSTNode], tuple[type[cst.CSTNode], ...]] = {
    cst.LessThan: (cst.LessThanEqual, cst.GreaterThan),
    cst.LessThanEqual: (cst.LessThan, cst.GreaterThanEqual),
    cst.GreaterThan: (cst.GreaterThanEqual, cst.LessThan),
    cst.GreaterThanEqual: (cst.GreaterThan, cst.LessThanEqual),
    cst.Equal: (cst.NotEqual,),
    cst.NotEqual: (cst.Equal,),
    cst.Is: (cst.IsNot,),
    cst.IsNot: (cst.Is,),
    cst.In: (cst.NotIn,),
    cst.NotIn: (cst.In,),
    cst.And: (cst.Or,),
    cst.Or: (cst.And,),
    cst.Add: (cst.Subtract,),
    cst.Subtract: (cst.Add,),
    cst.Multiply: (cst.Divide, cst.Add),
    cst.Divide: (cst.Multiply,),
    cst.FloorDivide: (cst.Multiply, cst.Divide),
    cst.Modulo: (cst.FloorDivide,),
    cst.Power: (cst.Multiply,),
    cst.MatrixMultiply: (cst.Multiply,),
    cst.BitAnd: (cst.BitOr,),
    cst.BitOr: (cst.BitAnd,),
    cst.AddAssign: (cst.SubtractAssign,),
    cst.SubtractAssign: (cst.AddAssign,),
    cst.MultiplyAssign: (cst.DivideAssign,),
    cst.DivideAssign: (cst.MultiplyAssign,),
    cst.FloorDivideAssign: (cst.MultiplyAssign,),
}
_PAIRS = (
    "sum mean, zeros ones, zeros_like ones_like, new_zeros new_ones, max min, amax amin, argmax argmin, "
    "maximum minimum, sin cos, tanh sigmoid, exp log, floor ceil, softmax log_softmax, triu tril, any all, "
    "append extend, rand randn, vstack hstack, stack cat, items values"
)
_NAMES = {one: other for pair in _PAIRS.split(", ") for one, other in (pair.split(), reversed(pair.split()))}
_SYMMETRIC = {"max", "min", "maximum", "minimum", "dot", "allclose", "isclose", "equal", "transpose", "swapaxes"}
_REDUCTIONS = {"sum", "mean", "var", "std", "amax", "amin", "norm", "logsumexp", "flip"}  # order of axes is free
_UNSEEN = {"strict", "device"}  # keywords
_NUMBERS = (cst.Name, cst.Call, cst.Attribute, cst.Subscript, cst.BinaryOperation, cst.IfExp)  # may be such
_ATOMS = (cst.Name, cst.Call, cst.Attribute, cst.Subscript, cst.BaseNumber, cst.BaseString, cst.BaseList, cst.BaseDict)


@dataclass(frozen=True)
class Mutant:
    """A changed source: the line of the change, that line as it was and as it is, and all of the source."""

    line: int
    was: str
    now: str
    source: str

    @property
    def title(self) -> str:
        """The change in one line."""
        return f"line {self.line}: {self.was}  →  {self.now or '(left out)'}"


def mutate(source: str, most: int = 0, lines: set[int] | None = None) -> list[Mutant]:
    """Return the mutants of a source, the same ones every time.

    Args:
        source: Python.
        most: how many at the most, drawn by chance; 0 for all.
        lines: the lines where a change may begin; None for all.

    Raises:
        NotebookError: the source is no Python.
    """
    try:
        wrapper = MetadataWrapper(cst.parse_module(source))
    except cst.ParserSyntaxError as error:
        raise NotebookError(f"no mutants can be made: {error}") from error
    places = wrapper.resolve(PositionProvider)
    finder = _Finder()
    wrapper.module.visit(finder)
    changes = [one for one in finder.changes if lines is None or places[one[0]].start.line in lines]
    random.Random(0).shuffle(changes)
    seen, found = {_shape(source)}, []
    for old, new in changes:
        changed = wrapper.module.code_for_node(wrapper.module.deep_replace(old, new))
        if (shape := _shape(changed)) and shape not in seen:
            seen.add(shape)
            found.append(_mutant(source, changed))
        if len(found) == most > 0:
            break
    return sorted(found, key=lambda one: (one.line, one.now))


def _shape(source: str) -> str:
    """Return what two sources that do the same thing by construction have in common; "" for what is no Python."""
    try:
        return ast.dump(ast.parse(source))
    except SyntaxError:
        return ""


def _mutant(source: str, changed: str) -> Mutant:
    was, now = source.splitlines(), changed.splitlines()
    edits = difflib.SequenceMatcher(None, was, now, autojunk=False).get_opcodes()
    _, start, end, first, last = next(edit for edit in edits if edit[0] != "equal")
    before, after = (" ".join(" ".join(lines).split()) for lines in (was[start:end], now[first:last]))
    return Mutant(start + 1, *_cut(before, after), changed)


def _cut(was: str, now: str) -> tuple[str, str]:
    """Return two texts without most of what they begin and end with in common."""
    begin = max(0, _common(was, now) - MARGIN)
    end = max(0, _common(was[begin:][::-1], now[begin:][::-1]) - MARGIN)

    def cut(text: str) -> str:
        return f"{'…' * bool(begin)}{text[begin : len(text) - end]}{'…' * bool(end)}"

    return cut(was), cut(now)


def _common(one: str, other: str) -> int:
    """Return the length of what two texts begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


class _Finder(cst.CSTVisitor):
    """Collects changes: a node and what to put in its place."""

    def __init__(self) -> None:
        self.changes: list[tuple[cst.CSTNode, cst.CSTNode]] = []
        self._unordered: list[cst.CSTNode] = []  # tuples of axes

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Note the changes of one node; return whether to look inside it."""
        if isinstance(node, (cst.Parameters, cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom)):
            return False
        if isinstance(node, cst.Arg) and node.keyword and node.keyword.value in _UNSEEN:
            return False
        if isinstance(node, cst.Expr) and isinstance(node.value, (cst.BaseString, cst.Ellipsis)):
            return False
        if isinstance(node, cst.Index) and getattr(node.value, "value", "") in ("None", "True", "False"):
            return False
        if isinstance(node, cst.Call) and _called(node) in _REDUCTIONS:
            self._unordered += [arg.value for arg in node.args]
        for make in _MAKERS:
            if make is not _orders or not any(node is one for one in self._unordered):
                self.changes += [(node, _fit(node, new)) for new in make(node)]
        return not isinstance(node, cst.Raise)  # the text of an error is free


def _fit(old: cst.CSTNode, new: cst.CSTNode) -> cst.CSTNode:
    """Return an expression with the parentheses of the one whose place it takes, or with some that it needs there."""
    if not isinstance(old, cst.BaseExpression) or not isinstance(new, cst.BaseExpression):
        return new
    if old.lpar:
        return new.with_changes(lpar=old.lpar, rpar=old.rpar)
    if new.lpar or isinstance(new, _ATOMS) or type(new) is type(old) is cst.Tuple:
        return new
    return new.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


# Makers of changes: each takes any node and yields what could stand in its place.


def _operators(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    for other in _OPERATORS.get(type(node), ()):
        yield other(whitespace_before=node.whitespace_before, whitespace_after=node.whitespace_after)  # type: ignore


def _operands(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, (cst.BinaryOperation, cst.BooleanOperation)):
        yield from (node.left, node.right)
    elif isinstance(node, cst.UnaryOperation):
        yield node.expression
    elif isinstance(node, cst.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, cst.Attribute) and node.attr.value in ("T", "mT"):
        yield node.value


def _constants(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, cst.Integer):
        yield from (_number(node.evaluated_value + by) for by in (-1, 1))
    elif isinstance(node, cst.UnaryOperation) and isinstance(node.expression, cst.Integer):
        if isinstance(node.operator, cst.Minus):  # -1: an axis; the makers above and below give 1 and -0
            yield from (_number(-node.expression.evaluated_value + by) for by in (-1, 1))
    elif isinstance(node, cst.Float):
        value = node.evaluated_value
        others = {0.0, 1.0, 2 * value if value > 1e-3 else 1000 * value} - {value}  # of an epsilon, twice is no mistake
        yield from map(_number, sorted(others))
    elif isinstance(node, cst.Name) and node.value in ("True", "False"):
        yield cst.Name("False" if node.value == "True" else "True")


def _number(value: float) -> cst.BaseExpression:
    return cst.parse_expression(repr(value))


def _strings(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if not isinstance(node, cst.SimpleString):
        return
    text = node.raw_value
    einsum = re.fullmatch(r"(.*?)([a-zA-Z]*)(,.*?)?->\s*([a-zA-Z]*)", text)
    if einsum:
        result = einsum[4]
        head = text.removesuffix(result)
        texts = [head + result[1:], head + result[::-1], text.replace(einsum[2], einsum[2][::-1], 1)]
    else:
        texts = [f"{text}_"]
    yield from (node.with_changes(value=f"{node.prefix}{node.quote}{other}{node.quote}") for other in texts)


def _calls(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if not isinstance(node, cst.Call):
        return
    plain = [arg.value for arg in node.args if not arg.star and not arg.keyword]
    name = _called(node)
    if plain:
        yield plain[0]
    if isinstance(node.func, cst.Attribute) and not _is_module(node.func.value):
        yield node.func.value
    for index, arg in enumerate(node.args):
        if arg.keyword and arg.keyword.value not in _UNSEEN:
            yield node.with_changes(args=[*node.args[:index], *node.args[index + 1 :]])
        follower = node.args[index + 1] if index + 1 < len(node.args) else None
        if follower and not (arg.star or arg.keyword or follower.star or follower.keyword) and name not in _SYMMETRIC:
            args = list(node.args)
            args[index], args[index + 1] = (
                arg.with_changes(value=follower.value),
                follower.with_changes(value=arg.value),
            )
            yield node.with_changes(args=args)
    if name in _NAMES:
        other = cst.Name(_NAMES[name])
        func = node.func.with_changes(attr=other) if isinstance(node.func, cst.Attribute) else other
        yield node.with_changes(func=func)
    if name == "range":
        args = list(node.args)
        last = min(1, len(args) - 1)
        args[last] = args[last].with_changes(value=_shifted(args[last].value, cst.Subtract()))
        yield node.with_changes(args=args)


def _called(node: cst.Call) -> str:
    return node.func.attr.value if isinstance(node.func, cst.Attribute) else getattr(node.func, "value", "")


def _is_module(node: cst.CSTNode) -> bool:
    name = cst.Module([]).code_for_node(node)
    return name.split(".")[0] in ("torch", "math", "np", "numpy", "nn", "F", "self", "super()")


def _shifted(value: cst.BaseExpression, operator: cst.BaseBinaryOp) -> cst.BaseExpression:
    return cst.BinaryOperation(_fit(cst.Name("x"), value), operator, cst.Integer("1"))  # type: ignore[arg-type]


def _slices(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, cst.Slice):
        for name in ("lower", "upper", "step"):
            value = getattr(node, name)
            if value is None or _is_zero(value):
                continue
            yield node.with_changes(**{name: None})
            if not isinstance(value, (cst.Integer, cst.UnaryOperation)):
                yield from (node.with_changes(**{name: _shifted(value, by())}) for by in (cst.Add, cst.Subtract))
    elif isinstance(node, cst.Index) and isinstance(node.value, (cst.Name, cst.BinaryOperation)):
        yield node.with_changes(value=_shifted(node.value, cst.Subtract()))


def _is_zero(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Integer) and node.evaluated_value == 0


def _orders(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, cst.Tuple):
        for index, (one, other) in enumerate(zip(node.elements, node.elements[1:], strict=False)):
            swapped = [one.with_changes(value=other.value), other.with_changes(value=one.value)]
            if isinstance(one, cst.Element) and isinstance(other, cst.Element):
                yield node.with_changes(elements=[*node.elements[:index], *swapped, *node.elements[index + 2 :]])


def _conditions(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, (cst.If, cst.While, cst.IfExp, cst.CompIf)):
        negated = cst.UnaryOperation(cst.Not(), _fit(cst.Name("x"), node.test))  # type: ignore[arg-type]
        values = [negated] if isinstance(node, cst.IfExp) else [negated, cst.Name("False"), cst.Name("True")]
        if not isinstance(node, cst.While):
            yield from (node.with_changes(test=value) for value in values)
        else:
            yield from (node.with_changes(test=value) for value in values[:2])


def _statements(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, (cst.Assign, cst.AugAssign, cst.Expr, cst.Return, cst.Raise, cst.Del, cst.Assert)):
        yield cst.Pass()
    if isinstance(node, cst.AugAssign):
        yield cst.Assign([cst.AssignTarget(node.target)], node.value)
    elif isinstance(node, cst.Return) and isinstance(node.value, _NUMBERS):
        yield node.with_changes(value=cst.UnaryOperation(cst.Minus(), _fit(cst.Name("x"), node.value)))  # type: ignore
    elif isinstance(node, (cst.Break, cst.Continue)):
        yield cst.Continue() if isinstance(node, cst.Break) else cst.Break()
    elif isinstance(node, cst.For):
        yield node.with_changes(body=cst.IndentedBlock([*node.body.body, cst.SimpleStatementLine([cst.Break()])]))
    elif isinstance(node, cst.With) and not any(item.asname for item in node.items):
        yield cst.If(cst.Name("True"), node.body, leading_lines=node.leading_lines)


_MAKERS: tuple[Callable[[cst.CSTNode], Iterator[cst.CSTNode]], ...] = (
    *(_operators, _operands, _constants, _strings, _calls),
    *(_slices, _orders, _conditions, _statements),
)


# The report


def of(answer: Answer, reference: str, most: int = MOST) -> list[Snippet]:
    """Return mutants of a reference answer as answers to prove.

    Args:
        answer: a TODO of a solved notebook or answer file.
        reference: the text of that file; "" for a cell.
        most: how many at the most; 0 for all.
    """
    if not reference:
        found = mutate(answer.source, most)
    else:
        found = mutate(reference, most, _lines(answer, reference))
    return [Snippet("mutant", mutant.title, (), mutant.source, whole=True) for mutant in found]


def _lines(answer: Answer, text: str) -> set[int]:
    """Return the lines of an answer file that belong to one TODO, and not to another one inside it."""
    spans = {}
    for other in anatomy.answers_in_file(text, answer.file):
        start = text.index(other.source, sum(map(len, text.splitlines(keepends=True)[: other.index])))
        first = text.count("\n", 0, start) + 1
        spans[other.slug] = set(range(first, first + other.source.count("\n") + 1))
    own = spans.pop(answer.slug)
    return own.difference(*(lines for lines in spans.values() if lines < own))


def main(arguments: list[str] | None = None) -> int:
    """Prove units and print a table and the surviving mutants; returns 0 if every proof of a stored answer holds."""
    parser = proofs.parser("common.grading.mutants", __doc__)
    parser.add_argument("--most", type=int, default=MOST, help=f"mutants of one TODO, 0 for all ({MOST})")
    options = parser.parse_args(arguments)
    return proofs.run(options, lambda answer, reference: of(answer, reference, options.most))


if __name__ == "__main__":
    sys.exit(main())
