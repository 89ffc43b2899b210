"""A base in NF4, kept on this machine once it was quantized: a pack that finds it reads a quarter of the bytes and
quantizes nothing.

    $BITLORA_CACHE/quantized/<name>-<digest>/    as transformers writes a model with a `quantization_config`

What is kept is what was computed, bit for bit: codes, scales, and the weights that are not quantized. The digest is over
all that it hangs on: model, revision, dtype, and the versions of what quantizes. Safe for many processes at once: a folder
appears only when it is whole. What cannot be read any more is made again; a disk that is full costs no more than the time.
What nobody has used for two months is removed when something new is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from bitlora import timeouts
from bitlora.files.machine_cache import cache_folder

logger = logging.getLogger(__name__)

KEPT: Final = "quantized"
MADE_BY: Final = ("torch", "transformers", "bitsandbytes")


def quantized_folder(model: str, revision: str, dtype: torch.dtype, quantized_as: str = "nf4") -> Path:
    """Where the base in NF4 is kept, if it is. The same weights in another folder have the same place.

    Args:
        quantized_as: `bitlora.config.sections.BaseConfig`'s.
    """
    about = [revision, quantized_as, str(dtype), *(version(name) for name in MADE_BY)]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
    name = "".join(char if char.isalnum() else "-" for char in model.rpartition(":")[2].rstrip("/").rpartition("/")[2])
    return cache_folder() / KEPT / f"{name}-{digest}"


def load_kept(folder: Path, options: dict[str, Any]) -> Any | None:
    """The model in `folder`; None where there is none, or it is broken, which is then removed.

    Args:
        options: of transformers' `from_pretrained`: `dtype` and `device_map`.
    """
    from transformers import AutoModelForCausalLM

    if not folder.is_dir():
        return None
    try:
        os.utime(folder)
        return AutoModelForCausalLM.from_pretrained(folder, **options)
    except Exception as error:  # whatever a file that was cut short makes of it
        logger.warning("%s: cannot be read (%s), and is made again", folder, str(error).splitlines()[0])
        shutil.rmtree(folder, ignore_errors=True)
        return None


def keep(model: Any, folder: Path) -> None:
    """Write a model that was just quantized to `folder`, for the next pack; not being able to is no error."""
    part = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for other in folder.parent.iterdir():
            if time.time() - other.stat().st_mtime > timeouts.KEPT_BASE_S:
                shutil.rmtree(other, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        model.save_pretrained(part)
        part.chmod(0o755)
        with contextlib.suppress(FileExistsError):  # another process was first, with the same
            part.rename(folder)
    except OSError as error:
        logger.warning("%s: the quantized base cannot be kept: %s", folder, error.strerror or error)
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
