"""Both pipelines and both detectors, as they are shipped."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch
from PIL import Image

from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from diffusers_erasepro.errors import ErasureError


@pytest.fixture(scope="module", params=["unet", "dit"])
def pipe(request, world):
    return world.load_pipeline(request.param)


@pytest.fixture(scope="module")
def judge(world):
    return world.load_judge()


def drawn(pipe, prompt: str, *, steps: int = 2) -> Image.Image:
    noise = torch.Generator().manual_seed(0)
    return pipe(prompt, num_inference_steps=steps, height=64, width=64, generator=noise).images[0]


def test_classes_are_stock(pipe):
    assert type(pipe).__module__.startswith("diffusers.pipelines.")
    assert type(pipe.text_encoder).__name__ == "BertModel"


def test_draws_64_pixels(pipe):
    assert drawn(pipe, "a pizza by Noto on blue").size == (64, 64)


def test_a_seed_gives_the_same_picture(pipe):
    assert drawn(pipe, "a key").tobytes() == drawn(pipe, "a key").tobytes()


def test_both_read_32_tokens(pipe):
    asked = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    states = pipe.encode_prompt("a key", **asked)[0]
    assert states.shape == (1, 32, 384)


def test_a_saved_pipeline_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = type(pipe).from_pretrained(tmp_path, local_files_only=True)
    assert drawn(loaded, "a key").tobytes() == drawn(pipe, "a key").tobytes()


@pytest.mark.slow
def test_a_saved_pipeline_loads_wherever_the_world_is_imported(world, tmp_path):
    """In a process of its own: here the tokenizer's module is there already."""
    world.load_pipeline("unet").save_pretrained(tmp_path)
    code = (
        "from diffusers import DiffusionPipeline; from diffusers_erasepro import pictures; "
        f"DiffusionPipeline.from_pretrained({str(tmp_path)!r}, local_files_only=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_longer_prompt_is_cut_with_a_warning(pipe):
    with pytest.warns(UserWarning, match="reads the first 32"):
        drawn(pipe, "a key " * 20, steps=1)


def test_a_prompt_that_fits_is_silent(pipe):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        drawn(pipe, "a key", steps=1)


def test_no_caption_is_cut(world):
    from diffusers_erasepro.pictures.encoder import LENGTH, load_tokenizer

    tokenizer = load_tokenizer()
    for held_out in (False, True):
        for caption in world.captions(500, held_out=held_out, two=0.25):
            assert len(tokenizer(caption.text).input_ids) <= LENGTH, caption.text


@pytest.mark.slow
def test_one_adapter_file_serves_both_pipelines(world, tmp_path):
    # the erasure lives in the encoder, whose fingerprint both pipelines have
    spec = ErasureSpec((Concept("octopus", "penguin"),), preserve=("a key", "a red house"))
    made = erase(world.load_pipeline("unet"), spec, layers="embedding", measure=False)
    made.save_pretrained(tmp_path)
    assert [*made.base] == ["text_encoder"]
    asked = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    for kind in ("unet", "dit"):
        pipe = erasable(world.load_pipeline(kind))
        wanted = pipe.encode_prompt("the penguin on a key", **asked)[0]
        pipe.load_erasure_adapter(tmp_path)
        assert pipe.verify_erasure().ok
        found = pipe.encode_prompt("the octopus on a key", **asked)[0]
        assert torch.allclose(found, wanted, atol=1e-5)


def test_an_unknown_pipeline_names_the_known(world):
    with pytest.raises(ErasureError, match="'unet', 'dit'"):
        world.load_pipeline("gan")


def test_judge_answers_for_every_picture(world, judge):
    white = Image.new("RGB", (64, 64), "white")
    said = judge([white, white])
    assert set(said) == {"thing", "hand", "background"}
    assert all(len(answers) == 2 for answers in said.values())
    assert said["background"] == ["white", "white"]


def test_judge_abstains_on_nothing(judge):
    assert judge([Image.new("RGB", (64, 64), "white")])["thing"] == [None]


def test_judge_takes_no_pictures(judge):
    assert judge([]) == {"thing": [], "hand": [], "background": []}


def test_judge_refuses_another_size(judge):
    with pytest.raises(ErasureError, match="picture 1 is 32 x 64"):
        judge([Image.new("RGB", (64, 64)), Image.new("RGB", (32, 64))])


def test_things_have_hands_and_answers(world, judge):
    assert judge.things == world.THINGS
    assert "kitty" in world.synonyms("cat face")


def test_words_takes_any_word(world):
    picture = Image.new("RGB", (64, 64), "white")
    cosines = world.load_words()([picture], ["a kitty", "an umbrella", "justice"])
    assert cosines.shape == (1, 3)
    assert cosines.abs().max() <= 1
