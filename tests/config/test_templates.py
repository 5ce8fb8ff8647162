"""The shipped kinds and captions: real words, each written once, and no glyph among them."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from diffusers_erasepro import Concept, ErasureSpec
from diffusers_erasepro.config.everyday import everyday_captions
from diffusers_erasepro.config.kinds import Kind, find_kind, known_kinds, parse_kinds
from diffusers_erasepro.config.mentions import Mentions
from diffusers_erasepro.config.spec import read_spec
from diffusers_erasepro.config.words import Form, article_of, fill, forms_of, is_plural
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.glyphs.world import FIRST, SECOND
from diffusers_erasepro.prompts.pairs import pairs_of, pairs_to_solve

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "diffusers_erasepro"
SPECS = sorted((ROOT / "adapters" / "specs").glob("*/spec.toml"))
KINDS = [find_kind(name) for name in known_kinds()]
COCO_TRIGRAMS = 6.2
"""Distinct 3-grams per caption of 1735 lines of COCO; of its 3-grams 0.73 are distinct."""
COCO_DISTINCT = 0.73
MODULES_OF_GLYPHS = {"demo.py"}
"""Outside of the package `glyphs`, what is of that world alone."""


def words_of(text):
    return re.findall(r"\w+", text.lower())


def trigrams_of(text):
    words = words_of(text)
    return list(zip(words, words[1:], words[2:], strict=False))


def glyph_mentions():
    """Artists of the glyph worlds, and their captions' frame: a colour and a shape."""
    artists = [artist for world in (FIRST, SECOND) for artist in world.styles]
    colours = "|".join({*FIRST.colors, *SECOND.colors})
    shapes = "|".join({*FIRST.shapes, *SECOND.shapes})
    return re.compile(rf"\b({'|'.join(artists)}|glyphs?|({colours}) ({shapes})s?)\b", re.IGNORECASE)


def texts_of(kind):
    fields = ("exact", "soft", "held_out", "near", "anchors", "preserve")
    found = [kind.description, *kind.plural_soft, *kind.plural_held_out]
    for field in fields:
        found += getattr(kind, field)
    return found


def test_no_glyph_is_in_what_another_model_gets():
    texts = [*everyday_captions()]
    for kind in KINDS:
        texts += texts_of(kind)
    texts += [path.read_text(encoding="utf-8") for path in SPECS]
    pattern = glyph_mentions()
    assert pattern.search("a red star, by Mira Voss")
    assert not [found.group() for text in texts if (found := pattern.search(text))]


def test_no_glyph_is_in_what_the_package_says_to_others():
    """Docstrings may give the small world as an example; messages, helps and defaults may not."""
    pattern = glyph_mentions()
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        inside = path.relative_to(SOURCE).parts
        if inside[0] in ("glyphs", "pictures", "evaluation") or path.name in MODULES_OF_GLYPHS:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guarded = {"default_captions", "default_templates", "default_prompts"}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name in guarded:
                continue
            found += [(path.name, text) for text in strings_of(node) if pattern.search(text)]
    naming_the_world = {"glyphs"}
    said = [(name, text) for name, text in found if words_left(text, pattern) - naming_the_world]
    assert not said


def words_left(text, pattern):
    """What was found in a text, in small letters."""
    return {match.group().lower() for match in pattern.finditer(text)}


def strings_of(tree):
    """The strings of some code that are no docstrings, and no module's."""
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_shapes_are_as_rare_in_the_captions_as_in_anybodys():
    shapes = {*FIRST.shapes}
    naming = [text for text in everyday_captions() if shapes & {*words_of(text)}]
    assert len(naming) < 0.03 * len(everyday_captions())


def test_the_captions_are_many_and_none_is_there_twice():
    captions = everyday_captions()
    plain = [" ".join(words_of(text)) for text in captions]
    assert len(captions) >= 1500 and len({*plain}) == len(captions)


def test_the_captions_say_as_many_different_things_as_cocos():
    every = [gram for text in everyday_captions() for gram in trigrams_of(text)]
    distinct = {*every}
    assert len(distinct) / len(everyday_captions()) >= 0.8 * COCO_TRIGRAMS
    assert len(distinct) / len(every) >= 0.8 * COCO_DISTINCT


