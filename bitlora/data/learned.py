"""Where in a conversation's text the completions stand: what follows the prompt that a model would have been given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from bitlora.data.chat import THINK, THOUGHT, ChatTemplate, Form, RenderError, Span
from bitlora.data.examples import Example, Message


def is_learned(turn: Message) -> bool:
    """An assistant's turn that says something and may be learned."""
    said = turn.content.strip() or turn.reasoning.strip() or turn.calls
    return turn.role == "assistant" and turn.learned and bool(said)


def learned_turns(example: Example) -> list[int]:
    """The places of the turns that are learned."""
    return [place for place, turn in enumerate(example.messages) if is_learned(turn)]


@dataclass(frozen=True, slots=True)
class Rendered:
    """One row of training as text."""

    example_id: str
    row: str
    """The row of the source that it is from."""
    text: str
    spans: tuple[Span, ...]
    """What of it is learned, in order."""
    plain: bool = False
    """A text without turns, all of which is learned."""


@dataclass(slots=True)
class Noticed:
    """What is to be said of a template, each once."""

    conversations: int = 0
    """Conversations of which each assistant turn became a row."""
    rows: int = 0
    """And those rows."""
    first: str | None = None
    """What stands between the prompt and what the assistant says, in the first answer that has nothing else."""
    ignores: bool = False
    """It writes no generation prompt, and that belongs to it."""
    endless: str | None = None
    """What stands after what the assistant says, where no token ends it."""
    opened: int = 0
    """Answers without reasoning after a prompt that opens a think block."""
    developers: bool = False

    def add(self, later: Noticed) -> None:
        """What was noticed of conversations that come after these."""
        self.conversations += later.conversations
        self.rows += later.rows
        self.opened += later.opened
        if self.first is None:
            self.first, self.ignores = later.first, later.ignores
        if self.endless is None:
            self.endless = later.endless
        self.developers |= later.developers

    def notes(self) -> list[str]:
        """Plain sentences."""
        notes = []
        if self.first is not None:
            before = f"{_shown(self.first)} before an answer"
            what = "ignores add_generation_prompt, and writes" if self.ignores else "writes"
            notes.append(f"the chat template {what} {before}, which is learned with it")
        if self.endless is not None:
            after = f"only {_shown(self.endless)}" if self.endless else "nothing"
            notes.append(
                f"the chat template ends an answer with no token of its own ({after} follows it): what is learned says "
                "nowhere that an answer is over; nothing is added; data.chat_template can change that"
            )
        if self.conversations:
            were = "1 conversation was" if self.conversations == 1 else f"{self.conversations} conversations were"
            notes.append(
                "the chat template writes an assistant's turn otherwise when it is not the last: "
                f"{were} made into {self.rows} rows, one for each assistant turn"
            )
        if self.opened:
            notes.append(
                "the chat template's generation prompt opens a think block: "
                f"{self.opened} answer{'s' * (self.opened > 1)} without reasoning closed it first"
            )
        if self.developers:
            notes.append("the chat template knows no developer: such turns are written as the system's")
        return notes


def render_all(
    examples: Iterable[Example],
    template: ChatTemplate,
    endings: tuple[str, ...],
    noticed: Noticed,
    errors: list[str],
) -> Iterator[Rendered]:
    """The text of each conversation, and where in it the completions stand.

    A conversation is one row where the template only ever adds to what it wrote for fewer turns. Else each assistant turn
    is a row of its own, which ends with it: what stands before it is what a model would be given.

    Args:
        endings: tokens that may end a turn; white space that follows one is no part of the completion.
        noticed: gets what is to be said of the template.
        errors: gets a line for each conversation that the template refuses, leaves something out of, or writes so that the
            completion cannot be told apart; it is left out.
    """
    for example in examples:
        try:
            rows = _rows(example, template, endings, noticed)
            if not all(_is_text(row.text) for row in rows):
                raise RenderError("holds half of a surrogate pair, which is no character")
        except RenderError as error:
            errors.append(f"{example.example_id}: {error}")
        else:
            yield from rows
    noticed.developers = template.developers_are_system


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rows(example: Example, template: ChatTemplate, endings: tuple[str, ...], noticed: Noticed) -> list[Rendered]:
    row = example.row or example.example_id
    if example.text is not None:
        text = template.text(example.text)
        return [Rendered(example.example_id, row, text, ((0, len(text)),), plain=True)]
    learned = learned_turns(example)
    form = template.form(example, learned)
    if template.marks:
        return [_by_marks(example, row, template, form)]
    text = template.render(example, len(example.messages), form, False)
    spans: list[Span] = []
    for place in learned:
        prefix = template.render(example, place, form, True)
        more = place + 1 < len(example.messages)
        until = _trimmed(template.render(example, place + 1, form, False) if more else text, endings)
        if more and not text.startswith(until):  # some templates end the whole, too
            until = _without_end(until, endings)
        if not (until.startswith(prefix) and text.startswith(until)):
            return _by_turns(example, row, template, form, endings, noticed, learned)
        _notice(example, place, template, form, prefix, until, endings, noticed)
        spans.append((len(prefix), len(until)))
    return [Rendered(example.example_id, row, text, tuple(spans))]


