"""Rows of the token embedding: the encoder reads the anchor's prompt, and nothing else moves."""

import copy

import pytest
import torch

import tiny
from conftest import assert_same_bits, assert_saved_again_alike, bits
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.erasure.states import final_states
from diffusers_erasepro.errors import BaseModelMismatchError, ErasureVerificationError
from diffusers_erasepro.families.encoders import embeddings_path, is_embedding
from diffusers_erasepro.prompts.tokens import token_ids
from tiny import DEVICE

LAYERS = ("embedding", -1)
CAPTIONS = tuple(glyphs.captions(200, seed=0))
HELD_OUT = (
    "{}",
    "two of them: a {} and another {} under a lamp",
    "my old {} in the snow, seen from behind",
    "red {} red",
)
ROW = "text_encoder.text_model.embeddings.token_embedding"
"""As a file calls it."""


def made_for(pipe, target, anchor, **more):
    spec = ErasureSpec((Concept(target, anchor=anchor),), preserve=CAPTIONS)
    return erase(pipe, spec, **{"layers": LAYERS, "measure": False} | more)


@pytest.fixture(scope="module")
def star_row(shipped):
    return made_for(shipped, "star", "circle")


@pytest.fixture(scope="module")
def heart_row(shipped):
    return made_for(shipped, "heart", "square")


def states(pipe, texts):
    """`(n, 77, d)` at every position, padding too."""
    with torch.no_grad():
        return final_states(pipe.text_encoder, token_ids(pipe.tokenizer, texts).to(DEVICE))


def prompts_of(name):
    return [frame.format(*(name,) * 2) for frame in HELD_OUT]


def changed(pipe, before):
    """Names of the weights that differ."""
    return [key for key, value in bits(pipe).items() if not torch.equal(value, before[key])]


def assert_reads_as(pipe, plain, target, anchor):
    """Held-out prompts with the target have the anchor's states of the plain pipeline."""
    found = states(pipe, prompts_of(target))
    assert torch.equal(found, states(plain, prompts_of(anchor)))


def test_held_out_prompts_are_the_anchors_at_every_position(shipped, pipe, star_row):
    pipe.load_erasure_adapter(star_row)
    assert not torch.equal(states(shipped, ["a star"]), states(shipped, ["a circle"]))
    assert_reads_as(pipe, shipped, "star", "circle")


def test_nothing_else_moves(shipped, pipe, star_row):
    others = [text for text in CAPTIONS if "star" not in text]
    pipe.load_erasure_adapter(star_row)
    assert len(others) > 50
    assert torch.equal(states(pipe, others), states(shipped, others))


def test_one_row_is_the_whole_edit(pipe, star_row):
    before = bits(pipe)
    name = f"text_encoder.{embeddings_path(pipe.text_encoder)}.weight"
    pipe.load_erasure_adapter(star_row)
    assert [*star_row.edits] == [ROW]
    assert star_row.edits[ROW].rank == 1
    assert changed(pipe, before) == [name]
    rows = (bits(pipe)[name] != before[name]).any(1).nonzero().flatten().tolist()
    assert rows == pipe.tokenizer("star", add_special_tokens=False).input_ids


def test_off_on_and_away_are_exact(shipped, pipe, star_row):
    before = bits(pipe)
    pipe.load_erasure_adapter(star_row, adapter_name="star")
    loaded = bits(pipe)
    assert pipe.verify_erasure(raise_on_fail=True).residual < 1e-6
    pipe.disable_erasure()
    assert_same_bits(pipe, before)
    pipe.enable_erasure()
    assert_same_bits(pipe, loaded)
    pipe.delete_erasure_adapters("star")
    assert_same_bits(pipe, before)


def test_a_file_says_the_same_when_it_is_saved_again(star_row, tmp_path):
    assert_saved_again_alike(star_row, tmp_path)


def test_stock_loaders_read_the_row(shipped, star_row, tmp_path):
    stock = copy.deepcopy(shipped)
    star_row.save_pretrained(tmp_path)
    stock.load_lora_weights(tmp_path)
    assert_reads_as(stock, shipped, "star", "circle")
    others = [text for text in CAPTIONS if "star" not in text]
    assert torch.equal(states(stock, others), states(shipped, others))


