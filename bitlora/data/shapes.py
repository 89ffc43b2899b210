"""The shapes that a row of data may have, and the examples that it then holds.

A new shape is a function here under `@shape(…)`, and nothing else: messages, the nearest key and the documentation go by
the table (CONTRIBUTING.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bitlora.data.examples import Example, Message, Reading, pair
from bitlora.data.fields import Fields, choices_of, kind, listed
from bitlora.data.turns import Turns, tools_of, turns_of

REFUSED: Final = ("images", "image", "videos", "video", "audios", "audio", "loss_mask")
"""Columns that change what would be learned, and that nothing here can honour."""

Text = str
Found = Turns | Text | list[Turns]
Read = Callable[[Fields], Found]


@dataclass(frozen=True, slots=True)
class Shape:
    """A line of the table."""

    keys: tuple[str, ...]
    """A row of this shape has all of them."""
    optional: tuple[str, ...]
    """It may have these."""
    unless: tuple[str, ...]
    """A row that has one of these is of another shape."""
    name: str
    """As messages and documentation print it."""
    read: Read
    """The conversation in such a row; or a list of them, which are numbered from 1; or a text without turns."""

    def fits(self, row: Mapping[str, Any], null: bool = False) -> bool:
        """Is the row of this shape?

        Args:
            null: a key counts although it is null.
        """
        there = row.keys() if null else {key for key, value in row.items() if value is not None}
        return all(key in there for key in self.keys) and not any(key in there for key in self.unless)


SHAPES: Final[list[Shape]] = []
"""In the order in which they are named; a row is of the first that it fits."""


def shape(
    *keys: str, optional: tuple[str, ...] = (), unless: tuple[str, ...] = (), name: str = ""
) -> Callable[[Read], Read]:
    """Puts a function into the table. The arguments are those of `Shape`; its name is its keys unless told otherwise."""

    def register(read: Read) -> Read:
        SHAPES.append(Shape(keys, optional, unless, name or " + ".join(keys), read))
        return read

    return register


@shape("prompt", "completion", optional=("system", "history", "tools", "label"), unless=("messages",))
def prompted(row: Fields) -> Turns:
    """A user's turn and the assistant's, or (TRL) two lists of turns, of which the second's are learned. A row whose
    `label` is false (KTO) is not learned."""
    told = row.text("prompt") if isinstance(row.row["prompt"], str) or row.row["prompt"] is None else None
    said = row.row["completion"]
    if told is not None and not isinstance(said, list):
        found = (*_before(row), *pair(told, row.text("completion")))
    else:
        found = (*_prompt(row, "prompt"), *_answer(row, "completion"))
    if row.given("label") and row.row["label"] is False:
        return _unlearned(found)
    return found


@shape(
    "instruction",
    "output",
    optional=("input", "system", "history"),
    unless=("messages", "instances"),
    name="instruction (+ input) + output",
)
def instructed(row: Fields) -> Turns:
    """The user's turn is the instruction, and below it the input where it is not empty. Before it come `system` and the
    pairs of `history`, whose answers are learned too."""
    return (*_before(row), *_instructed(row.text("instruction"), row))


@shape("instruction", "instances", unless=("messages",))
def instances(row: Fields) -> list[Turns]:
    """One instruction with a list of `input` and `output`: an example for each of them."""
    instruction = row.text("instruction")
    found = []
    for instance in row.objects("instances", "instance"):
        found.append((*_before(row), *_instructed(instruction, instance)))
        instance.note_unused()
    return found


@shape("messages", optional=("tools", "system"))
def conversation(row: Fields) -> Turns:
    """A list of turns with `role` (`system`, `developer`, `user`, `assistant` or `tool`) and `content` (text, or parts that
    are text); the assistant's may have `tool_calls`, `reasoning_content` and a `weight` of 0 or 1. Each of the assistant's
    is learned, but one of weight 0."""
    return _turns(row, "messages")


@shape("conversations", optional=("tools", "system"), unless=("messages",))
def shared(row: Fields) -> Turns:
    """The same under ShareGPT's name, with `from` and `value` as ShareGPT has them, or with `role` and `content`."""
    return _turns(row, "conversations")


