"""Pipelines that no record names: what is observed of them, and that an erasure holds there."""

import os
import re
from pathlib import Path

import diffusers
import pytest
import torch
from test_families import FAST

import holding
import siblings
import tiny
from conftest import bits, same
from diffusers_erasepro import ErasureSpec, erase
from diffusers_erasepro.errors import UnknownFamilyError
from diffusers_erasepro.families.encode_prompt import record_encoder_inputs
from diffusers_erasepro.families.encoders import blocks_of
from diffusers_erasepro.families.pipelines import family_of, observed_family_of
from tiny import PRESERVE, STAR

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"
SAMPLE = (
    "BriaPipeline",  # one prompt a call, without padding
    "CogView4Pipeline",  # pads to the left, without a mask
    "LongCatImagePipeline",  # a row of three texts
    "MotifVideoPipeline",  # the denoiser's readers
    "SkyReelsV2Pipeline",
    "StableCascadePriorPipeline",  # a mask and a pooled vector
)
"""One of each kind; the slow test takes every class."""


def on_the_page() -> dict[str, bool]:
    """By class, whether docs/pipelines.md says that an erasure holds."""
    row = r"^\| (\w+Pipeline\w*) \|[^|]*\|[^|]*\|[^|]*\| ([^|]*) \|"
    rows = re.findall(row, PAGE.read_text(), re.M)
    return {name: cell == "yes" for name, cell in rows}


@pytest.mark.parametrize("name", SAMPLE)
def test_an_erasure_holds_on_a_class_that_nobody_listed(name):
    outcome = holding.try_class(name)
    assert outcome.holds, outcome
    assert on_the_page()[name]


def part_of(names: list[str]) -> list[str]:
    """All of them, or with `ERASEPRO_PART=2/8` the second eighth."""
    part, _, count = os.environ.get("ERASEPRO_PART", "1/1").partition("/")
    return names[int(part) - 1 :: int(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", part_of([*siblings.text_pipelines(), *siblings.modular_pipelines()])
)
def test_the_page_says_where_an_erasure_holds(name):
    outcome = holding.try_class(name)
    assert outcome.holds == on_the_page()[name], outcome


def test_the_page_lists_every_class_and_most_hold():
    listed = on_the_page()
    plain = siblings.text_pipelines()
    # classes that need a package which is not installed are on the page and not here
    assert listed.keys() >= {*plain, *siblings.modular_pipelines()}
    assert sum(listed[name] for name in plain) >= 150


def as_read(family, pipe) -> list:
    """What a family says is read, however its states are counted."""
    found = []
    for use in family.encoders:
        count = len(blocks_of(getattr(pipe, use.encoder)))
        for reading in use.readings:
            at = (reading.block(count), reading.index == -1, reading.skips, reading.norm)
            found.append((*use[:2], reading.pooled, at))
    return [found, family.denoiser, family.readers, {*family.stock}, family.frames]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else [pytest.mark.slow]) for n in tiny.BUILDERS]
)
def test_what_is_observed_is_what_the_record_says(name):
    pipe = tiny.build(name)
    before = bits(pipe)
    observed = observed_family_of(pipe)
    assert as_read(observed, pipe) == as_read(family_of(pipe), pipe)
    assert observed.notes == family_of(pipe).notes and same(bits(pipe), before)


class Beside(diffusers.AllegroPipeline):
    """It also returns the ids of the tokens, which no text encoder has seen."""

    def encode_prompt(self, prompt, *args, **kwargs):
        ids = self.tokenizer(prompt, return_tensors="pt", padding=True).input_ids
        return *super().encode_prompt(prompt, *args, **kwargs), ids.float()


class Constant(diffusers.AllegroPipeline):
    """It returns nothing that its encoder gives."""

    def encode_prompt(self, prompt, *args, **kwargs):
        states, *others = super().encode_prompt(prompt, *args, **kwargs)
        return torch.zeros_like(states), *others


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            Beside,
            r"Beside.encode_prompt is not explained by what was seen of it, text_encoder "
            r"\(last_hidden_state\): with the same states, tensor \d of those it returns \(.*\) "
            "still changes with the prompt, so that words pass beside these encoders",
        ),
        (Constant, r"returns tensors of \(1, .*, and none of the states of text_encoder is in"),
    ],
)
def test_what_is_not_explained_is_an_error_that_shows_what_was_seen(cls, message):
    pipe = cls(**tiny.allegro().components)
    before = bits(pipe)
    with pytest.raises(UnknownFamilyError, match=message):
        erase(pipe, ErasureSpec((STAR,), preserve=PRESERVE))
    assert same(bits(pipe), before)


def test_a_pipeline_without_words_says_so():
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    with pytest.raises(UnknownFamilyError, match="DDPMPipeline has no encode_prompt"):
        erase(pipe, ErasureSpec((STAR,)))
    with pytest.raises(UnknownFamilyError, match="dict is not a pipeline: it has no components"):
        family_of({})


def test_where_padding_depends_on_the_batch_prompts_are_given_one_at_a_time():
    pipe = siblings.build("CogView4Pipeline").pipe
    (use,) = family_of(pipe).encoders
    assert use.alone
    texts = ["a star", "a star " * 20]
    found = record_encoder_inputs(pipe, texts, use._replace(alone=True)).inputs
    (one,) = record_encoder_inputs(pipe, texts[:1], use).inputs["input_ids"]
    assert found["attention_mask"][0].sum() == len(one) < found["attention_mask"][1].sum()
    assert torch.equal(found["input_ids"][0, : len(one)], one)


def test_an_encoder_that_a_plain_prompt_does_not_reach_is_said():
    pipe = siblings.build("HunyuanImagePipeline").pipe
    family = family_of(pipe)
    assert [use.encoder for use in family.encoders] == ["text_encoder"]
    (note,) = family.notes
    assert note.startswith("text_encoder_2: encode_prompt hands it no plain prompt")
    report = erase(pipe, ErasureSpec((STAR,), preserve=PRESERVE), measure=False).report
    assert any("past the edits: text_encoder_2" in note for note in report.notes)
