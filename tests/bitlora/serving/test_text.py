"""Text out of tokens, piece by piece: what is told is what the tokens read as together, cut at the first stop string."""

import random

import pytest

from bitlora.serving.text import GrowingText

WORDS = ["a", "b", "ab", "€", "ß", " ", "stop", "sto", "p!", "🙂"]


def decode(tokens):
    """Tokens are bytes."""
    return bytes(tokens).decode(errors="replace")


def told(tokens, stops):
    """The pieces, up to the one that ends it."""
    text, pieces = GrowingText(decode, stops), []
    for token in tokens:
        pieces.append(text.add(token))
        if text.stopped:
            return pieces
    return [*pieces, text.end()]


def cut(text, stops):
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


@pytest.mark.parametrize("seed", range(40))
def test_pieces_come_to_the_text_up_to_the_first_stop(seed):
    drawn = random.Random(seed)
    tokens = [*"".join(drawn.choices(WORDS, k=30)).encode()]
    if seed % 4 == 0:  # and bytes that are no text, in the middle or cut off at the end
        tokens = [drawn.randrange(256) if drawn.random() < 0.3 else token for token in tokens][: drawn.randrange(5, 40)]
    stops = drawn.sample(["stop!", "ba", "€€", "🙂a", "sto sto", "nowhere"], drawn.randrange(4))
    pieces = told(tokens, stops)
    assert "".join(pieces) == cut(decode(tokens), stops)


def test_half_a_character_is_not_told_and_no_beginning_of_a_stop():
    text = GrowingText(decode, ["END"])
    assert [text.add(token) for token in "€".encode()] == ["", "", "€"]
    assert [text.add(ord(each)) for each in "xENxE"] == ["x", "", "", "ENx", ""]
    assert text.end() == "E"
    assert not text.stopped


def test_the_first_of_two_stops_counts():
    text = GrowingText(lambda tokens: "".join(["one two three"][: len(tokens)]), ["three", "two"])
    assert text.add(0) == "one "
    assert text.stopped
