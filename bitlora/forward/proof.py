"""What has been shown of a base on this machine, so that it is not shown again at each start: that its rows stay apart
(`bitlora.forward.inject.check_rows_apart`), which takes two forward passes over the longest row.

    $BITLORA_CACHE/proven/<name>-<digest>/about.json    what the proof hangs on

It hangs on the weights, how they are quantized, the compute dtype, the length of the longest row, the device, the
versions of what computes and the source of this code. Only a base that passed is noted; what cannot be read is shown
again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from bitlora.base.quantized import MADE_BY
from bitlora.base.revision import weights_revision
from bitlora.config.sections import BaseConfig
from bitlora.files.machine_cache import CachePlace
from bitlora.files.origin import cpu_name

PROVEN: Final = "proven"
ABOUT: Final = "about.json"


@dataclass(frozen=True, slots=True)
class Proof:
    """What is noted when a base has passed, and where."""

    place: CachePlace
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
        name = config.model.rpartition(":")[2].rstrip("/").rpartition("/")[2]
        return cls(CachePlace.of(PROVEN, name, about), json.dumps(about, indent=1, sort_keys=True))

    def stands(self) -> bool:
        """It was noted before."""
        use = self.place.use()
        if use is None:
            return False
        try:
            if (self.place.folder / ABOUT).read_text(encoding="utf-8") == self.text:
                return True
        except (OSError, UnicodeDecodeError):
            pass
        finally:
            use.end()
        self.place.discard("it is not as it was written")
        return False

    def note(self) -> None:
        """The base has passed; not being able to write that down is no error."""

        def write(part: Path) -> None:
            (part / ABOUT).write_text(self.text, encoding="utf-8")

        self.place.keep(write)


def code_digest() -> str:
    """16 hex digits over the source of what loads a base and computes with it."""
    digest = hashlib.sha256()
    for room in ("base", "forward"):
        for file in sorted((Path(__file__).parents[1] / room).rglob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
