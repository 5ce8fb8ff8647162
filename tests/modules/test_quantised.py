"""Weights that cannot be edited in place.

The edit is a hook, with the real libraries that quantise.
"""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from conftest import draw
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from diffusers_erasepro.errors import AdapterStateError, BaseModelMismatchError
from diffusers_erasepro.families.pipelines import family_of, reader_paths
from diffusers_erasepro.modules.linear import plain_weight, quantisation_of
from quantisers import WAYS, torchao_int8

make = partial(erase, measure=False)

PROMPTS = ["a red star on snow"]


@pytest.fixture(scope="module")
def spec(preserve):
    return ErasureSpec((Concept("star", "circle"),), preserve=preserve)


@pytest.fixture(params=WAYS)
def quantised(request, shipped):
    """The pipeline with the K/V of its denoiser quantised, and the name of the record."""
    pytest.importorskip(request.param.split()[0].lower().replace("8-bit", "torch"))
    pipe = erasable(copy.deepcopy(shipped))
    with torch.no_grad():
        WAYS[request.param](pipe.unet, set(reader_paths(pipe.unet, family_of(pipe))))
    return pipe, request.param


def test_the_record_knows_the_weight_and_its_values(quantised, shipped):
    pipe, name = quantised
    for path in reader_paths(pipe.unet, family_of(pipe)):
        linear = pipe.unet.get_submodule(path)
        assert quantisation_of(linear).name == name
        x = torch.eye(linear.in_features)
        torch.testing.assert_close(
            plain_weight(linear).float(),
            shipped.unet.get_submodule(path).weight,
            atol=0.05,
            rtol=0.1,
        )
        with torch.no_grad():  # 8 bits round the inputs too
            torch.testing.assert_close(
                linear.forward(x).float().T, plain_weight(linear).float(), atol=0.03, rtol=0.05
            )


def test_a_call_may_pack_a_4_bit_weight_anew_and_its_values_stay():
    """Only where the processor has products in bfloat16."""
    modules = pytest.importorskip("bitsandbytes.nn")
    new = (
        modules.Linear4bit(64, 32, bias=False, quant_type="nf4", compute_dtype=torch.float32)
        .to("cpu")
        .eval()
    )
    x = torch.eye(64)
    before = plain_weight(new)
    with torch.no_grad():
        torch.testing.assert_close(new(x).T, before, atol=2e-3, rtol=1e-2)
    assert torch.equal(plain_weight(new), before)


def test_the_edit_is_a_hook_that_holds_toggles_and_leaves_no_trace(quantised, spec):
    pipe, _ = quantised
    plain = draw(pipe, PROMPTS)
    adapter = make(pipe, spec, layers=("kv",))
    pipe.load_erasure_adapter(adapter, adapter_name="no-star")
    found = pipe.verify_erasure(images=True)
    assert found.residual < 2e-2 and pipe.unet._erasepro.hooks and not pipe.unet._erasepro.weights
    erased = draw(pipe, PROMPTS)
    assert (erased - plain).abs().max() > 0.05
    pipe.disable_erasure()
    assert torch.equal(draw(pipe, PROMPTS), plain) and not pipe.verify_erasure().ok
    pipe.enable_erasure()
    assert torch.equal(draw(pipe, PROMPTS), erased)
    pipe.unload_erasure_adapters()
    assert torch.equal(draw(pipe, PROMPTS), plain)
    assert not any(
        type(h).__name__ == "Added" for m in pipe.unet.modules() for h in m._forward_hooks.values()
    )


def test_an_adapter_of_the_full_base_is_refused_or_solved_again(quantised, shipped, spec):
    pipe, _ = quantised
    adapter = make(shipped, spec, layers=("kv",))
    with pytest.raises(BaseModelMismatchError, match="allow_base_mismatch"):
        pipe.load_erasure_adapter(adapter)
    pipe.load_erasure_adapter(adapter, allow_base_mismatch=True)
    assert pipe.verify_erasure().residual < 2e-2


def test_hooks_are_not_saved_so_saving_says_so(quantised, spec, tmp_path):
    pipe, _ = quantised
    pipe.load_erasure_adapter(make(pipe, spec, layers=("kv",)))
    with pytest.raises(AdapterStateError, match="hooks, which are not saved"):
        pipe.save_pretrained(tmp_path)


@pytest.fixture
def hooked(shipped, spec):
    pipe = erasable(copy.deepcopy(shipped))
    with torch.no_grad():
        torchao_int8(pipe.unet, set(reader_paths(pipe.unet, family_of(pipe))))
    return pipe, make(pipe, spec, layers=("kv",))


def test_copies_have_hooks_of_their_own(shipped, spec):
    pipe = erasable(copy.deepcopy(shipped))
    with torch.no_grad():
        WAYS["bitsandbytes 4 bit"](pipe.unet, reader_paths(pipe.unet, family_of(pipe)))
    adapter = make(pipe, spec, layers=("kv",))
    pipe.load_erasure_adapter(adapter, adapter_name="no-star")
    for twin in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        erased = draw(pipe, PROMPTS)
        twin.disable_erasure()
        assert torch.equal(draw(pipe, PROMPTS), erased) and not torch.equal(
            draw(twin, PROMPTS), erased
        )


def test_a_hook_that_compiled_code_would_ignore_is_an_error(hooked):
    pipe, adapter = hooked
    plain = pipe.unet
    pipe.unet = torch.compile(plain, backend="eager")
    with pytest.raises(AdapterStateError, match="compiled, and a hook added now would be ignored"):
        pipe.load_erasure_adapter(adapter)
    assert pipe.get_erasure_adapters() == {} and not hasattr(plain, "_erasepro")
    pipe.unet = plain
    pipe.unet.compile(backend="eager")
    with pytest.raises(AdapterStateError, match="compiled"):
        pipe.load_erasure_adapter(adapter)


@pytest.mark.slow
def test_compiled_after_loading_the_hook_runs_and_its_switch_is_seen(hooked):
    pipe, adapter = hooked
    plain = draw(pipe, PROMPTS)
    pipe.load_erasure_adapter(adapter)
    erased = draw(pipe, PROMPTS)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    torch.testing.assert_close(draw(pipe, PROMPTS), erased)
    pipe.disable_erasure()
    torch.testing.assert_close(draw(pipe, PROMPTS), plain)
    pipe.enable_erasure()
    torch.testing.assert_close(draw(pipe, PROMPTS), erased)


def test_a_weight_that_no_record_knows_is_an_error(shipped):
    linear = nn.Linear(4, 4)
    linear.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        AdapterStateError, match=r"Linear of torch.int8 cannot be edited or hooked \(known: torchao"
    ):
        quantisation_of(linear)
