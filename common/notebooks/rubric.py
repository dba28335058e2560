"""Rubrics: what earns which points of an answer in prose, as a person marks it.

A rubric is the file `rubrics/<slug>.md` on the branch `solutions`::

    # why-two
    - 2 points: says that one is not enough
    - 1 point: gives an example

    Free text: common misreadings, what does not count.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from common.notebooks.anatomy import NotebookError, read_text

_ITEM = re.compile(r"- (?P<points>\d+) points?: (?P<text>\S.*(?:\n[ \t]+\S.*)*)", re.M)


@dataclass(frozen=True)
class Rubric:
    """A rubric, read.

    Attributes:
        slug: of the TODO whose answers it marks.
        items: points, and what earns them.
        notes: the free text, Markdown.
    """

    slug: str
    items: tuple[tuple[int, str], ...]
    notes: str

    @property
    def points(self) -> int:
        """The sum of the points."""
        return sum(points for points, _ in self.items)


def read(path: Path) -> Rubric:
    """Read `rubrics/<slug>.md`.

    Raises:
        NotebookError: it cannot be read, or does not have the form above.
    """
    first, _, rest = read_text(path).strip().partition("\n")
    if first.strip() != f"# {path.stem}":
        raise NotebookError(f"{path}: its first line must be `# {path.stem}`, the TODO that it marks.")
    items = tuple((int(found["points"]), " ".join(found["text"].split())) for found in _ITEM.finditer(rest))
    if not items:
        raise NotebookError(f"{path}: says nowhere what earns points, as in `- 2 points: names both causes`.")
    return Rubric(path.stem, items, re.sub(r"\n{3,}", "\n\n", _ITEM.sub("", rest)).strip())
