"""Whatever is in a file, rows come of it or lines that say what is wrong: never a traceback.

`BITLORA_FUZZ=10000` gives each test that many inputs.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from families import FAMILIES, tokenizer
from file_formats import FORMATS, zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitlora.data.examples import DataError, Reading
from bitlora.data.sources import How, read_examples
from bitlora.data.tokens import tokenize

MANY = int(os.environ.get("BITLORA_FUZZ", "60"))
"""Inputs of each fuzz test; 10,000 for a whole night's."""
WHOLE = {name: raw for name, raw in FORMATS.items() if len(raw) < 20_000}
KEYS = [
    "prompt",
    "completion",
    "messages",
    "conversations",
    "instruction",
    "output",
    "input",
    "instances",
    "text",
    "tools",
]
KEYS += [
    "role",
    "content",
    "from",
    "value",
    "weight",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "system",
    "history",
]
KEYS += [
    "chosen",
    "rejected",
    "question",
    "answer",
    "label",
    "reasoning_content",
    "chat_template_kwargs",
    "type",
    "functions",
]
WORDS = [
    "user",
    "assistant",
    "system",
    "tool",
    "human",
    "gpt",
    "function_call",
    "text",
    "hi",
    "",
    "{}",
    "[",
    "\ud800",
    "</think>",
]
LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(WORDS) | st.text(max_size=3)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=2), inner, max_size=5)
    ),
    max_leaves=12,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(WORDS[:7]), "content": JSON},
        optional=dict.fromkeys(("tool_calls", "weight", "reasoning_content", "name", "function_call"), JSON),
    ),
    max_size=4,
)
ROW = st.dictionaries(st.sampled_from(KEYS), JSON | TURNS, max_size=6)
FUZZ = settings(
    max_examples=MANY, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
TOKENIZERS: dict[str, Any] = {}


def survives(path: Path, family: str | None) -> None:
    """Rows, or lines: nothing else comes of a file."""
    if family not in TOKENIZERS:
        TOKENIZERS[str(family)] = tokenizer(FAMILIES[family].jinja if family else None, "<s>", "<|im_end|>")
    for how in (How(), How(skip=True)):
        reading = Reading()
        try:
            rows, _ = tokenize(
                read_examples(str(path), how, reading),
                TOKENIZERS[str(family)],
                64,
                reading.skipped if how.skip else None,
            )
            assert rows.offsets[-1] == len(rows.tokens)
        except DataError as error:
            found = error.errors
        else:
            found = ("",)
        assert all("\n" not in line for line in found)
        assert found


@FUZZ
@given(
    name=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4), st.integers(0, 40)), max_size=3),
    zipped=st.sampled_from(["", ".gz", ".zst"]),
    early=st.booleans(),
)
def test_files_with_bytes_changed_give_rows_or_lines(
    tmp_path: Path, name: str, changes: list[tuple[float, bytes, int]], zipped: str, early: bool
) -> None:
    pack: Callable[[bytes], bytes] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[zipped]
    raw = WHOLE[name] if early else pack(WHOLE[name])
    for place, new, cut in changes:
        at = int(place * len(raw))
        raw = raw[:at] + new + raw[at + cut :]
    path = tmp_path / f"{name}{zipped}"
    path.write_bytes(pack(raw) if early else raw)
    survives(path, "chatml")


@FUZZ
@given(
    rows=st.lists(ROW | JSON, min_size=1, max_size=3),
    family=st.sampled_from([None, "chatml", "qwen3", "r1", "gpt_oss"]),
)
def test_rows_of_every_make_give_rows_or_lines(tmp_path: Path, rows: list[Any], family: str | None) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    survives(path, family)


@FUZZ
@given(
    raw=st.binary(max_size=60),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "a.txt", "a.gz"]),
)
def test_any_bytes_give_rows_or_lines(tmp_path: Path, raw: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    survives(path, None)
