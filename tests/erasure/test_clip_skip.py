"""`clip_skip`: the erasure closes where a tool that stops at an earlier block reads."""

import copy
import re
import warnings
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import tiny
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.adapters.header import list_limits
from diffusers_erasepro.baselines import uce
from diffusers_erasepro.cli.main import app
from diffusers_erasepro.erasure import noise_predictions
from diffusers_erasepro.errors import (
    AdapterStateError,
    BaseModelMismatchError,
    ConceptSpecError,
    ErasureLockedError,
)
from diffusers_erasepro.interop.lora import export_kohya
from diffusers_erasepro.loaders.stacking import combine_stored
from diffusers_erasepro.prompts.tokens import token_ids

make = partial(erase, measure=False)

STYLE = Concept("Mira Voss", anchor="Una Flatt", templates=glyphs.templates("style"))
STAR = Concept("star", anchor="circle")
ZERO = 1e-5
"""What rounding leaves in float32."""
LEFT = re.compile("last blocks of text_encoder")


@torch.no_grad()
def states(pipe, text: str, clip_skip: int):
    """As A1111 and ComfyUI read them: of an earlier block, through the final norm."""
    # a copy: transformers leaves hooks for the hidden states behind that cannot be pickled
    encoder = copy.deepcopy(pipe.text_encoder)
    found = encoder(token_ids(pipe.tokenizer, [text]).to(encoder.device), output_hidden_states=True)
    return encoder.final_layer_norm(found.hidden_states[-(clip_skip + 1)])[0]


def left(erased, base, clip_skip: int, template: str) -> float:
    """What a tool finds at the end of the prompt, over the gap between target and anchor."""
    end = 12  # behind EOS, which has read everything
    prompts = [template.format(word) for word in ("Mira Voss", "Una Flatt")]
    target, anchor = [states(base, prompt, clip_skip)[end] for prompt in prompts]
    have = states(erased, prompts[0], clip_skip)[end]
    return float((have - anchor).norm() / (target - anchor).norm())


def spec(preserve, *concepts):
    return ErasureSpec(concepts, preserve=preserve)


@pytest.fixture(scope="module")
def skipping(shipped, preserve):
    """Of the style, made for tools that skip one block."""
    return make(shipped, spec(preserve, STYLE), clip_skip=1)


def load(shipped, adapter):
    pipe = erasable(copy.deepcopy(shipped))
    vars(pipe).pop("_clip_skip", None)  # of a call that another test made
    pipe.load_erasure_adapter(adapter, adapter_name="it")
    return pipe


def listed_left(shipped, adapter, clip_skip: int) -> float:
    """Worst residual at a tool's reading of the listed prompts' EOS, measured without our code."""
    pipe = load(shipped, adapter)
    worst = 0.0
    for concept in adapter.spec.concepts:
        for template in concept.exact:
            ends = []
            for word in (concept.target, concept.anchor):
                ids = token_ids(shipped.tokenizer, [template.format(word)])
                ends.append(int((ids[0] == shipped.tokenizer.eos_token_id).nonzero()[0]))
            have = states(pipe, template.format(concept.target), clip_skip)[ends[0]]
            goal = states(shipped, template.format(concept.anchor), clip_skip)[ends[1]]
            worst = max(worst, float((have - goal).norm() / goal.norm()))
    return worst


@pytest.mark.parametrize("clip_skip", [0, 1, 2, 4])
@pytest.mark.parametrize("concept", [STYLE, STAR], ids=["style", "star"])
def test_it_closes_where_the_tool_reads(shipped, preserve, concept, clip_skip):
    made = make(shipped, spec(preserve, concept), clip_skip=clip_skip, layers=("neurons", -1))
    assert listed_left(shipped, made, clip_skip) < ZERO
    assert made.report.listed_residual < ZERO
    count = len(shipped.text_encoder.encoder.layers)
    blocks = {int(name.split(".layers.")[1].split(".")[0]) for name in made.edits}
    assert max(blocks) == count - 1 - clip_skip
    assert load(shipped, made).verify_erasure().ok


def test_without_it_the_style_comes_back_in_such_a_tool(shipped, no_style):
    assert listed_left(shipped, no_style, 0) < ZERO
    assert listed_left(shipped, no_style, 1) > 0.3


def test_what_skips_a_block_nearly_holds_at_the_default_too(shipped, skipping):
    assert ZERO < listed_left(shipped, skipping, 0) < 0.05


