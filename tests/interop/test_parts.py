"""An edited text encoder alone is an edited checkpoint too."""

import copy

import pytest
import torch
from safetensors.torch import save_file

from diffusers_erasepro import Concept, erasable
from diffusers_erasepro.errors import BaseModelMismatchError
from diffusers_erasepro.interop.checkpoint import adapter_from_checkpoint
from tiny import build

STAR = Concept("star", anchor="circle")


@pytest.fixture(scope="module")
def encoder(shipped):
    """The shipped text encoder with a rank-1 edit in one MLP."""
    edited = copy.deepcopy(shipped.text_encoder)
    weight = edited.get_submodule("encoder.layers.0.mlp.fc2").weight
    draw = torch.Generator().manual_seed(0)
    column = torch.randn(weight.shape[0], 1, generator=draw)
    row = torch.randn(1, weight.shape[1], generator=draw)
    weight.data += 0.01 * (column @ row).to(weight)
    return edited


def forms(encoder, folder):
    states = encoder.state_dict()
    named = {f"text_model.{name}": value for name, value in states.items()}
    counted = named | {"text_model.embeddings.position_ids": torch.arange(64)[None]}
    first_code = {f"cond_stage_model.transformer.{name}": v for name, v in counted.items()}
    encoder.save_pretrained(folder / "text_encoder")
    save_file(states, folder / "encoder.safetensors")
    torch.save({"text_encoder": counted}, folder / "nested.pt")
    torch.save(first_code, folder / "first.ckpt")
    return {
        "module": encoder,
        "state dict": states,
        "text_model.": named,
        "position_ids": counted,
        "one tensor": {k: v for k, v in states.items() if "layers.0.mlp.fc2.weight" in k},
        "folder": folder / "text_encoder",
        "file": folder / "encoder.safetensors",
        "nested": folder / "nested.pt",
        "first code": folder / "first.ckpt",
        "prefixed": {f"text_encoder.{name}": value for name, value in states.items()},
    }


def test_every_form(pipe, shipped, encoder, tmp_path):
    for form, source in forms(encoder, tmp_path).items():
        adapter = adapter_from_checkpoint(shipped, source, spec=STAR)
        assert list(adapter.edits) == ["text_encoder.text_model.encoder.layers.0.mlp.fc2"], form
        pipe.load_erasure_adapter(adapter)
        name = "encoder.layers.0.mlp.fc2.weight"
        have = pipe.text_encoder.state_dict()[name]
        torch.testing.assert_close(have, encoder.state_dict()[name], atol=1e-4, rtol=0)
        pipe.unload_erasure_adapters()


def test_an_encoder_of_another_model_is_named(shipped, encoder):
    other = dict(encoder.state_dict())
    other["encoder.layers.0.mlp.fc9.weight"] = torch.zeros(2, 2)
    with pytest.raises(BaseModelMismatchError, match=r"text_encoder\.encoder.*fc9.*no such tensor"):
        adapter_from_checkpoint(shipped, other, spec=STAR)


def test_of_two_encoders_the_one_that_fits_is_meant():
    pipe = build("StableDiffusionXLPipeline")
    edited = copy.deepcopy(pipe.text_encoder_2)
    edited.get_submodule("text_model.encoder.layers.0.mlp.fc2").weight.data += 0.01
    states = edited.state_dict()
    alike = {k: v.shape for k, v in pipe.text_encoder.state_dict().items()}
    for source, spec in ((edited, None), (states, STAR)):
        adapter = adapter_from_checkpoint(pipe, source, spec=spec)
        assert adapter.components == ("text_encoder_2",)
        live = erasable(copy.deepcopy(pipe))
        live.load_erasure_adapter(adapter)
        name = "text_model.encoder.layers.0.mlp.fc2.weight"
        have = live.text_encoder_2.state_dict()[name]
        torch.testing.assert_close(have, states[name], atol=1e-4, rtol=0)
    name = next(k for k in states if k.endswith("layers.0.mlp.fc2.weight"))
    if alike.get(name.removeprefix("text_model.")) == states[name].shape:
        with pytest.raises(BaseModelMismatchError, match="text_encoder and text_encoder_2 alike"):
            adapter_from_checkpoint(pipe, {name: states[name]})
