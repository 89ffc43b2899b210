"""Byte-pair tokenizers, word by word: most words of a text were met before, and need no tokenizer.

A byte-level BPE cuts a text at its added tokens, and what is between them by regular expressions into words, each of which
becomes tokens by itself. Where the meaning of the expressions is plain in ASCII, words are cut here, and the tokenizer's
own model is asked once for each. All else is for the tokenizer itself: another pipeline, a text that is not plain ASCII.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NOT_PLAIN: Final = re.compile(r"[^\t\n\r -~]")
"""What the words of a text must not hold."""
UNCHANGED: Final = ("NFC", "NFD", "NFKC", "NFKD")
"""Normalizers that leave ASCII as it is."""
GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` cuts by."""
ENDS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3: Final = ENDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
DIGIT: Final = r"\p{N}"
AT_SPACES: Final = (GPT2, LLAMA3, LLAMA3.replace(r"\p{N}{1,3}", DIGIT), DIGIT, f"{DIGIT}+")
"""Expressions (GPT-2's, Llama 3's, Qwen's, of digits alone) of which no match has a space after anything but white space,
and none looks beyond such a space."""
RUNS: Final = ("  ", "\t ", "\n ", "\r ")
"""Spaces that follow white space."""
CLASSES: Final = {
    **{"L": "A-Za-z", "Lu": "A-Z", "Ll": "a-z", "N": "0-9", "Nd": "0-9"},
    **{"P": r"!-#%-*,-/:;?@\[-\]_{}", "S": r"$+<->\^`|~"},
    **dict.fromkeys(("Lt", "Lm", "Lo", "M", "Mn", "Mc", "Nl", "No"), ""),
}
"""Classes of characters -> what they are in ASCII."""
TOKEN: Final = np.dtype(np.int32).itemsize
SEGMENTS: Final = 4096
"""Pieces between two added tokens that are remembered whole: what a template writes around each turn is the same in all."""
WORDS: Final = 200_000
"""Words that are remembered: some 40 MB."""


PIECE: Final = re.compile(r"\\p\{(\w+)\}|\\.|.", re.DOTALL)
"""Of an expression a class of characters, an escaped character, or a character."""
ASCII: Final = tuple(map(chr, (9, 10, 13, *range(32, 127))))
SAMPLES: Final = (*ASCII, *(one + other for one in ASCII for other in ASCII))
"""An expression that takes all of these takes all of every plain text."""


class Cut(NamedTuple):
    """How a plain text is cut into words."""

    cut: Callable[[str], list[str]]
    at_spaces: bool
    """It cuts before every space that follows no white space, and between two of them as if there were nothing else."""


class Words:
    """The tokens of plain texts.

    Args:
        backend: a tokenizer whose texts are cut so.
        added: its added tokens, with their numbers.
        cuts: how a text is cut, one after the other.
    """

    def __init__(self, backend: Tokenizer, added: Mapping[str, int], cuts: Sequence[Cut]) -> None:
        self._added = {content: _bytes([token]) for content, token in added.items()}
        longest_first = sorted(map(re.escape, self._added), key=len, reverse=True)
        self._at_added = re.compile(f"({'|'.join(longest_first)})").split if longest_first else lambda text: [text]
        self._cuts = [each.cut for each in cuts]
        self._at_spaces = all(each.at_spaces for each in cuts)
        self._known = _Remembered(_Model(backend).tokens)
        self._spaced = _Remembered(lambda word: self._cut(f" {word}"))
        self._segment: Callable[[str], bytes] = lru_cache(SEGMENTS)(self._tokens)
        last = max(backend.get_vocab().values())
        strings = [backend.id_to_token(token) or "" for token in range(last + 1)]
        self._chars = np.array([len(string) for string in strings], np.int64)
        self._blank = {_bytes([token]) for token, string in enumerate(strings) if string[-1:] in "ĠĊčĉ"}

    def tokens(self, text: str) -> bytes | None:
        """Its token ids as int32, in native order; None: the text is not plain."""
        if NOT_PLAIN.search(text):
            return None
        return b"".join(map(self._segment, self._at_added(text)))

    def end(self, tokens: bytes) -> int | None:
        """Characters of the plain text that these tokens are; None: tokenizers do not agree where the last one ends, since
        it ends in white space."""
        return None if self.is_blank(tokens[-TOKEN:]) else int(self._chars[np.frombuffer(tokens, np.int32)].sum())

    def is_blank(self, token: bytes) -> bool:
        """Does it end in white space?"""
        return token in self._blank

    def _tokens(self, segment: str) -> bytes:
        if segment in self._added:
            return self._added[segment]
        if self._at_spaces and not any(run in segment for run in RUNS):
            first, *others = segment.split(" ")
            return self._cut(first) + b"".join(map(self._spaced.__getitem__, others))
        return self._cut(segment)

    def _cut(self, text: str) -> bytes:
        words = [text]
        for cut in self._cuts:
            words = [piece for word in words for piece in cut(word)]
        return b"".join(map(self._known.__getitem__, words))


