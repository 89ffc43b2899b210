"""The weights that a clone begins with: those of its parent's last evaluation, kept where no later one replaces them."""

from __future__ import annotations

import json
import time
from pathlib import Path

from bitlora import timeouts
from bitlora.files import record
from bitlora.files.storage import Storage
from bitlora.files.writing import write_folder


def keep_weights(storage: Storage, trial_id: str) -> int:
    """Copy a trial's adapter, which its pack may be about to replace, into `starts/<trial>@<step>/`; gives the step.

    Raises:
        OSError: the storage cannot be read or written.
        ValueError: it has none that can be read; one line for a user.
    """
    files = _adapter(storage, trial_id)
    step = _step(files)
    if step is None:
        raise ValueError(
            f"{trial_id}: its adapter does not say of which step it is; it was written by an earlier version"
        )
    where = f"{record.STARTS}/{trial_id}@{step}"

    def write(part: Path) -> None:
        for name, content in files.items():
            (part / name).write_bytes(content)

    write_folder(storage.folder / where, write)
    storage.push(where)
    return step


def _adapter(storage: Storage, trial_id: str) -> dict[str, bytes]:
    """The files of a trial's adapter, read while none takes their place."""
    where, end = f"{record.TRIALS}/{trial_id}/{record.ADAPTER}", time.monotonic() + timeouts.STORAGE_VISIBLE_S
    while True:
        storage.pull(where)
        try:
            return {path.name: path.read_bytes() for path in sorted((storage.folder / where).iterdir())}
        except FileNotFoundError:  # it has none; or another takes its place just now
            if time.monotonic() > end:
                raise ValueError(f"{trial_id} has not been evaluated yet: there are no weights to begin with") from None
            time.sleep(timeouts.STORAGE_POLL_S)


def _step(files: dict[str, bytes]) -> int | None:
    """Of which step an adapter is, by the header of its weights: eight bytes of its length, and then JSON."""
    for name, content in files.items():
        if name.endswith(".safetensors"):
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            step = (header.get("__metadata__") or {}).get("step")
            return None if step is None else int(step)
    return None
