"""Masks against an independent reading, the split, truncation, and batches."""

from __future__ import annotations

import json
from collections import OrderedDict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitlora.config.sections import DataConfig
from bitlora.data import batches
from bitlora.data.batches import batch_rows
from bitlora.data.examples import DataError, Example, Message
from bitlora.data.rows import Rows
from bitlora.data.sources import read_examples
from bitlora.data.split import prepare_data
from bitlora.data.tokens import tokenize

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "the quick brown fox jumps over the lazy dog 你好 🙂 user assistant system one two  three"


def byte_level(template: str | None = CHATML, **special: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([WORDS] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", **special)
    tokenizer.chat_template = template
    return tokenizer


def word_level() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<unk>", *dict.fromkeys(WORDS.split())])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def talk(*contents: str, example_id: str = "x:1", system: str | None = None) -> Example:
    turns = [Message(("user", "assistant")[index % 2], content) for index, content in enumerate(contents)]
    return Example(example_id, (*([Message("system", system)] if system else []), *turns))


def runs(rows: Rows, row: int, tokenizer: Any) -> list[str]:
    """The text of each unbroken run of learned tokens."""
    tokens, learn = (part[rows.offsets[row] : rows.offsets[row + 1]] for part in (rows.tokens, rows.learn))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], learn, [False]])))
    return [tokenizer.decode(tokens[start:stop]) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


COMPLETIONS = ["one two", "  two  spaces ", "\n\nnewlines\n", "🙂 你好", "x", "   \t."]


@pytest.mark.parametrize("completion", COMPLETIONS)
@pytest.mark.parametrize("prompt", ["the fox", "ends in spaces   ", "ends in 🙂", "你"])
def test_the_completion_and_the_end_of_turn_are_learned_and_nothing_else(prompt: str, completion: str) -> None:
    tokenizer = byte_level()
    rows, _ = tokenize([talk(prompt, completion)], tokenizer, 512)
    assert runs(rows, 0, tokenizer) == [f"{completion}<|im_end|>"]
    assert tokenizer.decode(rows.tokens) == (
        f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{completion}<|im_end|>\n"
    )


@pytest.mark.parametrize("completion", COMPLETIONS)
@pytest.mark.parametrize("prompt", ["the fox", "ends in spaces   ", "ends in 🙂"])
def test_without_a_template(prompt: str, completion: str) -> None:
    tokenizer = byte_level(template=None)
    rows, _ = tokenize([talk(prompt, completion)], tokenizer, 512)
    assert tokenizer.decode(rows.tokens) == f"{prompt}\n{completion}<|im_end|>"
    [learned] = runs(rows, 0, tokenizer)
    # white space may share a token with the newline before it: that token begins in the prompt
    assert learned.lstrip() == f"{completion}<|im_end|>".lstrip()


def test_without_a_template_a_base_that_adds_its_bos_gets_it() -> None:
    from tokenizers import processors

    tokenizer = byte_level(template=None, bos_token="<s>")
    rows, _ = tokenize([talk("the", "fox")], tokenizer, 512)
    assert tokenizer.decode(rows.tokens) == "the\nfox<|im_end|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    rows, _ = tokenize([talk("the", "fox")], tokenizer, 512)
    assert tokenizer.decode(rows.tokens) == "<s>the\nfox<|im_end|>"


def test_a_tokenizer_that_swallows_white_space() -> None:
    tokenizer = word_level()
    rows, _ = tokenize([talk("the quick", "brown fox")], tokenizer, 512)
    assert runs(rows, 0, tokenizer) == ["brown fox <|im_end|>"]  # decoding joins words with spaces


def test_every_assistant_turn_is_learned_but_a_blank_one() -> None:
    tokenizer = byte_level()
    rows, counts = tokenize([talk("one", "two", "the", " ", "fox", "dog", system="lazy")], tokenizer, 512)
    assert runs(rows, 0, tokenizer) == ["two<|im_end|>", "dog<|im_end|>"]
    assert counts.empty == []


def test_a_template_without_an_end_of_turn_token_ends_in_white_space_that_is_learned() -> None:
    tokenizer = byte_level(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    rows, _ = tokenize([talk("one", "two")], tokenizer, 512)
    assert [text.lstrip() for text in runs(rows, 0, tokenizer)] == ["two\n"]


def test_spaces_at_the_end_of_the_generation_prompt_are_not_learned() -> None:
    tokenizer = byte_level(CHATML.replace("assistant\n{% endif", "assistant  {% endif").replace("}}\n{{", "}}  {{"))
    rows, _ = tokenize([talk("one", "\ntwo")], tokenizer, 512)
    offsets = tokenizer("a  \ntwo", return_offsets_mapping=True)["offset_mapping"]
    assert offsets[2] == (3, 3)  # the second space is said to be empty, and to stand where the completion begins
    assert runs(rows, 0, tokenizer) == ["\ntwo<|im_end|>"]


def test_truncation_and_what_is_dropped() -> None:
    tokenizer = byte_level()
    examples = [
        talk("the", "fox " * 50, example_id="cut"),
        talk("the " * 50, "fox", example_id="full"),
        talk("the", " \n", example_id="blank"),
        talk("the", "fox", example_id="whole"),
    ]
    rows, counts = tokenize(examples, tokenizer, 32)
    assert rows.example_ids == ("cut", "whole")
    assert rows.lengths.tolist()[0] == 32
    assert rows.lengths.tolist()[1] < 32
    assert (counts.read, counts.truncated, counts.empty, counts.full, counts.dropped) == (
        4,
        1,
        ["blank"],
        ["full"],
        2,
    )
    assert counts.notes(32) == [
        "1 of 4 rows was longer than 32 tokens and was truncated",
        "1 row has an empty completion and was dropped (first: blank)",
        "1 row has a prompt that fills 32 tokens and was dropped (first: full)",
    ]
    whole, _ = tokenize(examples[:1], tokenizer, 10_000)
    assert whole.tokens[:32].tolist() == rows.take([0]).tokens.tolist()


def test_the_first_token_is_never_learned() -> None:
    tokenizer = byte_level()
    rows, _ = tokenize([Example("x:1", (), text="x y z")], tokenizer, 512)
    assert not rows.learn[0]
    assert rows.learn[1:].all()
    assert rows.text_bytes.tolist() == [len(" y z")]


def test_a_template_that_refuses_names_the_example() -> None:
    tokenizer = byte_level(
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system!') }}{% endif %}" + CHATML
    )
    examples = [talk("a", "b", example_id=f"f:{number}", system="s" if number > 1 else None) for number in (1, 2, 3)]
    with pytest.raises(DataError) as caught:
        tokenize(examples, tokenizer, 64)
    assert caught.value.lines == [
        f"f:{number}: the chat template refuses the conversation: No system!" for number in (2, 3)
    ]


def test_of_a_template_that_rewrites_earlier_turns_each_turn_is_a_row() -> None:
    thinking = "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}"
    tokenizer = byte_level(CHATML.replace("{{ m['content'] }}", thinking))
    rows, _ = tokenize([talk("one", "two")], tokenizer, 512)
    assert runs(rows, 0, tokenizer) == ["<think></think>two<|im_end|>"]
    rows, _ = tokenize([talk("one", "two", "the", "fox", example_id="f:7")], tokenizer, 512)
    assert rows.example_ids == ("f:7#1", "f:7#2")
    assert runs(rows, 0, tokenizer) == ["<think></think>two<|im_end|>"]
    assert runs(rows, 1, tokenizer) == ["<think></think>fox<|im_end|>"]
    assert "<think></think>two" not in tokenizer.decode(rows.tokens[rows.offsets[1] :])


def test_a_template_that_writes_the_date_gives_the_same_tokens_tomorrow() -> None:
    tokenizer = byte_level("{{ strftime_now('%d %b %Y') }}\n" + CHATML)
    rows, _ = tokenize([talk("one", "two")], tokenizer, 512)
    text = tokenizer.decode(rows.tokens)
    assert text.startswith("26 Jul 2024\n")
    assert f"{date.today():%d %b %Y}" not in text


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="Slow: not a fast tokenizer"):
        tokenize([talk("a", "b")], Slow(), 64)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [1, 2, 10_000])
