"""Rows of a file, whatever its format is, or of a folder of files.

What a file is shows in its content: compressed or not, Parquet, Arrow, JSON. Only CSV goes by its name. Nothing here infers
types: what a file says is what is learned, where readers of data frames make dates of text and floats of long numbers.
"""

from __future__ import annotations

import difflib
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from bitlora.reading.json_lines import read_json
from bitlora.reading.raw import OpenFile, RawRow
from bitlora.reading.tables import read_arrow, read_csv, read_parquet

SUFFIXES: Final = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
"""What the names of files of data end in, before `.gz` or `.zst`."""
ZIPPED: Final = (".gz", ".zst")
GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
PARQUET: Final = b"PAR1"
ARROW: Final = b"ARROW1"
NO_DATA: Final = ("state.json", "dataset_info.json", "dataset_dict.json", "dataset_infos.json")
"""What `datasets` writes beside the rows that it saves."""
SPLIT: Final = re.compile(
    r"(?:^|[-_./])(train|training|test|testing|valid|validation|val|dev|eval|evaluation)(?=[-_./]|$)"
)
SAME: Final = {
    "training": "train",
    "testing": "test",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
} | {"evaluation": "eval"}


def read_path(
    name: str, label: str, split: str | None, errors: list[str], opened: list[OpenFile] | None = None
) -> Iterator[RawRow]:
    """The rows of a file or a folder.

    Args:
        name: as the user wrote it.
        label: stands for it in the rows' ids.
        split: of a folder the split that is read.
        errors: gets what is wrong with it, a line each.
        opened: gets the files that are opened.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        for file in _files(path, name, split, errors):
            inside = file.relative_to(path).as_posix()
            yield from read_file(file, f"{name.rstrip('/')}/{inside}", f"{label}/{inside}", errors, opened)
        return
    if split is not None:
        errors.append(f"{name}: a split is of a folder or of a data set on the hub, and this is a file")
        return
    yield from read_file(path, name, label, errors, opened)


def files_read(path: Path, split: str | None) -> list[Path]:
    """The files that `read_path` reads of a path; none where it would say what is wrong."""
    if not path.is_dir():
        return [path] if split is None else []
    errors: list[str] = []
    found = _files(path, "", split, errors)
    return [] if errors else found


def read_file(
    path: Path, name: str, label: str, errors: list[str], opened: list[OpenFile] | None = None
) -> Iterator[RawRow]:
    """The rows of one file.

    Args:
        name: stands for it in errors.
        label: stands for it in the rows' ids.
        errors: gets what is wrong with it, a line each.
        opened: gets the file.
    """
    try:
        with path.open("rb") as file:
            if opened is not None:
                opened.append(OpenFile(file, path.stat().st_size))
            head = file.read(6)
            file.seek(0)
            yield from _rows(file, head, path, name, label, errors)
    except FileNotFoundError:
        errors.append(f"{name}: no such file{_nearest_file(path)}")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        errors.append(f"{name}: cannot be decompressed: {error}")
    except OSError as error:
        errors.append(f"{name}: cannot be read: {error.strerror or str(error).splitlines()[0]}")


def _rows(file: IO[bytes], head: bytes, path: Path, name: str, label: str, errors: list[str]) -> Iterator[RawRow]:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in ZIPPED]
    suffix = suffixes[-1] if suffixes else ""
    if head.startswith((GZIP, ZSTD)):
        file = _decompressed(file, head)
        head = file.peek(6)[:6] if isinstance(file, io.BufferedReader) else head
    if head.startswith((GZIP, ZSTD)):
        errors.append(f"{name}: compressed twice")
    elif head.startswith(PARQUET):
        yield from read_parquet(_seekable(file), name, label, errors)
    elif head.startswith(ARROW) or suffix in (".arrow", ".feather"):
        yield from read_arrow(_seekable(file), name, label, errors)
    elif suffix in (".csv", ".tsv"):
        yield from read_csv(file, name, label, "\t" if suffix == ".tsv" else ",", errors)
    elif suffix == ".parquet":
        errors.append(f"{name}: the file is empty" if not head else f"{name}: not a Parquet file")
    else:
        yield from read_json(file, name, label, errors)


def _decompressed(file: IO[bytes], head: bytes) -> IO[bytes]:
    if head.startswith(GZIP):
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(file, "zstd"))


def _seekable(file: IO[bytes]) -> IO[bytes]:
    """Formats with an index at their end are read from memory where they were compressed."""
    return file if isinstance(file, io.FileIO) or getattr(file, "name", None) else io.BytesIO(file.read())


def _files(folder: Path, name: str, split: str | None, errors: list[str]) -> list[Path]:
    """The files of data in a folder, by name; of the split that is asked for, where their names tell."""
    if (folder / "dataset_dict.json").is_file():
        held = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if split in held:
            return _files(folder / str(split), name, None, errors)
        errors.append(f"{name}: holds the splits {', '.join(held)}; give {name}[{held[0] if held else 'train'}]")
        return []
    if (folder / "state.json").is_file():
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return [folder / each["filename"] for each in state["_data_files"]]
        except (ValueError, KeyError, TypeError):
            errors.append(f"{name}/state.json: not as `datasets` writes it")
            return []
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and _is_data(path, folder)]
    if not found:
        errors.append(f"{name}: a folder without files of data ({', '.join(SUFFIXES)})")
        return []
    splits = {path: _split_of(path, folder) for path in found}
    names = sorted({each for each in splits.values() if each is not None})
    if split is not None:
        wanted = [path for path in found if splits[path] == SAME.get(split, split)]
        if not wanted:
            errors.append(
                f"{name}: no split {split!r} in the names of its files ({', '.join(names) or 'none is named'})"
            )
        return wanted
    if len(names) > 1:
        errors.append(f"{name}: holds files of several splits ({', '.join(names)}); give {name}[{names[-1]}]")
        return []
    return found


def _is_data(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder)
    bare = path.name.removesuffix(".gz").removesuffix(".zst")
    hidden = any(part.startswith((".", "_")) for part in inside.parts)
    return bare.endswith(SUFFIXES) and not hidden and path.name not in NO_DATA


def _split_of(path: Path, folder: Path) -> str | None:
    found = SPLIT.findall(path.relative_to(folder).as_posix().lower())
    return SAME.get(found[-1], found[-1]) if found else None


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist"
    near = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""
