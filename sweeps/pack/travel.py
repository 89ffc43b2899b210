"""The rows of a sweep on their way to its packs: what the driver's machine keeps is mapped by the packs there; another
machine fetches it once, and keeps it too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import ray

from bitlora.data.cached import KIND
from bitlora.data.rows import DTYPES, MOVED, Picked, Rows, rows_at
from bitlora.files.machine_cache import CachePlace, cache_folder
from bitlora.tokenized.arrays import ABOUT, Arrays, ArraysError, read_about

if TYPE_CHECKING:
    from bitlora.data.split import Dataset

CHUNK: Final = 2**26
"""Bytes of a file that travel at once."""


@dataclass(frozen=True, slots=True)
class TravellingRows:
    """Rows that the driver's machine keeps."""

    folder: Path
    """There."""
    about: bytes
    """What is known of the files."""
    chunks: dict[str, tuple[Any, ...]]
    """Of each file the references to its pieces; none where no pack is on another machine."""


def travelling(dataset: Dataset, elsewhere: bool) -> TravellingRows | None:
    """What packs need to have the rows of a data set that is pickled; None: they are pickled with it.

    Args:
        elsewhere: packs may be on other machines.
    """
    kept = dataset.train.pool.kept if isinstance(dataset.train, Picked) else None
    if kept is None:
        return None
    chunks = {
        name: tuple(ray.put(piece) for piece in _pieces(kept.folder / name)) for name in (DTYPES if elsewhere else ())
    }
    return TravellingRows(kept.folder, (kept.folder / ABOUT).read_bytes(), chunks)


def arrive(rows: TravellingRows | None) -> None:
    """Have them here, before the data set is unpickled that they belong to. Raises ArraysError: they are nowhere."""
    if rows is None or _is_here(rows.folder):
        return
    if not rows.chunks:
        raise ArraysError(f"{rows.folder} was removed while the sweep ran: go on with the sweep, and it is made again")
    place = CachePlace(cache_folder() / KIND / rows.folder.name)
    with place.alone():
        if not _is_here(place.folder):
            place.keep(lambda folder: _write(rows, folder))
    try:
        MOVED[rows.folder] = rows_at(place.folder)
    except ArraysError:  # nothing can be kept here: in memory, then
        parts = {name: [ray.get(chunk) for chunk in rows.chunks[name]] for name in DTYPES}
        whole = {name: np.concatenate([np.empty(0, np.uint8), *found]) for name, found in parts.items()}
        arrays: Arrays = {name: found.view(DTYPES[name]) for name, found in whole.items()}
        MOVED[rows.folder] = Rows.of(arrays)


def _is_here(folder: Path) -> bool:
    """Their name has the digest of all that they hang on: what is whole and has it is the same."""
    try:
        read_about(folder)
    except ArraysError:
        return False
    return True


def _write(rows: TravellingRows, folder: Path) -> None:
    for name, chunks in rows.chunks.items():
        with (folder / name).open("wb") as file:
            for chunk in chunks:
                file.write(ray.get(chunk).data)
    (folder / ABOUT).write_bytes(rows.about)


def _pieces(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    for place in range(0, path.stat().st_size, CHUNK):
        yield np.fromfile(path, np.uint8, CHUNK, offset=place)
