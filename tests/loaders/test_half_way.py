"""What fails half-way, or is shared by two: an error or the right result; nothing half done."""

import copy

import psutil
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from conftest import assert_same_bits, bits
from diffusers_erasepro import ErasureSpec, erasable, erase
from diffusers_erasepro.erasure.memory import available_memory
from diffusers_erasepro.errors import (
    AdapterStateError,
    BaseModelMismatchError,
    ErasureInactiveError,
    NotEnoughMemoryError,
)
from routes import _lora
from tiny import PRESERVE, STAR

SPEC = ErasureSpec((STAR,), preserve=PRESERVE)
FC2 = "encoder.layers.0.mlp.fc2"


@pytest.fixture(scope="module")
def made():
    """The tiny pipeline, an erasure of it, and a style LoRA."""
    pipe = tiny.build("StableDiffusionPipeline")
    return pipe, erase(pipe, SPEC, layers=(0, -1), measure=False)


@pytest.fixture
def fresh(made):
    """A copy of the pipeline, and its erasure."""
    pipe, adapter = made
    return erasable(copy.deepcopy(pipe)), adapter


@pytest.fixture(scope="module")
def style(made, tmp_path_factory):
    """A folder with a LoRA on text encoder and UNet."""
    pipe, _ = made
    folder = tmp_path_factory.mktemp("style")
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=_lora(pipe.unet, ["attn2.to_k", "attn2.to_v"]),
        text_encoder_lora_layers=_lora(pipe.text_encoder, ["v_proj", "fc2"]),
    )
    return folder


def draw(pipe, **call):
    noise = torch.Generator().manual_seed(0)
    given = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
    return pipe("a star", generator=noise, height=16, width=16, **given, **call).images


# ---------------------------------------------------------------------- a LoRA, half-way


def test_a_lora_between_erase_and_load(fresh, style):
    pipe, adapter = fresh
    pipe.load_lora_weights(style, adapter_name="style")
    pipe.load_erasure_adapter(adapter)
    found = pipe.verify_erasure()
    assert not found.ok and any("LoRA 'style' is active" in note for note in found.uncovered)
    pipe.refit_erasure()
    assert pipe.verify_erasure().ok
    pipe.unload_lora_weights()
    assert not pipe.verify_erasure().ok  # it was solved on top
    pipe.refit_erasure()
    assert pipe.verify_erasure().ok


def broken(style, folder, change):
    """A LoRA file of which one matrix is another, or missing."""
    (file,) = style.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, folder / file.name)
    return folder


def key(tensors, part):
    return next(k for k in tensors if k.startswith(part) and "lora_B" in k)


def test_a_lora_that_fails_half_way_leaves_layers_behind_and_the_erasure_whole(
    fresh, style, tmp_path
):
    pipe, adapter = fresh
    pipe.load_erasure_adapter(adapter)
    erased = draw(pipe)
    wrong = broken(style, tmp_path, lambda t: t.update({key(t, "text_"): torch.ones(5, 2)}))
    with pytest.raises(RuntimeError, match="mismatched_sizes"):
        pipe.load_lora_weights(wrong, adapter_name="wrong")
    assert pipe.get_list_adapters() == {"unet": ["wrong"], "text_encoder": ["wrong"]}
    assert not pipe.verify_erasure().ok
    pipe.disable_erasure()
    pipe.enable_erasure()
    pipe.unload_lora_weights()
    assert pipe.verify_erasure().ok
    assert torch.equal(draw(pipe), erased)


def test_a_lora_that_lacks_a_matrix_is_said_to(made, style, tmp_path):
    pipe = erasable(copy.deepcopy(made[0]))
    pipe.load_erasure_adapter(erase(pipe, SPEC, layers=("kv",), measure=False))
    part = broken(style, tmp_path, lambda t: t.pop(key(t, "unet")))
    pipe.load_lora_weights(part, adapter_name="part")
    for act in (pipe.verify_erasure, pipe.refit_erasure):
        with pytest.raises(AdapterStateError, match=r"\('part'\) was loaded in part only.*Unload"):
            act()
    pipe.unload_lora_weights()
    assert pipe.verify_erasure().ok


def test_a_lora_that_comes_during_a_call(fresh, style):
    pipe, adapter = fresh
    pipe.load_erasure_adapter(adapter)
    before = bits(pipe)
    erased = draw(pipe)

    def load(pipe, step, _, tensors):
        if step == 0:
            pipe.load_lora_weights(style, adapter_name="style")
        return tensors

    assert draw(pipe, callback_on_step_end=load).isfinite().all()
    pipe.unload_lora_weights()
    assert pipe.verify_erasure().ok
    assert_same_bits(pipe, before)
    assert torch.equal(draw(pipe), erased)


def test_an_erasure_that_comes_during_a_call_is_an_error(fresh):
    pipe, adapter = fresh
    before = bits(pipe)

    def load(pipe, step, _, tensors):
        pipe.load_erasure_adapter(adapter)
        return tensors

    with pytest.raises(AdapterStateError, match="from inside a call"):
        draw(pipe, callback_on_step_end=load)
    assert pipe.get_erasure_adapters() == {}
    assert_same_bits(pipe, before)


