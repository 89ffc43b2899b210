"""A client for object storage: where its server is, how it is opened, what its errors mean for a user."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from bitlora import timeouts
from bitlora.files.storage import StorageError

S3_OPTIONS: Final = ("region", "scheme", "endpoint_override")
"""What may stand in the query of an s3:// URI."""
CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def _options(out: str) -> dict[str, str]:
    """Where the server of an s3:// URI is: from its query, else from the environment. Other schemes have none.

    Raises:
        StorageError: there is no bucket, or the query has what is not known, or a secret is in it.
    """
    uri = urlsplit(out)
    if uri.scheme != "s3":
        return {}
    if "@" in uri.netloc:
        where = f"s3://{uri.netloc.rpartition('@')[2]}{uri.path}"
        raise StorageError(f"{where}: has credentials in it; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if not uri.netloc:
        raise StorageError(f"{out}: names no bucket; give s3://bucket/prefix")
    options = dict(parse_qsl(uri.query))
    if unknown := sorted(options.keys() - set(S3_OPTIONS)):
        raise StorageError(f"{out}: unknown {', '.join(unknown)} after '?'; there are {', '.join(S3_OPTIONS)}")
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if url and "endpoint_override" not in options:
        scheme, _, host = url.rpartition("://")
        options |= {"scheme": scheme or "https", "endpoint_override": host.rstrip("/")}
    if "endpoint_override" in options:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        options.setdefault("region", region or "us-east-1")
    return options


def _open(out: str, options: dict[str, str]) -> tuple[Any, str]:
    """A client for `out`, and its path in it.

    Raises:
        StorageError: no client for it is installed.
        Exception: what the client raises.
    """
    import pyarrow as pa
    from pyarrow import fs

    uri = urlsplit(out)
    if uri.scheme == "s3":
        # A bucket of another region than this machine's answers with an error: ask where it is.
        region = options.get("region") or fs.resolve_s3_region(uri.netloc)
        client = fs.S3FileSystem(
            **{**options, "region": region},
            connect_timeout=timeouts.STORAGE_CONNECT_S,
            request_timeout=timeouts.STORAGE_REQUEST_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
            allow_delayed_open=True,  # one request for a small file
        )
        return client, (uri.netloc + uri.path).strip("/")
    if uri.scheme in ("gs", "gcs") and "retry_limit_seconds" not in uri.query:
        out += f"{'&' if uri.query else '?'}retry_limit_seconds={timeouts.STORAGE_REQUEST_S:.0f}"
    with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        client, path = fs.FileSystem.from_uri(out)
        return client, path.rstrip("/")
    try:
        import fsspec  # type: ignore[import-untyped]

        client, path = fsspec.core.url_to_fs(out)
    except (ImportError, ValueError) as error:
        raise StorageError(f"{out}: {_line(error)}; give a folder, s3://… or gs://…") from None
    return fs.PyFileSystem(fs.FSSpecHandler(client)), path.rstrip("/")


def _explain(error: Exception, doing: str, out: str, options: dict[str, str]) -> tuple[str, bool]:
    """What went wrong, for a user; and whether it would again."""
    text = re.sub("^When .*?: AWS Error ", "", _line(error))

    def says(pattern: str) -> bool:
        return re.search(pattern, text, re.IGNORECASE) is not None

    if says("no_?such_?bucket|bucket '.*' not found"):
        return f"there is no bucket {urlsplit(out).netloc!r}; create it first, or correct the name", True
    if says("invalid_?access_?key|signature_?does_?not_?match|invalid_?client_?token|expired_?token|invalid_?token"):
        return f"the credentials are not accepted ({text}); look at AWS_ACCESS_KEY_ID and its companions", True
    if says("access_?denied|HTTP status 403") or isinstance(error, PermissionError):
        if out.startswith("s3://") and not _credentials():
            keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            return f"{doing} is denied, and there are no credentials here; set {keys}, or give the machine a role", True
        return f"{doing} is denied ({text}); allow these credentials to read, write, list and delete there", True
    if says("network_connection|curlCode|resolve host") or isinstance(error, ConnectionError):
        server = options.get("endpoint_override")
        at = f" at {options.get('scheme', 'https')}://{server}" if server else ""
        return f"cannot be reached{at} ({text}); look at the network{' and AWS_ENDPOINT_URL' if server else ''}", False
    return f"{doing} failed: {text}", False


def _credentials() -> bool:
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    return any(os.environ.get(name) for name in CREDENTIALS) or file.exists()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
