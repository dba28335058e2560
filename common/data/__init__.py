"""Real data sets, found in a local mirror, in the cache, or on the network, in this order.

A mirror is a folder that the environment variable COURSE_DATA names, for a classroom without a network; where
it is set, nothing is ever downloaded. The cache is the folder `data/` of the course.
"""

from __future__ import annotations

import hashlib
import os
import urllib.error
from pathlib import Path

import torch.hub

CACHE = Path(__file__).resolve().parents[2] / "data"


class MissingData(Exception):
    """A data set is not there; the message says the ways to get it."""


def mirror() -> Path | None:
    """Return the folder that COURSE_DATA names, or None where it is not set.

    A relative path counts from the working directory or, as notebooks run in the folder of their unit, from the top.

    Raises:
        MissingData: when there is no such folder.
    """
    name = os.environ.get("COURSE_DATA")
    if not name:
        return None
    path = Path(name).expanduser()
    for folder in (path, CACHE.parent / path):
        if folder.is_dir():
            return folder.resolve()
    raise MissingData(f"COURSE_DATA is {name!r}, but there is no such folder; correct it or unset it")


def fetch(name: str, *, url: str, sha256: str) -> Path:
    """Return the path of one data file, whose content is always the one that `sha256` stands for.

    Args:
        name: the file's path inside the mirror and inside the cache, such as `tinyshakespeare/input.txt`.
        url: where it is downloaded from when neither has it; half a download leaves nothing behind.
        sha256: the checksum, in hexadecimal.

    Raises:
        MissingData: when the file is nowhere, or is damaged.
    """
    if (folder := mirror()) is not None:
        path = folder / name
        if not path.is_file():
            raise MissingData(f"{path} is missing. Put the file from {url} there, or unset COURSE_DATA to download it.")
        return verified(path, sha256)
    path = CACHE / name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise MissingData(
                f"{name} could not be downloaded ({error}). Connect to the network and try again, or put the file "
                f"from {url} into a folder and let COURSE_DATA name that folder as the root of {name}."
            ) from None
    return verified(path, sha256)


def verified(path: Path, sha256: str) -> Path:
    """Return `path` if the file's content has this SHA-256 checksum.

    Raises:
        MissingData: when it has another, so when the file is damaged.
    """
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise MissingData(f"{path} is damaged (its checksum is wrong). Delete it and run this again.")
    return path
