"""Where examples come from: JSONL files, a data set on the Hugging Face hub, the standard library's docstrings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bitlora.data.docstrings import docstring_pairs
from bitlora.data.examples import DataError, Example, pair
from bitlora.data.hub import _read_hub
from bitlora.data.json_lines import DataFiles, _read_file


def read_examples(
    source: str | list[str],
    revision: str | Mapping[str, str] | None = None,
    found: dict[str, str] | None = None,
    files: DataFiles | None = None,
) -> list[Example]:
    """All examples of `source`, in its order. An example whose completion is empty is among them.

    Args:
        source: `pydoc`, a JSONL file (a name that ends in .jsonl or .json, that exists, or that can only be a path)
            or a hub id; or several of them.
        revision: of hub ids: a branch, tag or commit, of all or by id; None: whatever is there.
        found: gets the commit of each hub id, where it is known.
        files: says which files lie elsewhere than their names say, and gets what was read of each.

    Raises:
        DataError: with every error of every source.
    """
    names = [source] if isinstance(source, str) else source
    files = files or DataFiles()
    errors = [f"{name}: listed twice" for name in sorted(set(names)) if names.count(name) > 1]
    file_names = [Path(name).name for name in names]
    examples: list[Example] = []
    for name in names:
        if name == "pydoc":
            examples += (Example(key, pair(prompt, docstring)) for key, prompt, docstring in docstring_pairs())
        elif name in files.places or _can_only_be_a_path(name):
            label = Path(name).name if file_names.count(Path(name).name) == 1 else name
            examples += _read_file(name, label, errors, files)
        else:
            wanted = revision.get(name) if isinstance(revision, Mapping) else revision
            examples += _read_hub(name, errors, wanted, found)
    if errors:
        raise DataError(errors)
    return examples


def hub_ids(source: str | list[str] | None) -> list[str]:
    """Those of `source` that are looked for on the hub."""
    names = [source] if isinstance(source, str) else source or []
    return [name for name in names if name != "pydoc" and not _can_only_be_a_path(name)]


def _can_only_be_a_path(name: str) -> bool:
    # a hub id has one slash at most, so `owner/name` is a file only if there is one
    path = Path(name).expanduser()
    telling = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    return path.suffix in (".jsonl", ".json") or telling or path.exists()