def test_at_most_three_captions_share_a_frame():
    common = """a an the of in on at by with and to from for into over under near its is are"""
    small = {*common.split()}
    frames = Counter()
    for text in everyday_captions():
        frames[" ".join(word if word in small else "_" for word in words_of(text))] += 1
    assert frames.most_common(1)[0][1] <= 3


def share_of_long(texts):
    return sum(len(words_of(text)) >= 25 for text in texts) / len(texts)


def test_a_third_of_a_kind_is_as_long_as_people_write():
    for texts in [*(k.soft for k in KINDS), *(k.preserve for k in KINDS)]:
        assert 0.3 <= share_of_long(texts) <= 0.4


def test_long_captions_are_some_and_have_at_most_a_third_of_the_words():
    """Each counts for five short ones: with more of them an edit moves short captions further."""
    long = [text for text in everyday_captions() if len(words_of(text)) >= 25]
    share = sum(map(len, map(words_of, long))) / sum(map(len, map(words_of, everyday_captions())))
    assert len(long) >= 100 and share <= 1 / 3


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_solves_nothing_that_it_measures(kind):
    assert len(kind.soft) >= 24 and len(kind.held_out) >= 16 and len(kind.near) >= 8
    solved = {gram for text in (*kind.exact, *kind.soft) for gram in frames_of(text)}
    for text in kind.held_out:
        own = frames_of(text)
        assert len(own & solved) < max(1, len(own)) / 2 or len(own) < 3, text


def frames_of(text):
    """Runs of five words."""
    words = words_of(text.replace("{}", "NAME"))
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.parent.name)
def test_what_a_spec_measures_it_does_not_solve_and_what_it_keeps_names_no_target(path):
    spec = read_spec(path)
    pairs = pairs_to_solve(spec.concepts, soft_budget=96)
    solved = {pair.target.text for pair in pairs["exact"] + pairs["soft"]}
    given = {*spec.near_prompts(), *spec.preserve_captions()}
    assert not solved & {pair.target.text for pair in pairs_of(spec.concepts, "held_out")}
    assert not given & {*spec.held_out_near_prompts()}
    words = [word for concept in spec.concepts for word in concept.words]
    assert not [text for text in given if text in Mentions(words)]


def test_a_sample_of_the_captions_is_spread_over_their_themes():
    every = everyday_captions()
    some = everyday_captions(60, seed=1)
    places = [every.index(text) for text in some]
    assert places == sorted(places) and max(places) > 0.97 * len(every)
    assert some == everyday_captions(60, seed=1) != everyday_captions(60, seed=2)
    assert everyday_captions(10_000) == every and everyday_captions(0) == ()