@pytest.mark.parametrize("none", [None, 0])
def test_none_and_nothing_are_the_default_bit_for_bit(shipped, preserve, no_star, none):
    made = erase(shipped, spec(preserve, STAR), clip_skip=none, layers=("neurons", -1))
    assert made.digest == no_star.digest and made.clip_skip == no_star.clip_skip == 0


@pytest.mark.parametrize("layers", [(0, -1), (0, "kv"), ("eos_neurons", -1), (1, 4)])
def test_every_kind_of_layer_counts_from_there(shipped, preserve, layers):
    made = make(shipped, spec(preserve, STAR), clip_skip=1, layers=layers)
    pipe = load(shipped, made)
    assert pipe.verify_erasure().ok
    deepest = max(
        int(name.split(".layers.")[1].split(".")[0]) for name in made.edits if ".layers." in name
    )
    assert deepest <= len(shipped.text_encoder.encoder.layers) - 2


@pytest.mark.slow
def test_robust_and_auto_read_there_too(shipped, preserve, monkeypatch):
    monkeypatch.setattr(noise_predictions, "COMPARED", 1)  # timesteps: a third of the time
    robust = make(shipped, spec(preserve, STAR), clip_skip=1, robust=True)
    assert load(shipped, robust).verify_erasure().ok
    auto = make(shipped, spec(preserve, STAR), clip_skip=1, layers="auto")
    assert auto.clip_skip == 1 and load(shipped, auto).verify_erasure().ok
    assert auto.report.denoiser_residual < 0.3


def test_an_anchor_may_be_found_there(shipped, preserve):
    concept = Concept("star", anchor="auto")
    found = make(shipped, spec(preserve, concept), clip_skip=2, layers=(0, -1))
    assert load(shipped, found).verify_erasure().ok


def test_16_bits(shipped, preserve):
    half = copy.deepcopy(shipped).to(torch.bfloat16)
    made = make(half, spec(preserve, STAR), clip_skip=1)
    assert made.report.listed_residual < ZERO
    assert load(half, made).verify_erasure().ok


# --- the record


def test_the_file_keeps_it_and_refit_replays_it(shipped, skipping, tmp_path):
    skipping.save_pretrained(tmp_path)
    read = ErasureAdapter.from_pretrained(tmp_path)
    assert read.options.clip_skip == read.clip_skip == 1
    assert read.to_bytes() == skipping.to_bytes()
    pipe = load(shipped, read)
    pipe.refit_erasure()
    assert listed_left(shipped, read, 1) < ZERO and pipe.verify_erasure().ok


def test_several_are_solved_where_all_of_them_read(shipped, preserve, skipping):
    star = make(shipped, spec(preserve, STAR), clip_skip=1)
    pipe = load(shipped, skipping)
    pipe.load_erasure_adapter(star)
    assert pipe.verify_erasure().ok


def test_adapters_of_different_clip_skip_are_not_combined(shipped, preserve, skipping, no_star):
    pipe = load(shipped, skipping)
    with pytest.raises(AdapterStateError, match=r"different clip_skip \["):
        pipe.load_erasure_adapter(no_star)
    assert pipe.get_erasure_adapters() == {"it": True} and pipe.verify_erasure().ok
    with pytest.raises(AdapterStateError, match=r"different clip_skip \[0, 1\]"):
        pipe.load_erasure_adapter(uce(shipped, spec(preserve, STAR)))
    blocks = [
        make(shipped, spec(preserve, c), layers=(0, -1), clip_skip=n)
        for c, n in ((STAR, 0), (STYLE, 1))
    ]
    with pytest.raises(AdapterStateError, match=r"different clip_skip \[0, 1\]"):
        combine_stored(blocks)


# --- what is refused


@pytest.mark.parametrize("wrong", [True, False, -1, 1.0, "1"])
def test_what_is_no_count_of_blocks_is_refused(shipped, preserve, wrong):
    with pytest.raises(ConceptSpecError, match="clip_skip must be a whole number of at least 0"):
        make(shipped, spec(preserve, STAR), clip_skip=wrong)


@pytest.mark.parametrize("wrong", [6, 7, 100])
def test_so_many_blocks_are_not_there(shipped, preserve, wrong):
    with pytest.raises(ConceptSpecError, match=f"clip_skip={wrong}: text_encoder has 6 blocks.* 5"):
        make(shipped, spec(preserve, STAR), clip_skip=wrong)


def test_all_but_the_first_block_may_be_skipped(shipped, preserve):
    made = make(shipped, spec(preserve, STYLE), clip_skip=5)
    assert listed_left(shipped, made, 5) < ZERO


