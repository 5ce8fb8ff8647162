"""An erasure made while a style LoRA is on: it is made for the base, and loads on every base."""

import copy

import pytest
import torch

import tiny
from conftest import assert_same_bits, bits
from diffusers_erasepro import ErasureSpec, baselines, erasable, erase
from diffusers_erasepro.modules.tuners import acting_adapters
from peft_layers import put

OPTIONS = {"metric": "identity", "max_edit_size": 1e3, "measure": False}
SPEC = ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE)
TARGETS = {"text_encoder": ["fc1", "fc2"], "unet": ["to_k", "to_v"]}
LAYERS = {"text_encoder": (0, -1), "unet": (0, "kv")}


@pytest.fixture(scope="module")
def base():
    return tiny.build("StableDiffusionPipeline")


def with_style(base, kind, part):
    pipe = copy.deepcopy(base)
    try:
        setattr(pipe, part, put(kind, getattr(pipe, part), TARGETS[part]))
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
        pytest.skip(f"PEFT: {error}")
    return pipe


@pytest.mark.parametrize("part", TARGETS)
@pytest.mark.parametrize("kind", ["LORA", "DORA", "LOHA", "OFT", "IA3"])
def test_an_erasure_made_with_a_style_on_loads_on_the_base(base, kind, part):
    styled = with_style(base, kind, part)
    before = bits(styled)
    made = erase(styled, SPEC, layers=LAYERS[part], **OPTIONS)
    assert_same_bits(styled, before)
    assert any(acting_adapters(layer) for layer in getattr(styled, part).modules())
    assert made.digest == erase(base, SPEC, layers=LAYERS[part], **OPTIONS).digest
    live = erasable(copy.deepcopy(base))
    live.load_erasure_adapter(made)
    assert live.verify_erasure(raise_on_fail=True).ok


def test_beside_its_own_style_it_loads_too_and_refit_solves_on_top(base):
    styled = erasable(with_style(base, "LORA", "text_encoder"))
    styled.load_erasure_adapter(erase(styled, SPEC, layers=(0, -1), **OPTIONS))
    assert not styled.verify_erasure().ok
    styled.refit_erasure()
    assert styled.verify_erasure(raise_on_fail=True).ok


@pytest.mark.parametrize("method", ["uce", "literal"])
def test_so_are_the_peers(base, method):
    make = getattr(baselines, method)
    styled = with_style(base, "LORA", "unet")
    styled.text_encoder = put("LORA", styled.text_encoder, TARGETS["text_encoder"])
    options = {"layers": (-1,), **OPTIONS} if method == "literal" else {}
    torch.testing.assert_close(
        make(styled, SPEC, **options).tensors(), make(base, SPEC, **options).tensors()
    )


def test_a_spec_solved_again_while_loading_is_solved_below_the_style(base):
    made = erase(base, SPEC, layers=(0, -1), **OPTIONS)
    other = tiny.build("StableDiffusionPipeline")
    with torch.no_grad():
        for value in other.text_encoder.parameters():
            value.mul_(1.01)
    plain = erasable(copy.deepcopy(other))
    plain.load_erasure_adapter(made, allow_base_mismatch=True)
    styled = erasable(with_style(other, "LORA", "text_encoder"))
    styled.load_erasure_adapter(made, allow_base_mismatch=True)
    (wanted,) = plain.text_encoder._erasepro.adapters.values()
    (have,) = styled.text_encoder._erasepro.adapters.values()
    assert have.digest == wanted.digest
