"""Pipelines as people load them.

Quantised, offloaded, of several dtypes, with parts of their own. It works, or says why not.
"""

import copy
from functools import partial
from typing import ClassVar

import accelerate
import pytest
import torch
import transformers
from accelerate.hooks import CpuOffload, add_hook_to_module
from torch import nn

import tiny
from conftest import bits, same
from diffusers_erasepro import ErasureSpec, erasable, erase
from diffusers_erasepro.erasure.float32 import in_float32
from diffusers_erasepro.erasure.states import states_of
from diffusers_erasepro.errors import AdapterStateError, UnknownFamilyError
from diffusers_erasepro.loaders.verification import THRESHOLDS
from diffusers_erasepro.prompts.tokens import text_paths
from quantisers import bnb_int8, bnb_nf4
from tiny import DEVICE, PRESERVE, STAR

make = partial(erase, measure=False)
SPEC = ErasureSpec((STAR,), preserve=PRESERVE)
FLOAT8 = torch.float8_e4m3fn
BRAIN = torch.bfloat16
HALF = torch.float16


def modules(pipe):
    return [m for m in pipe.components.values() if isinstance(m, nn.Module)]


def erased(pipe):
    """The residual of an erasure made on `pipe` and loaded there, beside what its dtypes allow."""
    erasable(pipe).load_erasure_adapter(make(pipe, SPEC))
    return pipe.verify_erasure(raise_on_fail=True)


def held(pipe):
    """Every weight from where it lies: in its module, or where accelerate put it."""
    found = {}
    for root in modules(pipe):
        for path, module in root.named_modules():
            kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
            for name, value in module.named_parameters(recurse=False):
                found[id(root), path, name] = (
                    kept[name].clone() if value.is_meta and kept else value.clone()
                )
    return {place: value for place, value in found.items() if not value.is_meta}


def refused(pipe, error, why):
    """`erase` says why not, and no weight is another."""
    before = held(pipe)
    with pytest.raises(error, match=why):
        make(pipe, SPEC)
    assert before and same(held(pipe), before)


@pytest.mark.parametrize("dtype", [BRAIN, HALF])
@pytest.mark.parametrize(
    "name", ["StableDiffusionXLPipeline", "FluxPipeline", "QwenImagePipeline", "ZImagePipeline"]
)
def test_a_16_bit_encoder_runs_as_its_float32_copy_would_and_is_not_copied(name, dtype):
    for path in text_paths(tiny.build(name)):
        encoder = path.encoder.to(dtype)
        tokens = path.tokens(PRESERVE)
        before = copy.deepcopy(encoder.state_dict())
        own = {id(x) for x in (*encoder.parameters(), *encoder.buffers())}
        whole = states_of(copy.deepcopy(encoder).float(), tokens, path.use.readings)
        with in_float32(encoder) as twin:
            for _ in range(2):
                states = states_of(twin, tokens, path.use.readings)
                assert all(torch.equal(a, b) for a, b in zip(states, whole, strict=True))
                assert {id(x) for x in (*twin.parameters(), *twin.buffers())} == own
        assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_one_block_at_a_time_is_float32():
    encoder = tiny.build("FluxPipeline").text_encoder_2.to(BRAIN)
    with in_float32(encoder) as twin:
        wide = []
        for block in twin.encoder.block:  # after the hooks that widen
            block.register_forward_pre_hook(
                lambda *_: wide.append([p.dtype for p in twin.parameters()].count(torch.float32))
            )
        twin(torch.zeros(1, 4, dtype=torch.long, device=DEVICE))
    assert wide == [len([*block.parameters()]) for block in encoder.encoder.block]


def second_in_bf16(pipe):
    pipe.text_encoder_2.to(BRAIN)


def third_in_fp16(pipe):
    pipe.text_encoder_3.to(HALF)


def t5_as_transformers_loads_it(pipe):
    pipe.text_encoder_2.to(HALF)
    for name, module in pipe.text_encoder_2.named_modules():
        if name.endswith(".wo"):
            module.float()


@pytest.mark.parametrize(
    "name, change, dtype",
    [
        ("StableDiffusionXLPipeline", second_in_bf16, BRAIN),
        ("StableDiffusion3Pipeline", third_in_fp16, HALF),
        ("FluxPipeline", t5_as_transformers_loads_it, HALF),
    ],
)
def test_encoders_of_several_dtypes(name, change, dtype):
    pipe = tiny.build(name)
    change(pipe)
    before = bits(pipe)
    made = make(pipe, SPEC)
    assert made.report.listed_residual < 1e-5 and same(bits(pipe), before)
    erasable(pipe).load_erasure_adapter(made)
    assert pipe.verify_erasure(raise_on_fail=True).residual <= THRESHOLDS[dtype]


def torchao(encoder):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(encoder, Int8WeightOnlyConfig())


def nf4(encoder):
    for name, old in [*encoder.named_modules()]:
        if isinstance(old, nn.Linear) and not name.endswith(".wo"):  # transformers keeps T5's
            new = bnb_nf4(old)
            new.load_state_dict(old.state_dict())
            encoder.set_submodule(name, new.to("cpu"))


@pytest.mark.parametrize("library, quantise", [("torchao", torchao), ("bitsandbytes", nf4)])
def test_a_quantised_encoder(library, quantise):
    pytest.importorskip(library)
    pipe = tiny.build("FluxPipeline")
    quantise(pipe.text_encoder_2)
    assert erased(pipe).residual < 1e-5


