"""What is left of the concepts in prompts of one's own, by what the live pipeline reads."""

import math

import pytest

from diffusers_erasepro import Concept
from diffusers_erasepro.erasure.selectivity import left_by_group
from diffusers_erasepro.loaders.prompt_measures import measure_prompts, pair_in, sort_by_left
from diffusers_erasepro.loaders.verification import active_edits, compare_live, edited_paths

STAR = Concept("star", "circle", synonyms=("red star",))
CROSS = Concept("cross", "square")
LISTED = "a star"
TEXTS = ("a blue heart on sand", LISTED, "one odd star, and a cross, seen from afar")


@pytest.mark.parametrize(
    ("text", "target", "anchor"),
    [
        ("a star", "a star", "a circle"),
        ("a red star on a star", "a red star on a circle", "a circle on a circle"),
        ("a cross beside a star", "a square beside a star", "a square beside a circle"),
        ("a starfish", None, None),
    ],
)
def test_each_mention_is_measured_alone(text, target, anchor):
    pair = pair_in(text, STAR, (STAR, CROSS))
    if target is None:
        assert pair is None
        return
    assert (pair.target.text, pair.anchor.text) == (target, anchor)
    assert pair.target.text[pair.target.start : pair.target.stop] in STAR.words
    assert pair.anchor.text[pair.anchor.start : pair.anchor.stop] == "circle"


def test_listed_prompts_keep_nothing_and_others_do_not_move_as_much(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    other, listed, unseen = measure_prompts(pipe, TEXTS)
    assert (other.names, other.left) == ((), None) and 0 < other.moved < 0.2
    assert listed.names == ("star",) and listed.left < 0.4 and listed.moved is None
    assert 0 < unseen.left < 1 and {"name", "ends"} <= {*unseen.left_by_kind}
    assert sort_by_left([other, listed, unseen])[0] is max(listed, unseen, key=lambda m: m.left)


def test_the_share_over_all_positions_is_between_those_of_the_kinds(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    (one,) = measure_prompts(pipe, TEXTS[2:])
    assert min(one.left_by_kind.values()) <= one.left <= max(one.left_by_kind.values())
    (adapter,) = active_edits(pipe)
    (path,) = edited_paths(pipe, adapter)
    encoder = compare_live(path, adapter)
    pair = pair_in(TEXTS[2], STAR, adapter.spec.concepts)
    with pipe.erasure_disabled():  # the measure before an erasure is 1, so it cannot flatter
        assert left_by_group(encoder, [pair], ["x"])["x"].whole == pytest.approx(1)


def test_verify_has_the_worst_prompt_first(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    found = pipe.verify_erasure([LISTED, "the very odd star nobody has drawn before"])
    shares = list(found.prompts_left.values())
    assert len(shares) == 2 and shares == sorted(shares, reverse=True)
    assert pipe.verify_erasure().prompts_left == {}


def test_a_name_past_the_limit_says_so(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    (one,) = measure_prompts(pipe, ["a very long walk " * 40 + "to the star"])
    assert one.left is None and one.note and sort_by_left([one]) == [one]


def test_an_erasure_that_is_off_measures_nothing(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    pipe.disable_erasure()
    (one,) = measure_prompts(pipe, [LISTED])
    assert one.left is None and not math.isnan(one.left or 0)
