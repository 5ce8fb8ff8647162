"""A picture before the prompt: what an erasure that was solved without one leaves, and says."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

import siblings
from conftest import bits, same
from diffusers_erasepro import ErasureSpec, erasable, erase
from diffusers_erasepro.erasure.residuals import relative
from diffusers_erasepro.families.pipelines import family_of
from diffusers_erasepro.loaders.call_arguments import list_arguments
from tiny import PRESERVE, STAR

SPEC = ErasureSpec((STAR,), preserve=PRESERVE)
GREY = Image.new("RGB", (56, 56), (128, 128, 128))
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 56, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def plus():
    return siblings.build("QwenImageEditPlusPipeline").pipe


@torch.no_grad()
def largest_residual(pipe, base, pictures):
    """Of the positions at which "a star" and "a circle" differ, how far the worst is from the
    anchor's."""
    have, star, circle = (
        p.encode_prompt(prompt=[words], image=pictures)[0][0]
        for p, words in ((pipe, "a star"), (base, "a star"), (base, "a circle"))
    )
    differs = relative(star, circle) > 1e-6
    assert 1 <= differs.sum() < len(star)
    return float(relative(have, circle)[differs].max())


@pytest.mark.parametrize(
    "pictures",
    [
        [NOISE, GREY],
        pytest.param(None, marks=pytest.mark.slow),
        pytest.param([NOISE], marks=pytest.mark.slow),
        pytest.param([GREY], marks=pytest.mark.slow),
    ],
)
def test_rows_hold_beside_any_picture(plus, pictures):
    before = bits(plus)
    pipe = erasable(copy.deepcopy(plus))
    pipe.load_erasure_adapter(erase(plus, SPEC, layers="embedding", measure=False))
    assert largest_residual(plus, plus, pictures) > 0.5
    assert largest_residual(pipe, plus, pictures) <= 1e-4
    pipe.disable_erasure()
    assert same(bits(pipe), before)


def test_blocks_hold_on_text_alone_and_what_a_picture_leaves_is_said(plus):
    pipe = erasable(copy.deepcopy(plus))
    adapter = erase(plus, SPEC, layers=(0, -1), measure=False)
    pipe.load_erasure_adapter(adapter)
    assert largest_residual(pipe, plus, None) <= 1e-4
    left = [largest_residual(pipe, plus, shown) for shown in ([NOISE], [GREY], [NOISE, GREY])]
    assert 0.2 < min(left) <= max(left) < 0.6  # as docs/pipelines.md says
    assert list_arguments(pipe, {"prompt": "a star", "image": [GREY]}) == {}  # it may be drawn
    for said in (pipe.verify_erasure().uncovered, adapter.report.notes):
        assert any("image: prompts are solved for without a picture" in note for note in said)


def test_a_pipeline_that_asks_for_a_picture_is_observed_with_a_grey_one():
    pipe = siblings.build("QwenImageEditPipeline").pipe
    before = bits(pipe)
    (use,) = family_of(pipe).encoders
    assert use.picture == "image" and same(bits(pipe), before)
    erased = erasable(copy.deepcopy(pipe))
    erased.load_erasure_adapter(erase(pipe, SPEC, layers="embedding", measure=False))
    assert erased.verify_erasure(raise_on_fail=True).ok
    for picture in (GREY, NOISE):
        assert largest_residual(erased, pipe, picture) <= 1e-4


def test_the_caption_of_a_picture_is_said():
    notes = family_of(siblings.build("QwenImageLayeredPipeline").pipe).notes
    assert any("get_image_caption: a call without a prompt" in note for note in notes)
