"""Textual inversion adds rows to the token embedding; no erasure is bound to those."""

import copy

import pytest
import torch

from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from diffusers_erasepro.errors import BaseModelMismatchError
from tiny import PRESERVE, STAR, build

CHANGED = "no longer those the erasure was made for"


def learn(pipe, vectors=1, token="<thing>", number=""):
    """Load a textual inversion of so many vectors."""
    encoder = getattr(pipe, f"text_encoder{number}")
    rows = torch.randn(
        vectors,
        encoder.get_input_embeddings().embedding_dim,
        generator=torch.Generator().manual_seed(len(token)),
    )
    tokenizer = getattr(pipe, f"tokenizer{number}")
    pipe.load_textual_inversion(rows, token=token, text_encoder=encoder, tokenizer=tokenizer)


def holds(pipe):
    found = pipe.verify_erasure()
    return found.ok and not any(CHANGED in note for note in found.uncovered)


@pytest.mark.parametrize("vectors", [1, 3])
def test_an_erasure_made_before_loads_beside_it(pipe, no_star, vectors):
    learn(pipe, vectors)
    pipe.load_erasure_adapter(no_star)
    assert holds(pipe)


def test_an_erasure_made_beside_it_is_that_made_without(pipe, no_star):
    learn(pipe, 2)
    made = erase(pipe, no_star.spec)
    assert made.base == no_star.base
    assert made.digest == no_star.digest


def test_it_comes_and_goes_while_erasures_are_on(pipe, no_star, no_cross):
    pipe.load_erasure_adapter(no_star)
    learn(pipe, 2)
    assert holds(pipe)
    pipe.load_erasure_adapter(no_cross)
    assert holds(pipe)
    learn(pipe, token="<other>")
    assert holds(pipe)
    pipe.unload_textual_inversion("<thing>")
    assert holds(pipe)
    pipe.unload_textual_inversion()
    assert holds(pipe)
    pipe.refit_erasure()
    assert holds(pipe)


def test_rows_that_were_padded_do_not_count(pipe, no_star):
    learn(pipe)
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), pad_to_multiple_of=64)
    pipe.load_erasure_adapter(no_star)
    assert holds(pipe)


def test_a_changed_row_of_the_vocabulary_counts(pipe, no_star):
    learn(pipe)
    pipe.text_encoder.get_input_embeddings().weight.data[: len(pipe.tokenizer) - 1] *= 1.01
    with pytest.raises(BaseModelMismatchError, match="fine-tuned"):
        pipe.load_erasure_adapter(no_star)


def test_edited_rows_stay_edited_and_learned_ones_stay_learned(pipe, preserve):
    spec = ErasureSpec((Concept("star", "circle"),), preserve=preserve)
    edited_rows = erase(pipe, spec, layers=("embedding", 0, -1))
    before = bits(pipe)
    pipe.load_erasure_adapter(edited_rows)
    learn(pipe, 2)
    assert holds(pipe)
    learned = pipe.text_encoder.get_input_embeddings().weight[-2:].clone()
    pipe.disable_erasure()
    pipe.enable_erasure()
    assert holds(pipe)
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[-2:], learned)
    pipe.unload_textual_inversion()
    assert holds(pipe)
    pipe.unload_erasure_adapters()
    assert_same_bits(pipe, before)


def test_edited_rows_load_beside_learned_ones(pipe, preserve):
    spec = ErasureSpec((Concept("star", "circle"),), preserve=preserve)
    plain = erase(pipe, spec, layers=("embedding", 0, -1))
    learn(pipe, 2)
    beside = erase(pipe, spec, layers=("embedding", 0, -1))
    pipe.load_erasure_adapter(plain)
    assert holds(pipe)
    pipe.unload_erasure_adapters()
    pipe.unload_textual_inversion()
    pipe.load_erasure_adapter(beside)
    assert holds(pipe)


def test_both_encoders():
    stock = build("StableDiffusionXLPipeline")
    pipe = erasable(copy.deepcopy(stock))
    spec = ErasureSpec((STAR,), preserve=PRESERVE)
    made = erase(stock, spec, layers=(0, -1))
    learn(pipe)
    learn(pipe, 2, number="_2")
    pipe.load_erasure_adapter(made)
    assert holds(pipe)
    beside = erase(pipe, spec, layers=(0, -1))
    assert beside.base == made.base
