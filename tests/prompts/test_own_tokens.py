"""Which tokens of a name are its own, on real vocabularies."""

from functools import cache

import pytest
from vocabularies import TOKENIZERS, VocabularyError, load_tokenizer

from diffusers_erasepro import Concept, ErasureSpec
from diffusers_erasepro.config.everyday import everyday_captions
from diffusers_erasepro.prompts.own_tokens import own_tokens, own_tokens_of

CAPTIONS = everyday_captions()


@cache
def tokenizer_of(name):
    try:
        return load_tokenizer(name)
    except VocabularyError as error:
        pytest.skip(str(error))


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return tokenizer_of(request.param)


def own(tokenizer, name, texts=CAPTIONS, **others):
    """The own tokens of a name in a plain sentence, as it is written."""
    return [token.text for token in own_tokens(tokenizer, name, texts, **others).plain if token.own]


CLIP = {
    "cat": ["cat"],
    "gun": ["gun"],
    "nude": ["nude"],
    "golf ball": [],
    "Taylor Swift": [],
    "taylor swift": [],
    "Mickey Mouse": [],
    "Van Gogh": ["Gogh"],
    "van gogh": ["gogh"],
    "Rembrandt": ["Rembrandt"],
    "Pikachu": ["Pikachu"],
    "Apple": [],
    "Prince": [],
    "Queen": [],
    "Monet": ["Monet"],
    "Batman": ["Batman"],
    "Spider-Man": [],
    "R2-D2": [],
    "Barack Obama": ["Obama"],
    "Vladimir Putin": ["Putin"],
    "Coca-Cola": [],
    "Donald Trump": [],
    "Elsa": [],
}


@pytest.mark.parametrize("name", CLIP)
def test_with_clips_vocabulary_these_tokens_are_the_names_own(name):
    assert own(tokenizer_of("clip"), name) == CLIP[name]


@pytest.mark.parametrize("name", ["cat", "gun"])
def test_a_plain_word_is_its_own_in_every_vocabulary(tokenizer, name):
    assert own_tokens(tokenizer, name, CAPTIONS).complete


@pytest.mark.parametrize("name", ["golf ball", "Taylor Swift", "Mickey Mouse", "Apple", "Queen"])
def test_common_words_and_names_of_many_are_shared_in_every_vocabulary(tokenizer, name):
    found = own_tokens(tokenizer, name, ())
    assert not any(token.own for token in found.plain)
    assert all(token.why for token in found.plain)


def test_no_piece_of_a_word_is_own(tokenizer):
    for name in ("Rutkowski", "Pikachu", "Rembrandt", "Kinkade", "topless", "McKernan"):
        found = own_tokens(tokenizer, name, ())
        for tokens in found.spellings:
            assert len(tokens) == 1 or not any(token.own for token in tokens), name


def test_a_caption_takes_a_token_from_a_name_unless_it_mentions_the_name():
    clip = tokenizer_of("clip")
    assert own(clip, "Gogh", ["Gogh, a village"]) == ["Gogh"]
    assert own(clip, "Van Gogh", ["a van in Gogh, a village"]) == []
    assert own(clip, "Van Gogh", ["a painting by Van Gogh"]) == ["Gogh"]
    assert own(clip, "gun", ["two guns on a table", "a gun", "the gun's barrel"]) == ["gun"]
    assert own(clip, "pistol", ["a pistol and a revolver"], synonyms=["revolver"]) == ["pistol"]


def test_a_near_phrase_counts_though_it_mentions_the_name():
    clip = tokenizer_of("clip")
    assert own(clip, "gun", ["a glue gun"]) == ["gun"]
    assert own(clip, "gun", near=["a glue gun"]) == []


def test_case_and_accents_hide_no_use():
    bert = tokenizer_of("bert")
    assert own(bert, "Beyoncé") == ["Beyoncé"]
    assert own(bert, "Beyoncé", ["A BOAT CALLED BEYONCE"]) == []


