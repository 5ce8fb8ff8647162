"""The video world in the box.

Its clips, their judge, and a shape and a motion erased from a stock AnimateDiffPipeline.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline
from PIL import Image
from safetensors import safe_open

import tiny
from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.erasure.noise_predictions import NoisePredictions
from diffusers_erasepro.glyphs.clip_judge import motion_of, right, track
from diffusers_erasepro.glyphs.clips import (
    FRAMES,
    MOTIONS,
    STILL,
    captioned_clips,
    render_clip,
    sample_clip,
)
from diffusers_erasepro.glyphs.judge import to_pixels


@pytest.fixture(scope="module")
def video():
    return erasable(glyphs.load_video_pipeline())


@pytest.fixture(scope="module")
def judge():
    return glyphs.load_clip_judge()


@pytest.fixture(scope="module")
def clip_captions():
    return tuple(text for text, _ in captioned_clips(200, seed=0))


def images(stack):
    return [Image.fromarray(frame) for frame in stack]


def drawn(pipe, prompts, **more):
    noise = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return pipe(
        list(prompts),
        num_frames=FRAMES,
        num_inference_steps=6,
        guidance_scale=3.0,
        generator=noise,
        **more,
    ).frames


def test_most_motions_are_several_tokens_and_share_them(video):
    pieces = {word: video.tokenizer.tokenize(word) for word in MOTIONS}
    assert all(len(p) > 1 for p in pieces.values())
    assert (
        pieces["rising"][-1] == pieces["sinking"][-1]
        and pieces["leftbound"][-3:] == pieces["rightbound"][-3:]
    )


def test_a_motion_stands_in_captions_as_an_adjective_does():
    for held_out in (False, True):
        pairs = captioned_clips(100, seed=3, held_out=held_out)
        assert all((said.motion or "") in text for text, said in pairs)
        assert {said.motion for _, said in pairs} == {*MOTIONS, None}


def test_the_judge_knows_rendered_clips(judge):
    rng = np.random.default_rng(99)
    clips = [sample_clip(rng) for _ in range(45)]
    found = right(judge([images(render_clip(clip, rng)) for clip in clips]), clips)
    assert all(sum(values) / len(values) >= 0.97 for values in found.values())


def test_no_motion_is_seen_where_there_is_none_to_see():
    rng = np.random.default_rng(0)
    noise = images(rng.integers(0, 256, (FRAMES, 32, 32, 3), dtype=np.uint8))
    still = render_clip(replace(sample_clip(rng), motion=STILL), rng)
    shuffled = render_clip(replace(sample_clip(rng), motion="leftbound"), rng)[
        [3, 0, 7, 2, 6, 1, 5, 4]
    ]
    assert motion_of(track(to_pixels(noise))) is None
    assert motion_of(track(to_pixels(images(still)))) == STILL
    assert motion_of(track(to_pixels(images(shuffled)))) is None


def test_the_pipeline_is_a_stock_one_in_float32(video):
    assert AnimateDiffPipeline in type(video).__mro__
    assert {
        p.dtype for m in (video.unet, video.text_encoder, video.vae) for p in m.parameters()
    } == {torch.float32}


def test_weights_are_small_and_carry_their_recipe():
    assert sum(p.stat().st_size for p in glyphs.VIDEO.rglob("*") if p.is_file()) <= 16e6
    for path in glyphs.VIDEO.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            recipe = json.loads(file.metadata()["erasepro.recipe"])
        assert (
            recipe["command"].startswith("python -m diffusers_erasepro.glyphs.train_video")
            and len(recipe["commit"]) == 40
        )


@pytest.mark.slow
def test_a_shape_and_a_motion_are_erased_and_off_is_the_same_bits(video, judge, clip_captions):
    """The motion by pixels.

    The shipped world does not draw every motion well enough to judge single clips by eye.
    """
    concepts = (
        Concept("star", "circle"),
        Concept("rising", STILL, templates=glyphs.templates("attribute")),
    )
    before = bits(video)
    (star,), (rising,), (resting,) = (
        drawn(video, [p]) for p in ("a red star", "a rising shape", "a resting shape")
    )
    assert set(judge([star])["shape"][0]) == {"star"}

    adapter = erase(video, ErasureSpec(concepts, preserve=clip_captions))
    assert adapter.report.listed_residual < 1e-5
    video.load_erasure_adapter(adapter)
    (no_star,), (no_rising,) = (drawn(video, [p]) for p in ("a red star", "a rising shape"))
    assert "star" not in judge([no_star])["shape"][0]
    assert apart(no_rising, resting) < apart(rising, resting) / 2

    video.unload_erasure_adapters()
    assert_same_bits(video, before)


def apart(a, b):
    """Mean squared difference of two clips' pixels."""
    return (to_pixels(a) - to_pixels(b)).square().mean().item()


@pytest.mark.slow
@torch.no_grad()
def test_noise_of_whole_clips_is_compared_and_motion_modules_are_left_alone(clip_captions):
    pipe = tiny.build("AnimateDiffPipeline")
    spec = ErasureSpec((Concept("star", "circle", soft_templates=()),), preserve=clip_captions[:6])
    predictions = NoisePredictions.of(pipe, spec)
    adapter = erase(pipe, spec, layers=(0, "kv"))
    assert {x.shape[2] for _, x, _, _ in predictions.anchored} == {FRAMES}
    assert predictions.judge(adapter).report.denoiser_residual < 0.5  # most of the target is gone
    edited = [name for name in adapter.edits if name.startswith("unet.")]
    assert edited and not [name for name in edited if "motion_modules" in name]
