"""Graft: the base notebook with the answers of another one, however that one was edited and saved."""

import ast
import builtins
import re
import symtable
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field

from nbformat import NotebookNode

from common.notebooks import anatomy
from common.notebooks.anatomy import Answer, Function

# How much of an answer a source is.
STUB, BROKEN, PARTIAL, WHOLE = range(4)


@dataclass
class Grafted:
    """What came out of a graft.

    Attributes:
        notebook: the base with the answers in it.
        remarks: everything that was odd or guessed, in sentences for a teacher.
        answered: for each answer of the base, whether the student wrote something.
        leftover: answers to TODOs that the base does not have, by slug.
    """

    notebook: NotebookNode
    remarks: list[str] = field(default_factory=list)
    answered: dict[str, bool] = field(default_factory=dict)
    leftover: dict[str, str] = field(default_factory=dict)


def graft(base: NotebookNode, submission: NotebookNode) -> Grafted:
    """Put the answers of `submission` into `base`; everything else is base's.

    An answer is looked for by cell id, then by its TODO line, then by the name it defines. Split cells are
    joined; functions, imports and constants that an answer uses from cells of the student's own come along.
    Checks and setup cells that the student changed are reported, never taken. Nothing is run.

    Args:
        base: a notebook of the course.
        submission: the same notebook after a student (or an author) worked in it.

    Returns:
        The new notebook, and what was odd about the submission.
    """
    grafted = carry_over(base, submission)
    grafted.remarks += _edited(base, submission)
    return grafted


def carry_over(base: NotebookNode, old: NotebookNode, original: NotebookNode | None = None) -> Grafted:
    """Like `graft`, for a base that is newer than the notebook that `old` started from.

    Args:
        base: the new notebook of the course.
        old: the student's notebook.
        original: the course's notebook that `old` started from, where it is known.

    Returns:
        As `graft`, without remarks about changed checks and setup cells.
    """
    return _Graft(base, old, original).result()


@dataclass(eq=False)
class _Piece:
    """A cell of the submission, or one part of a cell that answers several TODOs."""

    place: int  # cell number, from 1
    kind: str  # cell type
    id: str
    todo: str | None  # slug of the base that its TODO line names
    source: str
    exact: bool  # word for word a cell of the base that is no answer
    given: bool  # such a cell, perhaps edited
    names: list[str]
    owner: str | None = None  # the answer that it is marked as, by id or TODO line


@dataclass
class _Candidate:
    """One possible source of an answer."""

    state: int
    native: bool  # a cell for this answer; False: found inside a cell for something else
    piece: _Piece
    source: str
    parts: list[_Piece]  # the cells that it was joined from


