"""T5 under kohya names: where ComfyUI reads them, said so; elsewhere an error, never a half."""

import pytest

from diffusers_erasepro import ErasureSpec, erase
from diffusers_erasepro.errors import AdapterFormatError
from diffusers_erasepro.interop.lora import export_kohya, to_kohya
from tiny import PRESERVE, STAR, build

SPEC = ErasureSpec((STAR,), preserve=PRESERVE)


@pytest.mark.parametrize(
    ("name", "prefix"), [("FluxPipeline", "lora_te2"), ("StableDiffusion3Pipeline", "lora_te3")]
)
def test_beside_clip_it_is_written_and_said(name, prefix, tmp_path):
    made = erase(build(name), SPEC, layers=(0, -1), measure=False)
    keys = {key.split("_encoder_")[0] for key in to_kohya(made)}
    assert f"{prefix}" in keys and "lora_te1_text_model" in keys
    notes = export_kohya(made, tmp_path / "a.safetensors")
    said = [note for note in notes if f"{prefix}_encoder_block" in note]
    assert len(said) == 1 and "ComfyUI" in said[0] and "stays" in said[0]


@pytest.mark.parametrize("name", ["PixArtAlphaPipeline", "WanPipeline", "QwenImagePipeline"])
def test_encoders_that_no_tool_reads_there_are_refused(name):
    made = erase(build(name), SPEC, layers=(0, -1), measure=False)
    with pytest.raises(AdapterFormatError, match=r"reach no text_encoder\..*half.*checkpoint"):
        to_kohya(made)