def _by_turns(
    example: Example,
    row: str,
    template: ChatTemplate,
    form: Form,
    endings: tuple[str, ...],
    noticed: Noticed,
    learned: list[int],
) -> list[Rendered]:
    rows = []
    for number, place in enumerate(learned, 1):
        prefix = template.render(example, place, form, True)
        until = _trimmed(template.render(example, place + 1, form, False), endings)
        if not until.startswith(prefix):
            until = _thought(example.messages[place], prefix, until, noticed)
        else:
            _notice(example, place, template, form, prefix, until, endings, noticed)
        example_id = example.example_id if len(learned) == 1 else f"{example.example_id}#{number}"
        rows.append(Rendered(example_id, row, until, ((len(prefix), len(until)),)))
    if len(rows) > 1:
        noticed.conversations += 1
        noticed.rows += len(rows)
    return rows


def _thought(turn: Message, prefix: str, until: str, noticed: Noticed) -> str:
    """The conversation up to the end of a turn, where the prompt opens a think block that the template then does not write.

    What the model has to say is its reasoning, the end of the block, and what the template writes of the turn.

    Raises:
        RenderError: it is another difference, which nothing here understands.
    """
    head = prefix[: prefix.rfind(THINK)]
    if not prefix.rstrip().endswith(THINK) or not until.startswith(head):
        shared = next((at for at, (a, b) in enumerate(zip(prefix, until, strict=False)) if a != b), len(until))
        raise RenderError(
            "the chat template does not write the assistant's turn after its generation prompt (there it has "
            f"{_shown(prefix[shared:][:40])}, in the turn {_shown(until[shared:][:40])}); give data.chat_template"
        )
    body = until[len(head) :]
    if body.startswith(THINK):
        body = body.partition(THOUGHT)[2]
    reasoning = turn.reasoning
    if not reasoning and THOUGHT in turn.content:
        reasoning = turn.content.partition(THOUGHT)[0].replace(THINK, "", 1)
    if not reasoning.strip():
        noticed.opened += 1
    opened = "" if prefix[len(head) + len(THINK) :] else "\n"
    return prefix + opened + reasoning.strip("\n") + f"\n{THOUGHT}\n\n" + body.lstrip("\n")


def _by_marks(example: Example, row: str, template: ChatTemplate, form: Form) -> Rendered:
    text, marked = template.marked(example, form)
    turns = [turn for turn in example.messages if turn.role == "assistant"]
    if len(marked) == len(turns):
        spans = tuple(span for span, turn in zip(marked, turns, strict=True) if is_learned(turn))
    elif all(is_learned(turn) for turn in turns):
        spans = tuple(marked)
    else:
        raise RenderError(
            f"the chat template marks {len(marked)} pieces as generated in {len(turns)} assistant turns, so it cannot be "
            "told which of them is not to be learned"
        )
    spans = tuple((first, last) for first, last in spans if last > first)
    if not spans:
        raise RenderError("the chat template marks pieces as generated, and none in this conversation")
    return Rendered(example.example_id, row, text, spans)


def _trimmed(text: str, endings: tuple[str, ...]) -> str:
    bare = text.rstrip()
    return bare if bare.endswith(endings) else text


def _without_end(text: str, endings: tuple[str, ...]) -> str:
    """The text without the token that ends it, where another one that ends a turn stands before that."""
    last = next(filter(text.endswith, endings), "")
    before = text.removesuffix(last).rstrip()
    return before if before.endswith(endings) else text


def _notice(
    example: Example,
    place: int,
    template: ChatTemplate,
    form: Form,
    prefix: str,
    until: str,
    endings: tuple[str, ...],
    noticed: Noticed,
) -> None:
    """Looks at what a template writes around an answer; raises RenderError where it loses reasoning in it."""
    turn = example.messages[place]
    said, learned = turn.content.strip(), until[len(prefix) :]
    if THOUGHT in said:
        thought = said.partition(THOUGHT)[0].replace(THINK, "", 1).strip()
        if thought and thought not in learned:
            raise RenderError(
                f"the chat template leaves out what message {place + 1} says before {THOUGHT}; give it as "
                "reasoning_content, or give data.chat_template"
            )
    elif not turn.reasoning and not turn.calls and said in learned:
        before, after = learned[: learned.find(said)], learned[learned.rfind(said) + len(said) :]
        if before.strip() and noticed.first is None:
            noticed.first = before
            with suppress(RenderError):  # some refuse a conversation that ends in a question
                noticed.ignores = prefix == template.render(example, place, form, False)
        if not learned.endswith(endings) and noticed.endless is None:
            noticed.endless = after


def _shown(text: str) -> str:
    return repr(text)
