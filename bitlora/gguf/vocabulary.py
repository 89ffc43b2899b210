"""A tokenizer in GGUF's keys: its tokens, how they are put together, which are special, its chat template.

llama.cpp knows how a text is cut into words by a name. Here the name is found by what tokenizer.json says of it, and a
tokenizer that cuts otherwise is refused: a model that reads other tokens than it was trained on is worse without a word.
"""

from __future__ import annotations

import json
from typing import Any, Final

ENGLISH: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS: Final = r"[^\r\n\p{L}\p{N}]?\p{L}+"
UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CAPITALS: Final = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s"
Cut = tuple[str, ...]
"""How a text is cut into words, one step after the other."""
CUTS: Final[dict[Cut, str]] = {
    ("bytes and words",): "gpt-2",
    ("digits", "bytes and words"): "smollm",
    (rf"{ENGLISH}|{WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}", "bytes"): "qwen2",
    (rf"{ENGLISH}|{WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}", "bytes"): "dbrx",
    (rf"{ENGLISH}|{WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{REST}", "bytes", "whole words"): "llama-bpe",
    (
        rf"{CAPITALS % (f'{ENGLISH}?', f'{ENGLISH}?')}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}",
        "bytes",
    ): "gpt-4o",
    (rf"{CAPITALS % ('', '')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{REST}", "bytes", "whole words"): "tekken",
}
"""How the tokenizers of known models cut -> the name that llama.cpp has for it. `whole words`: a word that is a token is
one, whatever the merges would come to (`ignore_merges`)."""
SPACE: Final = "▁"
"""What stands for a space in SentencePiece's tokens."""
NO_MERGE: Final = f"{SPACE} {SPACE}"
"""llama.cpp asks for a merge; this one is of no token of bytes."""


def add_vocabulary(writer: Any, tokenizer: Any, rows: int, ends: tuple[int, ...] = ()) -> None:
    """Write a tokenizer.

    Args:
        writer: a `gguf.GGUFWriter`.
        tokenizer: transformers' `PreTrainedTokenizerFast`.
        rows: of the embedding. Tokens beyond them are left out; rows without a token get one that no text has.
        ends: the tokens at which the model stops, beside the tokenizer's own.

    Raises:
        ValueError: llama.cpp would make other tokens of a text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"the tokenizer is a {type(tokenizer).__name__}, which has no tokenizer.json")
    described: dict[str, Any] = json.loads(backend.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise ValueError(f"the tokenizer is of type {model['type']}; llama.cpp is written BPE for")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    if model["byte_fallback"]:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(_space_before(described))
        writer.add_token_scores(_scores(model["vocab"], merges, rows))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(cut_name(described))
        writer.add_token_merges(merges or [NO_MERGE])
    tokens, kinds = _tokens(described, rows)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    _special(writer, tokenizer, rows, ends)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def cut_name(described: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer cuts a text.

    Args:
        described: its tokenizer.json.

    Raises:
        ValueError: it has none.
    """
    normalizer = described["normalizer"]
    if (
        normalizer is not None and normalizer["type"] != "NFC"
    ):  # llama.cpp takes a text as it is, and most texts are NFC
        raise ValueError(f"the tokenizer changes a text first ({normalizer['type']}), which llama.cpp does not")
    steps = [_step(part) for part in _parts(described["pre_tokenizer"])]
    found = CUTS.get((*steps, *(["whole words"] * bool(described["model"].get("ignore_merges")))))
    if found is None:
        cut = json.dumps(described["pre_tokenizer"], ensure_ascii=False)
        raise ValueError(f"no name is known that llama.cpp has for how the tokenizer cuts a text: {cut}")
    return found


def _parts(described: dict[str, Any] | None) -> list[dict[str, Any]]:
    if described is None:
        return []
    inside: list[dict[str, Any]] | None = described.get("pretokenizers")
    return [described] if inside is None else [part for each in inside for part in _parts(each)]


def _step(part: dict[str, Any]) -> str:
    match part:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": words}:
            return "bytes and words" if words else "bytes"
        case {"type": "Digits", "individual_digits": True}:
            return "digits"
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return str(pattern)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}:
            return str(pattern)  # the same, since it matches all there is
    return f"unknown {part['type']}"


def _space_before(described: dict[str, Any]) -> bool:
    """Whether a text gets a space before it; of a tokenizer as SentencePiece has them.

    Raises:
        ValueError: it does something else to a text.
    """
    replaced, before = False, False
    normalizer = described["normalizer"] or {"type": "Sequence", "normalizers": []}
    for part in normalizer.get("normalizers", [normalizer]):
        match part:
            case {"type": "Prepend", "prepend": "▁"}:
                before = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
                replaced = True
            case _:
                raise ValueError(f"the tokenizer changes a text first ({part['type']}), which llama.cpp does not")
    for part in _parts(described["pre_tokenizer"]):
        match part:
            case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}:
                before, replaced = scheme != "never", True
            case {"type": "Split", "pattern": {"String": " "}} if replaced:
                pass  # Gemma's, which finds none: all spaces are replaced
            case _:
                raise ValueError(f"the tokenizer cuts a text by {part['type']}, and llama.cpp does not cut it")
    if not replaced:
        raise ValueError("the tokenizer keeps spaces as they are, where llama.cpp has ▁ for them")
    return before


def _scores(vocab: dict[str, int], merges: list[str], rows: int) -> list[float]:
    """llama.cpp puts together first what makes the token of the highest score: so of each the place of the merge that makes
    it, downwards."""
    scores = [0.0] * rows
    for place, merge in reversed([*enumerate(merges)]):
        token = vocab.get(merge.replace(" ", ""))
        if token is not None and token < rows:
            scores[token] = -float(place + 1)
    return scores


def _tokens(described: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    import gguf

    kinds = gguf.TokenType
    found = {number: (token, kinds.NORMAL) for token, number in described["model"]["vocab"].items()}
    if described["model"]["byte_fallback"]:
        for byte in range(256):
            number = described["model"]["vocab"].get(f"<0x{byte:02X}>")
            if number is not None:
                found[number] = (found[number][0], kinds.BYTE)
    for each in described["added_tokens"]:
        found[each["id"]] = (each["content"], kinds.CONTROL if each["special"] else kinds.USER_DEFINED)
    unknown = described["model"]["vocab"].get(described["model"].get("unk_token"))
    if unknown is not None:
        found[unknown] = (found[unknown][0], kinds.UNKNOWN)
    listed = [found.get(number, (f"[PAD{number}]", kinds.UNUSED)) for number in range(rows)]
    return [token for token, _ in listed], [int(kind) for _, kind in listed]


def _special(writer: Any, tokenizer: Any, rows: int, ends: tuple[int, ...]) -> None:
    ids = {kind: getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "unk", "pad")}
    for kind, number in ids.items():
        if number is not None and number < rows:
            getattr(writer, f"add_{kind}_token_id")(number)
    for number in [each for each in ends if each != ids["eos"]][:1]:
        writer.add_eot_token_id(number)
    alone, text = (tokenizer("a", add_special_tokens=added).input_ids for added in (False, True))
    writer.add_add_bos_token(bool(text) and text != alone and text[0] == ids["bos"])
    writer.add_add_eos_token(bool(text) and text != alone and text[-1] == ids["eos"])