def test_two_files_hold_together_in_either_order(shipped, star_row, heart_row):
    found = []
    for order in ([star_row, heart_row], [heart_row, star_row]):
        pipe = erasable(copy.deepcopy(shipped))
        for adapter in order:
            name = adapter.spec.concepts[0].target
            pipe.load_erasure_adapter(adapter, adapter_name=name)
        assert_reads_as(pipe, shipped, "star", "circle")
        assert_reads_as(pipe, shipped, "heart", "square")
        found.append(bits(pipe))
        pipe.delete_erasure_adapters("star")
        assert_reads_as(pipe, shipped, "star", "star")
        assert_reads_as(pipe, shipped, "heart", "square")
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_it_is_exact_too(shipped, dtype):
    plain = copy.deepcopy(shipped).to(dtype)
    pipe = erasable(copy.deepcopy(plain))
    before = bits(pipe)
    pipe.load_erasure_adapter(made_for(pipe, "star", "circle"))
    assert_reads_as(pipe, plain, "star", "circle")
    pipe.disable_erasure()
    assert_same_bits(pipe, before)


@pytest.mark.parametrize(
    ("target", "anchor", "note"),
    [
        ("red star", "circle", "not every token of 'red star' is its own (red: "),
        ("star", "", "'star' has an empty anchor, which has no row"),
    ],
)
def test_a_name_that_gets_no_row_says_why_and_the_block_answers_for_it(
    shipped, target, anchor, note
):
    made = made_for(shipped, target, anchor)
    assert not any(is_embedding(name) for name in made.edits)
    assert len(made.edits) == 1
    assert any(note in text for text in made.report.notes)
    assert made.report.listed_residual < 1e-5


def test_another_row_is_another_base(pipe, star_row):
    table = pipe.text_encoder.get_submodule(embeddings_path(pipe.text_encoder)).weight
    row = pipe.tokenizer("star", add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        table[row] *= 1.1  # a constant would vanish in the norms
    before = bits(pipe)
    with pytest.raises(BaseModelMismatchError):
        pipe.load_erasure_adapter(star_row)
    assert_same_bits(pipe, before)


def test_a_row_that_is_overwritten_later_is_found(pipe, star_row):
    pipe.load_erasure_adapter(star_row)
    table = pipe.text_encoder.get_submodule(embeddings_path(pipe.text_encoder)).weight
    row = pipe.tokenizer("star", add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        table[row] *= 1.1  # a constant would vanish in the norms
    with pytest.raises(ErasureVerificationError):
        pipe.verify_erasure(raise_on_fail=True)


def test_t5_has_the_row_in_its_tied_table():
    """`shared` and `encoder.embed_tokens` are one parameter, before and after."""
    pipe = tiny.build("FluxPipeline")
    spec = ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE)
    made = erase(pipe, spec, layers=LAYERS, measure=False)
    before = bits(pipe)
    plain = copy.deepcopy(pipe)
    pipe = erasable(pipe)
    pipe.load_erasure_adapter(made)
    t5 = pipe.text_encoder_2
    assert t5.shared.weight is t5.encoder.embed_tokens.weight
    assert {*changed(pipe, before)} <= {
        f"text_encoder.{embeddings_path(pipe.text_encoder)}.weight",
        "text_encoder_2.shared.weight",
        "text_encoder_2.encoder.embed_tokens.weight",
    }
    found = []
    for model, name in ((pipe, "star"), (plain, "circle")):
        with torch.no_grad():
            ids = token_ids(model.tokenizer_2, [f"the {name} by the sea"]).to(DEVICE)
            found.append(model.text_encoder_2(ids).last_hidden_state)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    pipe.disable_erasure()
    assert_same_bits(pipe, before)


@pytest.mark.parametrize(
    "name", ["StableDiffusionPipeline", pytest.param("SanaPipeline", marks=pytest.mark.slow)]
)
def test_rows_are_sampled_as_other_layers_are(name):
    """Sana's Gemma multiplies its rows by the root of their length."""
    pipe = erasable(tiny.build(name))
    pipe.load_erasure_adapter(made_for(pipe, "star", "circle", layers="embedding"))
    found = pipe.verify_erasure(sample=5)
    assert found.ok and len(found.residuals) == 1 and found.residual < 1e-5
    table = pipe.text_encoder.get_submodule(embeddings_path(pipe.text_encoder))
    star = pipe.tokenizer.convert_tokens_to_ids("\u0120star")
    with torch.no_grad():
        table.weight[star] *= 1.5
    assert not pipe.verify_erasure(sample=5).ok