GOOD = """kind = "plant"
anchors = ["bush"]
exact = ["a {}"]
soft = ["the {}"]
held_out = ["my {}"]
near = ["a {} on a label"]
preserve = ["an oak"]
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('exact = ["a {}"]', 'exact = ["a plant"]'), r"exact\[0\] needs exactly one '{}'.*has no"),
        (('soft = ["the {}"]', 'soft = ["{} {}"]'), r"soft\[0\] needs exactly one '{}'.*it has 2"),
        (('exact = ["a {}"]\n', ""), "no `exact`"),
        (('held_out = ["my {}"]', 'held_out = ["the {}"]'), "solved for and held out"),
        (('["an oak"]', '["a {}"]'), r"preserve\[0\] is a caption"),
        (('soft = ["the {}"]', 'soft = ["the {}", "the {}"]'), "twice"),
        (('soft = ["the {}"]', 'soft = "the {}"'), "must be a list"),
        (('kind = "plant"\n', ""), "kind must be"),
        (("near =", "nearly ="), "unknown keys .*nearly.*known: .*near"),
        (('kind = "plant"', "kind = "), "my.toml is not TOML: .*; correct it there"),
    ],
)
def test_a_file_of_templates_that_is_wrong_is_one_clear_line(change, says):
    with pytest.raises(ConceptSpecError, match=says) as caught:
        parse_kinds(GOOD.replace(*change), "my.toml")
    assert "\n" not in str(caught.value) and "my.toml" in str(caught.value)


def test_a_file_of_templates_works_like_a_kind_and_goes_into_the_spec(tmp_path):
    path = tmp_path / "plants.toml"
    path.write_text(GOOD + '[noun]\nexact = ["some {}"]\n')
    concept = Concept("birch", "bush", templates=str(path))
    assert concept.exact == ("a {}",) and concept.candidates == ("bush",)
    assert Concept("moss", "bush", templates=f"{path}.noun").exact == ("some {}",)
    spec = ErasureSpec([concept])
    path.unlink()
    again = ErasureSpec.from_toml(spec.to_toml())
    assert again == spec and isinstance(again.concepts[0].kind, Kind)
    assert spec.every_caption()[0] == "an oak"


@pytest.mark.parametrize(
    ("phrase", "name", "text"),
    [
        ("a {}", "apple", "an apple"),
        ("a {}", "hour glass", "an hour glass"),
        ("A {} man", "old", "An old man"),
        ("a {}", "unicorn", "a unicorn"),
        ("a {}", "X-ray", "an X-ray"),
        ("a photo of a {}", "weapons", "a photo of weapons"),
        ("a {}", "the Simpsons", "the Simpsons"),
        ("the {}", "weapons", "the weapons"),
        ("a {} woman", "", "a woman"),
        ("a {} adult", "", "an adult"),
        ("a painting by {}", "a painter", "a painting by a painter"),
    ],
)
def test_articles_follow_the_name(phrase, name, text):
    filled, start = fill(phrase, name)
    assert filled == text and filled[start : start + len(name)] == name


def test_the_forms_of_a_name():
    forms = {form.kind: form.text for form in forms_of("hot dog", countable=True)}
    assert forms["plural"] == "hot dogs" and forms["possessive"] == "hot dog's"
    assert forms["hyphen"] == "hot-dog" and forms["capitals"] == "HOT DOG"
    assert forms_of("weapons", countable=True)[0].text == "weapon"
    assert not {"bus", "glass", "lens", "gas", "chess", "tennis"} & {
        word for word in ("bus", "glass", "lens", "gas", "chess", "tennis") if is_plural(word)
    }
    adjective = forms_of("nude", countable=False, noun=False)
    assert {form.kind for form in adjective} == {"capitals"}


@pytest.mark.parametrize(
    ("name", "plural", "possessive"),
    [
        ("McDonald's", None, None),
        ("police", None, "police's"),
        ("CCTV", "CCTVs", "CCTV's"),
        ("CAT", "CATs", "CAT's"),
        ("HOT DOG", "HOT DOGS", "HOT DOG's"),
        ("Mickey Mouse", "Mickey Mouses", "Mickey Mouse's"),
        ("mouse", "mice", "mouse's"),
        ("AK-47", "AK-47s", "AK-47's"),
        ("100", None, None),
        ("The Beatles", None, "The Beatles'"),
        ("a cat", "cats", "cat's"),
        ("An apple", "apples", "apple's"),
    ],
)
def test_endings_are_those_that_people_write(name, plural, possessive):
    forms = {form.kind: form.text for form in forms_of(name, countable=True)}
    assert (forms.get("plural"), forms.get("possessive")) == (plural, possessive)


@pytest.mark.parametrize("article", ["a", "the", "The"])
def test_a_name_with_an_article_is_written_like_the_bare_noun(article):
    bare = {form.text for form in forms_of("cat", countable=True)}
    assert {form.text for form in forms_of(f"{article} cat", countable=True)} == {*bare, "cat"}
    soft = pairs_to_solve([Concept(f"{article} cat", "a dog")], soft_budget=96)["soft"]
    said = {pair.target.text: pair.anchor.text for pair in soft}
    assert said["cat"] == "dog" and said["two cats side by side"] == "two dogs side by side"


def test_a_hyphen_that_goes_is_called_a_space():
    assert forms_of("AK-47", countable=False)[-1] == Form("AK 47", "space")


def test_letters_that_are_spelt_out_have_the_article_they_are_spoken_with():
    assert [article_of(word) for word in ("SUV", "LED", "NASA", "UFO")] == ["an", "an", "a", "a"]


def test_plurals_are_met_with_the_plural_of_the_anchor_and_names_in_other_languages():
    concept = Concept("knife", "tool", names={"de": ["Messer"]})
    soft = pairs_to_solve([concept], soft_budget=96)["soft"]
    said = {pair.target.text: pair.anchor.text for pair in soft}
    assert said["two knives side by side"] == "two tools side by side"
    assert said["Messer"] == "tool"
    assert {pair.word for pair in soft} == {"knife"}
