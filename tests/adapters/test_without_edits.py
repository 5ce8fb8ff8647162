"""An adapter that changes nothing is an error, wherever it would come from."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import tiny
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erase, glyphs
from diffusers_erasepro.adapters.header import build_metadata, seal
from diffusers_erasepro.errors import AdapterFormatError, ErasureError, IllPosedError
from diffusers_erasepro.evaluation.runner import scramble
from diffusers_erasepro.interop.checkpoint import adapter_from_checkpoint
from diffusers_erasepro.interop.lora import import_lora
from diffusers_erasepro.linalg.low_rank import LowRank
from diffusers_erasepro.loaders.mixin import erasable

SPEC = ErasureSpec([Concept("star", "circle")], preserve=())


def zero(factors):
    return LowRank(torch.zeros_like(factors.B), factors.A)


def empty(factors):
    return LowRank(factors.B[:, :0], factors.A[:0])


def cancelled(factors):
    return LowRank(torch.cat([factors.B, -factors.B], 1), torch.cat([factors.A, factors.A]))


@pytest.mark.parametrize("change", [zero, empty, cancelled])
def test_a_record_without_any_change_is_refused(no_star, change):
    edits = {name: change(factors) for name, factors in no_star.edits.items()}
    with pytest.raises(IllPosedError, match=r"'star' without any edit.*all .* edits are zero"):
        replace(no_star, edits=edits)
    with pytest.raises(IllPosedError, match="no layer is edited"):
        replace(no_star, edits={})


def test_one_change_is_enough(no_star):
    first, *rest = no_star.edits
    edits = {first: no_star.edits[first]} | {name: zero(no_star.edits[name]) for name in rest}
    assert replace(no_star, edits=edits).edits and scramble(no_star).edits


def test_erase_that_edits_nothing_raises_and_leaves_the_pipeline(monkeypatch):
    from diffusers_erasepro.erasure import erase as module

    pipe = tiny.stable_diffusion()
    before = {k: v.clone() for k, v in pipe.text_encoder.state_dict().items()}
    spec = ErasureSpec([tiny.STAR], preserve=tiny.PRESERVE)
    monkeypatch.setattr(module, "plan_edits", lambda planning: [])
    monkeypatch.setitem(module.erase_as_planned.__kwdefaults__, "planner", lambda planning: [])
    with pytest.raises(IllPosedError, match="no layer is edited"):
        erase(pipe, spec, metric="identity")
    assert all(torch.equal(before[k], v) for k, v in pipe.text_encoder.state_dict().items())


@pytest.mark.parametrize("kept", ["none", "zero"])
def test_a_file_without_edits_is_not_loaded(no_star, tmp_path, kept):
    header = {k: v for k, v in no_star.header().items() if k != "seal"}
    tensors = dict(no_star.tensors())
    if kept == "none":
        tensors = {k: v for k, v in tensors.items() if ".lora_A." not in k and ".lora_B." not in k}
        header |= {"ranks": {}, "report": header["report"] | {"layers": []}}
    else:
        tensors |= {k: torch.zeros_like(v) for k, v in tensors.items() if ".lora_B." in k}
    from diffusers_erasepro.adapters.file import digest_tensors

    header["sha256"] = digest_tensors(tensors)
    header["seal"] = seal(header)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, path, metadata=build_metadata(header))
    with pytest.raises(AdapterFormatError):
        ErasureAdapter.from_pretrained(path)
    live = erasable(glyphs.load_pipeline())
    with pytest.raises(AdapterFormatError):
        live.load_erasure_adapter(path)
    assert not live.get_erasure_adapters()


@pytest.fixture
def lora(tmp_path):
    def write(**tensors):
        save_file(tensors, tmp_path / "lora.safetensors")
        return tmp_path / "lora.safetensors"

    return write


def pair(pipe, up=1.0):
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc2"
    linear = next(m for n, m in pipe.text_encoder.named_modules() if n.endswith("0.mlp.fc2"))
    down = torch.ones(1, linear.in_features)
    return {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": torch.full((linear.out_features, 1), up),
    }


def test_an_import_that_changes_nothing_is_refused(lora):
    pipe = tiny.stable_diffusion()
    assert import_lora(lora(**pair(pipe)), pipe, SPEC).edits
    for file, strength in (
        (lora(**pair(pipe, 0.0)), 1.0),
        (lora(**pair(pipe)), 0.0),
        (lora(), 1.0),
    ):
        with pytest.raises(ErasureError, match="without any edit"):
            import_lora(file, pipe, SPEC, strength=strength)


def test_a_checkpoint_of_the_base_is_refused():
    pipe = tiny.stable_diffusion()
    with pytest.raises(AdapterFormatError, match="no edit to import"):
        adapter_from_checkpoint(pipe, pipe.unet.state_dict(), spec=SPEC)


def test_a_stack_that_cancels_is_refused(lora):
    pipe = erasable(tiny.stable_diffusion())
    file = lora(**pair(pipe, 0.01))
    there = import_lora(file, pipe, SPEC)
    back = import_lora(
        file, pipe, ErasureSpec([Concept("ring", "square")], preserve=()), strength=-1.0
    )
    pipe.load_erasure_adapter(there, adapter_name="there")
    with (
        pytest.warns(UserWarning, match="added"),
        pytest.raises(IllPosedError, match="without any"),
    ):
        pipe.load_erasure_adapter(back, adapter_name="back")
    assert list(pipe.get_erasure_adapters()) == ["there"]
