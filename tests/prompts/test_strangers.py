"""Prompts in which other words stand for a token of a name."""

import copy

import pytest

from diffusers_erasepro import Concept, ErasureSpec, erase, glyphs
from diffusers_erasepro.erasure.sites import gates
from diffusers_erasepro.prompts import vocabulary
from diffusers_erasepro.prompts.tokens import text_paths
from diffusers_erasepro.prompts.vocabulary import (
    Stranger,
    find_strangers,
    position_of_word,
    prompts_with_strangers,
    whole_words,
)


@pytest.fixture(scope="module")
def path(shipped):
    return text_paths(shipped)[0]


def ids_of(path, text):
    return tuple(path.pipe.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_every_stranger_stands_once_and_the_rest_of_the_prompt_is_in_place(path):
    prompt = "a red star on snow"
    row = path.tokens([prompt]).ids[0].tolist()
    red = row.index(ids_of(path, "a red")[-1])
    strangers = [
        Stranger(ids_of(path, "blue")),
        Stranger(ids_of(path, "red")),
        Stranger(ids_of(path, "crescent"), ids_of(path, "green")),
    ]
    found = []
    for tokens, ahead, more in prompts_with_strangers(path, prompt, [red, red + 1], red, strangers):
        for ids in tokens.ids.tolist():
            assert ids[red + 1 + ahead + more] == row[red + 1]
            found.append(path.pipe.tokenizer.decode(ids[1 : red + 2 + ahead + more]).strip())
    assert found == ["a blue star", "a green crescent star"]


def test_whole_words_are_found_though_their_tokens_end_in_a_mark(path):
    """As CLIP's: what joins its tokens to a string leaves "</w>" standing."""
    words = whole_words(path.pipe.tokenizer)
    assert {"star", "circle", "red"} <= {*words}
    assert all(ids_of(path, f"a {word}")[-1] == token_id for word, token_id in words.items())


def test_a_copied_tokenizer_has_the_same_whole_words(path):
    """transformers patches `decode` into the instance of a CLIP tokenizer; a copy is without it."""
    tokenizer = path.pipe.tokenizer
    assert whole_words(copy.deepcopy(tokenizer)) == whole_words(tokenizer)


def test_strangers_are_words_and_some_have_several_tokens(path):
    words = whole_words(path.pipe.tokenizer)
    found = find_strangers(path.pipe.tokenizer, words, 100)
    assert 20 < len(found) <= 100
    assert any(len(stranger.ids) > 1 for stranger in found)
    assert any(stranger.before for stranger in found)
    assert found == find_strangers(path.pipe.tokenizer, words, 100)


def test_a_vocabulary_without_whole_words_is_said_to_be_not_scanned(shipped, path, monkeypatch):
    for module in (vocabulary, gates):
        monkeypatch.setattr(module, "whole_words", lambda tokenizer: {})
    assert position_of_word(path, "a {}") is None
    spec = ErasureSpec((Concept("star", anchor="circle"),), preserve=glyphs.captions(60, seed=0))
    made = erase(shipped, spec, layers=("gates", -1), measure=False)
    assert any(note.startswith("no whole word of") for note in made.report.notes)