@shape("prompt", "chosen", optional=("tools", "system"), unless=("messages", "completion"))
def preferred(row: Fields) -> Turns:
    """Of a pair of answers the one that was chosen: a string, or turns, with or without those of the prompt; its last turn
    is learned."""
    chosen = row.row["chosen"]
    if isinstance(chosen, list) and chosen and isinstance(chosen[0], Mapping):
        turns = turns_of(row, "chosen")
        if turns and turns[0].role != "assistant":  # the prompt is in it
            row.used.add("prompt")
            return (*_before(row), *_last_learned(turns))
        return (*_prompt(row, "prompt"), *_last_learned(turns))
    return (*_prompt(row, "prompt"), *_answer(row, "chosen"))


@shape("chosen", "rejected", optional=("tools", "system"), unless=("messages", "prompt"))
def preferred_whole(row: Fields) -> Turns:
    """The same where the prompt stands in both: two lists of turns; the last turn of `chosen` is learned."""
    before = len(row.errors)
    turns = turns_of(row, "chosen")
    return (*_before(row), *_last_learned(_checked(row, turns) if len(row.errors) == before else turns))


@shape(
    "choices",
    "answer",
    optional=("prompt", "question", "system", "history"),
    unless=("messages", "conversations", "completion"),
    name="prompt (or question) + choices + answer",
)
def choices(row: Fields) -> Turns | list[Turns]:
    """A question and what may be answered: `choices` is a list of texts, or an object with the lists `text` and `label`;
    `answer` the place of the right one from 0, its label, or its text. That one is learned. The metric `choice_accuracy`
    compares it with the others."""
    key = "prompt" if row.given("prompt") or not row.given("question") else "question"
    before, asked, texts = _before(row), row.text(key), choices_of(row)
    several = [(*before, *pair(asked, text)) for text in texts]
    return several if row.reading.choices else several[0] if several else ()


@shape("question", "answer", optional=("system", "history"))
def asked(row: Fields) -> Turns:
    """The user's turn is the question, the assistant's the answer."""
    return (*_before(row), *pair(row.text("question"), row.text("answer")))


@shape("text")
def plain(row: Fields) -> Text:
    """A text without turns: no chat template, and all of it is learned."""
    return row.text("text")


def examples_of(row: object, example_id: str, where: str, reading: Reading) -> list[Example]:
    """The examples in one row of data: one, or one for each conversation in it.

    Args:
        row: what JSON gave, an object of one of the `SHAPES`.
        where: names the row in errors.
        reading: gets what is wrong with it, and what of it is not used.
    """
    if not isinstance(row, Mapping):
        reading.errors.append(f"{where}: {kind(row)} where an object belongs ({_known_shapes()})")
        return []
    fitting = next((shape for null in (False, True) for shape in SHAPES if shape.fits(row, null)), None)
    if fitting is None:
        reading.errors.append(f"{where}: no known shape: found {listed(row)}; known are {_known_shapes()}{_near(row)}")
        return []
    fields = Fields(row, where, reading)
    for key in REFUSED:
        if key in row and fields.given(key) and row[key] not in ("", [], {}):
            fields.wrong(f"{key!r} would change what is learned, and is not read: only text is")
    if reading.choices and fitting.read is not choices:
        reading.errors.append(f"{where}: no choices; a set that choice_accuracy is over has 'choices' and 'answer'")
        return []
    found = fitting.read(fields)
    tools, options = tools_of(fields), _options(fields)
    learned = fields.weight()
    fields.note_unused()
    if isinstance(found, str):
        return [Example(example_id, (), text=found if learned else "")]
    several = found if isinstance(found, list) else [found]
    if not learned:
        several = [_unlearned(turns) for turns in several]
    if isinstance(found, list):
        return [
            Example(f"{example_id}/{number}", turns, tools, options, row=example_id)
            for number, turns in enumerate(several, 1)
        ]
    return [Example(example_id, several[0], tools, options)]


