"""Textual inversion adds rows to the token embedding; no erasure is bound to those."""

import copy
from functools import partial

import pytest
import torch
from transformers import BertConfig, BertModel

from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from diffusers_erasepro.errors import BaseModelMismatchError
from diffusers_erasepro.modules.fingerprint import fingerprints
from tiny import PRESERVE, STAR, build, clip, llm, qwen_vl, t5

make = partial(erase, measure=False)

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


@pytest.mark.parametrize("layers", [None, ("neurons", -1)])
def test_an_erasure_made_beside_it_is_that_made_without(shipped, pipe, no_star, layers):
    without = make(shipped, no_star.spec, layers=layers)
    learn(pipe, 2)
    made = make(pipe, no_star.spec, layers=layers)
    assert made.base == without.base
    assert made.digest == without.digest


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
    edited_rows = make(pipe, spec, layers=("embedding", 0, -1))
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
    plain = make(pipe, spec, layers=("embedding", 0, -1))
    learn(pipe, 2)
    beside = make(pipe, spec, layers=("embedding", 0, -1))
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
    made = make(stock, spec, layers=(0, -1))
    learn(pipe)
    learn(pipe, 2, number="_2")
    pipe.load_erasure_adapter(made)
    assert holds(pipe)
    beside = make(pipe, spec, layers=(0, -1))
    assert beside.base == made.base


SIZES = {
    "vocab_size": 800,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def decoder(kind, config, tied):
    return llm(kind, config, 2, tie_word_embeddings=tied)


ENCODERS = {
    "CLIP": clip,
    "CLIP with projection": lambda: clip(projection=32),
    "T5": t5,
    "UMT5": lambda: t5(kind="UMT5"),
    "Gemma 2": lambda: llm("Gemma2Model", "Gemma2Config", query_pre_attn_scalar=8),
    "Qwen 3 tied": lambda: decoder("Qwen3ForCausalLM", "Qwen3Config", True),
    "Qwen 3 untied": lambda: decoder("Qwen3ForCausalLM", "Qwen3Config", False),
    "Llama": lambda: decoder("LlamaForCausalLM", "LlamaConfig", False),
    "Qwen 2.5 VL": qwen_vl,
    "BERT": lambda: BertModel(BertConfig(**SIZES)),
}


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS)
def test_rows_that_come_and_go_change_no_fingerprint(make):
    encoder = make()
    before = fingerprints(encoder, {}, vocabulary=800)
    encoder.resize_token_embeddings(803)
    assert fingerprints(encoder, {}, vocabulary=800) == before
    encoder.resize_token_embeddings(801)
    assert fingerprints(encoder, {}, vocabulary=800) == before
    kept = torch.nn.Embedding(800, encoder.get_input_embeddings().embedding_dim)
    kept.weight.data = encoder.get_input_embeddings().weight[:800]
    encoder.set_input_embeddings(kept)  # as unload_textual_inversion does
    assert fingerprints(encoder, {}, vocabulary=800) == before
    kept.weight.data[:800] += 0.1
    assert fingerprints(encoder, {}, vocabulary=800) != before


@pytest.mark.parametrize("number", ["", "_2"])
def test_it_comes_and_goes_in_either_encoder_of_flux(number):
    stock = build("FluxPipeline")
    pipe = erasable(copy.deepcopy(stock))
    made = make(stock, ErasureSpec((STAR,), preserve=PRESERVE), layers=(0, -1))
    learn(pipe, 2, number=number)
    pipe.load_erasure_adapter(made)
    assert holds(pipe)
    learn(pipe, token="<other>", number=number)
    assert holds(pipe)
    parts = {
        "tokenizer": getattr(pipe, f"tokenizer{number}"),
        "text_encoder": getattr(pipe, f"text_encoder{number}"),
    }
    pipe.unload_textual_inversion("<other>", **parts)
    assert holds(pipe)
    pipe.unload_textual_inversion(**parts)
    assert holds(pipe)
    pipe.unload_erasure_adapters()
    pipe.load_erasure_adapter(made)
    assert holds(pipe)


@pytest.mark.parametrize("name", ["shared", "encoder.embed_tokens"])
def test_edited_rows_of_a_table_with_two_names(name):
    encoder = t5()
    before = fingerprints(encoder, {}, vocabulary=800)
    table = encoder.get_input_embeddings().weight
    unedited = table.detach().clone()
    table.data[:50] += 1
    assert fingerprints(encoder, {}, vocabulary=800) != before
    assert fingerprints(encoder, {name: unedited.T}, vocabulary=800) == before