class _Graft:
    def __init__(self, base: NotebookNode, submission: NotebookNode, original: NotebookNode | None) -> None:
        self.base = base
        self.answers = anatomy.answers(base)
        self.remarks: list[str] = []
        self.leftover: dict[str, str] = {}
        self.used: set[int] = set()  # places of the cells that went into an answer
        self.names = {answer.name: answer.slug for answer in self.answers if answer.name}
        self.slugs = {answer.slug: answer for answer in self.answers}
        self.pieces = self._pieces(submission, original)
        self.has_ids = any(piece.id in self.slugs for piece in self.pieces)
        for piece in self.pieces:
            piece.owner = self._owner(piece)
        setup = [cell.source for cell in base.cells if anatomy.role(cell) == "setup"]
        self.available = {name for source in setup for name in anatomy.defined_names(source)}
        self.available |= set(self.names) | set(dir(builtins))

    def result(self) -> Grafted:
        notebook = deepcopy(self.base)
        answered = {}
        if not self.has_ids and any(piece.owner for piece in self.pieces):
            self.remarks.append("The cells carry no ids of the course (Colab and old editors drop them).")
        for answer in self.answers:
            find = self._code if answer.kind == "code" else self._prose
            source = find(answer)
            answered[answer.slug] = source is not None and not self._is_unfinished(answer, source)
            if source is not None:
                notebook.cells[answer.index].source = source
        self._find_leftover()
        return Grafted(notebook, self.remarks, answered, self.leftover)

    # Reading the submission

    def _pieces(self, submission: NotebookNode, original: NotebookNode | None) -> list[_Piece]:
        given = [cell for cell in self.base.cells if anatomy.role(cell) != "answer"]
        exact = {_bare(cell.source) for cell in given}
        known = exact | {
            _bare(cell.source) for cell in (original.cells if original else []) if anatomy.role(cell) != "answer"
        }
        ids = {cell.id for cell in given}
        pieces = []
        for place, cell in enumerate(submission.cells, 1):
            parts = self._parts(cell.source)
            for slug, source in parts:
                identity = re.sub(r"_copy\d+$", "", str(cell.get("id", ""))) if len(parts) == 1 else ""
                if not source.strip() and identity not in self.slugs:
                    continue
                names = anatomy.defined_names(source) if cell.cell_type == "code" or _is_code(source) else []
                pieces.append(
                    _Piece(
                        place,
                        cell.cell_type,
                        identity,
                        slug,
                        source,
                        exact=_bare(source) in exact,
                        given=not slug and (_bare(source) in known or cell.get("id") in ids),
                        names=names,
                    )
                )
        return pieces

    def _parts(self, source: str) -> list[tuple[str | None, str]]:
        """Cut a cell in which several TODOs were merged; all other cells are one part."""
        lines = source.split("\n")
        found = [(i, line.slug) for i, text in enumerate(lines) if (line := _todo_at_margin(text))]
        found = [(i, slug) for i, slug in found if slug in self.slugs]
        if len({slug for _, slug in found}) < 2:
            return [(found[0][1] if found else None, source)]
        starts = [0, *(i for i, _ in found), len(lines)]
        slugs = [None, *(slug for _, slug in found)]
        parts = [(slug, "\n".join(lines[a:b])) for slug, a, b in zip(slugs, starts, starts[1:], strict=False)]
        return [part for part in parts if part[1].strip()]

    def _owner(self, piece: _Piece) -> str | None:
        if piece.todo:
            if piece.id in self.slugs and piece.id != piece.todo:
                self._remark(
                    piece.todo,
                    f"cell {piece.place} has the id of '{piece.id}' but the TODO line of '{piece.todo}'; "
                    "the TODO line was believed.",
                )
            return piece.todo
        if piece.id not in self.slugs or piece.exact:
            return None
        other = [name for name in piece.names if name in self.names]
        if other and self.slugs[piece.id].name not in other:
            return None  # it answers another TODO, and is found by its name
        return piece.id

    # Code answers

    def _code(self, answer: Answer) -> str | None:
        candidates = self._candidates(answer)
        if not candidates:
            self._remark(answer.slug, "no cell with an answer was found.")
            return None
        best = max(candidates, key=lambda c: (c.state, c.native, c.piece.place))
        if best.state == STUB:
            return None
        self._explain(answer, best, [c for c in candidates if c.state > STUB and c.native])
        first = self._first_line(answer)
        body = self._body(answer, best.source)
        helpers = self._helpers(answer, "\n".join(first) + "\n" + body, best.piece)
        self.used.update(part.place for part in best.parts)
        return "\n".join([*first, *helpers, body])

    def _candidates(self, answer: Answer) -> list[_Candidate]:
        found = []
        for i, piece in enumerate(self.pieces):
            if piece.owner == answer.slug or (piece.owner is None and not piece.exact and answer.name in piece.names):
                source, parts = self._join(i, answer)
                native = piece.owner is not None or answer.name in _definitions(piece.source)
                found.append(_Candidate(self._state(answer, source), native, piece, source, parts))
            elif piece.owner and not piece.exact and answer.name in _definitions(piece.source):
                source = _definitions(piece.source)[answer.name]
                found.append(_Candidate(self._state(answer, source), False, piece, source, [piece]))
        return found

    def _join(self, start: int, answer: Answer) -> tuple[str, list[_Piece]]:
        """The source of a piece with the student's cells after it, as far as they are its continuation."""
        best = text = self.pieces[start].source
        joined = parts = [self.pieces[start]]
        for piece in self.pieces[start + 1 :]:
            continues = _is_continuation(piece.source)
            other = piece.given or piece.owner not in (None, answer.slug)
            if piece.todo or (other and not continues):
                break
            if piece.kind != "code" and not (piece.owner or continues):
                continue
            if _defines(text, answer.name) and not continues:
                break
            text, parts = f"{text}\n{piece.source}", [*parts, piece]
            if _defines(text, answer.name):
                best, joined = text, parts
        return best, joined

    def _state(self, answer: Answer, source: str) -> int:
        body = self._body(answer, source)
        own = self._body(answer, answer.source)
        if _bare(body) in ("", _bare(own)):
            return STUB
        if anatomy.python(body) is None:
            return BROKEN
        if adds_nothing(own, body):
            return STUB
        if answer.name not in anatomy.defined_names(body):
            return BROKEN
        return PARTIAL if anatomy.is_stub(body, answer.name) else WHOLE

    def _is_unfinished(self, answer: Answer, source: str) -> bool:
        """Whether a function, though something is written in or around it, still only raises."""
        stubs = list(anatomy.stub_functions(source, answer.name))
        return any(stub.name == answer.name for stub in stubs)

    def _body(self, answer: Answer, source: str) -> str:
        """An answer without its TODO line, a cell magic on top, and calls of checks."""
        lines = source.split("\n")
        lines = [line for line in lines if not ((todo := _todo_at_margin(line)) and todo.slug == answer.slug)]
        if answer.kind == "code":
            while lines and lines[0].startswith("%%"):
                del lines[0]
            lines = [line for line in lines if not re.fullmatch(r"checks\.\w+\(.*\)\s*", line)]
        return "\n".join(lines)

    def _first_line(self, answer: Answer) -> list[str]:
        return answer.source.split("\n")[:1] if anatomy.todo(answer.source) else []

    def _helpers(self, answer: Answer, source: str, piece: _Piece) -> list[str]:
        """What an answer uses from the student's own cells, in the order of the notebook."""
        definitions: dict[str, list[tuple[int, int, str]]] = {}
        for number, other in enumerate(self.pieces):
            if other is piece or other.exact or not other.names:
                continue
            for line, names, text in _statements(other.source):
                for name in names:
                    if name not in self.available:
                        definitions.setdefault(name, []).append((number, line, text))
        chosen: set[tuple[int, int, str]] = set()
        brought: set[str] = set()
        wanted = _free_names(source)
        while wanted:
            name = wanted.pop()
            if name in brought or name not in definitions:
                continue
            brought.add(name)
            last = definitions[name][-1]
            # `f = cache(f)` needs the earlier f too.
            again = name not in _definitions(last[2]) and len(re.findall(rf"\b{name}\b", last[2])) > 1
            for definition in definitions[name] if again else [last]:
                chosen.add(definition)
                wanted |= _free_names(definition[2])
        if brought:
            listed = ", ".join(f"`{name}`" for name in sorted(brought))
            self._remark(answer.slug, f"uses {listed} from another cell of the student; brought along.")
        return [text for _, _, text in sorted(chosen)]

    def _explain(self, answer: Answer, best: _Candidate, real: list[_Candidate]) -> None:
        """Put in words how the source of an answer was found, and what is wrong with it."""
        piece, slug = best.piece, answer.slug
        real = [c for c in real if c is best or c.piece not in best.parts]
        if len(real) > 1:
            if len({_bare(self._body(answer, c.source)) for c in real}) == 1:
                self._remark(slug, f"is there {len(real)} times, word for word; counted once.")
            else:
                places = ", ".join(str(c.piece.place) for c in real)
                self._remark(slug, f"answered in several cells ({places}); cell {piece.place} was used.")
        if piece.owner == slug:
            if self.has_ids and piece.id != slug and piece.id not in self.slugs:
                self._remark(slug, f"found by its TODO line in cell {piece.place}; the id of the cell is lost.")
        else:
            self._remark(slug, f"found in cell {piece.place} by the name `{answer.name}` that it defines.")
        if len(best.parts) > 1:
            self._remark(slug, f"the cell had been split into {len(best.parts)}; they were joined.")
        if piece.kind != "code":
            self._remark(slug, f"cell {piece.place} had been turned into text; it was read as code.")
        first = piece.source.lstrip().split("\n", 1)[0]
        if first.startswith("%%"):
            self._remark(slug, f"the line `{first}` was left out.")
        if self._is_unfinished(answer, best.source):
            self._remark(slug, "something is written, but it still raises NotImplementedError.")
        if anatomy.python(best.source) is None:
            self._remark(slug, "the answer is not valid Python.")
        elif answer.name and answer.name not in anatomy.defined_names(best.source):
            self._remark(slug, f"the answer does not define `{answer.name}`.")

    # Markdown answers

    def _prose(self, answer: Answer) -> str | None:
        marked = [i for i, piece in enumerate(self.pieces) if piece.owner == answer.slug]
        marked.sort(key=lambda i: (self.pieces[i].todo is not None, i))
        starts = marked or self._by_position(answer)
        if not starts:
            self._remark(answer.slug, "no cell with an answer was found.")
            return None
        texts = []
        for start in starts:
            text, joined = self._join_prose(start, answer)
            if not self._is_placeholder(answer, text):
                texts.append((text, joined, start))
        if not texts:
            return None
        if len(texts) > 1:
            self._remark(answer.slug, f"answered in {len(texts)} cells; the last was used.")
        text, joined, start = texts[-1]
        if not marked:
            self._remark(answer.slug, "its mark is lost; taken from where the answer should stand.")
        if joined > 1:
            self._remark(answer.slug, f"{joined} cells that follow each other were taken as one answer.")
        self.used.add(self.pieces[start].place)
        return "\n".join([*self._first_line(answer), text])

    def _by_position(self, answer: Answer) -> list[int]:
        """The student's own text cell right after the cell that stands before the answer in the base."""
        before = _bare(self.base.cells[answer.index - 1].source) if answer.index else None
        for i, piece in enumerate(self.pieces[:-1]):
            after = self.pieces[i + 1]
            if _bare(piece.source) == before and not (after.given or after.owner) and after.kind != "code":
                return [i + 1]
        return []

    def _join_prose(self, start: int, answer: Answer) -> tuple[str, int]:
        """A Markdown answer with the student's own text cells right below it, and the number of cells."""
        texts = [self._body(answer, self.pieces[start].source)]
        for piece in self.pieces[start + 1 :]:
            if piece.given or piece.owner or piece.kind == "code" or anatomy.todo(piece.source):
                break
            texts.append(piece.source)
        full = texts[1:] if len(texts) > 1 and self._is_placeholder(answer, texts[0]) else texts
        return "\n\n".join(full), len(texts)

    def _is_placeholder(self, answer: Answer, text: str) -> bool:
        return anatomy.is_empty_prose(text) or _bare(text) == _bare(self._body(answer, answer.source))

    # The rest

    def _find_leftover(self) -> None:
        """Answers to TODOs that the base does not know."""
        for piece in self.pieces:
            todo = anatomy.todo(piece.source)
            if not todo or todo.points is None or todo.slug in self.slugs or piece.place in self.used:
                continue
            name = anatomy.defined_name(piece.source, todo.slug)
            empty = anatomy.is_empty_prose(piece.source)
            if not empty and not anatomy.is_stub(piece.source, name) and not piece.exact:
                self.leftover[todo.slug] = piece.source
        for slug in self.leftover:
            self._remark(slug, "this version of the notebook has no such TODO; the answer was set aside.")

    def _remark(self, slug: str, text: str) -> None:
        self.remarks.append(f"{slug}: {text}")


