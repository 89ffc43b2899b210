"""The pages, and the program that writes parts of them."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load(name: str, path: Path) -> ModuleType:
    """A module by its file."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def docs() -> ModuleType:
    """docs/generate.py."""
    return load("docs_generate", ROOT / "docs" / "generate.py")


@pytest.fixture
def recipe() -> Callable[[str], list[str]]:
    """A heading of CONTRIBUTING.md -> the Python below it, block by block, as it is to be typed."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

    def blocks(heading: str) -> list[str]:
        (part,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        return [
            re.sub("^   ", "", code, flags=re.MULTILINE)
            for code in re.findall(r"```python\n(.*?)\n *```", part, re.DOTALL)
        ]

    return blocks
