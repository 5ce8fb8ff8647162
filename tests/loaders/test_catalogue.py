"""Cases of the catalogue of bad input (docs/reliability.md) that no test of a module has."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import assert_same_bits, bits, draw
from diffusers_erasepro import Concept, ErasureSpec
from diffusers_erasepro.config.spec import MAX_CONCEPTS
from diffusers_erasepro.errors import (
    AdapterIntegrityError,
    BaseModelMismatchError,
    ConceptSpecError,
)
from diffusers_erasepro.families.encode_prompt import tokenize
from diffusers_erasepro.patching.rwlock import WEIGHTS_LOCK
from diffusers_erasepro.prompts.alignment import span
from diffusers_erasepro.prompts.pairs import Prompt
from routes import make_kit


@pytest.mark.parametrize(
    "words",
    ["st\u200bar", "\u202bنجمة", "🌟", "👩‍🎨", "a\u00a0b", "\uff53\uff54\uff41\uff52", "a\x00b"],
)
def test_the_tokens_of_words_of_any_script_are_found(shipped, words):
    """What is left without them are the tokens of the prompt without the words."""
    prompt = Prompt.of("in {} on snow", words)
    at, _ = span(tokenize(shipped.tokenizer, [prompt.text]).locate(0, prompt.text, ""), prompt)
    ids = shipped.tokenizer(prompt.text).input_ids
    rest = [token for place, token in enumerate(ids) if place not in at]
    assert rest == shipped.tokenizer("in on snow").input_ids
    assert len(at) == len(ids) - len(rest)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Concept("st\u200bar", "circle"), r"target holds invisible characters \(U\+200B\)"),
        (lambda: Concept("star", "cir\u202ecle"), r"anchor of 'star' holds .*U\+202E"),
        (
            lambda: Concept("star", "circle", synonyms=("a\x00b",)),
            r"synonyms of 'star'\[0\] holds .*U\+0000",
        ),
        (
            lambda: Concept("star", "circle", templates=("a \ufeff{}",)),
            r"templates of 'star'\[0\] holds .*U\+FEFF",
        ),
        (
            lambda: ErasureSpec((Concept("star", "circle"),), preserve=("a\u2066 dog",)),
            r"preserve\[0\] holds .*U\+2066",
        ),
        (
            lambda: ErasureSpec((Concept("star", "circle"),), keep=("a\u200d dog",)),
            r"keep\[0\] holds .*U\+200D",
        ),
        (lambda: Concept("cafe\u0301", "house"), r"target is not in Unicode's form NFC"),
    ],
)
def test_what_a_reader_cannot_see_is_taken_with_a_warning(make, says):
    with pytest.warns(UserWarning, match=says):
        make()


@pytest.mark.parametrize("words", ["نجمة", "🌟", "星", "a\u00a0b", "caf\u00e9", "two\nlines"])
def test_what_a_reader_can_see_raises_no_warning(words):
    assert Concept(words, "circle").target == words  # a warning of ours is an error in these tests


def test_more_concepts_than_a_spec_may_hold_are_an_error():
    with pytest.raises(
        ConceptSpecError, match=f"{MAX_CONCEPTS + 1} concepts, at most {MAX_CONCEPTS}"
    ):
        ErasureSpec([Concept(f"word{i}", "circle") for i in range(MAX_CONCEPTS + 1)])


@pytest.mark.parametrize("name", ["x/y", "../z", "a" * 65, "trailing ", "new\nline", "ü"])
def test_a_name_is_letters_digits_and_dashes(pipe, no_star, name):
    with pytest.raises(ConceptSpecError, match="must be 1 to 64 letters"):
        pipe.load_erasure_adapter(no_star, adapter_name=name)
    assert pipe.get_erasure_adapters() == {}


def test_a_style_fused_into_the_base_is_another_base(pipe, shipped, preserve, tmp_path):
    kit = make_kit(shipped, tmp_path, (0,), preserve)
    pipe.load_lora_weights(kit.lora("text"), adapter_name="style")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    before = bits(pipe)
    with pytest.raises(BaseModelMismatchError, match="a LoRA fused in"):
        pipe.load_erasure_adapter(kit.adapter)
    assert_same_bits(pipe, before)


def test_a_foreign_alpha_beside_our_header_changes_nothing(pipe, no_star, tmp_path):
    """diffusers' own loader would take the edit a hundred times."""
    pipe.load_erasure_adapter(no_star, adapter_name="own")
    wanted = bits(pipe)
    pipe.unload_erasure_adapters()
    path = no_star.save_pretrained(tmp_path)
    foreign = {
        "text_encoder.r": 1,
        "text_encoder.lora_alpha": 100,
        "text_encoder.target_modules": ["fc2"],
    }
    metadata = {
        "erasepro": json.dumps(no_star.header(), sort_keys=True),
        "lora_adapter_metadata": json.dumps(foreign),
    }
    save_file(load_file(path), path, metadata=metadata)
    pipe.load_erasure_adapter(path)
    assert_same_bits(pipe, wanted)


def test_a_report_does_not_excuse_an_edit_that_hardly_erases(pipe, no_star):
    half = {name: replace(f, B=0.5 * f.B) for name, f in no_star.edits.items()}
    weak = replace(no_star, edits=half, report=replace(no_star.report, listed_residual=0.49))
    before = bits(pipe)
    with pytest.raises(
        AdapterIntegrityError,
        match=r"does not erase what it lists: residual .*, at most 1e-01 allowed",
    ):
        pipe.load_erasure_adapter(weak)
    assert_same_bits(pipe, before)


def test_a_file_name_that_the_disk_refuses_leaves_nothing_behind(no_star, tmp_path):
    with pytest.raises(OSError, match="name too long"):
        no_star.save_pretrained(tmp_path, weight_name="x" * 300 + ".safetensors")
    assert not list(tmp_path.iterdir())


def test_an_interrupt_inside_a_drawing_leaves_the_erasure_on(pipe, no_star):
    def interrupt(*_):
        raise KeyboardInterrupt

    pipe.load_erasure_adapter(no_star)
    before = bits(pipe)
    with pytest.raises(KeyboardInterrupt):
        pipe("a star", num_inference_steps=2, callback_on_step_end=interrupt)
    assert_same_bits(pipe, before)
    assert (
        not WEIGHTS_LOCK._readers
        and pipe.verify_erasure().ok
        and torch.isfinite(draw(pipe, ["a star"], steps=1)).all()
    )


def test_a_sampled_look_is_not_kinder_than_the_full_one(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    pipe.to(torch.float16)
    pipe.to(torch.float32)
    assert not pipe.verify_erasure().ok and not pipe.verify_erasure(sample=100).ok