def test_take_and_learn_tokens(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitlora.data.rows.BLOCK", block)
    tokenizer = byte_level()
    examples = [talk("the", "fox " * number, example_id=str(number)) for number in range(1, 6)]
    rows, _ = tokenize(examples, tokenizer, 512)
    some = rows.take([3, 0, 3])
    assert some.example_ids == ("4", "1", "4")
    assert len(some) == 3
    for place, index in enumerate((3, 0, 3)):
        one, _ = tokenize([examples[index]], tokenizer, 512)
        row = slice(some.offsets[place], some.offsets[place + 1])
        assert some.tokens[row].tolist() == one.tokens.tolist()
        assert some.learn[row].tolist() == one.learn.tolist()
        assert some.learn_tokens[place] == one.learn.sum() == rows.learn_tokens[index]
    assert len(rows.take([])) == 0
    assert rows.take([]).offsets.tolist() == [0]
    assert (rows.tokens.dtype, rows.learn.dtype, rows.offsets.dtype) == (np.int32, np.bool_, np.int64)


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"n{n}", "completion": f"the {n}"}) + "\n" for n in range(50)))
    return str(path)


def test_the_split_is_seeded_and_the_rest_of_the_eval_split_is_not_trained_on(source: str) -> None:
    tokenizer = byte_level()
    capped = prepare_data(DataConfig(source=source, eval_fraction=0.2, eval_rows=4), tokenizer)
    whole = prepare_data(DataConfig(source=source, eval_fraction=0.2, eval_rows=None), tokenizer)
    other = prepare_data(DataConfig(source=source, eval_fraction=0.2, eval_rows=4, seed=1), tokenizer)
    again = prepare_data(DataConfig(source=source, eval_fraction=0.2, eval_rows=4), tokenizer)
    assert whole.eval.example_ids[:4] == capped.eval.example_ids
    assert whole.train.example_ids == capped.train.example_ids
    assert set(whole.train.example_ids) | set(whole.eval.example_ids) == {f"rows.jsonl:{n}" for n in range(1, 51)}
    assert len(whole.train) + len(whole.eval) == 50
    assert set(other.eval.example_ids) != set(capped.eval.example_ids)
    assert again.summary == capped.summary
    assert len({each.summary.fingerprint for each in (capped, whole, other)}) == 3
    got = capped.summary
    assert (got.source, got.rows_read, got.truncated, got.dropped) == (source, 50, 0, 0)
    assert (got.train_rows, got.eval_rows, got.eval_split_rows, got.notes) == (40, 4, 10, ())


