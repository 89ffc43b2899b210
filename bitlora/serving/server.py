"""The server's process: a port, and an orderly end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from typing import Final

import uvicorn
from starlette.applications import Starlette

from bitlora import timeouts
from bitlora.serving.asking import EngineThread

MOST_CONNECTIONS: Final = 1024
"""Beyond them a request is answered with 503, before its body is read."""


def bind(host: str, port: int) -> socket.socket:
    """The address, taken; nobody is answered there yet.

    Raises:
        OSError: it cannot be had.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError:
        found.close()
        raise
    return found


class _Server(uvicorn.Server):
    """Says when it answers."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def run(app: Starlette, thread: EngineThread, at: socket.socket, ready: Callable[[], object]) -> str:
    """Answer until SIGTERM or SIGINT: then nobody new is answered, and those who are have SERVE_END_S to come to their end.

    Args:
        ready: called when requests are answered.

    Returns:
        What the engine's thread has died of; nothing where it was told to end.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=timeouts.SERVE_END_S,
        server_header=False,
    )
    server = _Server(config, ready)

    def end() -> None:
        server.should_exit = True

    thread.died = end
    # uvicorn raises the signal again when it has ended in order, for whoever called it: here that is the end
    before = {each: signal.signal(each, lambda *_: end()) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[at])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    return thread.error