# ---------------------------------------------------------------------- what is not there


def test_memory_that_was_freed_is_an_error_before_anything_reads_it(fresh):
    pipe, adapter = fresh
    fc2 = pipe.text_encoder.get_submodule(FC2)
    fc2.weight.data.untyped_storage().resize_(0)
    for act in (lambda: erase(pipe, SPEC), lambda: pipe.load_erasure_adapter(adapter)):
        with pytest.raises(AdapterStateError, match="the weight of a Linear has no memory any"):
            act()
    assert pipe.get_erasure_adapters() == {}


class Lost(torch.Tensor):
    """A weight whose device may go away: then nothing can be written to it any more."""

    gone = False

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if cls.gone and getattr(func, "__name__", "") == "copy_":
            raise RuntimeError("CUDA error: unspecified launch failure")
        return super().__torch_function__(func, types, args, kwargs or {})


def lose(module):
    module.weight = nn.Parameter(module.weight.data.as_subclass(Lost), requires_grad=False)


@pytest.fixture
def lost():
    yield
    Lost.gone = False


def test_a_device_that_is_lost_while_weights_are_written(fresh, lost):
    """What can be put back is, and what cannot is named."""
    pipe, adapter = fresh
    lose(pipe.text_encoder.get_submodule("encoder.layers.3.mlp.fc2"))
    before = bits(pipe)
    Lost.gone = True
    with pytest.raises(
        AdapterStateError,
        match=r"text_encoder.encoder.layers.3.mlp.fc2 and 0 other weights can be neither written "
        r"nor put back .*launch failure.* Load the pipeline anew",
    ):
        pipe.load_erasure_adapter(adapter)
    Lost.gone = False
    assert pipe.get_erasure_adapters() == {}
    assert_same_bits(pipe, before)


def test_memory_that_is_too_small_is_counted_before_the_solve():
    pipe = tiny.build("StableDiffusionPipeline")
    pipe.text_encoder = tiny.clip(width=32).eval()
    wide = tiny.clip(width=1536, layers=1)
    process = psutil.Process()
    before = process.rlimit(psutil.RLIMIT_AS)
    pipe.text_encoder = wide
    state = bits(pipe)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + 200 * 2**20, before[1]))
    try:
        assert available_memory() <= 200 * 2**20
        with pytest.raises(
            NotEnoughMemoryError,
            match=r"text_encoder: this solve takes at least 0\.\d\d GiB .* and 0\.[012]\d GiB are "
            "available; erase fewer concepts",
        ):
            erase(pipe, SPEC, layers=(0,), measure=False)
    finally:
        process.rlimit(psutil.RLIMIT_AS, before)
    assert_same_bits(pipe, state)


# ---------------------------------------------------------------------- two pipelines, one encoder


def test_two_pipelines_of_a_kind_share_an_encoder_and_its_erasure(fresh):
    one, adapter = fresh
    two = erasable(StableDiffusionPipeline(**one.components))
    one.load_erasure_adapter(adapter, adapter_name="no-star")
    assert two.get_erasure_adapters() == {"no-star": True}
    assert two.verify_erasure().ok
    two.disable_erasure()
    assert one.get_erasure_adapters() == {"no-star": False}
    assert not one.verify_erasure().ok
    one.enable_erasure()
    assert two.verify_erasure().ok


def test_two_kinds_of_pipelines_that_read_an_encoder_differently(fresh):
    """The other would draw the concept, and an erasure of its own would undo this one."""
    one, adapter = fresh
    two = erasable(tiny.build("StableDiffusionXLPipeline"))
    own = erase(two, SPEC, measure=False)
    two.text_encoder = one.text_encoder
    one.load_erasure_adapter(adapter, adapter_name="no-star")
    found = two.verify_erasure()
    assert not found.ok
    assert "'no-star' was made for pipelines that read text_encoder.last" in found.uncovered[0]
    with pytest.raises(ErasureInactiveError, match="give this pipeline one of its own"):
        draw(two)
    with pytest.raises(BaseModelMismatchError):
        two.load_erasure_adapter(own)
    with pytest.raises(AdapterStateError, match="made for pipelines that read"):
        two.load_erasure_adapter(erase(two, SPEC, measure=False))
    with pytest.raises(AdapterStateError, match="made for pipelines that read"):
        two.set_erasure_adapters("no-star")
    assert one.verify_erasure().ok
    two.text_encoder = copy.deepcopy(one.text_encoder)
    two.unload_erasure_adapters()
    own = erase(two, SPEC, measure=False)
    two.load_erasure_adapter(own)
    assert two.verify_erasure().ok and one.verify_erasure().ok


# ---------------------------------------------------------------------- calls, several encoders


@pytest.mark.parametrize(
    "name", ["StableDiffusionXLPipeline", "FluxPipeline", "StableDiffusion3Pipeline"]
)
def test_what_reaches_the_denoiser_is_measured_in_calls_with_several_encoders(name):
    pipe = erasable(tiny.build(name))
    pipe.load_erasure_adapter(erase(pipe, SPEC, measure=False))
    found = pipe.verify_erasure(images=True)
    assert found.ok and found.residuals["call"] < 1e-5
