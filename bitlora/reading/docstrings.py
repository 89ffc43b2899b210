"""Examples from the standard library's docstrings. Run by its path it is a program: the interpreter that reads them."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

# what acts or prints when imported or needs a display, and what is no library or, on one platform, another name of `os`
NOISY: Final = ("antigravity", "this", "idlelib", "turtle", "turtledemo", "readline", "rlcompleter", "tkinter")
NO_LIBRARY: Final = ("test", "tests", "lib2to3", "ensurepip", "distutils", "pydoc_data", "encodings", "posix", "nt")
LENGTHS: Final = range(40, 1501)
"""Characters of a docstring that is used."""
PLAIN: Final = (bool, int, float, str, bytes, type(None))


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