def test_8_bit_products_depend_on_the_batch_so_loading_refuses_what_they_leave_open():
    pytest.importorskip("bitsandbytes")
    pipe = erasable(tiny.build("StableDiffusion3Pipeline"))
    encoder = pipe.text_encoder_3.half()
    for name, old in [*encoder.named_modules()]:
        if isinstance(old, nn.Linear) and not name.endswith(".wo"):
            new = bnb_int8(old)
            new.load_state_dict(old.state_dict())
            encoder.set_submodule(name, new.to("cpu"))
    before = bits(pipe)
    adapter = make(pipe, SPEC, layers=(0, -1))
    with pytest.raises(
        AdapterStateError,
        match=r"products in 8 bits \(text_encoder_3\) .*residual of .*, at most 2e-03 is allowed",
    ):
        pipe.load_erasure_adapter(adapter)
    assert same(bits(pipe), before)


@pytest.mark.parametrize("dtype", [torch.float32, BRAIN])
@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "FluxPipeline"])
def test_sequential_offload(name, dtype):
    pipe = tiny.build(name).to(dtype)
    want = make(pipe, SPEC)
    for module in modules(pipe):
        accelerate.cpu_offload(module, DEVICE, offload_buffers=True)
    adapter = make(pipe, SPEC)
    assert all(
        torch.equal(adapter.edits[k].A, e.A) and torch.equal(adapter.edits[k].B, e.B)
        for k, e in want.edits.items()
    )
    erasable(pipe).load_erasure_adapter(adapter)
    assert pipe.verify_erasure(raise_on_fail=True).residual <= THRESHOLDS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, BRAIN])
def test_model_offload(dtype):
    pipe = tiny.build("StableDiffusionXLPipeline").to(dtype)
    pipe.enable_model_cpu_offload(device=DEVICE)
    assert erased(pipe).residual <= THRESHOLDS[dtype]


class Noted(CpuOffload):
    """The hook of model offload; it and its copies note which modules they moved."""

    moved: ClassVar[list] = []

    def pre_forward(self, module, *args, **kwargs):
        self.moved.append(module)
        return super().pre_forward(module, *args, **kwargs)


def test_model_offload_moves_the_encoder_itself_and_not_its_twin():
    """Else a GPU gets the weights, which both share, and not the encoder's own buffers.

    It would not run any more.
    """
    pipe = tiny.build("StableDiffusionPipeline").to(BRAIN)
    add_hook_to_module(pipe.text_encoder, Noted(torch.device(DEVICE)))
    make(pipe, SPEC, layers=(0, -1))
    assert len(Noted.moved) > 2 and all(module is pipe.text_encoder for module in Noted.moved)


def test_group_offload_of_float32_works_and_of_16_bits_is_an_error():
    onload = torch.device(DEVICE)
    cpu = torch.device("cpu")
    for dtype in (torch.float32, BRAIN):
        pipe = tiny.build("StableDiffusionPipeline").to(dtype)
        pipe.enable_group_offload(
            onload_device=onload, offload_device=cpu, offload_type="leaf_level"
        )
        if dtype == torch.float32:
            assert erased(pipe).residual < 1e-5
        else:
            refused(
                pipe,
                AdapterStateError,
                r"CLIPTextModel has 16-bit weights and hooks that cannot be copied .* before",
            )


def one_part_offloaded(pipe):
    accelerate.cpu_offload(pipe.text_encoder, "cpu", offload_buffers=True)


def without_weights(pipe):
    pipe.text_encoder.to("meta")


@pytest.mark.parametrize("change", [one_part_offloaded, without_weights])
def test_a_pipeline_that_is_nowhere_is_an_error(change):
    pipe = tiny.build("StableDiffusionPipeline").to("cpu")
    change(pipe)
    refused(
        pipe,
        AdapterStateError,
        r"StableDiffusionPipeline would run on the meta device: .* before offloading",
    )


def test_weights_on_disk_are_an_error(tmp_path):
    pipe = tiny.build("FluxPipeline")
    accelerate.disk_offload(pipe.text_encoder_2, str(tmp_path), execution_device="cpu")
    refused(
        pipe,
        AdapterStateError,
        r"is on disk, and cannot .*; erase, load, .* before offloading so, or offload to the CPU",
    )


def test_8_bit_floats_that_nothing_widens_are_an_error():
    pipe = tiny.build("FluxPipeline")
    pipe.text_encoder_2.to(FLOAT8)
    refused(
        pipe,
        AdapterStateError,
        r"T5EncoderModel holds 8-bit floats and does not run .*Float8.* in 32 or 16 bits to erase",
    )


def test_8_bit_floats_widened_to_32_bits_work_and_so_does_erase_on_those_widened_to_16():
    from diffusers.hooks import apply_layerwise_casting

    pipe = tiny.build("StableDiffusionPipeline")
    other = tiny.build("ZImagePipeline")
    apply_layerwise_casting(pipe.text_encoder, FLOAT8, torch.float32)
    assert erased(pipe).residual < 1e-5
    apply_layerwise_casting(other.text_encoder.to(BRAIN), FLOAT8, BRAIN)
    before = held(other)
    assert make(other, SPEC).report.listed_residual < 1e-5
    assert before and same(held(other), before)


class Mine(transformers.CLIPTextModel):
    pass


class Hollow(nn.Module):
    pass


Hollow.__name__ = "T5EncoderModel"


def test_an_encoder_of_a_subclass_is_known_and_one_without_blocks_is_an_error():
    pipe = tiny.build("StableDiffusionPipeline")
    other = tiny.build("PixArtAlphaPipeline")
    pipe.text_encoder.__class__ = Mine
    assert erased(pipe).residual < 1e-5
    other.text_encoder = Hollow()
    refused(other, UnknownFamilyError, r"T5EncoderModel has no block list at encoder.block")
