"""Tokens, masks, ids, groups and splits are to the last bit those of the version before there was a cache: the numbers here
were computed by that version."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import FAMILIES, tokenizer

from bitlora.config.sections import DataConfig
from bitlora.data import cached, tokens
from bitlora.data.examples import DataError, Example, Message, ToolCall, pair
from bitlora.data.rows import RowsWriter
from bitlora.data.split import Dataset, prepare_data
from bitlora.tokenized import processes

WORDS = (
    *(
        "the",
        "user",
        "happy",
        "don't",
        "I'LL",
        "1234567",
        "x_y",
        "a--b",
        "two  three",
        " ",
        "\n\n",
        "\t",
        "¿qué",
        "🙂 ok",
    ),
    *(
        "<|im_end|>",
        "[INST]",
        "<s>",
        "Oslo,",
        "weather",
        "\r\n",
        "it's",
        "naïve",
        "\x0b",
        "=",
        "((",
        "))",
        "42",
        "é",
        "\x1c!",
    ),
)


def say(draw: random.Random, most: int) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of most shapes: copies, equal prompts, several examples in a row, nothing to learn."""
    draw = random.Random(seed)
    made: list[dict[str, Any]] = []
    for number in range(count):
        kind = number % 10
        if kind < 4:
            made.append({"prompt": f"{number} {say(draw, 6)}", "completion": say(draw, 9)})
        elif kind == 4:
            made.append({"prompt": f"q{number % 3}", "completion": say(draw, 5)})
        elif kind == 5:
            instances = [{"input": say(draw, 2), "output": say(draw, 3)} for _ in range(draw.randint(1, 3))]
            made.append({"instruction": f"do {number}", "instances": instances})
        elif kind == 6:
            turns = [{"role": role, "content": say(draw, 4)} for _ in range(2) for role in ("user", "assistant")]
            made.append({"messages": turns})
        elif kind == 7:
            made.append({"text": say(draw, 12)})
        elif kind == 8:
            made.append(made[draw.randrange(len(made))])
        else:
            made.append({"prompt": f"{number}", "completion": draw.choice(["", "  ", "yes"])})
    return made


