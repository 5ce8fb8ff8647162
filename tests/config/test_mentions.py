"""What counts as a mention of a concept, row by row, and who asks."""
# ruff: noqa: RUF001

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusers_erasepro import Concept, ErasureSpec
from diffusers_erasepro.config.mentions import (
    Mentions,
    find_mention,
    mentions,
    replace_mentions,
    same_words,
)
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.loaders.verification import _find_pair
from diffusers_erasepro.prompts.pairs import pairs_of

NAMED = [
    # words, their case and what stands beside them
    ("a red star on snow", "star"),
    ("STAR", "star"),
    ("Mira  VOSS", "Mira Voss"),
    ("a painting by Mira Voss.", "mira voss"),
    ("(star:1.3), masterpiece", "star"),
    ("a star-shaped box", "star"),
    ("red_star", "star"),
    ("star++ at night", "star"),
    ("“star”", "star"),
    ("Mira-Voss", "Mira Voss"),
    ("r2 d2 in the snow", "R2-D2"),
    ("star, circle", "star"),
    # cases, not other words
    ("the star's glow", "star"),
    ("the star’s glow", "star"),
    ("Jonas' house", "Jonas"),
    ("une l'étoile rouge", "étoile"),
    ("고양이가 앉아 있다", "고양이"),
    ("고양이에게는", "고양이"),
    ("star가 있다", "star"),
    # composition, width, folding, what is invisible
    ("ste\u0301 here", "st\u00e9"),
    ("st\u00e9 here", "ste\u0301"),
    ("ｓｔａｒ", "star"),
    ("ﾈｺと犬", "ネコ"),
    ("STRASSE", "Straße"),
    ("eine Straße", "strasse"),
    ("Straße mit star", "star"),
    ("İstanbul at night", "istanbul"),
    ("ΟΔΟΣ", "οδος"),
    ("ﬁsh soup", "fish"),
    ("a st\u00adar", "star"),
    ("a \u2060star\ufeff", "star"),
    # scripts without spaces
    ("一只黑猫", "猫"),
    ("熊猫和狗", "狗"),
    ("黒いネコがいる", "ネコ"),
    ("ラーメンを食べる", "ラーメン"),
    ("แมวดำตัวหนึ่ง", "แมว"),
    ("ແມວດຳ", "ແມວ"),
    ("ឆ្មាខ្មៅ", "ឆ្មា"),
    ("ကြောင်နက်", "ကြောင်"),
    ("黑star猫", "star"),
    ("Helloキティの絵", "Hello キティ"),
    # marks belong to words
    ("राम और सीता", "राम"),
    ("தமிழ் மொழி", "தமிழ்"),
    # symbols
    ("a 🔫 on a table", "🔫"),
    ("🔫🔫", "🔫"),
    ("I love ❤️", "❤"),
    ("C++ code", "C++"),
    ("in C++17", "C++"),
    ("a book on C#.", "C#"),
    ("plain C, no more", "C"),
    ("the AT&T logo", "AT&T"),
    ("I ♥ NY shirt", "I♥NY"),
    ("it costs $100", "$100"),
    ("it costs $100", "100"),
    ("well...", "..."),
]
NOT_NAMED = [
    ("a starfish", "star"),
    ("he started", "star"),
    ("two stars", "star"),
    ("the stars' light", "star"),
    ("Star7", "star"),
    ("by Mira", "Mira Voss"),
    ("Miravoss", "Mira Voss"),
    ("he can't", "can"),
    ("we'll see", "we"),
    ("3.5 mm", "3"),
    ("1,000 men", "1"),
    ("ste\u0301", "ste"),
    ("Kathe", "Käthe"),
    ("특별한 날", "별"),
    ("东京", "京都"),
    ("東。京", "東京"),
    ("แมกำ", "แม่"),
    ("กำ", "ก"),
    ("रूमी", "राम"),
    ("राम", "रूमी"),
    ("रामायण", "राम"),
    ("தமிழ", "தமிழ்"),
    ("🌸", "🔫"),
    ("a flower", "🔫"),
    ("👩‍🚀 in space", "👩"),
    ("🇩🇪🇫🇷", "🇪🇫"),
    ("1️⃣", "1"),
    ("C", "C++"),
    ("C++", "C"),
    ("C#", "C"),
    ("C#", "C++"),
    ("an A+", "A"),
    ("look at T", "AT&T"),
    ("100", "$100"),
    ("I NY", "I♥NY"),
    ("wow?", "..."),
    ("", "star"),
]


