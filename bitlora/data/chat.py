"""Conversations as text: a tokenizer's chat template, asked in the form that it understands, and held to write all it is
given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bitlora.data.examples import DataError, Example, Message, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


FIXED_DATE: Final = (
    "{% macro strftime_now(form) %}{{ '2024-07-26' if form.startswith('%Y') else '26 Jul 2024' }}{% endmacro %}"
)
"""Some templates write today's date, and the same data must give the same tokens tomorrow. It is the day that Llama's
templates fall back to."""
THINK: Final = "<think>"
THOUGHT: Final = "</think>"
"""What templates put around reasoning, where they have no channels for it."""
PLAIN: Final = {"role", "content"}
"""What a turn has that says something and nothing else."""
Span = tuple[int, int]
"""Where something begins and ends in a text, in characters."""


class Form(NamedTuple):
    """How turns are handed to a template, in what templates do not agree on."""

    developer: str = "developer"
    """The role of a developer's turn; `system` for templates of before there were any."""
    null_content: bool = False
    """A turn that calls tools and says nothing has null for its content, not an empty string."""
    text_arguments: bool = False
    """The arguments of a call are JSON as a string, not an object."""


Fitting = tuple[Form, list[str]]
"""And what of a conversation is left out even so, in words."""


class RenderError(Exception):
    """The template cannot write a conversation; the message says why, without naming the conversation."""


Renderer = Callable[[Sequence[Mapping[str, Any]], Sequence[Any], Mapping[str, Any], bool], str]
"""(turns, tools, options, with the generation prompt) -> text."""


class ChatTemplate:
    """A tokenizer's chat template; of a tokenizer without one: the turns' contents, a line each, with the end of sequence
    after each of the assistant's."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.given = bool(tokenizer.chat_template)
        eos = str(tokenizer.eos_token or "")
        # a base that begins every text with its beginning-of-sequence token expects it here too
        ids = tokenizer("a").input_ids
        adds = tokenizer.bos_token is not None and ids[:1] == [tokenizer.bos_token_id]
        self._bos, self._eos = str(tokenizer.bos_token) if adds else "", eos
        self._tokenizer = tokenizer
        self._special = dict(tokenizer.special_tokens_map)
        self._sources: dict[bool, str] = {}
        self._compiled: Any = None
        self._forms: dict[object, Fitting] = {}
        self.developers_are_system = False
        """Whether a developer's turn had to be written as a system turn."""

    @property
    def marks(self) -> bool:
        """Does it say itself what the assistant generates (`{% generation %}`)?"""
        source = self._source(False) if self.given else ""
        return "endgeneration" in source

    def text(self, text: str) -> str:
        """A text without turns, as a base reads it: once with its beginning and once with its end."""
        bos = "" if self._bos and text.startswith(self._bos) else self._bos
        return bos + text + ("" if self._eos and text.rstrip().endswith(self._eos) else self._eos)

    def render(self, example: Example, turns: int, form: Form, prompt: bool) -> str:
        """The first `turns` turns of a conversation.

        Args:
            prompt: with what stands before the assistant's next turn.

        Raises:
            RenderError: the template refuses them, or fails on them.
        """
        written = [_written(turn, form) for turn in example.messages[:turns]]
        return self._render(written, example.tools, example.options, prompt)

    def marked(self, example: Example, form: Form) -> tuple[str, list[Span]]:
        """A conversation, and what in it the template says that the assistant generates. Raises RenderError."""
        turns = [_written(turn, form) for turn in example.messages]
        return self._jinja(turns, example.tools, example.options, return_assistant_tokens_mask=True)

    def form(self, example: Example, learned: Sequence[int]) -> Form:
        """How this conversation has to be handed over so that the template writes all of it.

        Asked once for all conversations of the same make, with marks in the place of what they say.

        Args:
            learned: places of the turns that are learned.

        Raises:
            RenderError: the template leaves something out.
        """
        form, missing = self.fitting(example, learned)[1]
        if missing:
            subject = "the chat template leaves" if self.given else "a base without a chat template would leave"
            raise RenderError(
                f"{subject} out {', '.join(missing)}; take it out of the data, or give data.chat_template"
            )
        return form

    def fitting(self, example: Example, learned: Sequence[int]) -> tuple[object, Fitting]:
        """How all conversations of this make are handed over, as the first of them says, and what names the make."""
        key = _make(example, learned)
        if key not in self._forms:
            self._forms[key] = self._fitting(example, learned)
        return key, self._forms[key]

    def goes_by(self, forms: Mapping[object, Fitting]) -> None:
        """Of some makes the first conversation was met elsewhere (`fitting`)."""
        self._forms.update(forms)

    def _fitting(self, example: Example, learned: Sequence[int]) -> Fitting:
        developers = any(turn.role == "developer" for turn in example.messages)
        silent = any(turn.calls and not turn.content for turn in example.messages)
        calls = any(turn.calls for turn in example.messages)
        forms = [
            Form(developer, null, text)
            for developer in (("developer", "system") if developers else ("developer",))
            for null in ((False, True) if silent else (False,))
            for text in ((False, True) if calls else (False,))
        ]
        probe = _probe(example)
        found: list[Fitting] = []
        for form in forms:
            try:
                missing = self._missing(probe, form, learned)
            except RenderError:  # it will be refused again, in the words of the conversation itself
                continue
            found.append((form, missing))
            if not missing:
                self.developers_are_system |= developers and form.developer == "system"
                break
        return min(found, key=lambda each: len(each[1]), default=(forms[0], []))

    def _missing(self, probe: Example, form: Form, learned: Sequence[int]) -> list[str]:
        """What of a conversation is not written, in words."""
        last = learned[-1] + 1 if learned else len(probe.messages)
        text = self.render(probe, last, form, False)
        missing = []
        for number, turn in enumerate(probe.messages[:last], 1):
            of = f"of message {number} (role {turn.role!r})"
            if turn.content and turn.content not in text:
                missing.append(f"the content {of}")
            calls = (call.name for call in turn.calls), (key for call in turn.calls for key in call.arguments)
            if any(mark not in text for marks in calls for mark in marks):
                missing.append(f"the tool calls {of}")
            if turn.reasoning and number - 1 in learned:
                until = self.render(probe, number, form, False)
                opens = self.render(probe, number - 1, form, True).rstrip().endswith(THINK)
                if turn.reasoning not in until and not opens:
                    missing.append(f"the reasoning {of}")
        if any(tool["function"]["name"] not in text for tool in probe.tools):
            missing.append("the tools")
        return missing

    def _source(self, tools: bool) -> str:
        if tools not in self._sources:
            try:
                source: str = self._tokenizer.get_chat_template(tools=[{}] if tools else None)
            except ValueError as error:
                raise DataError([f"the tokenizer's chat template: {str(error).splitlines()[0]}"]) from None
            self._sources[tools] = FIXED_DATE + source if "strftime_now" in source else source
        return self._sources[tools]

    def _render(
        self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any], options: Mapping[str, Any], prompt: bool
    ) -> str:
        if not self.given:
            end = self._eos
            text = "\n".join(
                turn["content"] + (end if turn["role"] == "assistant" else "")
                for turn in turns
                if turn["content"] is not None
            )
            return self._bos + text + ("\n" if prompt else "")
        if not tools and not options and all(turn.keys() == PLAIN for turn in turns):
            return self._plainly(turns, prompt)
        return self._jinja(turns, tools, options, add_generation_prompt=prompt)[0]

    def _jinja(
        self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any], options: Mapping[str, Any], **how: bool
    ) -> tuple[str, list[Span]]:
        # not `apply_chat_template`: it takes away what is null, and some templates ask for a null content
        from transformers.utils.chat_template_utils import render_jinja_template

        variables, source = {**self._special, **options, **how}, self._source(bool(tools))
        with _refusals():
            texts, spans = render_jinja_template([list(turns)], list(tools) or None, chat_template=source, **variables)
        return texts[0], [(first, last) for first, last in spans[0]] if spans else []

    def _plainly(self, turns: Sequence[Mapping[str, Any]], prompt: bool) -> str:
        """The same for turns that say something and nothing else, without what has to be done for others: half the time."""
        if self._compiled is None:
            from transformers.utils.chat_template_utils import _compile_jinja_template

            with _refusals():
                self._compiled = _compile_jinja_template(self._source(False))
            # each rendering copies them, which takes long of a chain of dictionaries
            self._compiled.globals = dict(self._compiled.globals)
        with _refusals():
            # as `render_jinja_template` calls it; a template may write to what it is given
            text: str = self._compiled.render(
                messages=[dict(turn) for turn in turns],
                tools=None,
                documents=None,
                add_generation_prompt=prompt,
                **self._special,
            )
        return text


