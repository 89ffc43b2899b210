"""Raw examples: from JSONL files, from a data set on the Hugging Face hub, or from the standard library's docstrings.

Whatever the source, an example is a conversation. Errors are collected, not met one by one: `DataError` has them all.
"""

from __future__ import annotations

import codecs
import contextlib
import difflib
import importlib
import inspect
import io
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

ROLES: Final = ("system", "user", "assistant")
SHAPES: Final = "prompt + completion, instruction (+ input) + output, instruction + instances, or messages"
KEYS: Final = ("prompt", "completion", "instruction", "input", "output", "instances", "messages")
SHOWN: Final = 20

# what acts or prints when imported or needs a display, and what is no library or, on one platform, another name of `os`
NOISY: Final = ("antigravity", "this", "idlelib", "turtle", "turtledemo", "readline", "rlcompleter", "tkinter")
NO_LIBRARY: Final = ("test", "tests", "lib2to3", "ensurepip", "distutils", "pydoc_data", "encodings", "posix", "nt")
LENGTHS: Final = range(40, 1501)
"""Characters of a docstring that is used."""
PLAIN: Final = (bool, int, float, str, bytes, type(None))


class DataError(ValueError):
    """The data cannot be used; for users, without a traceback.

    `errors` has every error, one complete line each; `lines` the first 20 of them and how many more there are.
    """

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__(self.errors)

    @property
    def lines(self) -> list[str]:
        """What to show, one line per error."""
        more = len(self.errors) - SHOWN
        return [*self.errors[:SHOWN], *([f"and {more} more"] if more > 0 else [])]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation; it is learned to say what the assistant says in it."""

    example_id: str
    """Where it comes from: `<file name>:<line>`, `<hub id>:<row>` or a qualified name; unique within a source."""
    messages: tuple[Message, ...]


def read_examples(source: str | list[str]) -> list[Example]:
    """All examples of `source`, in its order. An example whose completion is empty is among them.

    Args:
        source: `pydoc`, a JSONL file (a name that ends in .jsonl or .json, that exists, or that can only be a path)
            or a hub id; or several of them.

    Raises:
        DataError: with every error of every source.
    """
    names = [source] if isinstance(source, str) else source
    errors = [f"{name}: listed twice" for name in sorted(set(names)) if names.count(name) > 1]
    file_names = [Path(name).name for name in names]
    found: list[Example] = []
    for name in names:
        if name == "pydoc":
            found += (Example(key, pair(prompt, docstring)) for key, prompt, docstring in docstring_pairs())
        elif _can_only_be_a_path(name):
            label = Path(name).name if file_names.count(Path(name).name) == 1 else name
            found += _read_file(name, label, errors)
        else:
            found += _read_hub(name, errors)
    if errors:
        raise DataError(errors)
    return found


def pair(prompt: str, completion: str) -> tuple[Message, ...]:
    """A prompt and its completion as a conversation."""
    return (Message("user", prompt), Message("assistant", completion))


def _can_only_be_a_path(name: str) -> bool:
    # a hub id has one slash at most, so `owner/name` is a file only if there is one
    path = Path(name).expanduser()
    telling = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    return path.suffix in (".jsonl", ".json") or telling or path.exists()


def _read_file(name: str, label: str, errors: list[str]) -> list[Example]:
    path = Path(name).expanduser()
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        errors.append(f"{name}: no such file{_nearest_file(path)}")
        return []
    except IsADirectoryError:
        files = ", ".join(sorted(each.name for each in path.glob("*.jsonl"))[:5])
        errors.append(f"{name}: a folder; name the JSONL files in it{f' ({files})' if files else ''}")
        return []
    except OSError as error:
        errors.append(f"{name}: cannot be read: {error.strerror}")
        return []
    found: list[Example] = []
    lines = raw.removeprefix(codecs.BOM_UTF8).splitlines()
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        try:
            if text := line.decode("utf-8").strip():
                found += examples_of(json.loads(text), f"{label}:{number}", where, errors)
        except UnicodeDecodeError as error:
            errors.append(f"{where}: not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line")
        except json.JSONDecodeError as error:
            errors.append(f"{where}: not JSON: {error.msg} at column {error.colno}; each line holds one object")
    if not any(line.strip() for line in lines):
        errors.append(f"{name}: the file is empty")
    return found


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist"
    near = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def examples_of(row: object, example_id: str, where: str, errors: list[str]) -> list[Example]:
    """The examples in one row of data: one, or one per instance. What is wrong with it is added to `errors`.

    Args:
        row: what JSON gave, an object of one of the shapes in `SHAPES`.
        where: names the row in errors.
    """
    if not isinstance(row, Mapping):
        errors.append(f"{where}: {_kind(row)} where an object belongs ({SHAPES})")
        return []
    keys = row.keys()
    if "messages" in keys:
        return [Example(example_id, _conversation(row["messages"], where, errors))]
    if keys >= {"prompt", "completion"}:
        return [Example(example_id, pair(_text(row, "prompt", where, errors), _text(row, "completion", where, errors)))]
    if keys >= {"instruction", "instances"}:
        instruction = _text(row, "instruction", where, errors)
        found = []
        for number, instance in enumerate(_objects(row["instances"], "instances", where, errors), 1):
            messages = _instructed(instruction, instance, f"{where}: instance {number}", errors)
            found.append(Example(f"{example_id}/{number}", messages))
        return found
    if keys >= {"instruction", "output"}:
        return [Example(example_id, _instructed(_text(row, "instruction", where, errors), row, where, errors))]
    known = [key for key in KEYS if key not in keys]
    near = [(key, match[0]) for key in keys if (match := difflib.get_close_matches(str(key), known, n=1))]
    hint = f"; did you mean {near[0][1]!r} by {near[0][0]!r}?" if near else ""
    errors.append(f"{where}: no known shape: found {_listed(keys)}; known are {SHAPES}{hint}")
    return []


def _instructed(instruction: str, row: Mapping[str, Any], where: str, errors: list[str]) -> tuple[Message, ...]:
    given = _text(row, "input", where, errors) if row.get("input") is not None else ""
    return pair(f"{instruction}\n\n{given}" if given.strip() else instruction, _text(row, "output", where, errors))


def _conversation(value: object, where: str, errors: list[str]) -> tuple[Message, ...]:
    turns = []
    before = len(errors)
    for number, turn in enumerate(_objects(value, "messages", where, errors), 1):
        here = f"{where}: message {number}"
        role = _text(turn, "role", here, errors)
        if role and role not in ROLES:
            near = difflib.get_close_matches(role, ROLES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            errors.append(f"{here}: unknown role {role!r}; roles are {', '.join(ROLES)}{hint}")
        turns.append(Message(role, _text(turn, "content", here, errors)))
    if len(errors) == before:
        if all(turn.role != "assistant" for turn in turns):
            errors.append(f"{where}: no assistant turn, so nothing to learn")
        elif turns[0].role == "assistant":
            errors.append(f"{where}: begins with the assistant's turn; a user's turn comes first")
    return tuple(turns)


def _objects(value: object, key: str, where: str, errors: list[str]) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else _kind(value)
        errors.append(f"{where}: {key} is {found}; it must be a list of objects")
        return []
    wrong = [number for number, each in enumerate(value, 1) if not isinstance(each, Mapping)]
    errors.extend(
        f"{where}: {key}: {_kind(value[number - 1])} at place {number}, must be an object" for number in wrong
    )
    return [] if wrong else value


def _text(row: Mapping[str, Any], key: str, where: str, errors: list[str]) -> str:
    if key not in row:
        errors.append(f"{where}: no {key!r}: found {_listed(row)}")
        return ""
    value = row[key]
    if not isinstance(value, str):
        errors.append(f"{where}: {key!r} is {_kind(value)}; it must be a string")
        return ""
    if any("\ud800" <= char <= "\udfff" for char in ("" if value.isascii() else value)):
        errors.append(f"{where}: {key!r} holds half of a surrogate pair, which is no character")
    return value


def _listed(keys: Iterable[object]) -> str:
    return ", ".join(repr(key) for key in keys) or "no keys"


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


def _read_hub(name: str, errors: list[str]) -> list[Example]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # its documented place

    near = difflib.get_close_matches(name, ["pydoc", *(path.name for path in Path().glob("*.json*"))], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    try:
        validate_repo_id(name)
    except HFValidationError:
        errors.append(f"{name}: neither pydoc, nor a file that exists, nor a hub id{hint}")
        return []
    try:
        splits = _load_hub(name)
    except DataError as error:
        errors.extend(f"{line}{hint}" for line in error.errors)
        return []
    if "train" not in splits and len(splits) != 1:
        errors.append(f"{name}: no split 'train' among its splits {_listed(splits)}")
        return []
    rows = splits["train"] if "train" in splits else next(iter(splits.values()))
    found: list[Example] = []
    for number, row in enumerate(rows):
        found += examples_of(row, f"{name}:{number}", f"{name}: row {number}", errors)
    return found


def _load_hub(name: str) -> Mapping[str, Iterable[object]]:
    import datasets
    from huggingface_hub.errors import GatedRepoError
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's, or httpx2's

    gated = f"{name}: gated on the hub: ask for access on its page, then log in with `hf auth login`"
    offline = bool(datasets.config.HF_HUB_OFFLINE)
    away = f"{name}: not in the local cache, and HF_HUB_OFFLINE forbids asking the hub"
    if not offline:
        away = f"{name}: the hub cannot be reached; HF_HUB_OFFLINE=1 takes a cached copy, if there is one"
        if not hub_answers():
            raise DataError([away])
    try:
        splits: Mapping[str, Iterable[object]] = datasets.load_dataset(name)
        return splits
    except ConnectionError:
        raise DataError([away]) from None
    except GatedRepoError:
        raise DataError([gated]) from None
    except datasets.exceptions.DatasetNotFoundError as error:
        missing = f"{name}: does not exist on the hub, or is private (then `hf auth login` first), and is no file here"
        raise DataError([gated if "gated" in str(error) else missing]) from None
    except (TransportError, datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError([f"{name}: cannot be loaded from the hub: {reason}"]) from None


def hub_answers(seconds: float = 5.0) -> bool:
    """Whether the hub answers at all. Asked first, since its client retries for half a minute and more."""
    import ssl
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=seconds).close()
    except HTTPError:
        return True
    except URLError as error:
        # the client brings certificates of its own, so a certificate that fails here says nothing
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except OSError:
        return False
    return True


def docstring_pairs() -> list[tuple[str, str, str]]:
    """Every documented public function, class and method of the standard library with a signature.

    Read in a fresh interpreter without site-packages: ray, torch and transformers put functions of their own into
    `inspect`, `logging` and `sys`, and the rows must not depend on what else this process has imported.

    Returns:
        (qualified name, prompt, docstring), sorted by name, each object and each docstring once: the same on every
        run of the same Python on the same platform.
    """
    command = [sys.executable, "-I", "-S", "-W", "ignore", __file__]
    answer = subprocess.run(command, capture_output=True, check=True).stdout
    return [(name, prompt, docstring) for name, prompt, docstring in json.loads(answer)]


def _pairs_of_this_process() -> Iterator[tuple[str, str, str]]:
    top = sorted(name for name in sys.stdlib_module_names if _public(name))
    members = [member for name in top for module in _modules(name) for member in _members(module)]
    seen: set[object] = set()
    for name, value in sorted(members, key=lambda member: member[0]):
        docstring = inspect.cleandoc(value.__doc__) if isinstance(value.__doc__, str) else ""
        signature = _signature(value)
        if id(value) in seen or docstring in seen or len(docstring) not in LENGTHS or signature is None:
            continue
        seen |= {id(value), docstring}
        yield (
            name,
            f"Write the docstring of\n{'class' if inspect.isclass(value) else 'def'} {name}{signature}",
            docstring,
        )


def _public(name: str) -> bool:
    return not name.startswith("_") and name not in NOISY + NO_LIBRARY


def _modules(name: str) -> Iterator[ModuleType]:
    try:
        module = importlib.import_module(name)
    except Exception:  # of another platform, or built without the library it needs: no reason to lose the rest
        return
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if _public(info.name):
            yield from _modules(f"{name}.{info.name}")


def _members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    exported = getattr(module, "__all__", None)
    for name in list(vars(module) if exported is None else exported):
        value = getattr(module, name, None)
        home = str(getattr(value, "__module__", None))
        # without __all__ whatever a module imports looks like its own
        own = home == module.__name__ if exported is None else home.partition(".")[0] in sys.stdlib_module_names
        if name.startswith("_") or not own or not (inspect.isroutine(value) or inspect.isclass(value)):
            continue
        yield f"{module.__name__}.{name}", value
        for key, method in list(vars(value).items()) if inspect.isclass(value) else ():
            method = getattr(method, "__func__", method)
            if not key.startswith("_") and inspect.isroutine(method):
                yield f"{module.__name__}.{name}.{key}", method


class _Dots:
    def __repr__(self) -> str:
        return "..."


def _signature(value: Any) -> str | None:
    """`(a, b=1, *, c=...)`, without annotations: short, and without an address or a path of this process."""
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):  # written in C, without a signature
        return None
    parameters = []
    for each in signature.parameters.values():
        plain = each.default is each.empty or (type(each.default) in PLAIN and len(repr(each.default)) <= 20)
        default = each.default if plain else _Dots()
        parameters.append(each.replace(annotation=each.empty, default=default))
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


if __name__ == "__main__":  # the interpreter that `docstring_pairs` starts
    with contextlib.redirect_stdout(io.StringIO()):
        _pairs = list(_pairs_of_this_process())
    json.dump(_pairs, sys.stdout)
