"""A base in NF4, kept on this machine once it was quantized: a pack that finds it reads a quarter of the bytes and
quantizes nothing.

    $BITLORA_CACHE/quantized/<name>-<digest>/    as transformers writes a model with a `quantization_config`

What is kept is what was computed, bit for bit: codes, scales, and the weights that are not quantized. The digest is over
all that it hangs on: model, revision, dtype, and the versions of what quantizes. Safe for many processes at once: a folder
appears only when it is whole. What is not as it was written, or cannot be read, is made again; a disk that is full costs no
more than the time. When something new is kept, what nobody has used for two months is removed, and the longest unused of
the rest where all of it takes more than a quarter of the disk.
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
from bitlora.base.locate import cache_folder
from bitlora.base.revision import fingerprint
from bitlora.config.explain import one_line

logger = logging.getLogger(__name__)

KEPT: Final = "quantized"
MADE_BY: Final = ("torch", "transformers", "bitsandbytes")
SEAL: Final = "fingerprint"
"""The file that holds `bitlora.base.revision.fingerprint` of all others, as they were written."""
SHARE: Final = 0.25
"""Of the disk that quantized bases take at most, together."""


def quantized_folder(model: str, revision: str, dtype: torch.dtype) -> Path:
    """Where the base in NF4 is kept, if it is. The same weights in another folder have the same place."""
    about = [revision, "nf4", str(dtype), *(version(name) for name in MADE_BY)]
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
        if fingerprint(_model_files(folder)) != (folder / SEAL).read_text():
            raise ValueError("its files are not what was written")
        os.utime(folder)
        return AutoModelForCausalLM.from_pretrained(folder, **options)
    except Exception as error:  # whatever a file that was cut short makes of it
        logger.warning("%s: cannot be read (%s), and is made again", folder, one_line(error))
        shutil.rmtree(folder, ignore_errors=True)
        return None


def keep(model: Any, folder: Path) -> None:
    """Write a model that was just quantized to `folder`, for the next pack; not being able to is no error."""
    part = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        model.save_pretrained(part)
        (part / SEAL).write_text(fingerprint(_model_files(part)))
        for file in part.iterdir():  # a machine that loses power may keep a name, and not what it stands for
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        part.chmod(0o755)
        if not _make_room(part, folder.parent):
            logger.warning("%s: the quantized base is not kept: it takes too much of this disk", folder)
            return
        with contextlib.suppress(OSError):  # another process was first, with the same
            part.rename(folder)
        if not folder.is_dir():
            raise OSError(f"{part} could not be renamed")
    except OSError as error:
        logger.warning("%s: the quantized base cannot be kept: %s", folder, error.strerror or error)
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _model_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name != SEAL]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _make_room(part: Path, where: Path) -> bool:
    """Remove from `where` what nobody has used for long, and the longest unused of the rest until all that is kept takes,
    with `part`, at most `SHARE` of the disk. False: `part` alone takes more."""
    room = SHARE * shutil.disk_usage(where).total - _size(part)
    if room < 0:
        return False
    now = time.time()
    with contextlib.suppress(FileNotFoundError):  # another process makes room too
        for folder in sorted(where.iterdir(), key=_used, reverse=True):
            unused = now - _used(folder)
            if folder.name.startswith("."):  # somebody writes it, or was killed
                stale = unused > timeouts.SCRATCH_KEEP_S
            else:
                room -= _size(folder)
                stale = room < 0 or unused > timeouts.KEPT_BASE_S
            if stale:
                shutil.rmtree(folder, ignore_errors=True)
    return True


def _used(folder: Path) -> float:
    return folder.stat().st_mtime
