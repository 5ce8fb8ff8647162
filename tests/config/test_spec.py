"""Specs refuse nonsense at birth and survive TOML."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_erasepro import Concept, ErasureSpec
from diffusers_erasepro.config.options import Options, blocks_in
from diffusers_erasepro.config.spec import read_spec
from diffusers_erasepro.errors import ConceptSpecError, ErasureError

STAR = Concept("star", anchor="circle")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Concept(""), "blank"),
        (lambda: Concept("  \t"), "blank"),
        (lambda: Concept(None), "NoneType"),
        (lambda: Concept(5), "int 5"),
        (lambda: Concept(b"star"), "bytes"),
        (lambda: Concept(["star"]), "list"),
        (lambda: Concept("star", anchor=None), "anchor of 'star'"),
        (lambda: Concept("star", anchor="Star "), "nothing to erase"),
        (lambda: Concept("star", anchor="circle", synonyms=("circle",)), "nothing to erase"),
        (lambda: Concept("cat", anchor="Cats"), "'Cats' is 'cat' or a synonym in another form"),
        (lambda: Concept("cat", anchor="a cat"), "another form; name something else"),
        (lambda: Concept("x" * 500), "500 characters, at most 300"),
        (
            lambda: Concept("star", "circle", templates="photos"),
            "no kind .photos. .*object",
        ),
        (lambda: Concept("star", templates="objct"), "did you mean 'object'"),
        (lambda: Concept("star", templates="missing/plants.toml"), "read .*; give the path"),
        (lambda: Concept("star", "circle", templates=("a star",)), "exactly one '{}'.*'a star'"),
        (lambda: Concept("star", "circle", templates=("{} and {}",)), "exactly one"),
        (lambda: Concept("star", "circle", templates=("a {0} {}",)), "exactly one"),
        (lambda: Concept("star", "circle", templates=()), "empty"),
        (lambda: Concept("star", synonyms=[f"star{i}" for i in range(300)]), "300 synonyms.*100"),
        (lambda: Concept("star", names=["Stern"]), "table of languages"),
        (lambda: Concept("star", names={"German": ["Stern"]}), "'German' is no language code"),
        (lambda: Concept("star", near=["a red star"]), r"near\[0\].*which names it"),
        (lambda: ErasureSpec([STAR], near=["a starfish", "a star"]), r"near\[1\].*names a target"),
        (lambda: ErasureSpec([STAR], preserve=["a star", "one star"]), "every caption of preserve"),
        (lambda: ErasureSpec([STAR], everyday=1), "everyday must be True or False"),
        (
            lambda: Concept("star", "circle", soft_templates=("no slot",)),
            r"soft_templates of 'star'\[0\]",
        ),
        (lambda: Concept("star", "circle", synonyms="spark"), "sequence of texts"),
        (lambda: ErasureSpec(()), "no concepts"),
        (lambda: ErasureSpec(["star"]), r"concepts\[0\] must be a Concept, got str"),
        (lambda: ErasureSpec([STAR], preserve="a circle"), "sequence of texts"),
        (
            lambda: ErasureSpec([STAR], preserve=["a ring", 3]),
            r"preserve\[1\] must be text, got int",
        ),
        (
            lambda: ErasureSpec([STAR], preserve=["a ring", " STAR"]),
            r"preserve\[1\] is ' STAR', which is also a target",
        ),
        (
            lambda: ErasureSpec([STAR, Concept("Star", "ring")]),
            "erased twice, to 'circle' and to 'ring'",
        ),
        (
            lambda: ErasureSpec([Concept("star"), Concept("star")]),
            "erased twice, both times to nothing; keep one",
        ),
        (
            lambda: ErasureSpec([STAR, Concept("star")]),
            "erased twice, to 'circle' and to nothing; keep one",
        ),
        (lambda: ErasureSpec.from_toml('target = "star"'), r"the line \[\[concepts\]\] and name"),
        (lambda: ErasureSpec([STAR, Concept("circle", "star")]), "itself erased"),
        (lambda: ErasureSpec([STAR, Concept("circle", "ring")]), "'star' -> 'circle' -> 'ring'"),
        (
            lambda: ErasureSpec.from_dict({"concepts": [{"target": "a", "colour": 1}]}),
            "unknown fields .*colour",
        ),
        (lambda: ErasureSpec.from_toml("concepts = ["), "not TOML: .*; correct it there"),
        (lambda: Options.of({"layer": 3}), "unknown option 'layer' .*layers"),
        (lambda: Options(layers=("fc9",)), "unknown layer 'fc9'"),
        (lambda: Options(layers=(True,)), "unknown layer True"),
        (lambda: blocks_in((6,), 6), "unknown layer 6: the text encoder has blocks 0 to 5"),
        (lambda: Options(layers=()), "layers is empty"),
        (lambda: Options(ridge=float("nan")), "ridge must be a finite number"),
        (lambda: Options(soft_weight=-1), "soft_weight"),
        (lambda: Options(rtol=True), "rtol"),
        (lambda: Options(max_rank=0), "max_rank"),
        (lambda: Options(metric="euclid"), "'euclid' is not known .*covariance"),
        (lambda: Options(alignment="middle"), "last_subject"),
    ],
)
def test_bad_input_is_one_clear_error(make, says):
    with pytest.raises(ConceptSpecError, match=says):
        make()


def test_errors_are_value_errors_of_one_tree():
    with pytest.raises(ValueError):
        Concept("")
    assert issubclass(ConceptSpecError, ErasureError)


def test_the_first_of_a_tuple_is_exact_and_the_others_soft():
    concept = Concept("star", "circle", templates=("a {}", "the {}", "one {}"))
    assert concept.exact == ("a {}",) and concept.soft == ("the {}", "one {}")
    both = Concept("star", "circle", templates=("a {}", "the {}"), soft_templates=())
    assert both.exact == ("a {}", "the {}") and both.soft == ()


def test_no_soft_templates_are_not_the_same_as_those_of_the_kind():
    spec = ErasureSpec([Concept("star", "circle", templates=("a {}", "the {}"), soft_templates=())])
    assert ErasureSpec.from_dict(spec.to_dict()).concepts[0].exact == ("a {}", "the {}")
    assert ErasureSpec.from_toml(spec.to_toml()) == spec


def test_an_anchor_may_contain_the_target_and_says_what_that_costs():
    concept = Concept("pistol", anchor="water pistol")
    assert "contains 'pistol'" in concept.caveats[0] and not STAR.caveats


def test_names_and_near_misses_go_round_and_are_deduplicated():
    names = {"de": ["Pistole"], "fr": ["pistolet", "Pistole"], "zh": ["手枪"]}
    concept = Concept("pistol", "tool", names=names, near=["a water gun"])
    spec = ErasureSpec([concept], near=["a drill"], description="Handguns.", covers="pistols")
    assert ErasureSpec.from_toml(spec.to_toml()) == spec
    assert concept.foreign == ("Pistole", "pistolet", "手枪")
    assert spec.near_prompts() == ("a drill", "a water gun")


def test_parts_of_a_name_are_kept_and_others_of_them_are_only_measured():
    spec = ErasureSpec([Concept("golf ball", "stone")])
    assert {"golf", "a ball", "the golf"} <= {*spec.near_prompts()}
    measured = spec.held_out_near_prompts()
    assert "a ball in a shop window" in measured
    assert not {*measured} & {*spec.near_prompts(), *spec.preserve_captions()}


def test_captions_that_name_the_target_are_left_out_and_counted():
    captions = ["a red chair", "two pistols", "a dog"]
    spec = ErasureSpec([Concept("pistol")], captions, everyday=True)
    [caveat] = spec.caveats
    assert caveat.startswith("of 3 captions to preserve 1 names what is erased and is left out")
    assert "'two pistols'" in caveat
    assert not ErasureSpec([Concept("pistol")], ["a red chair"]).caveats


def test_a_preserve_list_of_which_nothing_is_left_is_said():
    with pytest.warns(
        UserWarning, match=r"all that you gave to preserve \(2 captions, .* is left out"
    ):
        ErasureSpec([Concept("pistol")], ["two pistols", "a pistol"], everyday=True)


NAMING = [
    ("cat", "the cats"),
    ("cats", "a cat asleep"),
    ("a cat", "two cats"),
    ("the cat", "one cat"),
    ("Beyonc\u00e9", "beyonce sings"),
    ("Beyonce", "Beyonc\u00e9 sings"),
    ("Spider-Man", "a spiderman toy"),
    ("Spiderman", "a spider-man toy"),
    ("golf ball", "golfballs"),
    ("AK-47", "two AK-47s"),
    ("AK-47", "an AK47"),
    ("R2D2", "R2 D2 in the sand"),
]
"""A target, and a text that names it in another spelling or number."""


@pytest.mark.parametrize(("target", "text"), NAMING)
def test_another_spelling_or_number_of_the_target_is_neither_near_nor_kept(target, text):
    with pytest.raises(ConceptSpecError, match="which names it"):
        Concept(target, "thing", near=[text])
    spec = ErasureSpec([Concept(target, "thing")], [text, "a red chair"])
    assert spec.preserve_captions() == ("a red chair",)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("watermark", "a high water mark on a wall"),
        ("rose", "a glass of ros\u00e9"),
        ("AT&T", "att"),
        ("a cat", "a catalogue"),
        ("golf ball", "a ball of golf"),
        ("\u0930\u093e\u092e", "\u0930\u0942\u092e\u0940"),
    ],
)
def test_other_words_stay_near(target, text):
    spec = ErasureSpec([Concept(target, "thing", near=[text])], [text])
    assert spec.preserve_captions() == (text,) and text in spec.near_prompts()


@pytest.mark.parametrize("target", ["a cat", "the cat"])
def test_shipped_captions_do_not_name_a_target_with_an_article(target):
    kept = ErasureSpec([Concept(target, "dog")]).preserve_captions()
    assert kept == ErasureSpec([Concept("cat", "dog")]).preserve_captions()


def test_of_a_name_without_such_parts_the_neighbours_are_measured():
    spec = ErasureSpec([Concept("pistol", "tool"), Concept("Monet", templates="style")])
    measured = spec.held_out_near_prompts()
    assert {"a tool in a shop window", "a thing in a shop window"} <= {*measured}
    assert "a painting of a painter" in measured
    assert not spec.near_prompts()
    assert not any("pistol" in text or "Monet" in text for text in measured)
    assert not Concept("Nike", "plain", templates="logo").neighbours()


def test_a_preserve_list_stands_alone_unless_everyday_captions_are_asked_for():
    few = ErasureSpec([STAR], preserve=["a ring"])
    assert few.preserve_captions() == ("a ring",)
    both = ErasureSpec([STAR], preserve=["a ring"], everyday=True).preserve_captions()
    assert both[0] == "a ring" and len(both) > 1700


def test_former_names_of_kinds_are_read_and_named():
    with pytest.warns(FutureWarning, match="'instance' are called 'object' now"):
        assert Concept("star", templates="instance").templates == "object"


def test_a_spec_file_that_is_none_is_named(tmp_path):
    with pytest.raises(ConceptSpecError, match=r"no\.toml' cannot be read .*; give the path"):
        read_spec(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("concepts = [")
    with pytest.raises(ConceptSpecError, match=r"bad\.toml: the spec is not TOML"):
        read_spec(tmp_path / "bad.toml")


def test_held_out_templates_are_never_solved_for():
    concept = Concept("star", "circle", templates=("a {}", "a postcard that shows a {}"))
    assert not set(concept.held_out) & {*concept.exact, *concept.soft}


def test_preserve_captions_leave_the_target_out():
    spec = ErasureSpec([STAR], preserve=["a red Star, on snow", "a starfish", "a ring", "a ring"])
    assert spec.preserve_captions() == ("a starfish", "a ring")
    assert not any("star" in t.split() for t in ErasureSpec([STAR]).preserve_captions())


words = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(
    str.strip
)


@pytest.mark.filterwarnings(
    "ignore:.*(invisible characters|form NFC)"
)  # any text goes round; test_catalogue has the warnings
@settings(max_examples=150, deadline=None)
@given(
    target=words,
    anchor=words,
    synonym=words,
    captions=st.none() | st.lists(words, max_size=3),
    keep=st.lists(words, max_size=2),
)
def test_toml_and_back_is_the_same_spec(target, anchor, synonym, captions, keep):
    try:
        spec = ErasureSpec(
            [Concept(target, anchor, synonyms=(synonym,), templates=("a {}",))],
            preserve=captions,
            keep=["", *keep],
        )
    except ConceptSpecError:
        return
    assert ErasureSpec.from_toml(spec.to_toml()) == spec
    assert ErasureSpec.from_dict(spec.to_dict()) == spec


def test_spaces_around_a_name_are_no_part_of_it():
    concept = Concept(" hot dog\n", " a pizza ")
    assert (concept.target, concept.anchor) == ("hot dog", "a pizza")


def test_a_concept_of_a_file_without_a_target_is_named():
    with pytest.raises(ConceptSpecError, match=r"concepts\[1\] has no target; name what to erase"):
        ErasureSpec.from_dict({"concepts": [{"target": "star"}, {"anchor": "x"}]})


def test_an_anchor_of_spaces_is_nothing():
    assert Concept("star", "  ") == Concept("star", "")
