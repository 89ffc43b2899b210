"""Conversations as text: the tokenizer's chat template, and where in what it writes the completions stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from bitlora.data.examples import DataError, Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


FIXED_DATE: Final = (
    "{% macro strftime_now(form) %}{{ '2024-07-26' if form.startswith('%Y') else '26 Jul 2024' }}{% endmacro %}"
)
"""Some templates write today's date, and the same data must give the same tokens tomorrow. It is the day that Llama's
templates fall back to."""
Span = tuple[int, int]
"""Where something begins and ends in a text, in characters."""


def is_learned(turn: Message) -> bool:
    """An assistant's turn that says something."""
    return turn.role == "assistant" and bool(turn.content.strip())


def render_all(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, endings: tuple[str, ...]
) -> tuple[list[str], list[list[Span]]]:
    """The text of each conversation, and where in it the completions stand.

    Args:
        endings: tokens that may end a turn; white space that follows one is no part of the completion.

    Raises:
        DataError: the template refuses a conversation, or writes it so that the completion cannot be told apart.
    """
    from jinja2 import TemplateError

    render = _renderer(tokenizer)
    texts, spans, errors = [], [], []
    for example in examples:
        try:
            text, row_spans = _render(example.messages, render, endings)
        except TemplateError as error:
            errors.append(f"{example.example_id}: the chat template refuses the conversation: {error}")
        except _NotAPrefix:
            errors.append(
                f"{example.example_id}: the chat template writes an assistant's turn otherwise when it is not the last,"
                " or not after its generation prompt: give each assistant turn a row of its own, or use another base"
            )
        else:
            texts.append(text)
            spans.append(row_spans)
    if errors:
        raise DataError(errors)
    return texts, spans


class _NotAPrefix(Exception):
    pass


Renderer = Callable[[Sequence[Message], bool], str]
"""(messages, with the generation prompt) -> text."""


def _renderer(tokenizer: PreTrainedTokenizerBase) -> Renderer:
    if tokenizer.chat_template:
        chat_template: str = tokenizer.get_chat_template()
        if "strftime_now" in chat_template:
            chat_template = FIXED_DATE + chat_template

        def template(messages: Sequence[Message], generation_prompt: bool) -> str:
            turns = [turn._asdict() for turn in messages]
            text: str = tokenizer.apply_chat_template(
                turns, chat_template=chat_template, tokenize=False, add_generation_prompt=generation_prompt
            )
            return text

        return template

    eos = tokenizer.eos_token or ""
    # a base that begins every text with its beginning-of-sequence token expects it here too
    first = tokenizer("a").input_ids[0]
    bos = tokenizer.bos_token if tokenizer.bos_token is not None and first == tokenizer.bos_token_id else ""

    def plain(messages: Sequence[Message], generation_prompt: bool) -> str:
        text = "\n".join(turn.content + (eos if turn.role == "assistant" else "") for turn in messages)
        return bos + text + ("\n" if generation_prompt else "")

    return plain


def prompt_text(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a model reads before it answers `prompt`, a user's turn, as it did in training."""
    return _renderer(tokenizer)([Message("user", prompt)], True)


def _render(messages: Sequence[Message], render: Renderer, endings: tuple[str, ...]) -> tuple[str, list[Span]]:
    text = render(messages, False)
    spans = []
    for index, turn in enumerate(messages):
        if not is_learned(turn):
            continue
        prefix = render(messages[:index], True)
        until = render(messages[: index + 1], False) if index + 1 < len(messages) else text
        bare = until.rstrip()
        if bare.endswith(endings):
            until = bare
        if not (until.startswith(prefix) and text.startswith(until)):
            raise _NotAPrefix
        spans.append((len(prefix), len(until)))
    return text, spans
