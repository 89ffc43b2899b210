"""What is learned of conversations, in templates of eight families, against the same templates written in Python."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import CHATML, FAMILIES, R1, Row, tokenizer

from bitlora.config.sections import DataConfig
from bitlora.data.chat import prompt_text
from bitlora.data.examples import DataError
from bitlora.data.rows import Rows
from bitlora.data.sources import read_examples
from bitlora.data.split import prepare_data
from bitlora.data.tokens import Counts, tokenize

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Of a city.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]
ONE = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is 4."}]
THREE = [
    *ONE,
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes, \n\nsure."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "😀 you"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
CALLING = [
    {"role": "user", "content": "Weather in Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefgh1", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "one turn": (ONE, []),
    "three turns": (THREE, []),
    "system": ([SYSTEM, *ONE], []),
    "system, three turns": ([SYSTEM, *THREE], []),
    "weight 0": ([*THREE[:3], {**THREE[3], "weight": 0}, *THREE[4:]], []),
    "tools": (CALLING, TOOLS),
    "tools twice": ([SYSTEM, *CALLING, *CALLING], TOOLS),
}


def made(
    tmp_path: Path, turns: list[dict[str, Any]], tools: list[dict[str, Any]], template: str | None, bos: str, eos: str
) -> tuple[Rows, Counts, Any]:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns, **({"tools": tools} if tools else {})}) + "\n")
    has = tokenizer(template, bos, eos)
    rows, counts = tokenize(read_examples(str(path)), has, 4096)
    return rows, counts, has


def pieces(rows: Rows, has: Any) -> list[Row]:
    """Rows as text, cut where what is learned begins and ends."""
    found = []
    for first, last in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
        marked = zip(rows.tokens[first:last].tolist(), rows.learn[first:last].tolist(), strict=True)
        found.append([(has.decode([t for t, _ in run]), learn) for learn, run in groupby(marked, lambda one: one[1])])
    return found


def joined(row: Row) -> Row:
    """A row whose pieces change between learned and not."""
    runs = groupby((piece for piece in row if piece[0]), lambda piece: piece[1])
    return [("".join(text for text, _ in run), learn) for learn, run in runs]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learned_in_each_family(name: str, conversation: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    turns, tools = CONVERSATIONS[conversation]
    refused = (tools and not family.tools) or (turns[0]["role"] == "system" and not family.system)
    if refused:
        with pytest.raises(DataError) as caught:
            made(tmp_path, turns, tools, family.jinja, family.bos, family.eos)
        [line] = caught.value.lines
        assert line.startswith("rows.jsonl:1: the chat template ")
        assert any(why in line for why in ("System role not supported", "Roles must alternate", "leaves out the tool"))
        return
    rows, _, has = made(tmp_path, turns, tools, family.jinja, family.bos, family.eos)
    assert pieces(rows, has) == [joined(row) for row in family.oracle(turns, tools)]
    ids = ["rows.jsonl:1"] if len(rows) == 1 else [f"rows.jsonl:1#{n}" for n in range(1, len(rows) + 1)]
    assert list(rows.example_ids) == ids


@pytest.mark.parametrize("name", ["qwen3", "r1", "gpt_oss"])
def test_reasoning_is_learned(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    turns = [ONE[0], {**ONE[1], "reasoning_content": "add them"}, THREE[2], {**THREE[3], "reasoning_content": "check"}]
    rows, _, has = made(tmp_path, turns, [], family.jinja, family.bos, family.eos)
    assert pieces(rows, has) == [joined(row) for row in family.oracle(turns, [])]
    for row, thought in zip(pieces(rows, has), ("add them", "check"), strict=True):
        assert thought in row[1][0]


@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_reasoning_within_the_content_is_learned_too(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    apart = [ONE[0], {**ONE[1], "reasoning_content": "add them"}]
    within = [ONE[0], {**ONE[1], "content": "<think>\nadd them\n</think>\n\nIt is 4."}]
    one, _, has = made(tmp_path, apart, [], family.jinja, family.bos, family.eos)
    other, _, _ = made(tmp_path, within, [], family.jinja, family.bos, family.eos)
    assert pieces(one, has) == pieces(other, has)


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma", "phi3", "mistral"])
def test_reasoning_is_refused_where_a_template_drops_it(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    with pytest.raises(DataError, match="leaves out the reasoning of message 2"):
        made(tmp_path, [ONE[0], {**ONE[1], "reasoning_content": "add"}], [], family.jinja, family.bos, family.eos)


def test_calls_that_a_template_wants_as_text_and_without_content(tmp_path: Path) -> None:
    rows, _, has = made(tmp_path, CALLING, [], R1, "<|begin|>", "<|sentence_end|>")
    assert pieces(rows, has) == [joined(row) for row in FAMILIES["r1"].oracle(CALLING, [])]


def test_arguments_as_an_object_or_as_text_are_the_same(tmp_path: Path) -> None:
    family = FAMILIES["qwen3"]
    as_object = {**CALL, "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    turns = [CALLING[0], {**CALLING[1], "tool_calls": [as_object]}, *CALLING[2:]]
    one, _, _ = made(tmp_path, CALLING, TOOLS, family.jinja, family.bos, family.eos)
    other, _, _ = made(tmp_path, turns, TOOLS, family.jinja, family.bos, family.eos)
    assert one.tokens.tolist() == other.tokens.tolist()


def test_a_developer_is_the_system_where_a_template_knows_none(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}" + CHATML.partition("%}")[2]
    template = template.replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
    turns = [{"role": "developer", "content": "Be brief."}, *ONE]
    rows, counts, has = made(tmp_path, turns, [], template, "<s>", "<|im_end|>")
    assert has.decode(rows.tokens).startswith("<|im_start|>system\nBe brief.")
    assert counts.notes(64) == ["the chat template knows no developer: such turns are written as the system's"]
    rows, counts, has = made(tmp_path, turns, [], CHATML, "<s>", "<|im_end|>")
    assert has.decode(rows.tokens).startswith("<|im_start|>developer\nBe brief.")
    assert counts.notes(64) == []


MARKED = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}
{% else %}{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.mark.parametrize("conversation", ["one turn", "three turns", "system, three turns", "weight 0"])
def test_what_a_template_marks_as_generated_is_learned(conversation: str, tmp_path: Path) -> None:
    turns, _ = CONVERSATIONS[conversation]
    marked, _, has = made(tmp_path, turns, [], MARKED, "<s>", "<|im_end|>")
    learned = [text for text, learn in pieces(marked, has)[0] if learn]
    assert learned == [f"{t['content']}<|im_end|>" for t in turns if t["role"] == "assistant" and t.get("weight", 1)]


def test_a_template_that_marks_nothing_of_a_conversation_refuses_it(tmp_path: Path) -> None:
    template = MARKED.replace("m.role == 'assistant'", "m.role == 'model'")
    with pytest.raises(DataError, match="marks pieces as generated, and none in this conversation"):
        made(tmp_path, ONE, [], template, "<s>", "<|im_end|>")


@pytest.mark.parametrize("end", ["assistant: ", "assistant:\n", "assistant:", "assistant:\n\n", "assistant:  "])
@pytest.mark.parametrize("said", ["happy", " happy", "\nhappy", "sad", "  two  spaces", "😀", "."])
def test_the_boundary_is_where_the_prompt_ends_whatever_it_ends_with(end: str, said: str, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ 'assistant' if m.role == 'assistant' else 'user' }}"
        f"{{{{ {end.removeprefix('assistant')!r} }}}}"
        "{{ m.content }}<|im_end|>{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {end!r} }}}}{{% endif %}}"
    )
    turns = [{"role": "user", "content": "mood?"}, {"role": "assistant", "content": said}]
    rows, _, has = made(tmp_path, turns, [], template, "<s>", "<|im_end|>")
    [(prompt, _), (learned, learn)] = pieces(rows, has)[0]
    assert learn
    assert learned == f"{said}<|im_end|>"
    assert rows.text_bytes.tolist() == [len(said.encode())]
    # what is trained on begins with the very tokens that generation starts from
    asked = has(prompt_text("mood?", has), add_special_tokens=False).input_ids
    assert rows.tokens[: len(asked)].tolist() == asked
    assert not rows.learn[: len(asked)].any()
    assert rows.learn[len(asked) :].all()
    assert prompt.endswith(end)


def test_a_tokenizer_that_begins_every_text_with_a_space(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = ["▁", *"abcdehimnopstuy?:", "<unk>", "▁happy", "happy", "<0x0A>"]
    vocabulary = {token: number for number, token in enumerate([*letters, "ha", "hap", "happ", "▁h"])}
    merges = [("h", "a"), ("ha", "p"), ("hap", "p"), ("happ", "y"), ("▁", "happy")]
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    has = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")
    for end, expected in (("a:", ["happy"]), ("a: ", ["happy"]), ("a:\n", ["happy"])):
        has.chat_template = (
            f"{{% for m in messages %}}{{% if m.role == 'user' %}}{{{{ m.content + {end!r} }}}}"
            "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
        )
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps({"prompt": "mood?", "completion": "happy"}))
        rows, _ = tokenize(read_examples(str(path)), has, 64)
        assert has.convert_ids_to_tokens(rows.tokens[rows.learn].tolist())[:-1] == expected
        asked = has(prompt_text("mood?", has), add_special_tokens=False).input_ids
        assert rows.tokens[: len(asked)].tolist() == asked


def test_a_text_has_its_beginning_and_its_end_once(tmp_path: Path) -> None:
    from tokenizers import processors

    has = tokenizer(None, "<s>", "</s>")
    has.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", has.bos_token_id)]
    )
    path = tmp_path / "rows.jsonl"
    texts = ["the text", "<s>the text", "the text</s>", "<s>the text</s>"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows, _ = tokenize(read_examples(str(path)), has, 64)
    assert pieces(rows, has) == [[("<s>", False), ("the text</s>", True)]] * 4
    assert np.unique(rows.text_bytes).tolist() == [len("the text")]


@pytest.mark.parametrize(
    ("template", "note"),
    [
        (CHATML.replace("<|im_end|>", ""), r"ends an answer with no token of its own (only '\n' follows it)"),
        (CHATML.partition("{% if")[0], r"ignores add_generation_prompt, and writes '<|im_start|>assistant\n'"),
        (FAMILIES["qwen3"].jinja, r"writes '<think>\n\n</think>\n\n' before an answer, which is learned with it"),
    ],
)
def test_what_a_template_does_is_said_in_one_line(template: str, note: str, tmp_path: Path) -> None:
    _, counts, _ = made(tmp_path, ONE, [], template, "<s>", "<|im_end|>")
    [said] = counts.notes(64)
    assert note in said


def test_rows_for_each_turn_are_said(tmp_path: Path) -> None:
    family = FAMILIES["gpt_oss"]
    _, counts, _ = made(tmp_path, THREE, [], family.jinja, family.bos, family.eos)
    assert "1 conversation was made into 3 rows, one for each assistant turn" in counts.notes(64)[-1]


def test_a_template_that_is_none_and_one_that_fails(tmp_path: Path) -> None:
    for template, line in (
        ("{% for m in messages %}", "the chat template is no Jinja template: "),
        ("{{ messages[0].content + 1 }}", "rows.jsonl:1: the chat template fails on the conversation: TypeError: "),
        (
            CHATML.replace("m.role }}", "m.role }}{% if add_generation_prompt %}!{% endif %}", 1),
            "does not write the assist",
        ),
    ):
        with pytest.raises(DataError) as caught:
            made(tmp_path, ONE, [], template, "<s>", "<|im_end|>")
        assert line in caught.value.lines[0]
        assert "\n" not in caught.value.lines[0]


def test_a_template_of_the_datas_own(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"n{n}", "completion": "yo"}) + "\n" for n in range(4)))
    has = tokenizer(None, "<s>", "<|im_end|>")
    data = prepare_data(DataConfig(source=str(path), chat_template=CHATML), has)
    assert has.decode(data.train.take([0]).tokens).startswith("<|im_start|>user\nn")
    assert has.chat_template == CHATML  # what `generate` and an export go on from


def test_a_compiled_template_is_called_as_transformers_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitlora.data.chat.ChatTemplate._plainly: `_compile_jinja_template` gives what `render_jinja_template` renders, and
    these are all the variables that it hands over."""
    from transformers.utils import chat_template_utils

    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ eos_token }}"

    compiled = chat_template_utils._compile_jinja_template(template)
    seen: list[dict[str, object]] = []

    class Listening:
        def render(self, **variables: object) -> str:
            seen.append(variables)
            text: str = compiled.render(**variables)
            return text

    monkeypatch.setattr(chat_template_utils, "_compile_jinja_template", lambda _: Listening())
    turns = [{"role": "user", "content": "1+1="}]
    assert chat_template_utils.render_jinja_template(
        [turns], None, chat_template=template, add_generation_prompt=True, eos_token="e"
    )[0] == ["[user]1+1=e"]
    expected = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True, "eos_token": "e"}
    assert seen == [expected]