class _Remembered(dict[str, bytes]):
    """Text -> its tokens, as far as it was met before."""

    def __init__(self, tokens: Callable[[str], bytes]) -> None:
        self._tokens = tokens

    def __missing__(self, text: str) -> bytes:
        found = self._tokens(text)
        if len(self) >= WORDS:
            self.clear()
        self[text] = found
        return found


class _Model:
    """A byte-pair model, without what its tokenizer does before."""

    def __init__(self, backend: Tokenizer) -> None:
        from tokenizers import pre_tokenizers

        mapped = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._letters = {code: mapped.pre_tokenize_str(chr(code))[0][0] for code in range(128)}
        self._model = backend.model

    def tokens(self, word: str) -> bytes:
        return _bytes([token.id for token in self._model.tokenize(word.translate(self._letters))])


def words_of(backend: Tokenizer) -> Words | None:
    """The words of a tokenizer; None: its texts cannot be cut here."""
    from tokenizers import pre_tokenizers

    description = json.loads(backend.to_str())
    added, model = description["added_tokens"], description["model"]
    if model["type"] != "BPE" or model.get("dropout") or backend.encode_special_tokens:
        return None
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return None
    if any(each["lstrip"] or each["rstrip"] or each["single_word"] for each in added):
        return None
    if len({each["normalized"] for each in added}) > 1:  # they are looked for in two turns
        return None
    if any(each["normalized"] and not each["content"].isascii() for each in added):  # ASCII may be what it becomes
        return None
    if not all(step["type"] in UNCHANGED for step in _steps(description["normalizer"], "normalizers")):
        return None
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if any(backend.token_to_id(letters.pre_tokenize_str(char)[0][0]) is None for char in ASCII):  # it would be left out
        return None
    found = cuts(_steps(description["pre_tokenizer"], "pretokenizers"))
    return None if found is None else Words(backend, {each["content"]: each["id"] for each in added}, found)


def cuts(steps: list[dict[str, Any]]) -> list[Cut] | None:
    """How the steps of a pre-tokenizer cut plain ASCII; None: that is not known here."""
    *before, last = steps or [{"type": ""}]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    found = [_cut(step) for step in before]
    if last["use_regex"]:
        found.append(_in_ascii(GPT2))
    known = [each for each in found if each is not None]
    return known if known and len(known) == len(found) else None


def _cut(step: dict[str, Any]) -> Cut | None:
    if step["type"] == "Digits":
        return _in_ascii(DIGIT if step["individual_digits"] else f"{DIGIT}+")
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return None
    return _in_ascii(step["pattern"].get("Regex") or re.escape(step["pattern"]["String"]))


def _steps(given: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if given is None:
        return []
    return list(given[name]) if given["type"] == "Sequence" else [given]


def _in_ascii(pattern: str) -> Cut | None:
    """The cut by an expression, over ASCII: at both ends of each of its matches."""
    plain, inside, place = "", False, 0
    while place < len(pattern):
        found = PIECE.match(pattern, place)
        assert found is not None
        piece, place = found[0], found.end()
        if found[1] is not None:
            if found[1] not in CLASSES or not (inside or CLASSES[found[1]]):
                return None
            piece = CLASSES[found[1]] if inside else f"[{CLASSES[found[1]]}]"
        elif piece.startswith("\\") and piece[1].isalnum() and piece[1] not in "sSrnt":
            return None
        elif piece in "[]":
            if inside == (piece == "["):  # classes in classes, which Python does not have
                return None
            inside = piece == "["
        plain += piece
    try:
        made = re.compile(plain, re.ASCII)
    except re.error:
        return None
    if made.groups:
        return None
    at_spaces = pattern in AT_SPACES
    if all("".join(made.findall(text)) == text for text in SAMPLES):
        return Cut(made.findall, at_spaces)
    around = re.compile(f"({plain})", re.ASCII).split
    return Cut(lambda text: [piece for piece in around(text) if piece], at_spaces)


def _bytes(tokens: list[int]) -> bytes:
    return np.array(tokens, np.int32).tobytes()
