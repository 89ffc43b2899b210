"""The turns of a conversation, as OpenAI, Hugging Face, TRL, ShareGPT and their followers write them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any, Final

from bitlora.data.examples import Message, ToolCall
from bitlora.data.fields import Fields, kind, listed

ROLES: Final[dict[str, str]] = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "function_response", "tool_response"), "tool"),
}
"""What a turn's role is called -> what it is."""
NAMED: Final = ("system", "developer", "user", "assistant", "tool")
REASONING: Final = ("reasoning_content", "thinking", "reasoning")
"""What a turn's reasoning is called; the first that is given counts."""
TEXT_PARTS: Final = ("text", "input_text", "output_text")
REFUSED: Final = ("audio", "refusal", "images", "image", "videos", "video", "prefix", "loss_mask", "mask")
"""Keys of a turn that change what would be learned, and that nothing here can honour."""

Turns = tuple[Message, ...]


def turns_of(row: Fields, key: str) -> Turns:
    """The turns in the list under `key`; what is wrong with them is collected."""
    return tuple(_turn(each) for each in row.objects(key, "message"))


def _turn(turn: Fields) -> Message:
    told = "role" if turn.given("role") or not turn.given("from") else "from"
    said = "content" if turn.given("content") or not turn.given("value") else "value"
    name = turn.text(told)
    role = ROLES.get(name, "")
    if name and not role:
        near = difflib.get_close_matches(name, NAMED, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        turn.wrong(f"unknown role {name!r}; roles are {', '.join(NAMED)}{hint}")
    refused = [key for key in REFUSED if turn.given(key) and turn.row[key] not in ("", [], {}, False)]
    for key in refused:
        turn.wrong(f"{key!r} would change what is learned, and is not read")
    calls: tuple[ToolCall, ...] = ()
    if name == "function_call":
        calls, content = (_written_call(turn, said),), ""
    else:
        if turn.given("tool_calls") and turn.row["tool_calls"] != []:
            calls = tuple(_call(each) for each in turn.objects("tool_calls", "tool call"))
        elif turn.given("function_call"):  # OpenAI's, before there were several in a turn
            calls = (_call(turn, "function_call"),)
        content = "" if (calls or refused) and not turn.given(said) else _content(turn, said)
    if calls and role != "assistant":
        turn.wrong(f"role {name!r} calls a tool; only the assistant's turn can")
    thought = next((key for key in REASONING if turn.given(key)), None)
    reasoning = turn.text(thought) if thought is not None else ""
    if reasoning and role not in ("assistant", ""):
        turn.wrong(f"role {name!r} has {thought!r}; only the assistant's turn can")
    learned = turn.weight()
    if turn.given("weight") and role not in ("assistant", "") and learned:
        turn.wrong(f"role {name!r} has a weight of 1; only the assistant's turns are learned")
    more = tuple((key, turn.text(key)) for key in ("name", "tool_call_id") if turn.given(key))
    turn.note_unused()
    return Message(role, content, learned or role != "assistant", reasoning, calls, more)


def _content(turn: Fields, key: str) -> str:
    """A string, or parts of which each is text: these are joined."""
    value = turn.row.get(key)
    if not isinstance(value, list):
        return turn.text(key)
    text = ""
    for number, part in enumerate(value, 1):
        if isinstance(part, str):
            text += turn.string(part, f"part {number} of {key!r}")
        elif isinstance(part, Mapping) and part.get("type", "text") in TEXT_PARTS:
            text += turn.string(part.get("text"), f"'text' in part {number} of {key!r}")
        else:
            found = repr(part.get("type")) if isinstance(part, Mapping) else kind(part)
            turn.wrong(f"part {number} of {key!r} is {found}; only text is read")
    return text


def _call(turn: Fields, key: str = "function") -> ToolCall:
    """OpenAI's `{"id", "type", "function": {"name", "arguments"}}`, or the inner object alone."""
    call_id = turn.text("id") if key == "function" and turn.given("id") else None
    if key == "function" and turn.given("type") and turn.row["type"] != "function":
        turn.wrong(f"a tool call of type {turn.row['type']!r}; only functions are called")
    inner = turn.row.get(key) if turn.given(key) else turn.row
    if not isinstance(inner, Mapping):
        turn.wrong(f"{key!r} is {kind(inner)}; it must be an object")
        return ToolCall("", {})
    function = Fields(inner, turn.where, turn.reading, turn.path)
    name = function.text("name")
    return ToolCall(name, _arguments(function), call_id)


def _arguments(function: Fields) -> Any:
    value: Any = function.row.get("arguments")
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError) as error:
            function.wrong(f"'arguments' of the tool call is not JSON: {error}")
            return {}
    if value is None:
        return {}
    if not isinstance(value, dict):
        function.wrong(f"'arguments' of the tool call is {kind(value)}; it must be an object, or one as a string")
    return value


def _written_call(turn: Fields, key: str) -> ToolCall:
    """A turn that is a call and nothing else, as a string: `{"name": …, "arguments": …}`."""
    text = turn.text(key)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        turn.wrong(f"{key!r} of a function_call must be an object with name and arguments, as a string")
        return ToolCall("", {})
    return _call(Fields(found, turn.where, turn.reading, turn.path), "function")


def tools_of(row: Fields) -> tuple[Any, ...]:
    """The tools of a conversation: a list of JSON schemas, or such a list as a string."""
    key = "tools" if row.given("tools") else "functions"
    value = row.row.get(key) if row.given(key) else None
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            row.wrong(f"{key!r} is a string that is not JSON: {error}")
            return ()
    if value is None or value == []:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        row.wrong(f"{key!r} is {kind(value)}; it must be a list of objects")
        return ()
    tools = tuple(each if isinstance(each.get("function"), Mapping) else _schema(each) for each in value)
    for number, tool in enumerate(tools, 1):
        if not isinstance(tool["function"].get("name"), str):
            row.wrong(f"tool {number} has no 'name': found {listed(tool['function'])}")
    return tools


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": dict(function)}
