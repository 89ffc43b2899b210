"""What has been shown of a base on this machine, so that it is not shown again at each start: that its rows stay apart
(`bitlora.forward.inject.check_rows_apart`), which takes two forward passes over the longest row.

    $BITLORA_CACHE/proven/<digest>.json    what the proof hangs on, as JSON

It hangs on the weights, how they are quantized, the compute dtype, the length of the longest row, the device, the
versions of what computes and the source of this code. Only a base that passed is noted; what cannot be read is shown
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from bitlora import timeouts
from bitlora.base.locate import cache_folder
from bitlora.base.quantized import MADE_BY
from bitlora.base.revision import weights_revision
from bitlora.config.sections import BaseConfig
from bitlora.files.origin import cpu_name
from bitlora.files.writing import write_text

logger = logging.getLogger(__name__)

PROVEN: Final = "proven"


@dataclass(frozen=True, slots=True)
class Proof:
    """What is noted when a base has passed, and where."""

    file: Path
    text: str

    @classmethod
    def of(cls, config: BaseConfig, dtype: torch.dtype, device: torch.device, longest: int) -> Proof | None:
        """None where it is not known which weights the base is.

        Args:
            longest: tokens of the longest row that it is to see.
        """
        weights = weights_revision(config.model, config.revision)
        if weights is None:
            return None
        about = {
            "weights": weights,
            "quantization": config.quantization,
            "dtype": str(dtype),
            "longest": longest,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            "versions": {name: version(name) for name in MADE_BY},
            "code": code_digest(),
        }
        text = json.dumps(about, indent=1, sort_keys=True)
        return cls(cache_folder() / PROVEN / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json", text)

    def stands(self) -> bool:
        """It was noted before."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if self.file.read_text(encoding="utf-8") == self.text:
                os.utime(self.file)
                return True
        return False

    def note(self) -> None:
        """The base has passed; not being able to write that down is no error. Notes that nobody uses any more go."""
        try:
            write_text(self.file, self.text)
            for other in self.file.parent.iterdir():
                if time.time() - other.stat().st_mtime > timeouts.KEPT_BASE_S:
                    other.unlink(missing_ok=True)
        except OSError as error:
            logger.warning(
                "%s: cannot be written, so the base is checked again: %s", self.file, error.strerror or error
            )


def code_digest() -> str:
    """16 hex digits over the source of what loads a base and computes with it."""
    digest = hashlib.sha256()
    for room in ("base", "forward"):
        for file in sorted((Path(__file__).parents[1] / room).glob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
