"""The world in the box.

Its words, its pictures, its judge, and a pipeline that draws what the caption says.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from diffusers_erasepro import glyphs
from diffusers_erasepro.config.kinds import find_kind, known_kinds
from diffusers_erasepro.glyphs.captions import HELD_OUT_PHRASINGS, captioned_scenes, phrase
from diffusers_erasepro.glyphs.render import DISTANCES, PATTERNS, image
from diffusers_erasepro.glyphs.world import FIRST, SECOND, WORLDS, sample_scene


@pytest.fixture(scope="module")
def judge():
    return glyphs.load_judge()


def renders(n, seed, second=0.0):
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(FIRST, rng, second=second) for _ in range(n)]
    return [image(FIRST, scene, rng) for scene in scenes], scenes


def test_the_world_is_as_large_as_promised():
    assert len(glyphs.SHAPES) >= 10 and len(glyphs.STYLES) >= 6 and len(glyphs.COLORS) >= 6
    assert len(glyphs.BACKGROUNDS) >= 5 and len(glyphs.ATTRIBUTE_WORDS) >= 3


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_every_word_has_a_drawing(world):
    assert set(world.shapes.values()) == set(DISTANCES) and set(world.styles.values()) == set(
        PATTERNS
    )


def test_the_second_world_shares_no_word_with_the_first():
    words = [
        {*w.shapes, *w.styles, *w.colors, *w.backgrounds, *w.attribute_words}
        for w in (FIRST, SECOND)
    ]
    assert not words[0] & words[1]


def test_captions_follow_their_seed():
    assert glyphs.captions(20, seed=3) == glyphs.captions(20, seed=3) != glyphs.captions(20, seed=4)


def test_held_out_phrasings_are_nowhere_else():
    rng = np.random.default_rng(0)
    frames = [frame.split("{glyph}")[0].strip(" ,:") for frame in HELD_OUT_PHRASINGS]
    frames = [f for f in frames if f]
    training = [phrase(FIRST, sample_scene(FIRST, rng), rng) for _ in range(3000)]
    kinds = [find_kind(name) for name in known_kinds()]
    kinds += [glyphs.templates(field) for field in ("shape", "style", "attribute")]
    solved = [t for kind in kinds for t in (*kind.exact, *kind.soft)]
    assert not [f for f in frames for text in (*training, *solved) if f in text]


def test_concepts_are_several_tokens_and_neighbours_share_them(shipped):
    def pieces(text):
        return shipped.tokenizer.tokenize(text)

    assert len(pieces("cross")) > 1 and len(pieces("Mira Voss")) > 2
    assert set(pieces("cross")) & set(pieces("Mira Voss"))
    assert set(pieces("crescent")) & set(pieces("cracked"))
    assert set(pieces("Mira Voss")) & set(pieces("Mara Vance"))


def test_the_judge_knows_held_out_renders(judge):
    images, scenes = renders(300, seed=99)
    told = judge(images)
    for field in ("shape", "style", "color", "background"):
        right = [a == getattr(s, field) for a, s in zip(told[field], scenes, strict=True)]
        assert sum(right) / len(right) >= 0.97, field
    assert sum(
        a == (s.attribute is not None) for a, s in zip(told["attribute"], scenes, strict=True)
    ) >= 0.97 * len(scenes)


def test_the_judge_sees_no_shape_in_garbage(judge):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    told = judge([Image.fromarray(n) for n in noise])
    assert sum(shape is None for shape in told["shape"]) >= 30


def test_the_pipeline_is_a_stock_one_in_float32(shipped):
    assert type(shipped).__module__.startswith("diffusers.pipelines.stable_diffusion")
    assert {
        p.dtype for m in (shipped.unet, shipped.text_encoder, shipped.vae) for p in m.parameters()
    } == {torch.float32}


def test_weights_are_small_and_carry_their_recipe():
    files = list(glyphs.WEIGHTS.rglob("*.safetensors"))
    assert sum(p.stat().st_size for p in glyphs.WEIGHTS.rglob("*") if p.is_file()) <= 24e6
    for path in files:
        with safe_open(path, framework="pt") as file:
            recipe = json.loads(file.metadata()["erasepro.recipe"])
        assert (
            recipe["command"].startswith("python -m diffusers_erasepro.glyphs.train")
            and len(recipe["commit"]) == 40
        )


def test_it_draws_what_held_out_captions_say(shipped, judge):
    pairs = captioned_scenes(24, seed=11, held_out=True)
    generator = torch.Generator().manual_seed(0)
    images = shipped(
        [t for t, _ in pairs], num_inference_steps=10, guidance_scale=3.0, generator=generator
    ).images
    told = judge(images)
    fields = ("shape", "style", "color", "background")
    right = [
        told[f][i] == getattr(s, f)
        for f in fields
        for i, (_, s) in enumerate(pairs)
        if getattr(s, f) is not None
    ]
    assert sum(right) / len(right) >= 0.9


@pytest.mark.slow
def test_training_resumes_where_it_was(tmp_path):
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "glyphs"))
    from train import Parts, Run

    run = Run(FIRST, 0, tmp_path, encoder_layers=2, scale=0.002)
    first = Parts(run, tmp_path / "world").encoder.state_dict()
    again = Parts(run, tmp_path / "world").encoder.state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
