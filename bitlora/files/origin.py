"""What computed a trial's scores. It stands in the metadata of their file: the machines of packs may be unlike the
driver's, and unlike each other. Imports neither torch nor ray.
"""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """A pack, as its first worker sees itself. A file that does not say something leaves it empty."""

    dtype: str
    """What the base computed in, by torch's name."""
    device: str = ""
    """The name of the GPU, or of the CPU, that it computed on."""
    host: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def to_metadata(self) -> dict[str, str]:
        """As a file's metadata."""
        texts = {"dtype": self.dtype, "device": self.device, "host": self.host}
        return texts | {"versions": json.dumps(self.versions, sort_keys=True)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes]) -> Origin | None:
        """What `to_metadata` wrote; None where not even a dtype is there.

        Raises:
            ValueError: the versions are no JSON.
        """
        texts = {name: metadata[name.encode()].decode() for name in ("device", "host") if name.encode() in metadata}
        if b"dtype" not in metadata:
            return None
        found: Any = json.loads(metadata.get(b"versions", b"{}"))
        return cls(dtype=metadata[b"dtype"].decode(), versions=found, **texts)


def versions() -> dict[str, str]:
    """The versions of what decides a trial's numbers, on this machine."""
    names = ("bitlora-sweeps", "torch", "transformers", "peft", "bitsandbytes", "ray", "optuna")
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def cpu_name() -> str:
    """The processor's name, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
