"""Finds answers of different students that are alike, whatever their names, comments, spaces and order of statements.

Compared are streams of tokens: names that students choose are all one token, and so are strings; what the course
had given is taken out. The likeness of two answers is the share of tokens that an alignment pairs (rapidfuzz), in the
order in which they stand or with the statements sorted, whichever is larger. What many have alike is what is
obvious and says nothing; neither does an answer of a few tokens.

Measured on the course's stored right answers (solutions/*/*/answers) of at least 40 tokens: of 299 pairs of different
answers to one question 10 reach 0.9, all of them where little is left to choose; of 239 copies with other names and
statements in another order 234 do, and 194 where the last statement was taken apart too.
"""

from __future__ import annotations

import builtins
import itertools
import keyword
import re
import textwrap
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rapidfuzz.distance import Indel

if TYPE_CHECKING:
    from common.grading.pool import Row  # which imports this module

LIKENESS = 0.9  # from which on two answers are listed
SHORTEST = 40  # tokens of an answer that is compared
COMMON = 0.1  # the share of a class that may write an answer alike, and 3 students may in any: more, and it is obvious
MOST = 30  # pairs of a unit that are listed
LONGEST = 8_000  # characters of one cell or file that are compared

_TOKEN = re.compile(
    r"""#[^\n]*|(?P<string>[rbfuRBFU]{0,2}(?:\"\"\".*?\"\"\"|'''.*?'''|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))"""
    r"""|(?P<name>[^\W\d]\w*)|(?P<number>\d[\w.]*|\.\d\w*)|(?P<end>[\n;])|(?P<sign>\*\*|//|->|[-+*/@<>=!:]=|[^\w\s])""",
    re.DOTALL,
)
_KEPT = {*keyword.kwlist, *dir(builtins), "torch", "nn", "F", "np", "math"}


class Statement(NamedTuple):
    """A logical line of code: its text, and its tokens without parentheses and what a student is free to choose."""

    text: str
    plain: tuple[str, ...]


def own(source: str, given: str) -> str:
    """Return the statements that a student wrote, without those that the course had given, docstrings and comments."""
    known = {statement.plain for statement in statements(given)}
    return "\n".join(one.text for one in statements(source[: 5 * LONGEST]) if one.plain not in known)[:LONGEST]


def statements(code: str) -> Iterator[Statement]:
    """Yield the statements of some code but for docstrings; what is no Python is read as well as it can be."""
    plain: list[str] = []
    before = ("", "")
    start = end = depth = 0
    for found in itertools.chain(_TOKEN.finditer(code), [None]):
        kind, text = (found.lastgroup, found[0]) if found else ("end", "")
        if kind == "end" and (depth <= 0 or not found):
            if plain and plain != ["text"]:
                yield Statement(code[code.rfind("\n", 0, start) + 1 : end], tuple(plain))
            plain, depth = [], 0
        elif found and kind in ("string", "name", "number", "sign"):
            start, end = start if plain else found.start(), found.end()
            depth += text in "([{"
            depth -= text in ")]}"
            attribute = before[1] == "." and before[0] not in ("self", "cls")
            chosen = kind == "name" and not attribute and text not in _KEPT
            before = before[1], text
            if text not in "()":
                plain.append("name" if chosen else "text" if kind == "string" else text)


def pairs(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return who has answers alike: dictionaries of unit, students, places, likeness, tokens, and one place's code.

    `places` are the cells and files, `likeness` is the largest of them, `tokens` is how many there are in all. Those
    with most come first.
    """
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for unit in sorted({row.unit for row in rows}):
        here = [row for row in rows if row.unit == unit]
        for place in dict.fromkeys(place for row in here for place in row.codes):
            codes = {row.student: row.codes[place] for row in here if place in row.codes}
            for one, other, likeness, tokens in _alike(codes):
                new = {"unit": unit, "students": (one, other), "places": [], "likeness": 0.0, "tokens": 0, "most": 0}
                pair = found.setdefault((unit, one, other), new)
                pair["places"].append(place)
                pair["likeness"] = max(pair["likeness"], likeness)
                pair["tokens"] += tokens
                if tokens > pair["most"]:
                    pair |= {
                        "most": tokens,
                        "shown": place,
                        "codes": (textwrap.dedent(codes[one]), textwrap.dedent(codes[other])),
                    }
    ranked = sorted(found.values(), key=lambda pair: -pair["tokens"])
    return [pair for unit in {one["unit"]: 0 for one in ranked} for pair in _of(ranked, unit)]


def _of(pairs: Sequence[dict[str, Any]], unit: str) -> list[dict[str, Any]]:
    return [pair for pair in pairs if pair["unit"] == unit][:MOST]


def _alike(codes: dict[str, str]) -> Iterator[tuple[str, str, float, int]]:
    """Yield pairs of students whose code for one place is alike: who, how much, and how many tokens it has."""
    letters: dict[str, str] = {}
    texts: dict[str, tuple[str, str]] = {}
    for student, code in codes.items():
        lines = [
            "".join(letters.setdefault(token, chr(0x4E00 + len(letters) % 20_000)) for token in statement.plain)
            for statement in statements(code)
        ]
        if sum(map(len, lines)) >= SHORTEST:
            texts[student] = "".join(lines), "".join(sorted(lines))
    found = []
    neighbours: dict[str, list[float]] = {student: [] for student in texts}
    for (one, (a, a_sorted)), (other, (b, b_sorted)) in itertools.combinations(texts.items(), 2):
        if min(len(a), len(b)) < LIKENESS / (2 - LIKENESS) * max(len(a), len(b)):
            continue
        likeness = Indel.normalized_similarity(a, b, score_cutoff=LIKENESS)
        likeness = max(likeness, Indel.normalized_similarity(a_sorted, b_sorted, score_cutoff=LIKENESS))
        if likeness:
            found.append((one, other, likeness, min(len(a), len(b))))
            for student in (one, other):
                neighbours[student].append(likeness)
    for several in neighbours.values():
        several.sort()
    most = max(3, COMMON * len(codes)) - 1
    for one, other, likeness, tokens in found:
        if all(len(near) - bisect_left(near, likeness) <= most for near in (neighbours[one], neighbours[other])):
            yield one, other, likeness, tokens
