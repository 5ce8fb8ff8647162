"""Imported checkpoints give back the weights they came from, and refuse what they cannot."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, baselines
from diffusers_erasepro.errors import AdapterFormatError, BaseModelMismatchError, UnsafeFileError
from diffusers_erasepro.interop.checkpoint import adapter_from_checkpoint

STAR = Concept("star", anchor="circle")


@pytest.fixture(scope="module")
def edited(shipped, preserve):
    """The shipped pipeline with UCE's weights in it, as a stranger would publish it."""
    pipe = copy.deepcopy(shipped)
    adapter = baselines.uce(shipped, ErasureSpec((STAR,), preserve=preserve[:40]))
    for path, edit in adapter.of("unet").items():
        pipe.unet.get_submodule(path).weight.data += edit.dense()
    return pipe


def only_edited(pipe):
    return {
        k: v for k, v in pipe.unet.state_dict().items() if ".attn2.to_k" in k or ".attn2.to_v" in k
    }


def sources(pipe, folder):
    """The same edit in every form it is published in."""
    save_file(only_edited(pipe), folder / "uce.safetensors")
    torch.save(pipe.unet.state_dict(), folder / "rece.pt")
    torch.save({"state_dict": pipe.unet.state_dict()}, folder / "nested.ckpt")
    pipe.save_pretrained(folder / "whole")
    return (
        pipe,
        pipe.unet,
        only_edited(pipe),
        folder / "uce.safetensors",
        folder / "rece.pt",
        folder / "nested.ckpt",
        folder / "whole",
    )


def test_every_form_gives_the_edited_weights_back(pipe, edited, tmp_path):
    before = bits(pipe)
    for source in sources(edited, tmp_path):
        adapter = adapter_from_checkpoint(pipe, source, spec=STAR)
        assert_same_bits(pipe, before)
        assert adapter.components == ("unet",)
        assert all(layer.rank == 1 and layer.compression < 1e-3 for layer in adapter.report.layers)
        pipe.load_erasure_adapter(adapter, adapter_name="theirs")
        for name, value in only_edited(edited).items():
            torch.testing.assert_close(pipe.unet.state_dict()[name], value, atol=2e-4, rtol=0)
        assert pipe.verify_erasure().residual == pytest.approx(
            adapter.report.listed_residual, rel=1e-3
        )
        pipe.unload_erasure_adapters()


def test_without_a_spec_nothing_is_vouched_for(pipe, edited):
    adapter = adapter_from_checkpoint(pipe, edited)
    assert adapter.report.listed_residual != adapter.report.listed_residual
    pipe.load_erasure_adapter(adapter)
    assert not pipe.verify_erasure().ok


def test_what_cannot_be_imported_is_named(pipe, edited, tmp_path):
    with pytest.raises(AdapterFormatError, match="no edit"):
        adapter_from_checkpoint(pipe, copy.deepcopy(pipe.unet))
    other = only_edited(edited)
    name = next(iter(other))
    with pytest.raises(BaseModelMismatchError, match="attn2"):
        adapter_from_checkpoint(pipe, other | {name: other[name][:, :5]})
    with pytest.raises(BaseModelMismatchError, match="no such tensor"):
        adapter_from_checkpoint(pipe, {"a.weight": torch.zeros(2, 2)})
    with pytest.raises(AdapterFormatError, match="conv_in"):
        adapter_from_checkpoint(pipe, {"conv_in.weight": pipe.unet.conv_in.weight + 1})
    with pytest.raises(AdapterFormatError, match="no checkpoint"):
        adapter_from_checkpoint(pipe, tmp_path / "nothing.txt")
    torch.save({"x": Concept("star", "circle")}, tmp_path / "bad.pt")
    with pytest.raises(UnsafeFileError, match="pickle"):
        adapter_from_checkpoint(pipe, tmp_path / "bad.pt")