def _turns(row: Fields, key: str) -> Turns:
    before = len(row.errors)
    first, turns = _before(row), turns_of(row, key)
    if first and turns and turns[0].role in ("system", "developer"):
        if turns[0].content != first[0].content:
            row.wrong(f"a 'system' beside {key}, which begins with a {turns[0].role} turn of its own")
        first = ()
    turns = (*first, *turns)
    return _checked(row, turns) if len(row.errors) == before else turns


def _checked(row: Fields, turns: Turns) -> Turns:
    """The turns, in which an assistant answers; the assistant's turn that opens them is no answer."""
    if all(turn.role != "assistant" for turn in turns):
        row.wrong("no assistant turn, so nothing to learn")
    elif turns[0].role == "assistant":
        if all(turn.role != "assistant" for turn in turns[1:]):
            row.wrong("begins with the assistant's turn and has no other; a user's turn comes first")
        row.reading.opened += 1
        return (turns[0]._replace(learned=False), *turns[1:])
    return turns


def _prompt(row: Fields, key: str) -> Turns:
    """What is answered: a string, or turns of which none is learned."""
    if not isinstance(row.row[key], list):
        return (*_before(row), Message("user", row.text(key)))
    return (*_before(row), *_unlearned(turns_of(row, key)))


def _answer(row: Fields, key: str) -> Turns:
    """What is learned: a string, or turns."""
    if not isinstance(row.row[key], list):
        return (Message("assistant", row.text(key)),)
    turns = turns_of(row, key)
    if turns and all(turn.role != "assistant" for turn in turns):
        row.wrong(f"no assistant turn in {key!r}, so nothing to learn")
    return turns


def _unlearned(turns: Turns) -> Turns:
    return tuple(turn._replace(learned=turn.role != "assistant") for turn in turns)


def _last_learned(turns: Turns) -> Turns:
    """The turns, of which the last is the assistant's, and alone learned."""
    return (*_unlearned(turns[:-1]), *turns[-1:])


def _before(row: Fields) -> Turns:
    """What a row's `system` and `history` put before its turns."""
    key = "system" if row.given("system") or not row.given("system_prompt") else "system_prompt"
    turns: list[Message] = []
    if (system := row.text_if_given(key)).strip():
        turns.append(Message("system", system))
    if not row.given("history"):
        return tuple(turns)
    history = row.row["history"]
    if not isinstance(history, list) or not all(isinstance(each, list | tuple) and len(each) == 2 for each in history):
        row.wrong(f"'history' is {kind(history)}; it must be a list of pairs, what was asked and what was answered")
        return tuple(turns)
    for number, (asked, answered) in enumerate(history, 1):
        texts = row.string(asked, f"pair {number} of 'history'"), row.string(answered, f"pair {number} of 'history'")
        turns += pair(*texts)
    return tuple(turns)


def _instructed(instruction: str, row: Fields) -> Turns:
    given = row.text_if_given("input")
    return pair(f"{instruction}\n\n{given}" if given.strip() else instruction, row.text("output"))


def _options(row: Fields) -> Mapping[str, Any]:
    key = "chat_template_kwargs"
    if not row.given(key):
        return {}
    value = row.row[key]
    if isinstance(value, Mapping):
        reserved = {"messages", "tools", "add_generation_prompt", "conversation", "chat_template", "tokenize"}
        if not reserved & value.keys():
            return {name: each for name, each in value.items() if each is not None}
        row.wrong(f"{key!r} sets {listed(sorted(reserved & value.keys()))}, which the row says itself")
        return {}
    row.wrong(f"{key!r} is {kind(value)}; it must be an object")
    return {}


def _known_shapes() -> str:
    *names, last = (shape.name for shape in SHAPES)
    return f"{', '.join(names)}, or {last}"


def _near(row: Mapping[str, Any]) -> str:
    """The end of a message about a row without a shape: a key that may have been meant."""
    known = sorted({key for shape in SHAPES for key in (*shape.keys, *shape.optional)} - row.keys())
    near = [(key, match[0]) for key in row if (match := difflib.get_close_matches(str(key), known, n=1))]
    return f"; did you mean {near[0][1]!r} by {near[0][0]!r}?" if near else ""