class _refusals:
    """What a template raises, its own words or Jinja's or Python's, as a RenderError."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

        if error is None or not isinstance(error, Exception):
            return
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, TemplateSyntaxError):
            raise DataError([f"the chat template is no Jinja template: {said} (its line {error.lineno})"]) from None
        if isinstance(error, TemplateError) and not isinstance(error, UndefinedError):
            raise RenderError(f"the chat template refuses the conversation: {said}") from None
        raise RenderError(f"the chat template fails on the conversation: {type(error).__name__}: {said}") from None


def prompt_text(prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a model reads before it answers `prompt`, a user's turn, as it did in training."""
    return ChatTemplate(tokenizer).render(Example("", (Message("user", prompt),)), 1, Form(), True)


def _written(turn: Message, form: Form) -> dict[str, Any]:
    """A turn as templates read it."""
    role = form.developer if turn.role == "developer" else turn.role
    content = None if form.null_content and turn.calls and not turn.content else turn.content
    written: dict[str, Any] = {"role": role, "content": content}
    if turn.reasoning:
        written["reasoning_content"] = turn.reasoning  # transformers hands it on under its other names too
    if turn.calls:
        written["tool_calls"] = [_written_call(call, form.text_arguments) for call in turn.calls]
    return {**written, **dict(turn.more)}


def _written_call(call: ToolCall, as_text: bool) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False) if as_text else call.arguments
    named = {} if call.call_id is None else {"id": call.call_id}
    return {**named, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _make(example: Example, learned: Sequence[int]) -> object:
    """What two conversations have in common that a template treats alike."""
    turns = tuple(
        (
            turn.role,
            bool(turn.content),
            bool(turn.reasoning),
            tuple(bool(c.arguments) for c in turn.calls),
            len(turn.more),
        )
        for turn in example.messages
    )
    tools = tuple(tuple(sorted(map(str, tool["function"]))) for tool in example.tools)
    options = json.dumps(example.options, sort_keys=True, default=str) if example.options else ""
    return turns, tuple(learned), tools, options


def _probe(example: Example) -> Example:
    """The same conversation with a mark of its own in the place of each thing that it says."""
    messages = tuple(
        turn._replace(
            content=f"zq{number}c" if turn.content else "",
            reasoning=f"zq{number}r" if turn.reasoning else "",
            calls=tuple(
                call._replace(name=f"zq{number}n{one}", arguments={f"zq{number}a{one}": 1} if call.arguments else {})
                for one, call in enumerate(turn.calls)
            ),
        )
        for number, turn in enumerate(example.messages)
    )
    tools = tuple(
        {**tool, "function": {**tool["function"], "name": f"zqt{number}"}} for number, tool in enumerate(example.tools)
    )
    return Example("", messages, tools, example.options)
