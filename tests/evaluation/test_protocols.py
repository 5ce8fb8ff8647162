"""The field's suites: published prompts by their hash, made ones by our phrases; counts."""

import csv

import pytest

from diffusers_erasepro import Concept
from diffusers_erasepro.errors import EvaluationError
from diffusers_erasepro.evaluation.before_after import PicturePair
from diffusers_erasepro.evaluation.judgement import count_seen, judge_pair
from diffusers_erasepro.evaluation.metrics import pixel_change
from diffusers_erasepro.evaluation.prompt_files import hash_prompts, make_prompts, read_prompt_file
from diffusers_erasepro.evaluation.protocols import (
    PROTOCOLS,
    REPEATS,
    choose_questions,
    list_prompts,
    with_limit,
)
from diffusers_erasepro.evaluation.verdicts import LEFT, Verdict, worst_verdict


def write_table(path, texts, **columns):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", *columns])
        writer.writerows(zip(texts, *columns.values(), strict=True))
    return path


def test_the_hash_is_of_the_prompts_whatever_else_a_copy_holds(tmp_path):
    texts = ["a star", "two\r\nlines, and a comma", "  spaces  "]
    one = read_prompt_file(write_table(tmp_path / "a.csv", texts, seed=[1, 2, 3]))
    other = read_prompt_file(write_table(tmp_path / "b.csv", texts, type="xyz"))
    assert hash_prompts(one.texts) == hash_prompts(other.texts) == hash_prompts(texts)
    assert hash_prompts(one.texts) != hash_prompts(texts[::-1])
    assert one.seeds == (1, 2, 3) and other.groups == ("x", "y", "z") and other.seeds is None


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS.keys())
def test_every_suite_has_prompts_or_says_where_they_are(protocol, tmp_path):
    if protocol.source is None:
        made = list_prompts(protocol, None)
        assert len(made.texts) == 18 * len(protocol.names) * REPEATS
        for text, name in zip(made.texts, made.groups, strict=True):
            assert name in text
        assert len({*zip(made.texts, made.seeds, strict=True)}) == len(made.texts)
        return
    with pytest.raises(EvaluationError, match="download https://"):
        list_prompts(protocol, None)
    given = read_prompt_file(write_table(tmp_path / "some.csv", ["a cat", "a dog"]))
    with pytest.raises(EvaluationError, match=r"are not the .* download it again"):
        list_prompts(protocol, given)
    assert list_prompts(protocol, given, dry_run=True) == given


def test_a_limit_takes_prompts_from_everywhere_and_gives_each_a_seed():
    made = with_limit(list_prompts(PROTOCOLS["styles"], None), 10)
    assert len(made.texts) == 10 and {*made.groups} == {*PROTOCOLS["styles"].names}


def test_each_prompt_is_asked_about_its_own_name():
    erased = [Concept("Monet", "a painter", templates="style")]
    made = with_limit(list_prompts(PROTOCOLS["styles"], None), 10)
    asked = choose_questions(PROTOCOLS["styles"], made, erased)
    assert [concept.target for concept in asked] == list(made.groups)
    assert asked[list(made.groups).index("Monet")] is erased[0]


def test_own_prompts_name_the_concepts_in_half_and_nothing_erased_in_the_other():
    cat = Concept("cat", "dog")
    made = make_prompts([cat], ["a ring", "a red house", "a boat", "rain"], 8)
    assert sum("cat" in text or "Cat" in text for text in made.texts) == 4 == len(made.texts) - 4


def pair(seen=None, left=None, moved=None, names=("cat",)):
    return PicturePair("a cat", 0, names, 0.1, (1.0, 1.0), seen, left, {}, moved)


def test_verdicts_are_the_worst_of_what_is_known():
    assert judge_pair(pair(left=0.1)) == "good" and judge_pair(pair(left=0.3)) == "look"
    assert judge_pair(pair(left=0.1, seen=(True, True))) == "bad"
    assert judge_pair(pair(left=0.1, seen=(False, True))) == "good"  # it was never there
    assert judge_pair(pair(moved=0.2, names=())) == "bad"
    assert judge_pair(pair()) == "look"  # nothing is known
    assert LEFT.judge(float("nan")) is Verdict.bad and worst_verdict([]) is Verdict.good


def test_what_was_not_seen_before_cannot_vanish():
    assert count_seen([pair(seen=(False, False))] * 3) is None
    found = count_seen(
        [pair(seen=(True, False)), pair(seen=(True, True)), pair(seen=(False, True))]
    )
    assert (found.value, found.n) == (0.5, 2)


def test_pictures_of_two_sizes_have_no_difference():
    from PIL import Image

    small = Image.new("RGB", (8, 8))
    with pytest.raises(EvaluationError, match="8 x 8 and one of 16 x 8"):
        pixel_change([small], [Image.new("RGB", (16, 8))])
