"""An adapter and a pipeline that do not have the same text encoders."""

import copy
from dataclasses import replace
from functools import partial

import pytest

import tiny
from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureAdapter, ErasureSpec, erasable, erase
from diffusers_erasepro.config.options import OtherMethod
from diffusers_erasepro.errors import (
    AdapterStateError,
    BaseModelMismatchError,
    ErasureVerificationError,
)
from diffusers_erasepro.families.pipelines import PIPELINES, family_of, register
from diffusers_erasepro.loaders.verification import list_unseen_encoders
from tiny import PRESERVE, STAR

make = partial(erase, measure=False)
SPEC = ErasureSpec((STAR,), preserve=PRESERVE)
RING = ErasureSpec((Concept("ring", "square", ("a {}",), ()),), preserve=PRESERVE)
LACKING = [
    ("StableDiffusion3Pipeline", "text_encoder_3"),
    ("StableDiffusionXLPipeline", "text_encoder"),
]
"""A pipeline, and an encoder that diffusers runs it without."""
UNSEEN = [
    *LACKING,
    ("StableDiffusion3Pipeline", "text_encoder"),
    ("StableDiffusionXLPipeline", "text_encoder_2"),
    ("FluxPipeline", "text_encoder"),
    ("FluxPipeline", "text_encoder_2"),
    ("HunyuanVideoPipeline", "text_encoder_2"),
]


def without(pipe, *encoders):
    """A copy of the pipeline that was loaded without these encoders."""
    lacking = copy.copy(pipe)
    for encoder in encoders:
        tokenizer = encoder.replace("text_encoder", "tokenizer")
        lacking.register_modules(**{encoder: None, tokenizer: None})
    return lacking


def sibling(pipe, *encoders):
    """A copy of the pipeline of a family of its own, whose record lacks these encoders."""
    record = family_of(pipe)
    name = f"{type(pipe).__name__}Without{len(encoders)}"
    uses = tuple(use for use in record.encoders if use.encoder not in encoders)
    register(replace(record, pipelines=(name,), encoders=uses))
    other = copy.copy(pipe)
    other.__class__ = type(name, (type(pipe),), {})
    return other


@pytest.fixture(autouse=True)
def known_families():
    """Records that a test registers are forgotten after it."""
    kept = [*PIPELINES]
    yield
    PIPELINES[:] = kept


@pytest.mark.parametrize(("name", "encoder"), UNSEEN)
def test_an_adapter_made_without_an_encoder_is_refused_where_it_is_read(name, encoder):
    pipe = tiny.build(name)
    adapter = make(sibling(pipe, encoder), SPEC)
    live = erasable(copy.deepcopy(pipe))
    before = bits(live)
    with pytest.raises(BaseModelMismatchError, match=f"made without {encoder}, which this {name}"):
        live.load_erasure_adapter(adapter)
    assert_same_bits(live, before)
    assert live.get_erasure_adapters() == {}


def test_it_is_solved_again_there_if_asked():
    pipe = tiny.build("StableDiffusion3Pipeline")
    adapter = make(without(pipe, "text_encoder_3"), SPEC)
    live = erasable(copy.deepcopy(pipe))
    live.load_erasure_adapter(adapter, allow_base_mismatch=True)
    found = live.verify_erasure(raise_on_fail=True)
    assert {*found.residuals} == {"text_encoder", "text_encoder_2", "text_encoder_3"}


@pytest.mark.parametrize("sample", [None, 3])
@pytest.mark.parametrize(("name", "encoder"), LACKING)
def test_an_encoder_that_comes_later_is_not_covered(name, encoder, sample):
    pipe = tiny.build(name)
    live = erasable(without(copy.deepcopy(pipe), encoder))
    live.load_erasure_adapter(make(live, SPEC), adapter_name="star")
    assert live.verify_erasure(sample=sample).ok
    for part in (encoder, encoder.replace("text_encoder", "tokenizer")):
        setattr(live, part, copy.deepcopy(getattr(pipe, part)))
    found = live.verify_erasure(sample=sample)
    assert not found.ok
    assert any(note.startswith(f"{encoder} is read by the denoiser") for note in found.uncovered)
    with pytest.raises(ErasureVerificationError, match=f"{encoder} is read by the denoiser"):
        live.verify_erasure(sample=sample, raise_on_fail=True)
    live.refit_erasure()
    assert live.verify_erasure(raise_on_fail=True).residual <= 1e-5
    live.unload_erasure_adapters()
    assert_same_bits(live, bits(pipe))


@pytest.mark.parametrize(("name", "encoder"), LACKING)
def test_an_adapter_of_all_holds_on_a_pipeline_without_one(name, encoder):
    pipe = tiny.build(name)
    adapter = make(pipe, SPEC)
    live = erasable(without(copy.deepcopy(pipe), encoder))
    before = bits(live)
    live.load_erasure_adapter(adapter, adapter_name="star")
    found = live.verify_erasure(raise_on_fail=True)
    assert found.residual <= 1e-5
    assert encoder not in found.residuals
    with pytest.raises(AdapterStateError, match="loaded already, as 'star'"):
        live.load_erasure_adapter(adapter)
    live.disable_erasure()
    assert_same_bits(live, before)
    live.enable_erasure()
    live.refit_erasure()
    assert live.verify_erasure().ok


