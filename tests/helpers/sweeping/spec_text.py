"""A spec as text, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeps.spec.errors import SpecError
from sweeps.spec.spec import Spec, load_spec

SMALLEST = "base: {model: a}\ndata: {source: b}\n"


def load(file: Path, text: str, *overrides: str) -> Spec:
    file.write_text(text, encoding="utf-8")
    return load_spec(file, overrides)


def errors(file: Path, text: str, *overrides: str) -> list[str]:
    """The lines, without the folder."""
    with pytest.raises(SpecError) as caught:
        load(file, text, *overrides)
    assert str(caught.value) == "\n".join(caught.value.lines)
    return [line.removeprefix(f"{file.parent}/") for line in caught.value.lines]
