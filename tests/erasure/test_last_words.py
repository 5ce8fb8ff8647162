"""A name of several words must not take its last word with it unsaid."""

import warnings

import pytest

import tiny
from diffusers_erasepro import Concept, ErasureSpec, erase, glyphs
from diffusers_erasepro.config.kinds import find_kind, known_kinds
from diffusers_erasepro.erasure.last_words import Moved, describe_moved

CAPTIONS = tuple(glyphs.captions(60, seed=0))


def made(pipe, concept, *, layers=("neurons", -1), **options):
    return erase(pipe, ErasureSpec([concept], preserve=CAPTIONS), layers=layers, **options)


@pytest.mark.parametrize(
    ("target", "anchor"), [("red star", "red circle"), ("golf ring", "square")]
)
def test_an_edit_that_takes_the_last_word_says_so(shipped, target, anchor):
    last = target.split()[-1]
    said = (
        rf"cannot tell '{target}' from its last word.*'{last}' go \d+% of the way to '{anchor}' "
        rf"\('{target}' itself 100%\)"
    )
    with pytest.warns(UserWarning, match=said) as caught:
        adapter = made(shipped, Concept(target, anchor))
    assert any("from its last word" in note for note in adapter.report.notes)
    ours = [w for w in caught if "from its last word" in str(w.message)]
    assert [w.filename for w in ours] == [__file__]


def test_where_the_name_itself_goes_too_little_that_is_said():
    concept = Concept("red star", "red circle")
    few = describe_moved(concept, Moved(others=0.3, name=0.35))
    most = describe_moved(concept, Moved(others=0.3, name=0.95))
    assert "itself 35%, which is too little, so expect to see it too" in few
    assert "itself 95%)" in most and "too little" not in most


@pytest.mark.parametrize("concept", [Concept("star", "circle"), Concept("star", "red circle")])
def test_a_single_word_has_no_last_word_to_take(shipped, concept):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapter = made(shipped, concept)
    assert not any("last word" in note for note in adapter.report.notes)


def test_without_measuring_nothing_is_asked(shipped):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made(shipped, Concept("red star", "red circle"), measure=False)


@pytest.mark.slow
def test_every_encoder_is_asked_and_a_concept_is_named_once():
    concept = Concept("golf star", "circle", ("a {}",), ())
    with pytest.warns(UserWarning, match="'golf star'"):
        adapter = erase(tiny.flux(), ErasureSpec([concept], preserve=tiny.PRESERVE))
    notes = [note for note in adapter.report.notes if "last word" in note]
    assert 1 <= len(notes) <= 2


def test_the_shipped_templates_ask_with_words_of_their_own():
    assert all("{}" in find_kind(name).exact[0] for name in known_kinds())
