"""Words give the tokens that the tokenizer itself gives, or say that they cannot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from bitlora.tokenized import words as module
from bitlora.tokenized.words import words_of

ENDS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = ENDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|im_end|>\n", "[INST]", "ab")
CORPUS = ["the  user don't ask's\n\n for 12345 weathers, in Oslo! (two  three)\r\n\tx_y == 7"] * 3


def made(pre: Any, normalizer: Any = None, added: tuple[AddedToken | str, ...] = SPECIAL) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    )
    if normalizer is not None:
        core.normalizer = normalizer
    core.add_special_tokens(list(added))
    return core


def byte_level(regex: bool = True) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)


def split(*patterns: str) -> Any:
    return pre_tokenizers.Sequence(
        [*(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns), byte_level(False)]
    )


MADE = {
    "gpt2": made(byte_level()),
    "llama3": made(split(LLAMA3)),
    "qwen": made(split(QWEN), normalizers.NFC()),
    "o200k": made(split(O200K), normalizers.Sequence([normalizers.NFKC()])),
    "deepseek": made(split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK)),
    "smollm": made(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()])),
    "digits": made(pre_tokenizers.Sequence([pre_tokenizers.Digits(), byte_level()])),
    "letters": made(split(r"\p{L}+")),
    "bare": made(byte_level(), added=()),
}
KNOWN = {name: words_of(tokenizer) for name, tokenizer in MADE.items()}
PIECES = (
    *SPECIAL,
    "the",
    " user",
    "don't",
    "I'LL",
    "'S",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "12345",
    "x_y",
    "((",
    "=/\n",
    "Oslo",
    "aB",
)
plain = st.one_of(
    st.text(st.characters(min_codepoint=1, max_codepoint=0x17F)), st.lists(st.sampled_from(PIECES)).map("".join)
)


@pytest.mark.parametrize("name", MADE)
@given(text=plain)
def test_tokens_are_those_of_the_tokenizer(name: str, text: str) -> None:
    known, tokenizer = KNOWN[name], MADE[name]
    assert known is not None
    found = known.tokens(text)
    if not text.isascii() or any((ord(char) < 32 and char not in "\t\n\r") or ord(char) == 127 for char in text):
        assert found is None
        return
    assert found is not None
    encoded = tokenizer.encode(text, add_special_tokens=False)
    ids = np.frombuffer(found, np.int32)
    assert ids.tolist() == encoded.ids
    for count in range(1, len(ids) + 1):
        end = known.end(ids[:count].tobytes())
        assert end in (None, encoded.offsets[count - 1][1])
        assert (end is None) == (encoded.tokens[count - 1][-1] in "ĠĊčĉ")


def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORDS", 3)
    known, tokenizer = words_of(MADE["gpt2"]), MADE["gpt2"]
    assert known is not None
    for text in ("a b c d e f", "a b c x y z") * 2:
        found = known.tokens(text)
        assert found is not None
        assert np.frombuffer(found, np.int32).tolist() == tokenizer.encode(text).ids
    assert max(len(known._known), len(known._spaced)) <= 3


@pytest.mark.parametrize(
    "other",
    [
        made(pre_tokenizers.Metaspace()),
        made(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        made(byte_level(False)),
        made(pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), byte_level()])),
        made(split(r"\w+|\W+")),
        made(split(r"\p{Greek}+|\s+|\S+")),
        made(byte_level(), normalizers.Lowercase()),
        made(byte_level(), normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("x")])),
        made(byte_level(), added=(AddedToken("<x>", lstrip=True),)),
        made(byte_level(), added=(AddedToken("<x>", normalized=True), AddedToken("<y>", normalized=False))),
        made(byte_level(), normalizers.NFKC(), added=(AddedToken("①", normalized=True),)),
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
    ],
)
def test_another_pipeline_is_the_tokenizers_own(other: Tokenizer) -> None:
    assert words_of(other) is None
