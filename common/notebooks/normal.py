"""The normal form of a notebook: one notebook, one sequence of bytes, with nothing that changes by itself."""

import json
import re

from nbformat import NotebookNode, from_dict

from common.notebooks import anatomy

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}

# Ids that Jupyter draws at random (8 hexadecimal digits or a UUID) are replaced by readable ones.
_RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8}")


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Return the normal form of a notebook; the notebook itself is left alone.

    nbformat 4.5; ids readable and unique (an answer's is its slug, a check's is `check-<slug>`); of the
    metadata only tags, the kernel and `course`; lines without trailing blanks; outputs (one stdout stream)
    and an execution count of 1 on check cells only. `normalise(normalise(n)) == normalise(n)`.
    """
    cells = [_cell(cell) for cell in notebook.cells]
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    if notebook.metadata.get("course"):
        metadata["course"] = notebook.metadata["course"]
    _name_cells(cells)
    return from_dict({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


def to_bytes(notebook: NotebookNode) -> bytes:
    """The bytes of the file of a notebook, in normal form."""
    nb = normalise(notebook)
    for cell in nb.cells:
        cell["source"] = cell["source"].splitlines(keepends=True)
        for output in cell.get("outputs", []):
            output["text"] = output["text"].splitlines(keepends=True)
    text = json.dumps(nb, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    return text.encode("utf-8", "replace")


def _cell(cell: NotebookNode) -> NotebookNode:
    lines = [line.rstrip() for line in cell.source.replace("\r\n", "\n").split("\n")]
    new = from_dict({"cell_type": cell.cell_type, "id": cell.get("id"), "metadata": {}})
    new["source"] = "\n".join(lines).strip("\n")
    tags = list(dict.fromkeys(cell.metadata.get("tags", [])))
    if tags:
        new.metadata["tags"] = tags
    if cell.cell_type == "code":
        new["outputs"] = _outputs(cell) if anatomy.role(cell) == "check" else []
        new["execution_count"] = 1 if new["outputs"] else None
    elif cell.get("attachments"):
        new["attachments"] = cell["attachments"]
    return new


def _outputs(cell: NotebookNode) -> list[dict]:
    """What a check cell printed, as one stream; a failed check has no output worth keeping."""
    outputs = cell.get("outputs", [])
    if any(output.get("output_type") == "error" for output in outputs):
        return []
    parts = [output["text"] for output in outputs if output.get("name") == "stdout"]
    text = "".join(part if isinstance(part, str) else "".join(map(str, part)) for part in parts)
    return [{"name": "stdout", "output_type": "stream", "text": text}] if text else []


def _name_cells(cells: list) -> None:
    """Give answers the id of their slug, their checks `check-<slug>`, and all others a unique one.

    Of an answer file nothing is known here: the check of a TODO in one keeps such an id, or gets that of its name.
    """
    answers = [anatomy.answer_in(cell) for cell in cells if anatomy.role(cell) == "answer"]
    for cell in cells:
        old = cell["id"]
        if anatomy.role(cell) == "answer":
            cell["id"] = anatomy.answer_in(cell).slug
        elif anatomy.role(cell) == "check":
            found = re.match(r"checks\.(\w+)\(\s*(\w*)", cell.source)
            called = found.groups() if found else ()
            mine = [a for a in answers if a.name in called or a.slug.replace("-", "_") in called]
            if mine:
                cell["id"] = f"check-{mine[0].slug}"
            elif found and not str(old).startswith("check-"):
                cell["id"] = f"check-{found[1].replace('_', '-')}"
        elif isinstance(old, str) and _RANDOM_ID.fullmatch(old):
            cell["id"] = None
    anatomy.give_ids(cells)
