"""Answers as OpenAI's clients read them: whole, or piece by piece as server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """The shape of one answer, of the one kind of request or the other."""

    model: str
    chat: bool
    prompt_tokens: int
    made: int = field(default_factory=lambda: int(time.time()))
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def whole(self, text: str, finish: Finish, tokens: int) -> dict[str, Any]:
        """All of it."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return {**self._head(""), "choices": [choice], "usage": self._usage(tokens)}

    def first(self) -> list[bytes]:
        """What a stream begins with."""
        return [self._part({"delta": {"role": "assistant", "content": ""}}, None)] if self.chat else []

    def piece(self, text: str) -> bytes:
        """Text that follows."""
        return self._part({"delta": {"content": text}} if self.chat else {"text": text}, None)

    def last(self, finish: Finish, tokens: int, usage: bool) -> list[bytes]:
        """What a stream ends with.

        Args:
            usage: how many tokens it took is asked for.
        """
        end = [self._part({"delta": {}} if self.chat else {"text": ""}, finish)]
        told = [event({**self._head(".chunk"), "choices": [], "usage": self._usage(tokens)})] if usage else []
        return [*end, *told, b"data: [DONE]\n\n"]

    def _part(self, said: Mapping[str, Any], finish: Finish | None) -> bytes:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
        return event({**self._head(".chunk"), "choices": [choice]})

    def _head(self, part: str) -> dict[str, Any]:
        kind = f"chat.completion{part}" if self.chat else "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.name}"
        return {"id": name, "object": kind, "created": self.made, "model": self.model}

    def _usage(self, tokens: int) -> dict[str, int]:
        prompt = self.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def event(told: Mapping[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n".encode()
