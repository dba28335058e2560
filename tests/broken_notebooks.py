"""Submissions that are no proper notebooks, each a path below the student's folder and its bytes."""

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy

LAB = "lab1_made.ipynb"
Made = dict[str, bytes]


def broken(right: dict) -> Iterator[tuple[str, Made, list[float] | None]]:
    """Yield title, files, and the points of the four answers; None where nothing can be graded.

    Args:
        right: a notebook in which everything is answered, as JSON.
    """
    text = json.dumps(right)
    full, rest, none = [3, 2, 4, 2], [3, 2, 4, 0], [0, 0, 0, 0]

    def changed(change: Callable[[dict], object]) -> Made:
        copy = deepcopy(right)
        change(copy)
        return {LAB: json.dumps(copy).encode()}

    def cells(change: Callable[[list[dict]], object]) -> Made:
        return changed(lambda copy: change(copy["cells"]))

    def clip(source: str) -> Made:
        return cells(lambda all: all[ids(all).index("clip-norm")].update(source=source))

    def each(change: Callable[[dict], object]) -> Made:
        return cells(lambda all: [change(cell) for cell in all])

    yield "empty", {LAB: b""}, None
    yield "zeros", {LAB: b"\0" * 10_000}, None
    yield "truncated", {LAB: text[: len(text) // 2].encode()}, None
    yield "random bytes", {LAB: bytes(range(256)) * 100}, None
    yield "a JSON string", {LAB: b'"x"'}, None
    yield "a JSON number of a million digits", {LAB: b"9" * 10**6}, None
    yield "a million open brackets", {LAB: b"[" * 10**6}, None
    yield "a million open objects", {LAB: b'{"cells":' * 10**6}, None
    yield "NaN and infinity", {LAB: b'{"cells": [NaN, Infinity, -Infinity], "metadata": NaN}'}, None
    yield "keys twice", {LAB: b'{"cells": [], ' + text.encode()[1:]}, full
    yield "UTF-16", {LAB: text.encode("utf-16")}, full
    yield "a byte order mark", {LAB: b"\xef\xbb\xbf" + text.encode()}, full
    yield "invalid UTF-8", {LAB: text.encode().replace(b"# Made", b"# \xff\xfe\x80")}, full
    yield "no cells", changed(lambda copy: copy.pop("cells")), None
    yield "cells that are no list", changed(lambda copy: copy.update(cells={"x": 1})), None
    yield "cells that are none", {LAB: b'{"cells": [null, 1, "x", [], {}, true], "nbformat": 4}'}, None
    yield "cells without anything", changed(lambda copy: copy.update(cells=[{}] * 1000)), None
    yield "version 99", changed(lambda copy: copy.update(nbformat=99, nbformat_minor="x")), full
    yield (
        "version 3",
        {
            LAB: json.dumps(
                {
                    "nbformat": 3,
                    "worksheets": [
                        {"cells": [{**cell, "input": cell["source"], "id": None} for cell in right["cells"]]},
                        None,
                    ],
                }
            ).encode()
        },
        full,
    )
    yield "metadata that are none", changed(lambda copy: copy.update(metadata=[[]])), full
    yield (
        "metadata of cells that are none",
        each(lambda cell: cell.update(metadata=3, outputs="x", execution_count=[])),
        full,
    )
    yield "no ids", each(lambda cell: cell.pop("id")), full
    yield "ids that are none", each(lambda cell: cell.update(id=["x"])), full
    yield "all ids alike", each(lambda cell: cell.update(id="softmax-rows")), full
    yield (
        "ids exchanged",
        cells(lambda all: [cell.update(id=other) for cell, other in zip(all, ids(all), strict=True)]),
        full,
    )
    yield "sources that are null", each(lambda cell: cell.update(source=None)), none
    yield "sources that are numbers", each(lambda cell: cell.update(source=[1, None, {}])), none
    yield "sources letter by letter", each(lambda cell: cell.update(source=list(cell["source"]))), full
    yield "carriage returns", each(lambda cell: cell.update(source=cell["source"].replace("\n", "\r\n"))), full
    yield "NUL in an answer", clip("def clip_norm(x):\n    return '\0'"), rest
    yield "half surrogates", clip("def clip_norm(x):\n    return '\ud800'"), rest
    yield "every cell is text", each(lambda cell: cell.update(cell_type="markdown")), full
    yield "every cell is raw", each(lambda cell: cell.update(cell_type="raw")), full
    yield "tabs and spaces", clip("def clip_norm(x):\n\tif 1:\n        return x"), rest
    yield "the answer cell is deleted", cells(lambda all: all.pop(ids(all).index("clip-norm"))), rest
    yield "an answer is renamed", clip("def klip_norm(x):\n    return x"), rest
    yield "the only cell is an answer", changed(lambda copy: copy.update(cells=copy["cells"][4:5])), None
    yield "cells upside down", cells(lambda all: all.reverse()), full
    yield "deep brackets in an answer", clip("(" * 100_000), rest
    yield "deep operators in an answer", clip("clip_norm = " + "-" * 100_000 + "1"), rest
    yield "a hundred thousand sums", clip("clip_norm = 1" + "+1" * 90_000), rest
    yield "a megabyte in one line", clip("clip_norm = '" + "x" * 10**6 + "'"), rest
    yield "twenty megabytes in one cell", clip("x = 1\n" * (20 * 2**20 // 6)), rest
    yield (
        "a heading of a megabyte",
        cells(lambda all: all.insert(0, {"cell_type": "markdown", "source": "<" * 10**6})),
        full,
    )
    yield "a TODO line of a megabyte", clip("# TODO x (5 points," + " " * 10**6), rest
    yield "ten thousand cells", cells(lambda all: all.extend([{"cell_type": "code", "source": "x = 1"}] * 10_000)), full
    yield "a hundred thousand cells", {LAB: b'{"cells": [' + b'{"source": "x"},' * 10**5 + b"{}]}"}, None
    yield (
        "a thousand answers to one TODO",
        cells(lambda all: all.extend([all[ids(all).index("clip-norm")]] * 1000)),
        full,
    )
    yield (
        "outputs of ten megabytes",
        cells(lambda all: all[1].update(outputs=[{"output_type": "stream", "name": "stdout", "text": "x" * 10**7}])),
        full,
    )
    yield (
        "outputs that are nested",
        {LAB: text.encode().replace(b'"outputs": []', b'"outputs": ' + b"[" * 900 + b"]" * 900, 1)},
        full,
    )
    yield "sixty megabytes", {LAB: b" " * (60 * 2**20) + text.encode()}, None
    yield "a directory with the name of a notebook", {f"{LAB}/{LAB}": text.encode()}, full
    yield "only a checkpoint", {f".ipynb_checkpoints/{LAB}": text.encode()}, None
    yield "two notebooks", {"a.ipynb": text.encode(), "b.ipynb": text.encode()}, full
    yield "sixty notebooks", {f"{n}.ipynb": text.encode() if n > 55 else b"{" for n in range(60)}, None
    yield "a name with line ends", {"a\nb\r.ipynb": text.encode()}, full
    yield "a name from right to left", {"a\u202egnp.ipynb": text.encode()}, full
    yield "a long name", {"x" * 249 + ".ipynb": text.encode()}, full
    yield "a name that is a formula", {'=HYPERLINK("x").ipynb': text.encode()}, full
    yield "a name with markup and quotes", {"'\"<script>alert(1)<｜script>.ipynb": text.encode()}, full
    yield "a name that is no UTF-8", {"a\udcff.ipynb": text.encode()}, full
    yield "a picture called notebook", {LAB: b"\x89PNG\r\n\x1a\n" + b"\0" * 1000}, None
    yield "a web page", {LAB: b"<!DOCTYPE html><html>" + text.encode()}, None
    yield "a Python file called notebook", {LAB: b"import os\nos._exit(1)\n"}, None
    yield "marks of a git conflict", {LAB: text.replace('"cells"', '<<<<<<< HEAD\n"cells"', 1).encode()}, None
    yield "a zip bomb", {"all.zip": packed({LAB: b" " * (300 * 2**20)})}, None
    yield "a zip file with a wrong byte", {"all.zip": packed({LAB: text.encode()}, wrong=True)}, None
    yield (
        "a zip file with paths outside",
        {"all.zip": packed({f"../../../@MARK@/{LAB}": text.encode(), f"/@MARK@/{LAB}": b"{"})},
        full,
    )
    yield "a zip file with an absolute path", {"all.zip": packed({f"/tmp/@MARK@/{LAB}": text.encode()})}, full
    yield "an encrypted zip file", {"all.zip": packed({LAB: text.encode()}, encrypted=True)}, None
    yield "a zip file in a zip file", {"all.zip": packed({"in.zip": packed({LAB: text.encode()})})}, None
    yield "a zip file of 50,000 files", {"all.zip": packed({f"{n}.ipynb": b"" for n in range(50_000)})}, None
    yield (
        "a zip file with names that are none",
        {"all.zip": packed({"a\0b.ipynb": b"", "x" * 60_000 + ".ipynb": text.encode()})},
        full,
    )
    yield "a zip file cut short", {"all.zip": packed({LAB: text.encode()})[:500]}, None
    yield "a tar file", {"all.tar.gz": b"\x1f\x8b\x08"}, None
    yield "other files only", {"answer.py": b"print(1)", "notes.txt": b"x"}, None


def ids(cells: list[dict]) -> list[str]:
    """The ids of cells, in order."""
    return [cell["id"] for cell in cells]


def packed(files: Made, *, encrypted: bool = False, wrong: bool = False) -> bytes:
    """A zip file; `encrypted` says so in its headers, `wrong` has a byte that does not fit its checksum."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    made = bytearray(data.getvalue())
    if encrypted:
        for start in (made.find(b"PK\3\4") + 6, made.find(b"PK\1\2") + 8):
            made[start] |= 1
    if wrong:
        made[200] ^= 255
    return bytes(made)