@pytest.mark.parametrize("name", ["FluxPipeline", "PixArtAlphaPipeline", "HunyuanVideoPipeline"])
def test_a_pipeline_without_clip_skip_refuses_it(name):
    with pytest.raises(ConceptSpecError, match=f"{name} reads no text encoder with clip_skip"):
        make(tiny.build(name), ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE), clip_skip=1)


# --- other families


def embeds(pipe, prompt: str, clip_skip: int | None):
    """What stock `encode_prompt` returns: states, and the pooled vector."""
    arguments = {"device": pipe.device, "do_classifier_free_guidance": False}
    found = pipe.encode_prompt(prompt, prompt_2=None, **arguments, clip_skip=clip_skip)
    return found[0], found[2]


def embeds_sd3(pipe, prompt: str, clip_skip: int | None):
    found = pipe.encode_prompt(
        prompt, prompt, prompt, do_classifier_free_guidance=False, clip_skip=clip_skip
    )
    return found[0], found[2]


def end_of(pipe, prompt: str) -> int:
    """Where CLIP's tokenizer puts EOS."""
    return pipe.tokenizer(prompt).input_ids.index(pipe.tokenizer.eos_token_id)


@pytest.mark.parametrize(
    "name, read",
    [("StableDiffusionXLPipeline", embeds), ("StableDiffusion3Pipeline", embeds_sd3)],
    ids=["SDXL", "SD3"],
)
def test_stock_encode_prompt_finds_the_anchor(name, read):
    base = tiny.build(name)
    pairs = ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE)
    options = {"metric": "identity", "layers": (0, -1)}
    for made_for in (None, 1):
        pipe = erasable(copy.deepcopy(base))
        pipe.load_erasure_adapter(make(base, pairs, clip_skip=made_for, **options))
        assert pipe.verify_erasure().ok
        for asked in (None, 1):
            with torch.no_grad():
                have = read(pipe, "a star", asked)
                goal = read(base, "a circle", asked)
                before = read(base, "a star", asked)
            ends = [end_of(base, text) for text in ("a star", "a circle")]
            have_end, before_end = have[0][0, ends[0]], before[0][0, ends[0]]
            goal_end = goal[0][0, ends[1]]
            states_left = float((have_end - goal_end).norm() / (before_end - goal_end).norm())
            pooled_left = float((have[1] - goal[1]).norm() / (before[1] - goal[1]).norm())
            assert pooled_left < 1e-4
            assert (states_left < 1e-4) == (asked == made_for), (made_for, asked, states_left)


def test_it_is_not_loaded_where_others_states_are_read(skipping):
    other = erasable(tiny.build("StableDiffusionXLPipeline"))
    with pytest.raises(BaseModelMismatchError):
        other.load_erasure_adapter(skipping)


def test_animatediff_reads_as_stable_diffusion():
    base = tiny.build("AnimateDiffPipeline")
    pairs = ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE)
    made = make(base, pairs, metric="identity", layers=(0, -1), clip_skip=1)
    pipe = erasable(copy.deepcopy(base))
    pipe.load_erasure_adapter(made)
    assert pipe.verify_erasure().ok
    assert [*made.goals] == ["text_encoder.final_norm(hidden_states[-2])"]


# --- calls


def sdxl(clip_skip: int):
    base = tiny.build("StableDiffusionXLPipeline")
    pairs = ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE)
    return base, make(base, pairs, metric="identity", layers=(0, -1), clip_skip=clip_skip)


def generate(pipe, **call):
    pipe("a star", num_inference_steps=1, height=32, width=32, output_type="latent", **call)


