"""Arguments of a call that change what a text encoder receives, or what is read of it."""

import copy

import pytest
import torch

import tiny
from diffusers_erasepro import ErasureSpec, erasable, erase
from diffusers_erasepro.errors import ErasureInactiveError
from diffusers_erasepro.loaders.call_arguments import find_uncovered, list_arguments
from diffusers_erasepro.prompts.tokens import text_paths
from tiny import PRESERVE, STAR

SPEC = ErasureSpec((STAR,), preserve=PRESERVE)
UNMASKED = {
    "FluxPipeline": ("text_encoder_2", 512),
    "StableDiffusion3Pipeline": ("text_encoder_3", 256),
    "LTXPipeline": ("text_encoder", 128),
    "CogVideoXPipeline": ("text_encoder", 226),
}
"""Pipeline -> the encoder that attends to padding, and the length it gets by default."""
MASKED = [
    "PixArtAlphaPipeline",
    "WanPipeline",
    "QwenImagePipeline",
    "ZImagePipeline",
    "ChromaPipeline",
    "MochiPipeline",
    "AuraFlowPipeline",
]
REWRITTEN = [
    ("SanaPipeline", {"complex_human_instruction": ["Draw well:"]}),
    ("Lumina2Pipeline", {"system_prompt": "Draw well."}),
    ("Flux2KleinPipeline", {"text_encoder_out_layers": (8, 17, 26)}),
    ("Flux2Pipeline", {"text_encoder_out_layers": (9, 19, 29)}),
]


def erased(name):
    layers = {"layers": ("kv",) if name in ("SanaPipeline", "Lumina2Pipeline") else (0, -1)}
    pipe = erasable(tiny.build(name))
    adapter = erase(pipe, SPEC, measure=False, **layers)
    pipe.load_erasure_adapter(adapter)
    return pipe, adapter


@torch.no_grad()
def gap_left(pipe, encoder, length):
    """||erased(target) - base(anchor)|| / ||base(anchor)|| at the prompt's tokens, worst."""
    (path,) = (path for path in text_paths(pipe) if path.use.encoder == encoder)
    call = {"max_sequence_length": length}
    target = path.tokens(["a star"], call).ids
    anchor = path.tokens(["a circle"], call).ids
    have = path.encoder(target)[0][0]
    with pipe.erasure_disabled():
        want = path.encoder(anchor)[0][0]
    at = int((target[0] == 3).nonzero()[0])  # EOS
    other = int((anchor[0] == 3).nonzero()[0])
    return float((have[at] - want[other]).norm() / want[other].norm())


@pytest.mark.parametrize("name", UNMASKED)
def test_where_padding_is_read_another_length_is_refused_and_listed(name):
    encoder, length = UNMASKED[name]
    pipe, adapter = erased(name)
    other = length // 2
    assert gap_left(pipe, encoder, length) <= 1e-5
    assert gap_left(pipe, encoder, other) > 1e-2  # so the length matters
    listed = [n for n in pipe.verify_erasure().uncovered if n.startswith("max_sequence_length")]
    assert len(listed) == 1
    assert f"other than {length}: {encoder} does not mask its padding" in listed[0]
    assert listed[0] in adapter.report.notes
    for asked in (other, length - 1, length + 1):
        with pytest.raises(
            ErasureInactiveError,
            match=rf"{encoder} does not mask its padding.* solved for {length} tokens: with "
            rf"max_sequence_length={asked} it gets {asked}",
        ):
            pipe("a star", max_sequence_length=asked)
    assert list_arguments(pipe, {"prompt": "a star", "max_sequence_length": length}) == {}


@pytest.mark.parametrize("name", MASKED)
def test_where_padding_is_masked_every_length_is_covered(name):
    pipe, adapter = erased(name)
    assert not any(n.startswith("max_sequence_length") for n in pipe.verify_erasure().uncovered)
    for length in (32, 64, 100):
        assert find_uncovered(pipe, [adapter], {"max_sequence_length": length}) is None


@pytest.mark.parametrize(("name", "arguments"), REWRITTEN)
def test_another_instruction_template_or_layer_is_refused(name, arguments):
    pipe, _ = erased(name)
    with pytest.raises(ErasureInactiveError, match=rf"with {next(iter(arguments))}="):
        pipe(prompt="a star", **arguments)


def test_another_template_of_a_video_is_refused():
    pipe, _ = erased("HunyuanVideoPipeline")
    template = {"template": "Describe: {}", "crop_start": 2}
    with pytest.raises(ErasureInactiveError, match="with prompt_template="):
        pipe("a star", prompt_template=template)


@torch.no_grad()
def test_prompts_of_their_own_for_each_encoder_are_covered():
    pipe, adapter = erased("StableDiffusion3Pipeline")
    base = copy.deepcopy(pipe)
    base.unload_erasure_adapters()
    given = {"prompt": "a star", "prompt_2": "a circle", "prompt_3": "a star"}
    assert list_arguments(pipe, given) == {}
    names = {"device": torch.device("cpu"), "do_classifier_free_guidance": False}
    have = pipe.encode_prompt(**given, **names)[2][0]  # the pooled vectors of both CLIPs
    want = base.encode_prompt("a circle", "a circle", "a circle", **names)[2][0]
    gap = (have - want)[: tiny.WIDTH].norm() / want[: tiny.WIDTH].norm()
    assert gap <= 1e-4
    assert find_uncovered(pipe, [adapter], {}) is None


def test_a_call_with_the_defaults_or_what_does_not_matter_goes_on():
    pipe, _ = erased("FluxPipeline")
    common = {"num_inference_steps": 1, "height": 16, "width": 16, "output_type": "latent"}
    assert pipe("a star", **common).images is not None
    assert pipe("a star", max_sequence_length=512, num_images_per_prompt=2, **common).images.ndim
    pipe.disable_erasure()
    assert pipe("a star", max_sequence_length=64, **common).images.ndim