def write(path: Path, values: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


def digest(data: Dataset, folder: Path) -> str:
    """Of all that packs and records get of the data, which lie in `folder`."""
    found = hashlib.sha256()
    for part in (data.train, data.eval, data.test):
        whole = part.take(np.arange(len(part)))
        for array in (whole.tokens, whole.learn, whole.offsets, whole.text_bytes, part.lengths, part.learn_tokens):
            found.update(f"{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
        found.update("\0".join((*part.example_ids, *part.groups, *whole.example_ids, *whole.groups)).encode())
    summary = data.summary
    counts = summary.rows_read, summary.truncated, summary.dropped, summary.copies, summary.shared, summary.fingerprint
    found.update(repr((counts, summary.notes, summary.eval_split_rows)).replace(str(folder), "").encode())
    return found.hexdigest()[:12]


def cases(folder: Path) -> dict[str, tuple[dict[str, Any], int | None]]:
    one, two = write(folder / "one.jsonl", rows(180, 1)), write(folder / "two.jsonl", rows(90, 2))
    broken = folder / "broken.jsonl"
    broken.write_text(Path(two).read_text() + '{"prompt": 1, "completion": "x"}\nnot JSON\n')
    return {
        "plain": ({"source": one, "max_length": 64}, 0),
        "short": ({"source": one, "max_length": 24, "eval_fraction": 0.3}, None),
        "some": ({"source": [one, two], "max_length": 64, "rows": 100, "seed": 3, "eval_rows": None}, 7),
        "apart": ({"source": one, "eval_source": two, "shared_rows": "drop", "max_length": 48}, None),
        "kept": ({"source": two, "eval_source": two, "shared_rows": "keep", "max_length": 48}, 0),
        "mixed": ({"source": [one, two], "weights": [1, 3], "max_length": 64, "seed": 1}, 0),
        "broken": ({"source": str(broken), "broken_rows": "skip", "max_length": 64}, 0),
    }


EXPECTED = {
    "chatml": "922392b51fdc fdd76b3994d6 a32d5989f554 d8edb265bddc cc423d096780 3dfc6bb0e07e 146b81443474",
    "llama3": "ee3c8863e3b1 8b3395cd4edc 11476e355427 167216e26e2d a240fd91e383 fc0c86abce6d c8e16a98608f",
    "mistral": "2aaec0726989 c73f6d69388d 2ca394bd326c 3e9e056858e0 efce39b903ea f368fe54817e be6ae5bcb957",
    "gemma": "596a689ea819 71798a33548c 3e5ef6173ff1 253cb07ff8e8 c9ad93f6a630 4e431c0ed143 247f95ffe3b1",
    "phi3": "c1f198399b02 2f312cf08eac 3439c66478c4 f7a18debfd56 99f4252b6b05 dbc013469ff0 e23444a043dc",
    "qwen3": "a3e29588fc03 c63ae2ef1259 ace415f7d9fb 82fa8b4166d7 3ba8789db879 0c833e3394fc 8cfb1fb6ac74",
    "r1": "1b9ea0daaaff cde11d1c6fa4 d980d2ab3013 3abcc1af0965 b784cdd10832 090035bdc48e 4716e80c57c7",
    "gpt_oss": "b32e7128e1c6 7f1e72753aa7 bd63532e13f9 11309bfac736 c342458274ef 7fc1a60532e2 20a28a49f370",
    "none": "9ab624d207de ee4d87e61253 b3a6e05c58ff 677ef469db30 1361151f0217 f224115aaff7 35576250c99c",
}
"""Of each family, in the order of `cases`."""


@pytest.mark.parametrize("family", [*FAMILIES, "none"])
def test_data_are_what_they_were_before_there_was_a_cache(family: str, tmp_path: Path) -> None:
    given = FAMILIES.get(family)
    has = tokenizer(given.jinja, given.bos, given.eos) if given else tokenizer(None, "<s>", "</s>")
    found = {}
    for name, (keys, test_rows) in cases(tmp_path).items():
        found[name] = digest(prepare_data(DataConfig(**keys), has, test_rows), tmp_path)
    assert " ".join(found.values()) == EXPECTED[family]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Few rows go to another process, too; gets what was sent."""
    monkeypatch.setattr(tokens, "MANY", 10)
    monkeypatch.setattr(tokens, "CHUNK", 5)
    started, sent = processes._team, list[object]()

    def ready(*args: Any) -> Any:
        team = started(*args)
        for other in team:
            other.collect(wait=True)
            give = other.give
            other.give = lambda *given, give=give: sent.append(given) or give(*given)
        return team

    monkeypatch.setattr(processes, "_team", ready)
    return sent


def test_they_are_the_same_where_several_processes_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: list[object]
) -> None:
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cached, "SMALL", 10)
    monkeypatch.setattr(cached, "cores", lambda: 2)
    for family, case in (("gemma", "plain"), ("qwen3", "broken")):
        given = FAMILIES[family]
        keys, test_rows = cases(tmp_path)[case]
        data = prepare_data(DataConfig(**keys), tokenizer(given.jinja, given.bos, given.eos), test_rows)
        expected = dict(zip(cases(tmp_path), EXPECTED[family].split(), strict=True))
        assert digest(data, tmp_path) == expected[case]
        assert len(sent) > 3
        sent.clear()


REFUSES = (
    "{% for m in messages %}{% if 'no' in m.content %}{{ raise_exception('it says ' + m.content) }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{% if m.content != 'lost' %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_errors_and_counts_are_the_same_where_several_processes_find_them(sent: list[object]) -> None:
    def examples() -> list[Example]:
        said = ["yes", "no 1", "", "a word too many " * 9, "no 2"]
        made = [Example(f"f:{n}", pair(f"q {n}", said[n * n % 5] + f" {n}" * (n % 5 > 2))) for n in range(90)]
        calls = (ToolCall("find", {"what": "x"}),)
        made[70] = Example("f:70", (Message("user", "q"), Message("assistant", "", calls=calls)))
        return made

    def found(others: int) -> list[Any]:
        skipped: list[str] = []
        writer, has = RowsWriter(None), tokenizer(REFUSES)
        counts = tokens.tokenize_into(writer, examples(), has, 24, skipped, others)
        with pytest.raises(DataError) as raised:
            tokens.tokenize_into(RowsWriter(None), examples(), has, 24, None, others)
        rows = writer.close({})
        arrays = (rows.tokens, rows.learn, rows.offsets, rows.text_bytes, *(rows.keys or ()))
        return [
            [array.tolist() for array in arrays],
            list(rows.example_ids),
            counts,
            counts.notes(24),
            skipped,
            raised.value.errors,
        ]

    one = found(0)
    assert not sent
    assert found(1) == one
    assert len(sent) > 3
    *_, skipped, errors = one
    assert len(skipped) > 10
    assert any("leave out" in line or "leaves out" in line for line in skipped)
    assert list(errors) == skipped
