"""Other tools: the same deltas out as kohya names, and in from three spellings.

Merged checkpoints.
"""

import copy

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from conftest import assert_same_bits, bits, draw
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erase
from diffusers_erasepro.errors import AdapterFormatError, AdapterStateError, UnsafeFileError
from diffusers_erasepro.interop.lora import export_kohya, import_lora, to_kohya

STAR = ErasureSpec((Concept("star", "circle"),), preserve=())


@pytest.fixture(scope="module")
def with_readers(shipped, preserve):
    return erase(
        shipped, ErasureSpec((Concept("star", "circle"),), preserve=preserve), layers=(0, -1, "kv")
    )


def deltas(adapter):
    return {name: factors.dense() for name, factors in adapter.edits.items()}


def assert_same_deltas(a, b, factor=1.0):
    a = deltas(a)
    b = deltas(b)
    assert all(
        not b[name].any() for name in b.keys() - a.keys()
    )  # the rows that stock loaders ask for
    assert a.keys() <= b.keys()
    for name in a:
        torch.testing.assert_close(a[name] * factor, b[name], atol=1e-6, rtol=1e-5)


def test_kohya_out_and_in_gives_the_same_deltas(with_readers, shipped, tmp_path):
    notes = export_kohya(with_readers, tmp_path / "no-star.safetensors")
    assert any("1.0" in note for note in notes)
    assert_same_deltas(with_readers, import_lora(tmp_path / "no-star.safetensors", shipped, STAR))


def test_kohya_names(with_readers):
    names = {name.split(".")[0] for name in to_kohya(with_readers)}
    assert "lora_te_text_model_encoder_layers_0_mlp_fc2" in names
    assert any(n.startswith("lora_unet_down_blocks_") and n.endswith("_attn2_to_k") for n in names)


def test_stock_diffusers_draws_the_same_from_the_kohya_file(shipped, no_star, pipe, tmp_path):
    export_kohya(no_star, tmp_path / "no-star.safetensors")
    stock = copy.deepcopy(shipped)
    stock.load_lora_weights(tmp_path / "no-star.safetensors")
    pipe.load_erasure_adapter(no_star)
    prompts = ["a red star on snow", "a blue ring at night"]
    torch.testing.assert_close(draw(stock, prompts), draw(pipe, prompts), atol=2e-3, rtol=0)


def spelled(adapter, down, up, name=lambda n: n, **more):
    pairs = {}
    for stored, factors in adapter.edits.items():
        pairs |= {
            f"{name(stored)}{down}": factors.A.contiguous(),
            f"{name(stored)}{up}": factors.B.contiguous(),
        }
    return pairs | more


@pytest.mark.parametrize(
    ("down", "up", "name"),
    [
        (".lora_A.weight", ".lora_B.weight", lambda n: n),
        (".lora.down.weight", ".lora.up.weight", lambda n: n),
        (".lora.down.weight", ".lora.up.weight", lambda n: n.replace(".to_", ".processor.to_")),
        (".lora_A.weight", ".lora_B.weight", lambda n: n.replace("text_model.", "")),
    ],
)
def test_other_spellings_are_read(with_readers, shipped, tmp_path, down, up, name):
    save_file(spelled(with_readers, down, up, name), tmp_path / "x.safetensors")
    assert_same_deltas(with_readers, import_lora(tmp_path / "x.safetensors", shipped, STAR))


def test_alpha_and_strength_scale_the_edit(with_readers, shipped, tmp_path):
    halved = {k: v / 2 if k.endswith(".alpha") else v for k, v in to_kohya(with_readers).items()}
    save_file(halved, tmp_path / "x.safetensors")
    assert_same_deltas(
        with_readers,
        import_lora(tmp_path / "x.safetensors", shipped, STAR, strength=-3.0),
        factor=-1.5,
    )


