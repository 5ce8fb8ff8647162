"""Erasures beside every kind of layer that PEFT has: the edit is below it, or an error names it."""

import copy

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

import tiny
from conftest import assert_same_bits, bits
from diffusers_erasepro import ErasureSpec, erasable, erase
from diffusers_erasepro.errors import (
    AdapterStateError,
    BaseModelMismatchError,
    ErasureError,
    ErasureVerificationError,
    IllPosedError,
)
from diffusers_erasepro.modules.storage import effective_weight
from peft_layers import KINDS, put

OPTIONS = {"metric": "identity", "max_edit_size": 1e3, "measure": False}
LAYERS = {"blocks": (0, -1), "neurons": ("neurons", -1), "kv": ("kv",)}
TARGETS = {"text_encoder": ["fc1", "fc2"], "unet": ["to_k", "to_v"]}
ADDED = {"LOHA", "LOKR", "ADALORA", "VERA", "SHIRA", "MISS", "DELORA"}
"""Some kinds that add to their base, whatever the edit below is."""
REFUSED = {"DORA", "IA3", "HIRA", "BOFT", "ROAD", "HRA", "GLORA"}
"""Some kinds that do not."""


@pytest.fixture(scope="module")
def base():
    return tiny.build("StableDiffusionPipeline")


@pytest.fixture(scope="module")
def adapters(base):
    spec = ErasureSpec((tiny.STAR,))
    return {name: erase(base, spec, layers=layers, **OPTIONS) for name, layers in LAYERS.items()}


def with_layers(pipe, kind, where="blocks", **more):
    """Hang the layers into the component that is edited, or say why this model cannot have them."""
    part = "unet" if where == "kv" else "text_encoder"
    try:
        setattr(pipe, part, put(kind, getattr(pipe, part), TARGETS[part], **more))
        pipe.text_encoder(torch.arange(10, 20, device=pipe.device)[None])
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
        pytest.skip(f"PEFT: {error}")
    return pipe


def refit_or_error(pipe):
    """Refit; afterwards it holds, or what raises leaves every bit.

    It names the kind, or the layer whose edit would be too large on top of it.
    """
    before = bits(pipe)
    try:
        pipe.refit_erasure()
    except (AdapterStateError, ErasureVerificationError, IllPosedError) as error:
        assert_same_bits(pipe, before)
        return error
    assert pipe.verify_erasure(raise_on_fail=True).residual < 1e-5
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_layer_lets_a_refit_fail_in_silence(base, adapters, kind):
    pipe = with_layers(erasable(copy.deepcopy(base)), kind)
    before = bits(pipe)
    pipe.load_erasure_adapter(adapters["blocks"])
    assert not pipe.verify_erasure().ok
    assert any("'style' is active" in note for note in pipe.verify_erasure().uncovered)
    error = refit_or_error(pipe)
    assert error is None or kind not in ADDED
    assert error is not None or kind not in REFUSED
    pipe.disable_erasure()
    assert_same_bits(pipe, before)
    pipe.enable_erasure()
    pipe.unload_erasure_adapters()
    assert_same_bits(pipe, before)


@pytest.mark.parametrize("where", ["neurons", "kv"])
@pytest.mark.parametrize("kind", ["LORA", "DORA", "LOHA", "LOKR", "IA3", "OFT", "PEANUT", "BEFT"])
def test_neither_do_neurons_or_readers(base, adapters, kind, where):
    pipe = with_layers(erasable(copy.deepcopy(base)), kind, where)
    before = bits(pipe)
    pipe.load_erasure_adapter(adapters[where])
    error = refit_or_error(pipe)
    assert error is None or kind not in {"LORA", "LOHA", "LOKR", "BEFT"}
    pipe.unload_erasure_adapters()
    assert_same_bits(pipe, before)


@pytest.mark.parametrize("kind", ["LOHA", "DORA", "OFT"])
def test_layers_that_come_after_the_erasure(base, adapters, kind):
    pipe = erasable(copy.deepcopy(base))
    before = bits(pipe)
    pipe.load_erasure_adapter(adapters["blocks"])
    with_layers(pipe, kind)
    assert not pipe.verify_erasure().ok
    error = refit_or_error(pipe)
    assert (error is None) == (kind != "DORA")
    pipe.unload_erasure_adapters()
    after = {name.replace(".base_layer", ""): value for name, value in bits(pipe).items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_disabled_kind_is_none(base, adapters):
    pipe = with_layers(erasable(copy.deepcopy(base)), "DORA")
    for layer in pipe.text_encoder.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(False)
    pipe.load_erasure_adapter(adapters["blocks"])
    pipe.refit_erasure()
    found = pipe.verify_erasure(raise_on_fail=True)
    assert found.residual < 1e-5 and not any("'style'" in note for note in found.uncovered)


@pytest.mark.parametrize("kind", ["LORA", "LOHA", "OFT"])
def test_a_merged_kind_stays_merged(base, adapters, kind):
    pipe = with_layers(erasable(copy.deepcopy(base)), kind)
    for layer in pipe.text_encoder.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
    before = bits(pipe)
    with pytest.raises(BaseModelMismatchError):
        pipe.load_erasure_adapter(adapters["blocks"])
    assert_same_bits(pipe, before)
    pipe.load_erasure_adapter(adapters["blocks"], allow_base_mismatch=True)
    assert pipe.verify_erasure(raise_on_fail=True).residual < 1e-5
    pipe.unload_erasure_adapters()
    assert_same_bits(pipe, before)


@pytest.mark.parametrize("kind", ["LORA", "LOHA", "LOKR", "ADALORA", "DELORA", "RANDLORA"])
def test_the_weight_in_force_is_what_the_layer_computes(base, kind):
    pipe = with_layers(copy.deepcopy(base), kind)
    layer = pipe.text_encoder.encoder.layers[0].mlp.fc1
    x = torch.randn(5, layer.get_base_layer().in_features)
    weight = effective_weight(pipe.text_encoder, "encoder.layers.0.mlp.fc1")
    with torch.no_grad():
        wanted = layer(x) - layer.get_base_layer().bias
    torch.testing.assert_close(x @ weight.T, wanted, atol=1e-4, rtol=1e-4)


def test_a_kind_that_is_not_linear_has_no_weight(base):
    pipe = with_layers(copy.deepcopy(base), "LILY")
    with pytest.raises(ErasureError, match="lily"):
        effective_weight(pipe.text_encoder, "encoder.layers.0.mlp.fc1")


def test_the_metric_of_another_adapter_is_not_reused(base):
    """Covariances are kept by what the encoder computes: other weights of a LoHa are another."""
    from diffusers_erasepro.modules.fingerprint import fingerprint_with_loras, fingerprints

    keys = set()
    for seed in (0, 1):
        root = with_layers(copy.deepcopy(base), "LOHA", seed=seed).text_encoder
        keys.add(fingerprint_with_loras(root, fingerprints(root, {})))
    assert len(keys) == 2