def _edited(base: NotebookNode, submission: NotebookNode) -> list[str]:
    """Remarks on given cells (checks and setup) that the student changed or deleted."""
    sources = {_bare(cell.source) for cell in submission.cells}
    ids = {cell.get("id") for cell in submission.cells}
    remarks, missing = [], []
    for cell in base.cells:
        role = anatomy.role(cell)
        text = _bare(cell.source)
        if role not in ("check", "setup") or cell.id == "colab" or text in sources:
            continue
        if cell.id in ids or any(text in source for source in sources):
            remarks.append(f"The {role} cell '{cell.id}' was changed; the course's own was used.")
        else:
            missing.append(cell.id)
    if missing:
        listed = ", ".join(f"'{name}'" for name in missing)
        remarks.append(f"Cells of the course are missing: {listed}; the course's own were used.")
    return remarks


def _bare(source: str) -> str:
    return "\n".join(line.rstrip() for line in source.split("\n")).strip()


def _todo_at_margin(line: str) -> anatomy.Todo | None:
    return anatomy.todo_in(line) if line.startswith(("#", "<!--")) else None


def _is_code(source: str) -> bool:
    """Whether the text of a cell that is not a code cell is nevertheless code."""
    return bool(re.search(r"^(def|class|async def)\b", source, re.M)) and anatomy.python(source) is not None


