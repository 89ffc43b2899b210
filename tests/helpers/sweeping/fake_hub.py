"""A hub on this machine: the few answers of the Hugging Face hub that an upload asks for, and what was put there."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_right"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Its users are `me`, who is of `team`, and others."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    breaks_off: bool = False
    """Nothing is taken any more."""

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if method == "HEAD":
            return 200, {}
        if token != TOKEN:
            return 401, {"error": "Invalid credentials in Authorization header"}
        match path.strip("/").split("/"):
            case ["api", "whoami-v2"]:
                return 200, {"type": "user", "name": "me", "orgs": [{"name": "team"}]}
            case ["api", "repos", "create"]:
                return self._create(json.loads(body))
            case ["api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["api", "models", owner, name, *rest]:
                return self._of_repo(f"{owner}/{name}", rest, body)
        return 404, {"error": f"no such place: {path}"}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        self.repos[repo] = {".gitattributes": b"*.safetensors"}
        if asked.get("private") or asked.get("visibility") == "private":
            self.private.add(repo)
        return 200, {"url": f"{self.url}/{repo}"}

    def _of_repo(self, repo: str, rest: list[str], body: bytes) -> tuple[int, Any]:
        if repo in self.gated:
            return 403, {"error": "gated", "code": "GatedRepo"}
        if repo not in self.repos:
            return 404, {"error": "Repository not found", "code": "RepoNotFound"}
        files = self.repos[repo]
        match rest:
            case [] | ["revision", _]:
                return 200, {"id": repo, "sha": COMMIT, "private": repo in self.private, "siblings": _siblings(files)}
            case ["tree", *_]:
                return 200, [
                    {"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()
                ]
            case ["preupload", _]:
                asked = json.loads(body)["files"]
                return 200, {
                    "files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
                }
            case ["commit", _] if self.breaks_off:
                return 400, {"error": "The disk is full"}
            case ["commit", _]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return 200, {"commitUrl": f"{self.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT}
        return 404, {"error": f"no such place: {rest}"}


def _siblings(files: dict[str, bytes]) -> list[dict[str, str]]:
    return [{"rfilename": name} for name in files]


@contextlib.contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, token: str | None = TOKEN) -> Iterator[FakeHub]:
    """Starts it, and makes it what this process takes for the hub."""
    from huggingface_hub import constants

    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            sent = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            code, found = hub.answer(self.command, self.path.partition("?")[0], sent, body)
            data = b"" if self.command == "HEAD" else json.dumps(found).encode()
            self.send_response(code)
            if isinstance(found, dict) and "code" in found:
                self.send_header("X-Error-Code", found["code"])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_HEAD = _do

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN_PATH", "/nowhere")
        patch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        if token is not None:
            patch.setenv("HF_TOKEN", token)
        yield hub
    server.shutdown()
    server.server_close()
    thread.join()
