"""The data files of a sweep, kept beside its spec: the sweep can be gone on with, exported from and repeated where its
files are no longer under their names, or never were, as in a job whose files came from another machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError

from bitlora.config.sections import Config, DataConfig
from bitlora.files.record import DATA, KEPT
from bitlora.files.source_file import SourceFile, digest
from bitlora.files.writing import write_json
from sweeps.spec.errors import InputError

MOST_BYTES: Final = 16 * 2**20
"""Of the copies in a sweep's folder, together: what a person hardly notices there, or in a bucket."""


class KeptFile(Config):
    """What is known of a data file."""

    name: str
    """As the spec has it."""
    bytes: int
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    kept: Annotated[str, Field(pattern="^[0-9]+-[^/]+$")] | None
    """The name of its copy, beside this; None: there is none."""


FILES: Final = TypeAdapter(list[KeptFile])


def source_file(name: str) -> SourceFile:
    """A data file of this machine, looked at. Raises OSError."""
    return SourceFile.of(name, Path(name).expanduser())


def keep(files: Iterable[SourceFile], folder: Path, most: int | None = MOST_BYTES) -> list[KeptFile]:
    """Note in `folder`/data what was read, and copy it there, in this order and as far as it fits.

    Args:
        most: bytes of all copies together; None: all are copied.

    Returns:
        What is known of each; nothing is written where there are none.

    Raises:
        InputError: one is no longer what was read.
        OSError: it cannot be written.
    """
    found, copies = [], []
    for number, file in enumerate(files):
        copied = f"{number}-{Path(file.name).name}" if most is None or file.bytes <= most else None
        if copied is not None:
            most = None if most is None else most - file.bytes
            copies.append((file, folder / DATA / copied))
        found.append(KeptFile(name=file.name, bytes=file.bytes, sha256=file.sha256, kept=copied))
    if found:
        (folder / DATA).mkdir(parents=True, exist_ok=True)
        # First, so that whoever finds a folder that was cut off here knows whose it is.
        write_json(folder / DATA / KEPT, FILES.dump_python(found))
    for file, copy in copies:
        shutil.copyfile(file.path, copy)
        if not _is(copy, file):
            raise InputError([f"data: {file.name}: was changed while it was read; begin again"])
    return found


def places(data: DataConfig, beside: Path, begun: Path | None = None) -> tuple[dict[str, Path], list[str]]:
    """Where the data files of a spec are to be read: under their names, or else from their copies.

    Args:
        beside: the folder that the spec lies in. What is noted there of a file says what the file has to be.
        begun: the folder of a sweep that goes on; of a file that is there under its name, the sweep's own fingerprint of
            the rows decides.

    Returns:
        By name, the files that are read elsewhere; and what a user should know of them, a line each.

    Raises:
        InputError: a file is neither there as it was, nor is its copy; a line each.
    """
    here, there = _noted(beside), _noted(begun) if begun is not None else {}
    elsewhere: dict[str, Path] = {}
    lines, errors = [], []
    names = [*_listed(data.source), *_listed(data.eval_source)]
    for name in dict.fromkeys(names):
        path = Path(name).expanduser()
        file, folder = here.get(name), beside
        if file is None and begun is not None and not path.is_file():
            file, folder = there.get(name), begun
        if file is None or _is(path, file):
            continue
        copy = folder / DATA / file.kept if file.kept is not None else None
        if copy is not None and _is(copy, file):
            elsewhere[name] = copy.absolute()
            if path.is_file():
                lines.append(
                    f"{name} is another file by now; what was read before is in {copy.parent}, and is read again"
                )
            continue
        what = "is not what it was" if path.is_file() else "is not there"
        why = "it was too large to keep a copy of" if copy is None else f"its copy {copy} is missing or has changed"
        right = f"give it as it was: {file.bytes} bytes, SHA-256 {file.sha256[:16]}…"
        errors.append(f"data: {name}: {what}, and {why}; {right}")
    if errors:
        raise InputError(errors)
    return elsewhere, lines


def _listed(source: str | list[str] | None) -> list[str]:
    return [source] if isinstance(source, str) else source or []


def _noted(folder: Path) -> dict[str, KeptFile]:
    """What is noted beside a spec, by name. Raises InputError."""
    path = folder / DATA / KEPT
    try:
        return {file.name: file for file in FILES.validate_json(path.read_bytes())}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValidationError:
        raise InputError([f"{path}: not what a sweep notes of its data files; remove it, or put it back"]) from None
    except OSError as error:
        raise InputError([f"{path}: cannot be read: {error.strerror}"]) from None


def _is(path: Path, file: SourceFile | KeptFile) -> bool:
    try:
        return path.is_file() and path.stat().st_size == file.bytes and digest(path) == file.sha256
    except OSError:
        return False