def test_an_eval_source_leaves_the_whole_source_to_train(source: str, tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", "completion": text}) + "\n" for text in ("b", "", "c", "d")))
    data = prepare_data(DataConfig(source=source, eval_source=str(path), eval_rows=2), byte_level())
    assert len(data.train) == 50
    assert set(data.eval.example_ids) < {"eval.jsonl:1", "eval.jsonl:3", "eval.jsonl:4"}
    assert (data.summary.eval_rows, data.summary.eval_split_rows, data.summary.dropped) == (2, 3, 1)
    assert data.summary.notes == (
        "of the eval source: 1 row has an empty completion and was dropped (first: eval.jsonl:2)",
    )


def test_a_draw_of_rows_is_split_like_a_source_of_that_size(source: str) -> None:
    tokenizer = byte_level()
    data = prepare_data(DataConfig(source=source, rows=20, eval_fraction=0.2), tokenizer, test_rows=None)
    other = prepare_data(DataConfig(source=source, rows=20, eval_fraction=0.2, seed=1), tokenizer, test_rows=None)
    more = prepare_data(DataConfig(source=source, rows=99), tokenizer)
    used = {*data.train.example_ids, *data.eval.example_ids, *data.test.example_ids}
    assert (len(data.train), len(data.eval), len(data.test), len(used)) == (16, 2, 2, 20)
    assert used != {*other.train.example_ids, *other.eval.example_ids, *other.test.example_ids}
    assert data.summary.rows_read == 50
    assert data.summary.notes == ("20 of 50 rows were drawn at random; no other is used",)
    assert (len(more.train) + len(more.eval), more.summary.notes) == (50, ())


def test_a_draw_of_rows_leaves_the_eval_source_whole(source: str, tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", "completion": text}) + "\n" for text in "bcdefg"))
    whole = prepare_data(DataConfig(source=source, eval_source=str(path)), byte_level())
    data = prepare_data(DataConfig(source=source, eval_source=str(path), rows=3), byte_level())
    assert len(data.train) == 3
    assert set(data.train.example_ids) < set(whole.train.example_ids)
    assert data.eval.example_ids == whole.eval.example_ids


def test_the_test_split_is_what_nobody_is_tuned_on(source: str) -> None:
    tokenizer = byte_level()
    plain = prepare_data(DataConfig(source=source, eval_fraction=0.2, eval_rows=4), tokenizer)
    capped = prepare_data(DataConfig(source=source, eval_fraction=0.2, eval_rows=4), tokenizer, test_rows=3)
    whole = prepare_data(DataConfig(source=source, eval_fraction=0.2, eval_rows=None), tokenizer, test_rows=None)
    assert (len(plain.test), len(capped.test), len(whole.test)) == (0, 3, 5)
    assert capped.train.example_ids == plain.train.example_ids == whole.train.example_ids
    assert capped.eval.example_ids == plain.eval.example_ids
    assert len(whole.eval) == 5  # half of the ten that are held out
    for data in (capped, whole):
        parts = [*data.train.example_ids, *data.eval.example_ids, *data.test.example_ids]
        assert len(parts) == len(set(parts))
    assert plain.summary.fingerprint != capped.summary.fingerprint
    assert (plain.summary.test_rows, capped.summary.test_rows) == (0, 3)


def test_text_bytes_are_those_of_the_completion_that_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    said = ["four", "ünï", "x" * 500]
    path.write_text("".join(json.dumps({"prompt": "p", "completion": text}) + "\n" for text in said))
    examples = read_examples(str(path))
    rows, _ = tokenize(examples, byte_level(), 100)
    assert rows.text_bytes[:2].tolist() == [4, 5]
    assert rows.text_bytes[2] == rows.learn_tokens[2] < 100  # a token is a byte here, and the end was cut off
    assert rows.take([1]).text_bytes.tolist() == [5]


def test_a_tiny_source_keeps_a_row_on_either_side(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    for fraction in (0.01, 0.99):
        data = prepare_data(DataConfig(source=str(path), eval_fraction=fraction), byte_level())
        assert (len(data.train), len(data.eval)) == (1, 1)


def test_too_few_rows_and_errors_of_both_sources_at_once(tmp_path: Path) -> None:
    path, broken = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": ""}\n')
    broken.write_text("{}\n7\n")
    with pytest.raises(DataError) as caught:
        prepare_data(DataConfig(source=str(path)), byte_level())
    assert caught.value.lines == [
        f"{path}: 1 usable rows of 2; at least 2 are needed, to train on and to evaluate"
        " (1 row has an empty completion and was dropped (first: a.jsonl:2))"
    ]
    with pytest.raises(DataError) as caught:
        prepare_data(DataConfig(source=str(tmp_path / "none.jsonl"), eval_source=str(broken)), byte_level())
    assert [line.split(": ")[0] for line in caught.value.lines] == [
        f"{tmp_path}/none.jsonl",
        f"{broken}:1",
        f"{broken}:2",
    ]


@given(rows=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**31), epoch=st.integers(0, 3))
def test_an_epoch_covers_every_row_once(rows: int, batch_size: int, seed: int, epoch: int) -> None:
    steps = -(-rows // batch_size)
    batches = [batch_rows(rows, batch_size, seed, epoch * steps + step) for step in range(steps)]
    assert sorted(np.concatenate(batches).tolist()) == list(range(rows))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= batch_size


def test_batches_depend_on_seed_and_epoch_and_on_nothing_else() -> None:
    first = batch_rows(100, 10, 0, 3).tolist()
    assert first != batch_rows(100, 10, 1, 3).tolist()
    assert first != batch_rows(100, 10, 0, 13).tolist()
    changed = batch_rows(100, 10, 0, 3)
    changed[:] = -1
    assert batch_rows(100, 10, 0, 3).tolist() == first
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([0, 1]))).permutation(100)
    assert batch_rows(100, 10, 0, 13).tolist() == order[30:40].tolist()


def test_orders_of_many_rows_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_BYTES", 10_000)
    monkeypatch.setattr(batches, "_KEPT", OrderedDict())
    first = [batch_rows(1000, 7, seed, 200).tolist() for seed in range(40)]
    assert first == [batch_rows(1000, 7, seed, 200).tolist() for seed in range(40)]
    for seed, rows in enumerate(first):
        order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 1]))).permutation(1000)
        assert rows == order[57 * 7 : 58 * 7].tolist()
    assert len(batches._KEPT) == batches.LEAST