def test_longer_words_that_hold_an_own_token_are_listed():
    [token] = own_tokens(tokenizer_of("clip"), "gun", CAPTIONS).plain
    assert token.own
    assert "handgun" in token.inside
    [token] = own_tokens(tokenizer_of("bert"), "cat", CAPTIONS).plain
    assert token.own
    assert "catapult" in token.inside
    assert own(tokenizer_of("bert"), "cat", ["a stone in a catapult"]) == []


def test_all_spellings_are_given_where_case_and_spaces_make_other_tokens():
    qwen3 = tokenizer_of("qwen3")
    found = own_tokens(qwen3, "cat", CAPTIONS)
    spelled = {tuple(token.id for token in tokens) for tokens in found.spellings}
    for text in ("a cat", "cat", "a Cat", "Cat", "CAT"):
        ids = qwen3(text.removeprefix("a "), add_special_tokens=False).input_ids
        behind = qwen3(text, add_special_tokens=False).input_ids[-len(ids) :]
        assert {tuple(ids), tuple(behind)} & spelled, text
    alone = {qwen3(text).input_ids[-1] for text in ("cat", "a cat", "Cat", "a Cat")}
    assert len(alone) == 4
    assert alone <= {*found.rows}
    assert found.plain[0].id == qwen3("a cat").input_ids[-1]
    assert len(own_tokens(tokenizer_of("clip"), "cat", CAPTIONS).spellings) == 1


@pytest.mark.parametrize("name", ["皮卡丘", "Ван Гог", "ゴッホ", "스누피", "بيكاسو"])
def test_other_scripts_have_no_own_tokens(tokenizer, name):
    found = own_tokens(tokenizer, name, CAPTIONS)
    assert found.plain
    assert not found.rows


def test_every_character_of_a_name_is_in_some_token():
    for name in ("R2-D2", "Coca-Cola", "AT&T", "Beyoncé", "C-3PO"):
        covered = "".join(token.text for token in own_tokens(tokenizer_of("clip"), name, ()).plain)
        assert covered == name


def test_two_concepts_share_a_whole_word():
    clip = tokenizer_of("clip")
    spec = ErasureSpec(
        (
            Concept("Van Gogh", "a painter", ("art by {}",)),
            Concept("Theo van Gogh", "a man", ("a photo of {}",)),
        ),
        preserve=("a red chair",),
    )
    found = own_tokens_of(spec, clip)
    assert not found["Van Gogh"].rows
    assert "erased too: 'Theo van Gogh'" in [token.why for token in found["Van Gogh"].plain]


def test_anchors_and_templates_stay():
    clip = tokenizer_of("clip")
    for anchor, template in (("Pokemon", "a drawing of {}"), ("a toy", "{}, a Pokemon")):
        concept = Concept("Pikachu Pokemon", anchor, (template,))
        found = own_tokens_of(ErasureSpec((concept,), preserve=("a chair",)), clip)
        assert not found["Pikachu Pokemon"].rows, anchor
    concept = Concept("Pikachu Pokemon", "a toy", ("a drawing of {}",))
    found = own_tokens_of(ErasureSpec((concept,), preserve=("a chair",)), clip)
    assert [token.text for token in found["Pikachu Pokemon"].rows.values()] == ["Pokemon"]


def test_the_first_word_is_own_where_it_names_the_concept_alone():
    clip = tokenizer_of("clip")
    assert own(clip, "Starbucks Coffee", ()) == []
    assert own(clip, "Mario from Nintendo", ()) == []
    assert own(clip, "SpongeBob SquarePants", ()) == []
    assert own(clip, "Lord Vader", ()) == ["Vader"]
    assert own(clip, "Starbucks Coffee", (), synonyms=["Starbucks"]) == ["Starbucks"]


def test_the_plural_of_a_thing_is_looked_at_too():
    concept = Concept("cat", "dog", "object")
    found = own_tokens_of(ErasureSpec((concept,)), tokenizer_of("clip"))
    assert [*found] == ["cat", "cats"]
    assert found["cat"].complete
    assert found["cats"].complete
