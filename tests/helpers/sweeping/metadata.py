"""A metadata service of a test's own, as each cloud has one for its machines."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Metadata:
    """What a machine hears that asks about itself.

    Set `notice` and the machine is to go. `fault` says what goes wrong: a status (500) for every request, "late" for an
    answer that takes longer than anybody waits, "away" for connections that are closed, "noise" for a page that is none.
    """

    def __init__(self, cloud):
        self.cloud = cloud
        self.notice = None
        self.fault = None
        self.asked = []
        """Each request: its method and path."""
        self.tokens = 0
        """How many AWS has given; only the last is good."""
        metadata = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                metadata.asked.append(f"{self.command} {self.path}")
                if metadata.fault == "away":
                    self.close_connection = True
                    self.connection.close()
                    return
                if metadata.fault == "late":
                    time.sleep(1)
                code, body = metadata.answer(self.command, self.path, self.headers)
                if metadata.fault == "noise":
                    code, body = 200, "<html>log in</html>"
                elif isinstance(metadata.fault, int):
                    code, body = metadata.fault, ""
                with contextlib.suppress(OSError):  # nobody waits any more
                    self.send_response(code)
                    self.send_header("Content-Length", str(len(body.encode())))
                    self.end_headers()
                    self.wfile.write(body.encode())

            do_PUT = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method, path, headers):
        return {"aws": self._aws, "google": self._google, "azure": self._azure}[self.cloud](method, path, headers)

    def _aws(self, method, path, headers):
        if (method, path) == ("PUT", "/latest/api/token"):
            if not headers.get("X-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
                return 400, ""
            self.tokens += 1
            return 200, f"token-{self.tokens}"
        if headers.get("X-aws-ec2-metadata-token") != f"token-{self.tokens}":
            return 401, ""
        if path == "/latest/meta-data/events/recommendations/rebalance":
            return 200, json.dumps({"noticeTime": "2026-01-01T00:00:00Z"})
        if path == "/latest/meta-data/spot/instance-action" and self.notice is not None:
            return 200, json.dumps(self.notice)
        return 404, ""

    def _google(self, method, path, headers):
        if method != "GET" or headers.get("Metadata-Flavor") != "Google":
            return 403, ""
        values = {"preempted": "FALSE", "maintenance-event": "NONE"} | (self.notice or {})
        name = path.removeprefix("/computeMetadata/v1/instance/")
        return (200, values[name] + "\n") if name in values else (404, "")

    def _azure(self, method, path, headers):
        if method != "GET" or headers.get("Metadata") != "true":
            return 400, ""
        if path.startswith("/metadata/instance/compute/name?") and "format=text" in path:
            return 200, "machine-3"
        if path.startswith("/metadata/scheduledevents?"):
            return 200, json.dumps({"DocumentIncarnation": 1, "Events": self.notice or []})
        return 404, ""
