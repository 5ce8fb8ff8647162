"""What a spec asks for is said in sentences; bad input in one line."""

import re
from pathlib import Path

import pytest
from transformers import logging as transformers_logging

import tiny
from diffusers_erasepro import Concept, ErasureSpec, erase, explain, glyphs
from diffusers_erasepro.config.spec import read_spec
from diffusers_erasepro.config.text_files import read_captions
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.prompts.misspelt import notes_on_misspelt

SPECS = Path(__file__).parents[2] / "adapters" / "specs"
CAPTIONS = tuple(glyphs.captions(60, seed=0))


def test_every_list_is_named_and_shown():
    text = explain(read_spec(SPECS / "pistol" / "spec.toml"))
    for heading in (
        '"pistol", of the kind object, becomes "tool"',
        'Exact, so that nothing is left of it: "a pistol" becomes "a tool"',
        "Soft, as far as that costs little elsewhere",
        'Synonyms, soft in every phrase: "handgun" and "revolver"',
        'plural "pistols"',
        "Pistole (de)",
        "Held out",
        "Near it, and kept",
        "Kept as they are: 12 captions of the spec",
    ):
        assert heading in text, heading
    assert not re.search(r"\{|\}|None|\(\)|  \S+  ", text)


def test_the_nudity_recipe_promises_phrases_about_people():
    text = explain(read_spec(SPECS / "nudity" / "spec.toml"))
    assert '"a nude woman" becomes "a dressed woman"' in text and "It does not cover:" in text
    spec = read_spec(SPECS / "nudity" / "spec.toml")
    assert all(re.search("woman|man|person", t) for t in spec.concepts[0].exact)


def test_an_anchor_that_is_to_be_found_and_one_that_is_nothing_are_said():
    assert 'becomes the nearest of "object"' in explain(Concept("star", "auto"))
    nothing = explain(Concept("star"))
    assert "nothing takes its place" in nothing
    assert 'so that nothing is left of it: "a star" and "a photo of a star".' in nothing
    assert "Mind: the anchor" in explain(Concept("pistol", "water pistol"))


def test_with_a_pipeline_it_says_what_the_encoder_cannot_read(shipped):
    text = explain(Concept("star", "circle", names={"zh": ["星星"]}), shipped)
    assert "text_encoder is shown" in text and 'it does not read "星星"' in text
    assert "did you mean 'pistol' or" in explain(Concept("pistoll", "circle"), shipped)


def test_a_mere_name_is_an_object_and_that_is_said(shipped):
    spec = ErasureSpec([Concept("star")], preserve=CAPTIONS)
    with pytest.warns(UserWarning, match="'star' is taken for an object with nothing") as caught:
        adapter = erase(shipped, "star", layers=(-1,), metric="identity", measure=False)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert adapter.spec.concepts == spec.concepts
    with pytest.raises(ConceptSpecError, match="ErasureSpec, a Concept or a name, got int"):
        erase(shipped, 5)


@pytest.mark.parametrize(
    ("target", "meant"), [("pistoll", "'pistol'"), ("chruch", "'church'"), ("golf bal", None)]
)
def test_a_target_that_nobody_knows_is_set_beside_words_that_somebody_does(shipped, target, meant):
    notes = notes_on_misspelt([Concept(target)], [shipped.tokenizer])
    assert [meant in note for note in notes] == ([True] if meant else [])


@pytest.mark.parametrize("target", ["star", "Ola Brenn", "cracked", "Pikachu", "Kilian Eng"])
def test_names_and_words_are_not_taken_for_misspelt(shipped, target):
    assert notes_on_misspelt([Concept(target)], [shipped.tokenizer]) == []


def test_captions_that_are_missing_or_none_are_one_clear_line(tmp_path):
    with pytest.raises(ConceptSpecError, match=r"cannot be read from .*no\.txt"):
        read_captions(tmp_path / "no.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ConceptSpecError, match=r"empty\.txt holds no caption"):
        read_captions(tmp_path / "empty.txt")


def test_long_phrases_are_cut_or_left_out_without_a_line_for_each(capfd):
    transformers_logging.set_verbosity_warning()
    pipe = tiny.flux()
    with_long = ErasureSpec([Concept("star", "circle")], preserve=(*CAPTIONS, "a ring " * 200))
    erase(pipe, with_long, layers=(0, -1), measure=False)
    said = capfd.readouterr()
    assert "truncated" not in said.err + said.out and "sequence length" not in said.err


@pytest.mark.parametrize(
    ("concept", "said", "unsaid"),
    [
        (Concept("hot air balloon"), 'uses of "hot", "air" and "balloon"', "shop window"),
        (Concept("Van Gogh", "a painter", "style"), 'other uses of "van"', "about van"),
        (Concept("star"), 'with "object", "thing", "tool" and "machine" in its', "an object in"),
        (Concept("rusty", "clean", "attribute"), 'phrases with "clean"', "photo of clean"),
        (Concept("violence", "", "violence.noun"), "can be named in `near`", "must stay; name"),
        (Concept("star", near=["a starfish"]), 'one phrase, such as "a starfish".', "other uses"),
    ],
)
def test_what_is_near_is_shown_as_a_person_would_say_it(concept, said, unsaid):
    text = explain(concept)
    assert said in text and unsaid not in text


@pytest.mark.parametrize("name", ["violence", "rusty", "nike-logo", "nudity"])
def test_examples_are_different_phrases_that_show_the_name(name):
    spec = read_spec(SPECS / name / "spec.toml")
    words: list[str] = []
    for concept in spec.concepts:
        words += map(re.escape, concept.words)
    lines = re.findall("(?:Soft, as far|Held out, to).*", explain(spec))
    assert len(lines) == 2 * len(spec.concepts)
    for line in lines:
        shown = line.split('"')[1::2]
        frames = [re.sub("|".join(words), "_", text).replace("an _", "a _") for text in shown]
        assert len({*frames}) == 4 and all("_" in frame for frame in frames), line


@pytest.mark.parametrize(
    "concepts",
    [
        (Concept("red star", "circle"), Concept("star", "ring", ("a red {}",))),
        (Concept("star", "circle"), Concept("star " * 60, "ring")),
    ],
)
def test_what_erase_refuses_is_not_explained(shipped, concepts):
    spec = ErasureSpec(concepts, preserve=CAPTIONS)
    with pytest.raises(ConceptSpecError) as of_erase:
        erase(shipped, spec, measure=False)
    with pytest.raises(ConceptSpecError, match=re.escape(str(of_erase.value))):
        explain(spec, shipped)


def test_a_name_that_is_too_long_is_named_and_no_template_blamed(shipped):
    with pytest.raises(ConceptSpecError, match="shorten what it names, 'comet ") as caught:
        explain(Concept("comet " * 50, "circle"), shipped)
    assert "template" not in str(caught.value)


def test_a_name_that_would_become_itself_is_not_explained(shipped):
    with pytest.raises(ConceptSpecError, match="star"):
        explain(Concept("star", "a star"), shipped)
