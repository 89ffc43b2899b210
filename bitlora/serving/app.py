"""The endpoint: what is asked over HTTP becomes a row of the engine, and its tokens the answer.

A client that goes away takes its row along. The page asks all models the same; without a token it can be had by all who
reach the port, as it says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from typing import Any, Final, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from bitlora.data.chat import ChatTemplate, RenderError
from bitlora.data.examples import DataError, Example, Message
from bitlora.serving.answers import AnswerShape, Finish, event
from bitlora.serving.asking import AnswerEnd, AskedRow, EngineThread, TooManyError
from bitlora.serving.bodies import ChatBody, CompletionBody, RequestError, read_body
from bitlora.serving.text import GrowingText

MOST_BYTES: Final = 1 << 18
"""Of a body: some ten times what fits a context."""
HERE: Final = ("127.0.0.1", "localhost", "[::1]", "::1")
"""How a browser may call this machine. Without a token no other name is answered: a stranger's page could else have its own
name lead here."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A trial as a model."""

    slot: int
    tokenizer: Any
    """With the chat template that the trial was trained with."""
    vocab_size: int

    def read(self, prompt: str | Sequence[int]) -> list[int]:
        """A prompt of a completion in tokens. Raises RequestError."""
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt).input_ids)
        if not all(0 <= token < self.vocab_size for token in prompt):
            raise RequestError(400, f"prompt: a token id is from 0 to {self.vocab_size - 1}")
        return list(prompt)

    def read_chat(self, body: ChatBody) -> list[int]:
        """A conversation in tokens, up to where the assistant's next turn begins. Raises RequestError."""
        example = Example("", tuple(Message(turn.role, turn.content) for turn in body.messages))
        try:
            template = ChatTemplate(self.tokenizer)
            text = template.render(example, len(example.messages), template.form(example, []), True)
        except (RenderError, DataError) as error:
            said = error.errors[0] if isinstance(error, DataError) else str(error)
            raise RequestError(400, f"messages: {said}") from None
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


class _Piece(NamedTuple):
    """Text that follows, after so many tokens of the answer; at the end why it is over."""

    text: str
    tokens: int
    finish: Finish | None = None


