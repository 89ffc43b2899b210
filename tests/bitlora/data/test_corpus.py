"""Small files as people have them: for each the rows that must come of it, or the line of the error.

What must be learned of them is said by the template written in Python (`families.py`), over the conversations that a reader
of the file would find in it: `said` of a turn is its role's first letter and its content; `-a` is not learned.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, Row, Turn, tokenizer

from bitlora.data.examples import DataError, Reading
from bitlora.data.sources import read_examples
from bitlora.data.tokens import tokenize

ROLES = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool"}
TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": {"city": "Oslo"}}}


def said(*turns: str) -> list[Turn]:
    """`u hi` is the user's turn, `-a hi` the assistant's that is not learned."""
    found: list[Turn] = []
    for turn in turns:
        name, _, content = turn.partition(" ")
        one: Turn = {"role": ROLES[name.removeprefix("-")], "content": content}
        found.append({**one, "weight": 0} if name.startswith("-") else one)
    return found


def u(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def a(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def human(value: str) -> dict[str, Any]:
    return {"from": "human", "value": value}


def gpt(value: str) -> dict[str, Any]:
    return {"from": "gpt", "value": value}


HI = said("u hi", "a yo")
CHATML: dict[str, tuple[Any, list[list[Turn]], str]] = {
    # a row -> the conversations in it, and what of it is named as not used
    "prompt and completion": ({"prompt": "hi", "completion": "yo"}, [HI], ""),
    "a system beside them": ({"prompt": "hi", "completion": "yo", "system": "s"}, [said("s s", "u hi", "a yo")], ""),
    "a system prompt": ({"prompt": "hi", "completion": "yo", "system_prompt": "s"}, [said("s s", "u hi", "a yo")], ""),
    "an empty system": ({"prompt": "hi", "completion": "yo", "system": ""}, [HI], ""),
    "null beside them": ({"prompt": "hi", "completion": "yo", "messages": None, "tools": None}, [HI], ""),
    "columns that say nothing": ({"prompt": "hi", "completion": "yo", "tags": [], "note": ""}, [HI], ""),
    "columns not used": ({"prompt": "hi", "completion": "yo", "id": 7, "src": "x"}, [HI], "id, src"),
    "label true": ({"prompt": "hi", "completion": "yo", "label": True}, [HI], ""),
    "label false": ({"prompt": "hi", "completion": "no", "label": False}, [], ""),
    "weight of a row": ({"prompt": "hi", "completion": "yo", "weight": 1.0}, [HI], ""),
    "a row of weight 0": ({"prompt": "hi", "completion": "yo", "weight": 0}, [], ""),
    "TRL, conversational": ({"prompt": [u("hi")], "completion": [a("yo")]}, [HI], ""),
    "TRL, a prompt with answers": (
        {"prompt": [u("1"), a("2"), u("3")], "completion": [a("4")]},
        [said("u 1", "-a 2", "u 3", "a 4")],
        "",
    ),
    "TRL, a list and a string": ({"prompt": [u("hi")], "completion": "yo"}, [HI], ""),
    "TRL, a string and a list": ({"prompt": "hi", "completion": [a("yo")]}, [HI], ""),
    "TRL, a system in the prompt": (
        {"prompt": [{"role": "system", "content": "s"}, u("hi")], "completion": [a("yo")]},
        [said("s s", "u hi", "a yo")],
        "",
    ),
    "prompt and chosen": ({"prompt": "hi", "chosen": "yo", "rejected": "no"}, [HI], "rejected"),
    "chosen as turns": ({"prompt": [u("hi")], "chosen": [a("yo")], "rejected": [a("no")]}, [HI], "rejected"),
    "chosen with its prompt": (
        {"prompt": "1", "chosen": [u("1"), a("2"), u("3"), a("4")], "rejected": []},
        [said("u 1", "-a 2", "u 3", "a 4")],
        "",
    ),
    "chosen without a prompt": (
        {"chosen": [u("hi"), a("yo")], "rejected": [u("hi"), a("no")]},
        [HI],
        "rejected",
    ),
    "Alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3"}, [said("u Add.\n\n1 2", "a 3")], ""),
    "Alpaca, no input": ({"instruction": "hi", "input": "", "output": "yo"}, [HI], ""),
    "Alpaca, null input": ({"instruction": "hi", "input": None, "output": "yo", "text": "all"}, [HI], "text"),
    "Alpaca, system and history": (
        {"instruction": "3", "input": "", "output": "4", "system": "s", "history": [["1", "2"]]},
        [said("s s", "u 1", "a 2", "u 3", "a 4")],
        "",
    ),
    "Alpaca, empty history": ({"instruction": "hi", "output": "yo", "history": []}, [HI], ""),
    "instances": (
        {"instruction": "Add.", "instances": [{"input": "1", "output": "2"}, {"input": "", "output": "0"}]},
        [said("u Add.\n\n1", "a 2"), said("u Add.", "a 0")],
        "",
    ),
    "instances with more": (
        {"instruction": "Add.", "instances": [{"output": "2", "why": "so"}]},
        [said("u Add.", "a 2")],
        "instances[].why",
    ),
    "question and answer": ({"question": "hi", "answer": "yo"}, [HI], ""),
    "question, answer, system": ({"question": "hi", "answer": "yo", "system": "s"}, [said("s s", "u hi", "a yo")], ""),
    "messages": ({"messages": [u("hi"), a("yo")]}, [HI], ""),
    "messages and a prompt": ({"messages": [u("hi"), a("yo")], "prompt": "hi"}, [HI], "prompt"),
    "messages, a system beside": ({"messages": [u("hi"), a("yo")], "system": "s"}, [said("s s", "u hi", "a yo")], ""),
    "the same system twice": (
        {"messages": [{"role": "system", "content": "s"}, u("hi"), a("yo")], "system": "s"},
        [said("s s", "u hi", "a yo")],
        "",
    ),
    "a developer": (
        {"messages": [{"role": "developer", "content": "s"}, u("hi"), a("yo")]},
        [said("d s", "u hi", "a yo")],
        "",
    ),
    "a turn of weight 0": (
        {"messages": [u("1"), a("2", weight=0), u("3"), a("4", weight=1)]},
        [said("u 1", "-a 2", "u 3", "a 4")],
        "",
    ),
    "all of weight 0": ({"messages": [u("1"), a("2", weight=0)]}, [], ""),
    "weight 0 of the user": ({"messages": [u("hi", weight=0), a("yo")]}, [HI], ""),
    "null in a turn": ({"messages": [u("hi", tool_calls=None, name=None), a("yo", weight=None)]}, [HI], ""),
    "fields of turns not used": ({"messages": [u("hi", ts=1), a("yo", ts=2)]}, [HI], "messages[].ts"),
    "content parts": (
        {
            "messages": [
                u([{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]),
                a([{"type": "text", "text": "yo"}]),
            ]
        },
        [HI],
        "",
    ),
    "an opening assistant": ({"messages": [a("1"), u("hi"), a("yo")]}, [said("-a 1", "u hi", "a yo")], ""),
    "a blank answer between": ({"messages": [u("1"), a(""), u("3"), a("4")]}, [said("u 1", "-a ", "u 3", "a 4")], ""),
    "an open end": ({"messages": [u("hi"), a("yo"), u("more")]}, [said("u hi", "a yo", "u more")], ""),
    "a tool's turn": (
        {"messages": [u("hi"), {"role": "tool", "content": "noon"}, a("yo")]},
        [said("u hi", "t noon", "a yo")],
        "",
    ),
    "ShareGPT": ({"conversations": [human("hi"), gpt("yo")]}, [HI], ""),
    "ShareGPT, other names": (
        {"conversations": [{"from": "user", "value": "hi"}, {"from": "chatgpt", "value": "yo"}], "id": "x"},
        [HI],
        "id",
    ),
    "ShareGPT, system": (
        {"conversations": [{"from": "system", "value": "s"}, human("hi"), gpt("yo")]},
        [said("s s", "u hi", "a yo")],
        "",
    ),
    "ShareGPT, a system beside": (
        {"system": "s", "tools": "", "conversations": [human("hi"), gpt("yo")]},
        [said("s s", "u hi", "a yo")],
        "",
    ),
    "ShareGPT, opened by gpt": (
        {"conversations": [gpt("1"), human("hi"), gpt("yo")]},
        [said("-a 1", "u hi", "a yo")],
        "",
    ),
    "conversations with roles": ({"conversations": [u("hi"), a("yo")]}, [HI], ""),
    "an observation": (
        {"conversations": [human("hi"), {"from": "observation", "value": "noon"}, gpt("yo")]},
        [said("u hi", "t noon", "a yo")],
        "",
    ),
    "more than one alphabet": ({"prompt": "你好", "completion": "🙂 é"}, [said("u 你好", "a 🙂 é")], ""),
    "white space": ({"prompt": " hi\n", "completion": "\n  yo "}, [said("u  hi\n", "a \n  yo ")], ""),
    "an empty completion": ({"prompt": "hi", "completion": "  "}, [], ""),
    "markup in the text": (
        {"prompt": "{{ x }} {% if %}", "completion": "<b>yo</b>"},
        [said("u {{ x }} {% if %}", "a <b>yo</b>")],
        "",
    ),
}
QWEN3: dict[str, tuple[Any, list[Turn], list[Turn]]] = {
    "tools": (
        {
            "messages": [u("time?"), a(None, tool_calls=[CALL]), {"role": "tool", "content": "noon"}, a("Noon.")],
            "tools": [TOOL],
        },
        [u("time?"), a("", tool_calls=[CALL]), {"role": "tool", "content": "noon"}, a("Noon.")],
        [TOOL],
    ),
    "a call beside words": (
        {"messages": [u("time?"), a("Let me look.", tool_calls=[CALL])], "tools": json.dumps([TOOL])},
        [u("time?"), a("Let me look.", tool_calls=[CALL])],
        [TOOL],
    ),
    "arguments as a string": (
        {"messages": [u("t"), a("", tool_calls=[{"function": {"name": "clock", "arguments": '{"city": "Oslo"}'}}])]},
        [u("t"), a("", tool_calls=[CALL])],
        [],
    ),
    "a flat call": (
        {"messages": [u("t"), a("", tool_calls=[{"name": "clock", "arguments": {"city": "Oslo"}}])]},
        [u("t"), a("", tool_calls=[CALL])],
        [],
    ),
    "a function call of before": (
        {"messages": [u("t"), a(None, function_call={"name": "clock", "arguments": '{"city": "Oslo"}'})]},
        [u("t"), a("", tool_calls=[CALL])],
        [],
    ),
    "functions of before": (
        {"messages": [u("hi"), a("yo")], "functions": [TOOL["function"]]},
        [u("hi"), a("yo")],
        [TOOL],
    ),
    "ShareGPT's function call": (
        {
            "conversations": [
                human("t"),
                {"from": "function_call", "value": '{"name": "clock", "arguments": {"city": "Oslo"}}'},
            ]
        },
        [u("t"), a("", tool_calls=[CALL])],
        [],
    ),
    "two calls": (
        {"messages": [u("t"), a("", tool_calls=[CALL, CALL])]},
        [u("t"), a("", tool_calls=[CALL, CALL])],
        [],
    ),
    "reasoning": (
        {"messages": [u("1+1"), a("2", reasoning_content="add")]},
        [u("1+1"), a("2", reasoning_content="add")],
        [],
    ),
    "reasoning's other names": (
        {"messages": [u("1+1"), a("2", thinking="add", reasoning=None)]},
        [u("1+1"), a("2", reasoning_content="add")],
        [],
    ),
}
WRONG: dict[str, tuple[Any, str]] = {
    "no shape": ({"a": 1}, "no known shape: found 'a'; known are prompt + completion"),
    "nearly a shape": ({"prompt": "hi", "completoin": "yo"}, "did you mean 'completion' by 'completoin'?"),
    "no object": ("x", "a string where an object belongs"),
    "a number": ({"prompt": 1, "completion": "yo"}, "'prompt' is a number; it must be a string"),
    "null where text belongs": ({"prompt": "hi", "completion": None}, "'completion' is null; it must be a string"),
    "a picture": (
        {"messages": [u([{"type": "image_url", "image_url": "x"}]), a("yo")]},
        "message 1: part 1 of 'content' is 'image_url'; only text is read",
    ),
    "pictures beside": ({"messages": [u("hi"), a("yo")], "images": ["x.png"]}, "'images' would change what is learned"),
    "a part without text": ({"messages": [u([{"type": "text"}]), a("yo")]}, "'text' in part 1 of 'content' is null"),
    "a refusal": ({"messages": [u("hi"), a(None, refusal="No.")]}, "message 2: 'refusal' would change what is learned"),
    "half a weight": (
        {"messages": [u("hi"), a("yo", weight=0.5)]},
        "message 2: 'weight' is 0.5; give 0 (not learned) or 1",
    ),
    "a weight in words": ({"messages": [u("hi"), a("yo", weight="1")]}, "message 2: 'weight' is a string; give 0"),
    "a user to learn": (
        {"messages": [u("hi", weight=1), a("yo")]},
        "message 1: role 'user' has a weight of 1; only the",
    ),
    "half a row's weight": (
        {"prompt": "hi", "completion": "yo", "weight": 2},
        "'weight' is 2; give 0 (not learned) or 1",
    ),
    "an unknown role": ({"messages": [u("hi"), {"role": "asistant", "content": "yo"}]}, "did you mean assistant?"),
    "arguments that are no JSON": (
        {"messages": [u("t"), a("", tool_calls=[{"function": {"name": "c", "arguments": "{"}}])]},
        "message 2: tool call 1: 'arguments' of the tool call is not JSON",
    ),
    "a call without a name": ({"messages": [u("t"), a("", tool_calls=[{"function": {}}])]}, "no 'name': found no keys"),
    "a call of another type": (
        {"messages": [u("t"), a("", tool_calls=[{"type": "web", "function": {"name": "c"}}])]},
        "a tool call of type 'web'; only functions are called",
    ),
    "a user that calls": ({"messages": [u("t", tool_calls=[CALL]), a("yo")]}, "role 'user' calls a tool"),
    "a user that thinks": (
        {"messages": [u("t", reasoning_content="x"), a("yo")]},
        "role 'user' has 'reasoning_content'",
    ),
    "tools that are no JSON": ({"messages": [u("hi"), a("yo")], "tools": "[{"}, "'tools' is a string that is not JSON"),
    "tools without a name": ({"messages": [u("hi"), a("yo")], "tools": [{"function": {}}]}, "tool 1 has no 'name'"),
    "two systems": (
        {"messages": [{"role": "system", "content": "1"}, u("hi"), a("yo")], "system": "2"},
        "a 'system' beside messages, which begins with a system turn of its own",
    ),
    "history that is none": (
        {"instruction": "hi", "output": "yo", "history": ["x"]},
        "'history' is a list; it must be a list of",
    ),
    "chosen as text alone": ({"chosen": "yo", "rejected": "no"}, "chosen is a string; it must be a list of objects"),
    "nothing to learn": ({"messages": [u("hi")]}, "no assistant turn, so nothing to learn"),
    "only an opening": ({"messages": [a("hi")]}, "begins with the assistant's turn and has no other"),
    "nothing in the completion": ({"prompt": [u("hi")], "completion": [u("yo")]}, "no assistant turn in 'completion'"),
    "options that are none": (
        {"messages": [u("hi"), a("yo")], "chat_template_kwargs": 7},
        "'chat_template_kwargs' is a number",
    ),
    "options that say the row": (
        {"messages": [u("hi"), a("yo")], "chat_template_kwargs": {"messages": []}},
        "'chat_template_kwargs' sets 'messages', which the row says itself",
    ),
    "tools without a template's word": ({"messages": [u("hi"), a("yo")], "tools": [TOOL]}, "leaves out the tools"),
    "reasoning without a template's word": (
        {"messages": [u("hi"), a("yo", reasoning_content="x")]},
        "leaves out the reasoning of message 2",
    ),
}


def pieces_of(path: Path, family: str) -> tuple[list[Row], Reading]:
    """Rows as text, cut where what is learned begins and ends."""
    has = tokenizer(FAMILIES[family].jinja, FAMILIES[family].bos, FAMILIES[family].eos)
    reading = Reading()
    rows, _ = tokenize(read_examples(str(path), reading=reading), has, 4096)
    found = []
    for first, last in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        marked = zip(rows.tokens[first:last].tolist(), rows.learn[first:last].tolist(), strict=True)
        found.append([(has.decode([t for t, _ in run]), learn) for learn, run in groupby(marked, lambda one: one[1])])
    return found, reading


def joined(row: Row) -> Row:
    runs = groupby((piece for piece in row if piece[0]), lambda piece: piece[1])
    return [("".join(text for text, _ in run), learn) for learn, run in runs]


@pytest.mark.parametrize("name", CHATML)
def test_a_file_and_what_is_learned_of_it(name: str, tmp_path: Path) -> None:
    row, conversations, unused = CHATML[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n")
    found, reading = pieces_of(path, "chatml")
    assert found == [joined(row) for turns in conversations for row in FAMILIES["chatml"].oracle(turns, [])]
    assert [note for note in reading.notes() if "not used" in note] == (
        [f"columns not used: {unused}"] if unused else []
    )


@pytest.mark.parametrize("name", QWEN3)
def test_a_file_with_tools_or_reasoning(name: str, tmp_path: Path) -> None:
    row, turns, tools = QWEN3[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    found, _ = pieces_of(path, "qwen3")
    assert found == [joined(row) for row in FAMILIES["qwen3"].oracle(turns, tools)]


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    row, line = WRONG[name]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as caught:
        pieces_of(path, "chatml")
    [said_of_it] = caught.value.errors
    assert line in said_of_it
    assert "rows.jsonl:1: " in said_of_it
    assert "\n" not in said_of_it


def test_options_of_a_row_reach_the_template(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": HI, "chat_template_kwargs": {"enable_thinking": False}}) + "\n")
    [[(prompt, _), (learned, _), _]], _ = pieces_of(path, "qwen3")
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert learned == "yo<|im_end|>"


def test_a_text_is_learned_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "xyz", "meta": 1}) + "\n")
    found, reading = pieces_of(path, "chatml")
    assert found == [[("x", False), ("yz<|im_end|>", True)]]
    assert reading.notes() == ["columns not used: meta"]