def test_imported_adapters_save_stack_and_switch(no_star, no_cross, shipped, pipe, tmp_path):
    before = bits(pipe)
    export_kohya(no_star, tmp_path / "x.safetensors")
    imported = import_lora(tmp_path / "x.safetensors", shipped, STAR)
    imported.save_pretrained(tmp_path / "saved")
    pipe.load_erasure_adapter(no_cross, adapter_name="own")
    own = bits(pipe)
    with pytest.warns(UserWarning, match="hold no keys"):
        pipe.load_erasure_adapter(tmp_path / "saved", adapter_name="imported")
    for name, delta in deltas(no_star).items():
        key = next(
            k
            for k in before
            if k.replace("text_model.", "") == name.replace("text_model.", "") + ".weight"
        )
        torch.testing.assert_close((bits(pipe)[key] - own[key]).cpu(), delta, atol=1e-5, rtol=1e-4)
    found = pipe.verify_erasure()
    assert "adapter 'imported' was imported: its effect cannot be measured" in found.uncovered
    with pytest.raises(AdapterStateError, match="cannot be solved again"):
        pipe.refit_erasure()
    pipe.set_erasure_adapters("own")
    assert_same_bits(pipe, own)
    pipe.disable_erasure()
    assert_same_bits(pipe, before)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"a.weight": torch.zeros(2, 2)}, "not only low-rank pairs"),
        (
            {
                "unet.nowhere.lora_A.weight": torch.zeros(1, 2),
                "unet.nowhere.lora_B.weight": torch.zeros(2, 1),
            },
            "not in this StableDiffusionPipeline",
        ),
        (
            {
                "lora_unet_conv_in.lora_down.weight": torch.zeros(1, 4, 3, 3),
                "lora_unet_conv_in.lora_up.weight": torch.zeros(9, 1, 1, 1),
            },
            "is a convolution",
        ),
        (
            {
                "text_encoder.text_model.encoder.layers.0.mlp.fc2.lora_A.weight": torch.zeros(1, 3),
                "text_encoder.text_model.encoder.layers.0.mlp.fc2.lora_B.weight": torch.zeros(3, 1),
            },
            "does not fit",
        ),
    ],
)
def test_what_cannot_be_imported_is_named(shipped, tmp_path, tensors, says):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(AdapterFormatError, match=says):
        import_lora(tmp_path / "x.safetensors", shipped, STAR)
    with pytest.raises(UnsafeFileError, match="pickles are never loaded"):
        import_lora(tmp_path / "x.pt", shipped, STAR)


def test_half_an_erasure_is_never_exported(no_star):
    from dataclasses import replace

    elsewhere = replace(
        no_star,
        edits={k.replace("text_encoder", "text_encoder_3"): v for k, v in no_star.edits.items()},
    )
    with pytest.raises(AdapterFormatError, match=r"no text_encoder_3.*half"):
        to_kohya(elsewhere)


def test_rows_of_the_embedding_are_refused_with_the_command_to_type(shipped):
    spec = ErasureSpec(STAR.concepts, preserve=("a red ring",))
    options = {"layers": ("embedding",), "metric": "identity", "measure": False}
    rows = erase(shipped, spec, **options)
    with pytest.raises(AdapterFormatError, match=r"rows of the token embedding.*--layers=0,-1"):
        to_kohya(rows)


def test_two_encoders_are_numbered(no_star):
    from dataclasses import replace

    second = {k.replace("text_encoder", "text_encoder_2"): v for k, v in no_star.edits.items()}
    names = {
        n.partition("_text_model")[0]
        for n in to_kohya(replace(no_star, edits={**no_star.edits, **second}))
    }
    assert names == {"lora_te1", "lora_te2"}


def test_a_merged_checkpoint_draws_erased_in_stock_diffusers(no_star, pipe, tmp_path):
    pipe.load_erasure_adapter(no_star)
    pipe.save_pretrained(tmp_path / "merged")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "merged").to(pipe.device)
    assert torch.equal(draw(stock, ["a red star"]), draw(pipe, ["a red star"]))


def test_the_files_are_reproducible(no_star, tmp_path):
    for name in "ab":
        export_kohya(no_star, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with pytest.raises(AdapterFormatError, match=r"no erasure adapter.*erasepro import"):
        ErasureAdapter.from_pretrained(tmp_path / "a.safetensors")
