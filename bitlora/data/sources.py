"""Where examples come from: files and folders, data sets on the Hugging Face hub, the standard library's docstrings."""

from __future__ import annotations

import platform
import random
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bitlora.data.examples import DataError, Example, Reading, pair
from bitlora.data.shapes import examples_of
from bitlora.files.source_file import digest
from bitlora.reading.docstrings import docstring_pairs
from bitlora.reading.files import SUFFIXES, ZIPPED, files_read, read_file, read_path
from bitlora.reading.hub import HubSource, hub_commit, read_hub
from bitlora.reading.raw import RawRow

if TYPE_CHECKING:
    from bitlora.config.sections import DataConfig

WRITTEN: Final = re.compile(
    r"(?P<name>[^:@\[\]]+)(:(?P<config>[^:@\[\]]+))?(@(?P<revision>[^:@\[\]]+))?(\[(?P<split>[^\[\]]+)\])?"
)
"""A data set on the hub as it may be written: `owner/name:config@revision[split]`."""


class How(NamedTuple):
    """How a source is read, beside its name."""

    revision: str | Mapping[str, str] | None = None
    """Of hub ids: a branch, tag or commit, of all or by id; None: whatever is there."""
    config: str | None = None
    split: str | None = None
    columns: Mapping[str, str] | None = None
    """The name of a column here -> its name in the data."""
    weights: Sequence[float] | None = None
    """Of each of several sources its share of the rows, relative to the others'."""
    seed: int = 0
    """Of the rows that are left out for that."""
    skip: bool = False
    """Rows that are broken are counted and left out."""
    most: int | None = None
    """Rows of each source that are read; None: all."""
    evaluation: bool = False
    """It is for evaluation: of a data set on the hub nobody takes `train` by himself."""
    places: Mapping[str, Path] | None = None
    """Files that lie elsewhere than their names say, by name."""
    choices: bool = False
    """Rows are questions with choices, and each of these is an example, the right one first."""

    @classmethod
    def of(cls, data: DataConfig, evaluation: bool = False, places: Mapping[str, Path] | None = None) -> How:
        """As a spec says it."""
        split = data.eval_split if evaluation else data.split
        skip = data.broken_rows == "skip"
        weights = None if evaluation else data.weights
        of_spec = cls(data.revision, data.config, split, data.columns, weights, data.seed, skip, evaluation=evaluation)
        return of_spec._replace(places=places)


AS_IT_IS: Final = How()


def read_examples(source: str | list[str], how: How = AS_IT_IS, reading: Reading | None = None) -> list[Example]:
    """All examples of `source` (`stream_examples`)."""
    return list(stream_examples(source, how, reading))


def stream_examples(source: str | list[str], how: How = AS_IT_IS, reading: Reading | None = None) -> Iterator[Example]:
    """The examples of `source`, in its order, one after the other: a file of lines is never in memory as a whole.

    An example whose completion is empty is among them.

    Args:
        source: `pydoc`; a file or a folder of files (a name that ends as those of data do, that exists, or that can only
            be a path), with `[split]` for one of a folder's; or a hub id, as `owner/name:config@revision[split]`; or
            several of them.
        reading: gets what is noticed on the way.

    Raises:
        DataError: after the last one, with every error of every source.
    """
    reading = Reading() if reading is None else reading
    reading.choices = how.choices
    names = [source] if isinstance(source, str) else source
    reading.errors += [f"{name}: listed twice" for name in sorted(set(names)) if names.count(name) > 1]
    if how.weights is not None and len(how.weights) != len(names):
        reading.errors.append(f"data.weights: {len(how.weights)} for {len(names)} sources; give one for each")
    parts = (_examples(name, names, how, reading) for name in names)
    if how.weights is None:
        for part in parts:
            yield from part
    else:
        whole = [list(part) for part in parts]
        if not reading.errors:
            for mixed in _mixed(whole, how.weights, how.seed, reading):
                yield from mixed
    if reading.errors:
        raise DataError(reading.errors)


def _examples(name: str, names: list[str], how: How, reading: Reading) -> Iterator[Example]:
    if name == "pydoc":
        yield from (Example(key, pair(prompt, docstring)) for key, prompt, docstring in docstring_pairs())
        return
    label = Path(name).name
    if [Path(each).name for each in names].count(label) > 1:
        label = name
    for row in islice(_rows(name, label, how, reading), how.most):
        before = len(reading.errors)
        if row.broken:
            reading.errors.append(f"{row.where}: {row.broken}")
            found = []
        else:
            found = examples_of(_renamed(row.value, how.columns), row.row_id, row.where, reading)
        if how.skip and len(reading.errors) > before:
            reading.skipped.append(reading.errors[before])
            del reading.errors[before:]
        else:
            yield from found


def _mixed(parts: list[list[Example]], weights: Sequence[float], seed: int, reading: Reading) -> list[list[Example]]:
    """As many of all sources as there can be with each example once and the shares that are asked for, drawn at random."""
    most = min(len(part) / weight for part, weight in zip(parts, weights, strict=True))
    draw = random.Random(seed)
    mixed = []
    for part, weight in zip(parts, weights, strict=True):
        chosen = sorted(draw.sample(range(len(part)), min(len(part), round(most * weight))))
        mixed.append([part[number] for number in chosen])
    used = " + ".join(f"{len(some)} of {len(part)}" for some, part in zip(mixed, parts, strict=True))
    reading.mixed = f"of the sources {used} examples are used, as data.weights says"
    return mixed