def _is_continuation(source: str) -> bool:
    """Whether a cell is indented, and so can only be the rest of the one before."""
    first = next((line for line in source.split("\n") if line.strip()), "")
    return first.startswith((" ", "\t")) and anatomy.python(source) is None


def _defines(source: str, name: str | None) -> bool:
    tree = anatomy.python(source)
    return tree is not None and (name is None or name in anatomy.defined_names(source))


def _statements(source: str) -> Iterable[tuple[int, list[str], str]]:
    """Line, names and text of each top-level statement of a cell that defines names."""
    tree = anatomy.python(source)
    lines = source.split("\n")
    for statement in tree.body if tree else []:
        names = anatomy.bound_names(statement)
        decorators = [line.lineno for line in getattr(statement, "decorator_list", [])]
        start = min([statement.lineno, *decorators])
        if names:
            yield start, names, "\n".join(lines[start - 1 : statement.end_lineno])


def _definitions(source: str) -> dict[str, str]:
    """The functions and classes of a cell: name to text."""
    tree = anatomy.python(source)
    known = {line.name for line in tree.body if isinstance(line, Function | ast.ClassDef)} if tree else set()
    return {name: text for _, names, text in _statements(source) for name in names if name in known}


def adds_nothing(base: str, source: str) -> bool:
    """Whether a piece of code does nothing that `base` does not do too; stubs and docstrings do nothing."""
    given, tree = anatomy.python(base), anatomy.python(source)
    return given is not None and tree is not None and _work(tree) <= _work(given)


