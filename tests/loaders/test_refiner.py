"""SDXL's refiner: the first text encoder of its class is not there."""

import copy

import diffusers
import pytest
import torch

import tiny
from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from diffusers_erasepro.baselines import literal, uce
from diffusers_erasepro.errors import UnknownFamilyError
from diffusers_erasepro.interop.checkpoint import adapter_from_checkpoint
from diffusers_erasepro.interop.lora import export_kohya, import_lora

SPEC = ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE)


@pytest.fixture(scope="module")
def refiner():
    net = tiny.unet(
        tiny.WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        transformer_layers_per_block=1,
        projection_class_embeddings_input_dim=20 + tiny.WIDTH,
    )
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        vae=tiny.vae(),
        text_encoder=None,
        text_encoder_2=tiny.clip(projection=tiny.WIDTH),
        tokenizer=None,
        tokenizer_2=tiny.clip_tokenizer("<pad>"),
        unet=net,
        scheduler=tiny.ddim(),
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
    )


@pytest.fixture(scope="module")
def made(refiner):
    return erase(refiner, SPEC, layers=(0, -1), measure=False)


@pytest.fixture
def pipe(refiner):
    return erasable(copy.deepcopy(refiner))


def drawn(pipe, prompt="a star"):
    return pipe(
        prompt,
        image=torch.zeros(1, 3, 16, 16),
        strength=0.9,
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images


def test_made_saved_loaded_verified_and_switched(refiner, made, pipe, tmp_path):
    assert [*made.components] == ["text_encoder_2"]
    before = bits(pipe)
    plain = drawn(refiner)
    made.save_pretrained(tmp_path)
    pipe.load_erasure_adapter(tmp_path)
    assert pipe.verify_erasure(raise_on_fail=True).ok
    assert not torch.equal(drawn(pipe), plain)
    with pipe.erasure_disabled():
        assert torch.equal(drawn(pipe), plain)
    pipe.load_erasure_adapter(erase(refiner, SPEC_RING, layers=(0, -1)))
    pipe.refit_erasure()
    assert pipe.verify_erasure(raise_on_fail=True).ok
    pipe.unload_erasure_adapters()
    assert_same_bits(pipe, before)


SPEC_RING = ErasureSpec((Concept("ring", "square", ("a {}",), ()),), preserve=tiny.PRESERVE)


def test_other_tools(refiner, made, pipe, tmp_path):
    file = tmp_path / "kohya.safetensors"
    export_kohya(made, file)
    assert [*import_lora(file, refiner, SPEC).components] == ["text_encoder_2"]
    pipe.load_erasure_adapter(made)
    edited = bits(pipe)
    copied = adapter_from_checkpoint(refiner, pipe, spec=SPEC, error=1e-6)
    pipe.save_pretrained(tmp_path / "whole")
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "whole")
    assert loaded.text_encoder is None
    pipe.unload_erasure_adapters()
    pipe.load_erasure_adapter(copied)
    assert not pipe.verify_erasure().ok  # nothing vouches for it
    for name, value in edited.items():
        torch.testing.assert_close(bits(pipe)[name], value, atol=1e-4, rtol=1e-3)


def test_other_methods(refiner):
    assert [*literal(refiner, SPEC, layers=(0, -1)).components] == ["text_encoder_2"]
    with pytest.raises(UnknownFamilyError, match="text_encoder and text_encoder_2"):
        uce(refiner, SPEC)