def test_an_encoder_that_the_pipeline_lacked_at_load_is_not_covered_when_it_comes():
    pipe = tiny.build("StableDiffusion3Pipeline")
    live = erasable(without(copy.deepcopy(pipe), "text_encoder_3"))
    live.load_erasure_adapter(make(pipe, SPEC))
    live.text_encoder_3 = copy.deepcopy(pipe.text_encoder_3)
    live.tokenizer_3 = pipe.tokenizer_3
    assert not live.verify_erasure().ok


def test_an_adapter_that_edits_only_what_is_absent_is_refused():
    pipe = tiny.build("StableDiffusion3Pipeline")
    adapter = make(sibling(pipe, "text_encoder", "text_encoder_2"), SPEC)
    live = erasable(without(copy.deepcopy(pipe), "text_encoder_3"))
    with pytest.raises(AdapterStateError, match="text_encoder_3 is None"):
        live.load_erasure_adapter(adapter)


def test_adapters_of_all_and_of_some_are_solved_for_what_is_there():
    pipe = tiny.build("StableDiffusion3Pipeline")
    some = without(copy.deepcopy(pipe), "text_encoder_3")
    live = erasable(some)
    live.load_erasure_adapters({"star": make(pipe, SPEC), "ring": make(some, RING)})
    assert live.verify_erasure(raise_on_fail=True).ok
    whole = erasable(copy.deepcopy(pipe))
    before = bits(whole)
    with pytest.raises(BaseModelMismatchError, match="made without text_encoder_3"):
        whole.load_erasure_adapters({"star": make(pipe, SPEC), "ring": make(some, RING)})
    assert_same_bits(whole, before)


def test_a_joint_edit_is_not_remembered_across_encoders():
    pipe = tiny.build("StableDiffusion3Pipeline")
    live = erasable(without(copy.deepcopy(pipe), "text_encoder_3"))
    live.load_erasure_adapters({"star": make(live, SPEC), "ring": make(live, RING)})
    live.text_encoder_3 = copy.deepcopy(pipe.text_encoder_3)
    live.tokenizer_3 = pipe.tokenizer_3
    assert not live.verify_erasure().ok
    live.disable_erasure()
    live.set_erasure_adapters(["star", "ring"])
    found = live.verify_erasure(raise_on_fail=True)
    assert "text_encoder_3" in found.residuals


def imported(pipe, *parts):
    """An erasure's edits of these components, as another tool's LoRA: without keys and goals."""
    made = make(pipe, SPEC)
    edits = {name: f for name, f in made.edits.items() if name.split(".")[0] in parts}
    base = {part: made.base[part] for part in parts}
    return ErasureAdapter(SPEC, OtherMethod("import"), base, edits, {}, {}, made.report)


def test_an_imported_lora_of_one_encoder_says_which_it_left_out():
    live = erasable(tiny.build("StableDiffusionXLPipeline"))
    live.load_erasure_adapter(imported(live, "text_encoder"))
    found = live.verify_erasure()
    assert not found.ok
    assert any(note.startswith("text_encoder_2 is read") for note in found.uncovered)
    assert not any(note.startswith("text_encoder is read") for note in found.uncovered)


def test_an_imported_lora_beside_an_erasure_is_measured_in_every_encoder():
    live = erasable(tiny.build("StableDiffusionXLPipeline"))
    with pytest.warns(UserWarning, match="added to the others"):
        live.load_erasure_adapters(
            {"ring": make(live, RING), "foreign": imported(live, "text_encoder")}
        )
    found = live.verify_erasure()
    assert not found.ok
    assert found.residuals["text_encoder_2"] > 1e-2


def test_readers_that_read_one_encoder_do_not_cover_the_other():
    """Flux's `context_embedder` reads T5; CLIP's vector goes past it, and is measured."""
    pipe = tiny.build("FluxPipeline")
    readers = make(sibling(pipe, "text_encoder"), SPEC, layers=("kv",))
    assert set(readers.components) == {"transformer"}
    assert list_unseen_encoders(pipe, readers) == ["text_encoder"]
    assert list_unseen_encoders(sibling(pipe, "text_encoder"), readers) == []


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_a_pipeline_that_does_not_run_without_an_encoder_is_an_error_that_says_so(name):
    pipe = tiny.build(name)
    lacking = erasable(without(copy.deepcopy(pipe), "text_encoder"))
    with pytest.raises(AdapterStateError, match="encode_prompt does not run"):
        make(lacking, SPEC)
    with pytest.raises(AdapterStateError, match="encode_prompt does not run"):
        lacking.load_erasure_adapter(make(pipe, SPEC))