def _work(tree: ast.Module) -> set[str]:
    """What is written in a cell, stubs and docstrings aside: each statement and each method as a text."""
    done = set()
    for statement in tree.body:
        inside = statement.body if isinstance(statement, ast.ClassDef) else [statement]
        owner = statement.name if isinstance(statement, ast.ClassDef) else ""
        for part in inside:
            if anatomy.is_filler(part):
                continue
            if isinstance(part, Function):
                body = [ast.dump(line) for line in part.body if not anatomy.is_filler(line)]
                body = body[1:] if anatomy.is_stub_function(part) else body
                if body:
                    done.add(f"{owner}.{part.name}{ast.dump(part.args)}{body}")
            else:
                done.add(owner + ast.dump(part))
    return done


def _free_names(source: str) -> set[str]:
    """The global names that a piece of code uses without defining them."""
    tree = anatomy.python(source)
    if tree is None:
        return set()
    try:
        top = symtable.symtable(ast.unparse(tree), "cell", "exec")
    except (SyntaxError, ValueError, RecursionError):
        return set()
    symbols = {symbol.get_name(): symbol for symbol in top.get_symbols()}
    own = {name for name, symbol in symbols.items() if symbol.is_assigned() or symbol.is_imported()}
    used = {name for name, symbol in symbols.items() if symbol.is_referenced()}
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        used |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        tables += table.get_children()
    return used - own