@pytest.mark.parametrize("made_for, asked", [(0, 1), (1, 2), (1, None), (1, 0)])
def test_a_call_with_another_clip_skip_is_told_and_a_locked_erasure_refuses_it(made_for, asked):
    base, made = sdxl(made_for)
    pipe = erasable(copy.deepcopy(base))
    pipe.load_erasure_adapter(made, adapter_name="it")
    wanted = f"clip_skip={asked or 0} in a call reads states that 'it', made for"
    with pytest.warns(UserWarning, match=wanted):
        generate(pipe, clip_skip=asked)
    assert any(
        f"the last call had clip_skip={asked or 0}" in x for x in pipe.verify_erasure().uncovered
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(pipe, clip_skip=made_for or None)
    assert not any("the last call" in note for note in pipe.verify_erasure().uncovered)
    pipe.disable_erasure()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(pipe, clip_skip=asked)
    locked = erasable(copy.deepcopy(base))
    locked.load_erasure_adapter(made, adapter_name="it", locked=True)
    with pytest.raises(ErasureLockedError, match=r"clip_skip.*'it' is locked"):
        generate(locked, clip_skip=asked)
    generate(locked, clip_skip=made_for)


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_verify_says_which_calls_it_vouches_for(shipped, no_style, skipping, clip_skip):
    pipe = load(shipped, skipping if clip_skip else no_style)
    wanted = f"calls with another clip_skip than {clip_skip}: states that were not solved for"
    assert wanted in pipe.verify_erasure().uncovered
    assert not any("the last call" in note for note in pipe.verify_erasure().uncovered)


def test_calls_are_measured_as_they_are_made_for_or_a_named_error_says_why(shipped, skipping):
    pipe = load(shipped, skipping)
    if hasattr(pipe.text_encoder, "text_model"):  # transformers before 5.6
        assert pipe.verify_erasure(images=True).ok
    else:
        with pytest.raises(AdapterStateError, match="cannot be called with clip_skip=1"):
            pipe.verify_erasure(images=True)
    assert pipe.verify_erasure(prompts="a photo of Mira Voss").prompts


# --- what is said


def test_notes_card_and_export_say_that_the_last_block_is_lost(no_style, skipping, tmp_path):
    for made, count in ((no_style, 0), (skipping, 1)):
        wanted = f"made for clip skip {count + 1} as A1111 and ComfyUI count (`clip_skip={count}`"
        exported = export_kohya(made, tmp_path / "style.safetensors")
        for said in (made.report.notes, list_limits(made.header()), exported, [str(made.card())]):
            assert any(wanted in line for line in said)
            assert any(LEFT.search(line) and f"clip_skip={count + 1})" in line for line in said)


def test_neurons_of_the_first_block_run_in_every_tool(shipped, preserve, tmp_path):
    made = make(shipped, spec(preserve, STAR), layers="neurons")
    said = export_kohya(made, tmp_path / "star.safetensors")
    assert any("made for clip skip 1" in line for line in said)
    assert not any(LEFT.search(line) for line in said)


def test_readers_are_solved_for_one_block_too(shipped, preserve):
    made = make(shipped, spec(preserve, STAR), layers="kv")
    assert any("made for clip skip 1" in line for line in made.report.notes)


def test_sdxl_counts_from_where_it_reads():
    _, made = sdxl(0)
    said = " ".join(made.report.notes)
    assert "made for clip skip 2" in said and "text_encoder and text_encoder_2 do not run" in said


@pytest.mark.parametrize("name", ["FluxPipeline", "PixArtAlphaPipeline"])
def test_encoders_without_clip_skip_are_spared_the_note(name):
    pairs = ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE)
    made = make(tiny.build(name), pairs, metric="identity", layers=(0, -1))
    said = (*made.report.notes, *list_limits(made.header()))
    assert not any("clip skip" in line for line in said)


def test_the_exported_file_erases_in_such_a_tool(shipped, skipping, tmp_path):
    """Added to the weights under its kohya names, read as ComfyUI reads."""
    export_kohya(skipping, tmp_path / "style.safetensors")
    tensors = load_file(tmp_path / "style.safetensors")
    tool = copy.deepcopy(shipped)
    names = {}
    for name, module in tool.text_encoder.named_modules():
        names[f"lora_te_text_model_{name.replace('.', '_')}"] = module
    with torch.no_grad():
        for key in tensors:
            layer, _, kind = key.partition(".")
            if kind == "lora_up.weight":
                names[layer].weight += tensors[key] @ tensors[f"{layer}.lora_down.weight"]
    for template in STYLE.exact:
        assert left(tool, shipped, 1, template) < 0.05
        assert left(shipped, shipped, 1, template) > 0.99


def test_the_command_line(tmp_path):
    run = CliRunner().invoke
    out = str(tmp_path / "style")
    made = run(
        app,
        [
            *("erase", "glyphs", "--target", "Mira Voss", "--anchor", "Una Flatt"),
            *("--templates", "style", "--clip-skip", "1", "--layers=0,-1", "-o", out),
        ],
    )
    assert made.exit_code == 0, made.output
    assert ErasureAdapter.from_pretrained(out).clip_skip == 1
    file = str(tmp_path / "kohya.safetensors")
    exported = run(app, ["export", out, "-o", file])
    assert "note: It is made for clip skip 2" in exported.output
    assert "do not run in a tool that stops at an earlier block" in exported.output