class TokenCheck:
    """Lets nobody pass who does not have the token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._expected = None if token is None else b"Bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._expected is not None:
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                said = RequestError(401, "a wrong token, or none: Authorization: Bearer …", "authentication_error")
                await JSONResponse(said.body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
                return
        await self._app(scope, receive, send)


class Endpoint:
    """Models over one engine.

    Args:
        models: by name.
        context: tokens of a prompt and its answer, at most.
    """

    def __init__(self, thread: EngineThread, models: Mapping[str, ServedModel], context: int) -> None:
        self._thread, self._models, self._context = thread, models, context

    async def list_models(self, request: Request) -> Response:
        """GET /v1/models."""
        found = [{"id": name, "object": "model", "created": 0, "owned_by": "bitlora"} for name in self._models]
        return JSONResponse({"object": "list", "data": found})

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = read_body(await _bytes(request), CompletionBody)
        model = self._model(body.model)
        return await self._answer(request, body, model, model.read(body.prompt))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = read_body(await _bytes(request), ChatBody)
        model = self._model(body.model)
        return await self._answer(request, body, model, model.read_chat(body))

    def _model(self, name: str) -> ServedModel:
        if name not in self._models:
            raise RequestError(404, f"model: there is no {name!r} here; there are {', '.join(self._models)}")
        return self._models[name]

    async def _answer(
        self, request: Request, body: CompletionBody | ChatBody, model: ServedModel, prompt: list[int]
    ) -> Response:
        room = self._context - len(prompt)
        if not prompt:
            raise RequestError(400, "the prompt is empty: there is no token that a next one could follow")
        if room < 1:
            raise RequestError(
                400, f"the prompt has {len(prompt)} tokens; with its answer it may have {self._context} here"
            )
        loop, told = asyncio.get_running_loop(), asyncio.Queue[int | AnswerEnd]()

        def tell(what: int | AnswerEnd) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(told.put_nowait, what)

        row = AskedRow(model.slot, prompt, min(body.most, room), tell, body.sampling)
        try:
            self._thread.ask(row)
        except TooManyError as error:
            raise RequestError(429, str(error), "rate_limit_error") from None
        except RuntimeError as error:
            raise RequestError(503, str(error), "server_error") from None
        text = GrowingText(lambda tokens: model.tokenizer.decode(tokens, skip_special_tokens=True), body.stop)
        pieces = self._pieces(row, told, text)
        shape = AnswerShape(body.model, isinstance(body, ChatBody), len(prompt))
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return StreamingResponse(_events(shape, pieces, usage), media_type="text/event-stream")
        return await _unless_gone(request, _whole(shape, pieces))

    async def _pieces(
        self, row: AskedRow, told: asyncio.Queue[int | AnswerEnd], text: GrowingText
    ) -> AsyncGenerator[_Piece]:
        """The answer, piece by piece.

        Raises:
            RequestError: it cannot be had.
        """
        tokens = 0
        try:
            while True:
                what = await told.get()
                if isinstance(what, int):
                    tokens += 1
                    piece = text.add(what)
                    yield _Piece(piece, tokens, "stop" if text.stopped else None)
                    if text.stopped:
                        return
                elif what.why == "failed":
                    raise RequestError(500, what.error, "server_error")
                else:
                    piece = text.end()
                    yield _Piece(piece, tokens, "stop" if text.stopped else what.why)
                    return
        finally:
            self._thread.leave(row)


async def _events(shape: AnswerShape, pieces: AsyncGenerator[_Piece], usage: bool) -> AsyncIterator[bytes]:
    """An answer as a stream."""
    async with contextlib.aclosing(pieces):
        for part in shape.first():
            yield part
        try:
            async for piece in pieces:
                if piece.text:
                    yield shape.piece(piece.text)
                if piece.finish:
                    for part in shape.last(piece.finish, piece.tokens, usage):
                        yield part
        except RequestError as error:
            yield event(error.body)


async def _whole(shape: AnswerShape, pieces: AsyncGenerator[_Piece]) -> Response:
    """An answer in one."""
    async with contextlib.aclosing(pieces):
        found = [piece async for piece in pieces]
    last = found[-1]
    return JSONResponse(shape.whole("".join(piece.text for piece in found), last.finish or "stop", last.tokens))


async def _unless_gone(request: Request, work: Any) -> Response:
    """What `work` gives; it is broken off where the client goes away before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer = asyncio.ensure_future(work)
    both = answer, asyncio.ensure_future(gone())
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()  # type: ignore[no-any-return]
    finally:
        for each in both:
            each.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def _bytes(request: Request) -> bytes:
    """The body, which may be so long and no longer."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > MOST_BYTES:
            raise RequestError(413, f"the body is longer than {MOST_BYTES} bytes")
    return bytes(found)


def _error(_: Request, error: Exception) -> Response:
    """Errors in OpenAI's shape."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)  # nobody reads it
    if isinstance(error, HTTPException):
        error = RequestError(
            error.status_code, f"{error.detail}; there are /v1/models, /v1/completions, /v1/chat/completions"
        )
    assert isinstance(error, RequestError)
    return JSONResponse(error.body, error.status)


def page() -> HTMLResponse:
    """The page that asks all models the same. What is not in it is not loaded."""
    text = resources.files("bitlora.serving").joinpath("page.html").read_text(encoding="utf-8")

    def own(tag: str) -> str:
        inside = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        return f"'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; connect-src 'self'; img-src data:; script-src {own('script')}; style-src {own('style')}"
    )
    return HTMLResponse(text, headers={"Content-Security-Policy": f"{policy}; frame-ancestors 'none'; base-uri 'none'"})


def make_app(
    thread: EngineThread, models: Mapping[str, ServedModel], context: int, token: str | None = None
) -> Starlette:
    """The endpoint as an ASGI application; the thread runs while it does."""
    endpoint, shown = Endpoint(thread, models, context), page()

    @contextlib.asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        thread.start()
        try:
            yield
        finally:
            await asyncio.to_thread(thread.close)

    async def show(_: Request) -> Response:
        return shown

    asked = [
        Route("/models", endpoint.list_models),
        Route("/completions", endpoint.complete, methods=["POST"]),
        Route("/chat/completions", endpoint.chat, methods=["POST"]),
    ]
    here = [Middleware(TrustedHostMiddleware, allowed_hosts=HERE, www_redirect=False)] if token is None else []
    errors: dict[Any, Any] = dict.fromkeys((HTTPException, RequestError, ClientDisconnect), _error)
    return Starlette(
        routes=[Route("/", show), Mount("/v1", routes=asked, middleware=[Middleware(TokenCheck, token=token)])],
        middleware=here,
        exception_handlers=errors,
        lifespan=running,
    )
