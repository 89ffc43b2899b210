"""Which weights a base is. On the hub that is a commit; a folder's, or a package's, is a fingerprint of what it holds,
which changes when its weights do.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from bitlora.base.locate import PACKAGE, BaseError, locate, packaged_weights

READ: Final = (".safetensors", ".bin", ".gguf", ".json", ".model", ".txt", ".jinja")
"""How the names of files end that make a base what it is: weights, configuration, tokenizer."""
WHOLE: Final = 2**20
"""A file of at most so many bytes counts with all of them."""
SAMPLES: Final = 64
"""Of larger files so many samples count, together, and at least three of each: from its first bytes to its last, evenly."""
SAMPLE: Final = 128 * 2**10
"""Bytes of a sample."""


def fingerprint(files: Iterable[Path]) -> str:
    """16 hex digits over names, sizes and contents of files; of large files over samples of the contents.

    At most some tens of MB are read, whatever the size: of 20 GB in a fraction of a second. Training changes every tensor,
    so it is seen; an edit of some bytes in a large file that keeps its size may not be.
    """
    found = sorted(files, key=lambda file: file.name)
    sizes = {file: file.stat().st_size for file in found}
    places = max(3, SAMPLES // max(1, sum(size > WHOLE for size in sizes.values())))
    digest = hashlib.sha256()
    for file, size in sizes.items():
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as opened:
            if size <= WHOLE:
                digest.update(opened.read())
                continue
            for number in range(places):
                opened.seek((size - SAMPLE) * number // (places - 1))
                digest.update(opened.read(SAMPLE))
    return digest.hexdigest()[:16]


def config_digest(folder: Path) -> str:
    """16 hex digits over config.json: what sweeps took for the revision before it was a fingerprint of the weights too."""
    return hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:16]


def local_revision(model: str, place: Path) -> str:
    """The revision of a base that is in the folder `place`; of a package it is that of the file which it carries."""
    if model.startswith(PACKAGE):
        package = model.removeprefix(PACKAGE)
        return f"{distribution(package).version}-{fingerprint([packaged_weights(package)])}"
    return fingerprint(file for file in place.iterdir() if file.suffix in READ and file.is_file())


def check_revision(model: str, place: Path, revision: str) -> None:
    """Hold a base in a folder against the revision that is wanted.

    Raises:
        BaseError: it is another one.
    """
    # Of before: of a folder the digest of its configuration; of a package that of a conversion, which hangs on versions.
    if revision == config_digest(place) or (model.startswith(PACKAGE) and re.fullmatch("[0-9a-f]{16}", revision)):
        return
    found = local_revision(model, place)
    if revision != found:
        raise BaseError(
            f"base.revision: {model} is not {revision}: what it holds on this machine is {found}; "
            "give it as it was, or the revision that is there"
        )


def pinned(model: str, revision: str | None) -> tuple[str, dict[str, str]]:
    """Where transformers loads a base from, and the options that make it that revision; None: whatever is there.

    Raises:
        BaseError: see `locate` and `check_revision`.
    """
    place = locate(model)
    if Path(place).is_dir():
        if revision is not None:
            check_revision(model, Path(place), revision)
        return place, {}
    return place, {} if revision is None else {"revision": revision}


def weights_revision(model: str, revision: str | None) -> str | None:
    """Which weights a base is here, so that what was made of them can be kept; None: that is not known. A revision of
    before, or a branch, would stand for more weights than one.
    """
    place = locate(model)
    if Path(place).is_dir():
        return local_revision(model, Path(place))
    return revision if revision is not None and re.fullmatch("[0-9a-f]{40}", revision) else None