@pytest.mark.parametrize(("text", "concept"), NAMED)
def test_named(text, concept):
    assert mentions(text, concept) and text in Mentions(["zebra", concept])


@pytest.mark.parametrize(("text", "concept"), NOT_NAMED)
def test_not_named(text, concept):
    assert not mentions(text, concept) and text not in Mentions(["zebra", concept])


@pytest.mark.parametrize(
    ("text", "concept", "found"),
    [
        ("Straße mit star", "star", "star"),
        ("ẞ İ ﬁ ŉ star x", "STAR", "star"),
        ("eine STRASSE hier", "Straße", "STRASSE"),
        ("Große Straße", "strasse", "Straße"),
        ("a ste\u0301 b", "st\u00e9", "ste\u0301"),
        ("ｓｔａｒ x", "star", "ｓｔａｒ"),
        ("一只黑猫", "猫", "猫"),
        ("the Star's glow", "star", "Star"),
        ("a st\u00adar", "star", "st\u00adar"),
        ("starfish and star", "star", "star"),
        ("Mira_Voss", "Mira Voss", "Mira_Voss"),
    ],
)
def test_the_place_is_that_of_the_original(text, concept, found):
    start, stop = find_mention(text, concept)
    assert text[start:stop] == found and not mentions(text[:start], concept)


def test_every_mention_is_replaced_and_nothing_else():
    assert (
        replace_mentions("Star, a STAR, a starfish", "star", "ring") == "ring, a ring, a starfish"
    )
    assert replace_mentions("Straße, star", "star", "") == "Straße, "


@given(st.text(max_size=8), st.sampled_from(["star", "猫", "🔫", "Straße", "राम", "C++"]))
def test_a_concept_between_spaces_is_found_where_it_stands(noise, concept):
    text = f"{noise} {concept} {noise}"
    start, stop = find_mention(text, concept)
    assert same_words(text[start:stop], concept) or mentions(noise, concept)


@given(st.text(max_size=20))
def test_every_text_of_words_mentions_itself(text):
    seen = [c for c in text if unicodedata.category(c)[0] in "LN"]
    if seen:
        assert mentions(text, text)


def test_an_anchor_is_refused_only_where_it_is_the_target():
    for target, anchor in (
        ("🔫", "🌸"),
        ("C++", "C"),
        ("C", "C#"),
        ("राम", "रूमी"),
        ("star", "starfish"),
    ):
        Concept(target, anchor)
    with pytest.raises(ConceptSpecError, match="are both"):
        Concept("straße", "STRASSE")
    for target, anchor in (("猫", "黑猫"), ("🔫", "🔫 toy"), ("star", "a Star-shape")):
        assert any("contains" in caveat for caveat in Concept(target, anchor).caveats)


def test_captions_that_name_a_target_are_not_kept():
    captions = ("一只黑猫", "一只狗", "a starfish", "STAR!", "🌸", "🔫", "रूमी", "राम")
    concepts = (Concept("猫", "a"), Concept("star", "b"), Concept("🔫", "c"), Concept("राम", "d"))
    with pytest.raises(ConceptSpecError, match="also a target"):
        ErasureSpec(concepts, preserve=captions)
    spec = ErasureSpec(concepts, preserve=tuple(f"x {c}" for c in captions))
    assert spec.preserve_captions() == ("x 一只狗", "x a starfish", "x 🌸", "x रूमी")


def test_templates_that_name_a_target_are_left_out():
    templates = ("a {}", "{} beside 一只黑猫", "{} and a starfish", "{} with 🌸")
    concepts = [Concept("gun", "toy", templates=templates), *map(Concept, ("猫", "star", "🔫"))]
    soft = {pair.target.text for pair in pairs_of(concepts, "soft") if pair.word == "gun"}
    assert soft == {"gun and a starfish", "gun with 🌸"}


def test_a_prompt_to_verify_is_cut_at_the_right_letters():
    _, pair = _find_pair("Straße mit starfish und STAR", [Concept("star", "circle")])
    assert pair.word == "STAR" and pair.anchor.text == "Straße mit starfish und circle"
    with pytest.raises(ConceptSpecError, match="names none"):
        _find_pair("a starfish", [Concept("star", "circle")])
