"""Arrays that grow in a folder and are then mapped into memory: what is not touched takes none."""

from __future__ import annotations

import io
import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, overload

import numpy as np
import numpy.typing as npt

ABOUT: Final = "about.json"
BUFFER: Final = 2**20
BLOCK: Final = 10_000
"""Names of which the places are read at once."""

Arrays = dict[str, npt.NDArray[Any]]
Dtypes = Mapping[str, npt.DTypeLike]


class ArraysError(ValueError):
    """What a folder holds is not what was written; the message says in what."""


class ArrayWriter:
    """Arrays of one dimension that grow at their ends.

    Args:
        dtypes: of each array, by its name.
        folder: gets a file for each; None: they are in memory.
    """

    def __init__(self, dtypes: Dtypes, folder: Path | None) -> None:
        self._dtypes, self._folder = dtypes, folder
        self._files: dict[str, IO[bytes]] = {
            name: io.BytesIO() if folder is None else (folder / name).open("wb", buffering=BUFFER) for name in dtypes
        }

    def add(self, name: str, values: bytes) -> None:
        """Values at the end of an array, as its dtype has them. Raises OSError."""
        self._files[name].write(values)

    def close(self, about: Mapping[str, Any]) -> Arrays:
        """The arrays, whole.

        Args:
            about: what is to be known of them, as JSON has it (`read_about`).

        Raises:
            OSError: a disk is full.
        """
        if self._folder is None:
            buffers = {name: file.getbuffer() for name, file in self._files.items() if isinstance(file, io.BytesIO)}
            return {name: np.frombuffer(buffers[name], dtype) for name, dtype in self._dtypes.items()}
        sizes = {}
        for name, file in self._files.items():
            file.close()
            sizes[name] = (self._folder / name).stat().st_size
        (self._folder / ABOUT).write_text(json.dumps({**about, "sizes": sizes}), encoding="utf-8")
        return open_arrays(self._folder, self._dtypes)

    def abandon(self) -> None:
        """Close the files as they are."""
        for file in self._files.values():
            file.close()


def read_about(folder: Path) -> dict[str, Any]:
    """What is to be known of the arrays in a folder. Raises ArraysError: they are not as they were written."""
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_bytes())
        for name, size in about["sizes"].items():
            found = (folder / name).stat().st_size
            if found != size:
                raise ArraysError(f"{name} has {found} bytes, not {size}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArraysError(str(error) or type(error).__name__) from None
    return about


def open_arrays(folder: Path, dtypes: Dtypes) -> Arrays:
    """The arrays in a folder, mapped. Raises ArraysError."""
    sizes = read_about(folder)["sizes"]
    if sizes.keys() != dtypes.keys():
        raise ArraysError(f"it holds {', '.join(sizes)}")
    return {
        name: np.memmap(folder / name, dtype, mode="r") if sizes[name] else np.empty(0, dtype)
        for name, dtype in dtypes.items()
    }


def let_go(array: npt.NDArray[Any]) -> None:
    """Of an array that is mapped take no memory until it is read again."""
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
        array.base.madvise(mmap.MADV_DONTNEED)


class Names(Sequence[str]):
    """Strings one after the other in one array.

    Args:
        text: their UTF-8 bytes.
        ends: [names] where each of them ends.
        index: which of them these are, in which order; None: all.
    """

    __slots__ = ("_ends", "_index", "_text")

    def __init__(
        self,
        text: npt.NDArray[np.uint8],
        ends: npt.NDArray[np.int64],
        index: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._text, self._ends = text.view(np.ndarray), ends.view(np.ndarray)  # each piece of a mapped array costs more
        self._index = index

    def __len__(self) -> int:
        return len(self._ends if self._index is None else self._index)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...
    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        if isinstance(place, slice):
            return tuple(self.at(np.arange(*place.indices(len(self)))))
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        number = place % len(self) if self._index is None else int(self._index[place])
        first = int(self._ends[number - 1]) if number else 0
        return self._text[first : int(self._ends[number])].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        text = self._text.data
        for start in range(0, len(self), BLOCK):
            numbers = np.arange(start, min(start + BLOCK, len(self)))
            if self._index is not None:
                numbers = self._index[numbers]
            firsts = np.where(numbers > 0, self._ends[numbers - 1], 0)
            for first, last in zip(firsts.tolist(), self._ends[numbers].tolist(), strict=True):
                yield str(text[first:last], "utf-8")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Names | tuple | list):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def at(self, index: npt.NDArray[np.int64]) -> Names:
        """Those at these places."""
        return Names(self._text, self._ends, index if self._index is None else self._index[index])
