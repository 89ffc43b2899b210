"""An S3 server of a test's own, on loopback in a thread, that can be made late, busy or unwilling."""

from __future__ import annotations

import contextlib
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

SOMEBODY = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""The server holds nobody's signature against anything, but strangers may not read."""


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object, **__: object) -> None:
        pass


@dataclass
class S3Server:
    """`fault` is asked before each request: it may sleep, and an answer that it gives is sent instead of the server's."""

    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """(method, path) of all that came, in their order."""
    fault: Callable[[Request], Response | None] | None = None

    @property
    def env(self) -> dict[str, str]:
        """What makes a process use this server, and no other."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "hush-hush",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, purpose: str) -> str:
        """A bucket of the test's own. All servers of a process hold the same ones, those of tests before included."""
        name = f"{purpose}-{uuid.uuid4().hex[:12]}"
        self.call("PUT", f"/{name}")
        return name

    def put(self, uri: str, content: bytes) -> None:
        """Store an object, `s3://bucket/key`, past any fault."""
        self.call("PUT", uri.removeprefix("s3:/"), content)

    def get(self, uri: str) -> bytes:
        """An object's content, past any fault."""
        return self.call("GET", uri.removeprefix("s3:/"))

    def call(self, method: str, path: str, content: bytes | None = None) -> bytes:
        headers = {"x-past-faults": "1", "authorization": SOMEBODY, "content-type": "application/octet-stream"}
        request = urllib.request.Request(self.url + path, data=content, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def mirror(self, place: str, folder: Path) -> Path:
        """Copy what is below `place`, `s3://bucket/prefix`, into `folder`."""
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        token: str | None = ""
        while token is not None:
            query = {"list-type": "2", "prefix": f"{prefix}/", **({"continuation-token": token} if token else {})}
            found = ElementTree.fromstring(self.call("GET", f"/{bucket}?{urllib.parse.urlencode(query)}"))
            space = found.tag.rpartition("}")[0] + "}"
            for one in found.iter(f"{space}Key"):
                key = str(one.text)
                if key.endswith("/"):  # a folder, as some clients mark it
                    continue
                path = folder / key.removeprefix(f"{prefix}/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.get(f"s3://{bucket}/{urllib.parse.quote(key)}"))
            token = found.findtext(f"{space}NextContinuationToken")
        return folder

    def paths(self, method: str) -> list[str]:
        """What came by that method, in its order."""
        return [path for how, path in self.requests if how == method]


def refusal(status: int, code: str) -> Response:
    """An error as S3 words it."""
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return Response(body, status=status, mimetype="application/xml")


def late(seconds: float) -> Callable[[Request], None]:
    """A fault: every answer comes so much later."""
    return lambda request: time.sleep(seconds)


@contextlib.contextmanager
def serve_s3(port: int = 0) -> Iterator[S3Server]:
    """A server that runs until the block ends, on `port` or a free one. All in one process have the same buckets."""
    server = S3Server()
    moto = DomainDispatcherApplication(create_backend_app)

    @Request.application
    def app(request: Request) -> Response:
        if "x-past-faults" not in request.headers:
            server.requests.append((request.method, request.path))
            if server.fault is not None and (answer := server.fault(request)) is not None:
                return answer
        return moto

    http = make_server("127.0.0.1", port, app, threaded=True, request_handler=_Quiet)
    server.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
