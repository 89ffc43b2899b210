"""A quantized base, kept on this machine once it was made: a pack that finds it reads a quarter or half of the bytes and
quantizes nothing.

    $BITLORA_CACHE/quantized/<name>-<digest>/    as transformers writes a model with a `quantization_config`

What is kept is what was computed, bit for bit: codes, scales, and the weights that are not quantized. The digest is over
all that it hangs on: weights, dtype, and the versions of what quantizes. What is not as it was written, or cannot be read,
is made again; a disk that is full costs no more than the time (`bitlora.files.machine_cache`).
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch

from bitlora.base.revision import fingerprint
from bitlora.config.explain import one_line
from bitlora.files.machine_cache import CachePlace

KEPT: Final = "quantized"
MADE_BY: Final = ("torch", "transformers", "bitsandbytes")
SEAL: Final = "fingerprint"
"""The file that holds `bitlora.base.revision.fingerprint` of all others, as they were written."""


def quantized_place(model: str, weights: str, dtype: torch.dtype, quantized_as: str) -> CachePlace:
    """Where the quantized base is kept, if it is. The same weights in another folder have the same place.

    Args:
        weights: `bitlora.base.revision.weights_revision`.
        quantized_as: `bitlora.config.sections.BaseConfig`'s.
    """
    name = model.rpartition(":")[2].rstrip("/").rpartition("/")[2]
    return CachePlace.of(KEPT, name, [weights, quantized_as, str(dtype), *(version(each) for each in MADE_BY)])


def load_kept(place: CachePlace, options: dict[str, Any]) -> Any | None:
    """The model in `place`; None where there is none, or it is broken, which is then removed.

    Args:
        options: of transformers' `from_pretrained`: `dtype` and `device_map`.
    """
    from transformers import AutoModelForCausalLM

    use = place.use()
    if use is None:
        return None
    try:
        if fingerprint(_model_files(place.folder)) != (place.folder / SEAL).read_text():
            raise ValueError("its files are not what was written")
        return AutoModelForCausalLM.from_pretrained(place.folder, **options)
    except Exception as error:  # whatever a file that was cut short makes of it
        place.discard(one_line(error))
        return None
    finally:
        use.end()


def keep(model: Any, place: CachePlace) -> None:
    """Write a model that was just quantized to `place`, for the next pack; not being able to is no error."""

    def write(part: Path) -> None:
        model.save_pretrained(part)
        (part / SEAL).write_text(fingerprint(_model_files(part)))
        for file in part.iterdir():  # a machine that loses power may keep a name, and not what it stands for
            with file.open("rb") as opened:
                os.fsync(opened.fileno())

    place.keep(write)


def _model_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name != SEAL]