def _rows(name: str, label: str, how: How, reading: Reading) -> Iterable[RawRow]:
    if how.places and name in how.places:
        return read_file(how.places[name], name, label, reading.errors, reading.files)
    path, split = _path(name)
    if path is not None:
        return read_path(path, label, _split(path, split, how), reading.errors, reading.files)
    parts = _parts(name)
    label = parts["name"] + f":{parts['config']}" * bool(parts["config"]) + f"[{parts['split']}]" * bool(parts["split"])
    return read_hub(_on_hub(parts, how), label, reading.errors, reading.commits)


def _split(path: str, written: str | None, how: How) -> str | None:
    return written or (how.split if Path(path).expanduser().is_dir() else None)


def _on_hub(parts: Mapping[str, Any], how: How) -> HubSource:
    wanted = how.revision.get(parts["name"]) if isinstance(how.revision, Mapping) else how.revision
    return HubSource(
        parts["name"],
        parts["config"] or how.config,
        parts["split"] or how.split,
        wanted or parts["revision"],  # a sweep that goes on has the commit that it began with
        how.evaluation,
    )


def bytes_of(source: str | list[str], how: How) -> int:
    """Of the files that a source is, as far as it is files and they are there."""
    total = 0
    for name in [source] if isinstance(source, str) else source:
        path, split = _path(name)
        if how.places and name in how.places:
            path, split = str(how.places[name]), None
        if path is not None:
            files = files_read(Path(path).expanduser(), _split(path, split, how))
            total += sum(file.stat().st_size for file in files if file.is_file())
    return total


def contents(source: str | list[str], how: How) -> list[Any] | None:
    """What the contents of `source` are known by, as JSON has it: the same, the same rows.

    None: that of one is not known without reading it, or it cannot be read.
    """
    found: list[Any] = []
    for name in [source] if isinstance(source, str) else source:
        try:
            content = _content(name, how)
        except OSError:
            return None
        if not content:
            return None
        found.append([name, *content])
    return found


def _content(name: str, how: How) -> list[Any]:
    if name == "pydoc":
        library = Path(sysconfig.get_path("stdlib"))
        return [sys.version, platform.platform(), str(library), library.stat().st_mtime_ns]
    path, split = _path(name)
    if how.places and name in how.places:
        path, split = str(how.places[name]), None
    if path is None:
        commit = hub_commit(_on_hub(_parts(name), how))
        return [] if commit is None else [commit]
    folder = Path(path).expanduser()
    files = files_read(folder, _split(path, split, how))
    # a file's name says whether it is CSV, and names the rows of a folder's
    return [[file.relative_to(folder.parent).as_posix(), digest(file)] for file in files]


def _renamed(row: Any, columns: Mapping[str, str] | None) -> Any:
    """The row under the names that shapes know; what a column is taken from is not there under its own name too."""
    if not columns or not isinstance(row, dict):
        return row
    kept = {key: value for key, value in row.items() if key not in columns.values() and key not in columns}
    return kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


def local(source: str | list[str] | None) -> list[str]:
    """Those of `source` that are files or folders, each once."""
    names = [source] if isinstance(source, str) else source or []
    return list(dict.fromkeys(name for name in names if name != "pydoc" and _path(name)[0] is not None))


def files_of(source: str | list[str] | None, places: Mapping[str, Path]) -> dict[str, Path]:
    """Where those of `source` lie that are files, by name.

    Args:
        places: of files that lie elsewhere than their names say.
    """
    names = [source] if isinstance(source, str) else source or []
    found = {name: places.get(name) or Path(_path(name)[0] or name).expanduser() for name in names if name != "pydoc"}
    return {name: path for name, path in found.items() if path.is_file()}


def hub_ids(source: str | list[str] | None) -> list[str]:
    """Those of `source` that are looked for on the hub: their ids."""
    names = [source] if isinstance(source, str) else source or []
    return [_parts(name)["name"] for name in names if name != "pydoc" and _path(name)[0] is None]


def _parts(name: str) -> dict[str, Any]:
    found = WRITTEN.fullmatch(name)
    return found.groupdict() if found else {"name": name, "config": None, "revision": None, "split": None}


def _path(name: str) -> tuple[str | None, str | None]:
    """The path that a source is, and the split that is asked of it; (None, None): it is none."""
    if _can_only_be_a_path(name):
        bare, bracket, split = name.removesuffix("]").rpartition("[")
        if bracket and name.endswith("]") and not Path(name).expanduser().exists():
            return bare, split
        return name, None
    bare, bracket, split = name.removesuffix("]").rpartition("[")
    if bracket and name.endswith("]") and _can_only_be_a_path(bare):
        return bare, split
    return None, None


def _can_only_be_a_path(name: str) -> bool:
    # a hub id has one slash at most, so `owner/name` is a file only if there is one
    path = Path(name).expanduser()
    telling = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    bare = path.name
    for zipped in ZIPPED:
        bare = bare.removesuffix(zipped)
    return bare.endswith(SUFFIXES) or telling or path.exists()
