"""The storage that a sweep's `out` names."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bitlora.files.storage import Storage


def open_storage(out: str, scratch: Path | None = None) -> Storage:
    """The storage that `out` names. Nothing is looked at yet: see `Storage.check`.

    Args:
        out: a folder, or a URI: `s3://bucket/prefix`, or any scheme that pyarrow or an installed fsspec package knows.
            S3 servers other than Amazon's: AWS_ENDPOINT_URL in the environment, or `?endpoint_override=host:port`.
        scratch: the folder to mirror object storage in, kept on `close`; None: a fresh temporary one.

    Raises:
        StorageError: `out` cannot be read as such.
    """
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", out):
        return Storage(out, Path(out).absolute())
    parts = urlsplit(out)
    if parts.scheme == "file":
        return Storage(out, Path(unquote(parts.path)))
    from bitlora.files.object_storage import ObjectStorage

    return ObjectStorage(out, scratch)
