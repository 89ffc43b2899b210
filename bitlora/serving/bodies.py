"""What a request's body may say: as OpenAI has it, as far as it is there. What would change an answer and is not there is
refused, not passed over.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from bitlora.config.explain import explain
from bitlora.engine.generation.sampling import Sampling

USUAL_TOKENS: Final = 128
"""Of an answer, where a request does not say; as `bitlora generate` has it."""
Count = Annotated[int, Field(ge=1)]


class RequestError(Exception):
    """An answer that is an error, in OpenAI's shape.

    Args:
        status: of HTTP.
        message: one line.
        kind: OpenAI's `type`.
    """

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": None, "code": None}}


def _stops(value: object) -> object:
    """A string or a list of them."""
    found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    if found is None:
        return ()
    if not isinstance(found, tuple) or not all(isinstance(each, str) and each for each in found) or len(found) > 16:
        raise ValueError("give a string that is not empty, or a list of up to 16")
    return found


def _content(value: object) -> object:
    """A string, or parts of text."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [None]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    said = [text for text in texts if isinstance(text, str)]
    if len(said) < len(parts):
        raise ValueError("give a string, or a list of parts of type text")
    return "".join(said)


def _prompt(value: object) -> object:
    """A string, or token ids."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(each) is int for each in value):
        return tuple(value)
    raise ValueError("give a string, or a list of token ids")


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ChatTurn(_Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]


class StreamOptions(_Body):
    """What a stream tells besides."""

    include_usage: bool = False


class _Asked(_Body):
    """What both kinds of request have."""

    model: str
    max_tokens: Count | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops)] = ()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    store: bool | None = None
    # labels, on which no answer hangs
    user: object = None
    metadata: object = None

    @field_validator("top_p")
    @classmethod
    def _with_temperature(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and value < 1 and info.data.get("temperature", 0) is None:
            raise ValueError(
                f"found {value:g} without temperature, and then each next token is the likeliest: give both"
            )
        return value

    @field_validator("n")
    @classmethod
    def _one(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError(f"found {value}; there is one answer to a request: give 1, or leave it out")
        return value

    @field_validator("frequency_penalty", "presence_penalty")
    @classmethod
    def _without(cls, value: float | None) -> float | None:
        if value:
            raise ValueError(f"found {value:g}; there are no penalties here: give 0, or leave it out")
        return value

    @field_validator("store")
    @classmethod
    def _nothing(cls, value: bool | None) -> bool | None:
        if value:
            raise ValueError("found true; nothing is kept of what was asked and answered: give false, or leave it out")
        return value

    @property
    def most(self) -> int:
        """Tokens of the answer."""
        return self.max_tokens or USUAL_TOKENS

    @property
    def sampling(self) -> Sampling | None:
        """How its tokens are drawn, without a seed by one that is made up; None: each is the likeliest."""
        if not self.temperature:
            return None
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Sampling(temperature=self.temperature, top_p=1.0 if self.top_p is None else self.top_p, seed=seed)


class CompletionBody(_Asked):
    """POST /v1/completions."""

    prompt: Annotated[str | tuple[int, ...], BeforeValidator(_prompt)]


class ChatBody(_Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatTurn], Field(min_length=1)]
    max_completion_tokens: Count | None = None

    @property
    def most(self) -> int:
        return self.max_completion_tokens or self.max_tokens or USUAL_TOKENS


Body = TypeVar("Body", CompletionBody, ChatBody)


def read_body(text: bytes, kind: type[Body]) -> Body:
    """A body as what it asks for.

    Raises:
        RequestError: it is none; the message is one line, of the first thing that is wrong.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
    at = ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        raise RequestError(400, f"the body is no JSON: {first['ctx']['error']}")
    if first["type"] == "missing":
        raise RequestError(400, f"{at}: missing")
    if first["type"] == "extra_forbidden":
        raise RequestError(400, f"{at}: there is no such key here")
    said = explain([first], first["input"])
    raise RequestError(400, f"{at}: {said}" if at else f"the body: {said}")
