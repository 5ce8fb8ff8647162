"""What is asked wrongly of the pictures world is refused, with what to do instead."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusers_erasepro import pictures
from diffusers_erasepro.config.spec import Concept
from diffusers_erasepro.errors import ErasureError
from diffusers_erasepro.evaluation.detectors import find_detector
from diffusers_erasepro.pictures import judge as judging
from diffusers_erasepro.pictures import world as words

SMALL = Image.new("RGB", (32, 64))


@pytest.fixture
def no_distribution(monkeypatch):
    monkeypatch.setattr(words, "DISTRIBUTION", "no_such_distribution")
    words._table.cache_clear()
    yield
    words._table.cache_clear()


@pytest.mark.parametrize(
    "ask",
    [
        lambda: pictures.load_pipeline("unet"),
        lambda: pictures.load_pipeline("dit"),
        pictures.load_judge,
        pictures.load_words,
        lambda: pictures.captions(1),
        lambda: pictures.synonyms("cat face"),
        lambda: pictures.THINGS,
        lambda: find_detector("pictures"),
    ],
)
def test_without_the_distribution_every_door_says_what_to_install(no_distribution, ask):
    with pytest.raises(ErasureError, match="pip install diffusers-erasepro-pictures"):
        ask()


def test_the_demo_says_what_to_install(no_distribution, run, tmp_path):
    code, _, errors = run("demo", "--world", "pictures", "-o", tmp_path / "out")
    assert code == 1
    assert "pip install diffusers-erasepro-pictures" in errors


@pytest.mark.parametrize("thing", [3, None, "kittens face"])
def test_what_is_no_thing_is_refused(world, thing):
    with pytest.raises(ErasureError, match=r"THINGS|nearest"):
        world.synonyms(thing)


def test_a_concept_that_the_judge_cannot_see_names_the_nearest(world):
    pipe = world.load_pipeline("unet")
    with pytest.raises(ErasureError, match="nearest: 'pistol'"):
        find_detector("pictures").check(pipe, Concept("gunn", "water pistol"))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([SMALL], "picture 0 is 32 x 64; this judge knows pictures of 64 x 64"),
        ([np.zeros((64, 64, 3))], "picture 0 is a ndarray"),
        (Image.new("RGB", (64, 64)), r"give \[picture\]"),
    ],
)
def test_pictures_that_the_judge_does_not_know_are_refused(images, said):
    with pytest.raises(ErasureError, match=said):
        judging.pixels(images)


def test_half_a_picture_of_another_size_is_refused():
    with pytest.raises(ErasureError, match="32 x 64"):
        judging.half(SMALL, 0)


def test_a_half_is_the_thing_on_its_side():
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste("red", (36, 20, 60, 44))
    left, right = (np.asarray(judging.half(picture, side)) for side in (0, 1))
    assert (left == 255).all()
    assert (right[:, :, 1] == 0).mean() > 0.4


@pytest.mark.parametrize(("n", "two", "said"), [(-1, 0.0, "n must"), (1, 1.5, "two must")])
def test_captions_refuse_what_is_no_number_or_share(world, n, two, said):
    with pytest.raises(ErasureError, match=said):
        world.captions(n, two=two)


def test_a_prompt_of_more_than_32_tokens_is_cut_with_a_warning(world):
    from diffusers_erasepro.pictures.encoder import load_tokenizer

    with pytest.warns(UserWarning, match=r"has 42 tokens; this world reads the first 32"):
        ids = load_tokenizer()("key " * 40, truncation=True, max_length=256).input_ids
    assert len(ids) == 32
