"""Gates on the real encoder: a name is answered by a step, and what is like it by nothing.

The encoder is post-norm and sees both ways; the glyph pipeline's is neither.
"""

import copy

import pytest
import torch

import tiny
from conftest import assert_same_bits, assert_saved_again_alike, bits
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.config.everyday import everyday_captions
from diffusers_erasepro.config.options import Options
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.linalg.gates import LEAST_MARGIN

SWIFT = Concept("taylor swift", anchor="a woman", templates="person")
NAME = ("taylor", "swift")
PHRASING = "yesterday {} waved at the crowd"
LISTED = "a photo of {}"
NEAR = ("a swift river", "elizabeth taylor in a film", "the swift answer of a tailor")
FC1 = "text_encoder.encoder.layer.0.intermediate.dense"
FC2 = "text_encoder.encoder.layer.0.output.dense"


@pytest.fixture(scope="module")
def plain(around_minilm):
    return around_minilm


def made_with(plain, layers):
    spec = ErasureSpec((SWIFT,), preserve=everyday_captions()[:300])
    return erase(plain, spec, layers=layers, measure=False)


@pytest.fixture(scope="module")
def gated(plain):
    return made_with(plain, ("gates",))


@pytest.fixture
def base(plain):
    return erasable(copy.deepcopy(plain))


def read(pipe, text):
    """`(n, d)` the states of a text's own tokens, and the tokens."""
    given = pipe.tokenizer([text], return_tensors="pt")
    with torch.no_grad():
        found = pipe.text_encoder(
            input_ids=given.input_ids, attention_mask=given.attention_mask
        ).last_hidden_state[0]
    return found, pipe.tokenizer.convert_ids_to_tokens(given.input_ids[0].tolist())


def left_at_name(pipe, plain):
    """||after - anchor|| / ||before - anchor|| at each token of the name, in an unlisted phrase."""
    after, tokens = read(pipe, PHRASING.format(SWIFT.target))
    before, _ = read(plain, PHRASING.format(SWIFT.target))
    goal, anchors = read(plain, PHRASING.format(SWIFT.anchor))
    assert len(tokens) == len(anchors)
    at = [tokens.index(word) for word in NAME]
    return ((after - goal).norm(dim=-1) / (before - goal).norm(dim=-1))[at]


def movement(pipe, plain, text):
    """The largest ||after - before|| / ||before|| of a text's tokens."""
    after, _ = read(pipe, text)
    before, _ = read(plain, text)
    return float(((after - before).norm(dim=-1) / before.norm(dim=-1)).max())


@pytest.mark.slow
def test_an_unlisted_phrasing_goes_most_of_the_way_and_near_misses_stay(plain, base, gated):
    base.load_erasure_adapter(gated)
    assert left_at_name(base, plain).max() < 0.2
    for text in NEAR:
        assert movement(base, plain, text) < 0.05, text


@pytest.mark.slow
def test_each_word_of_the_name_has_a_pair_and_both_linears_change(gated):
    assert {*gated.edits} == {FC1, FC2}
    assert gated.edits[FC1].rank == 4
    assert gated.edits[FC2].rank <= 8
    assert not any(note.startswith("gates:") for note in gated.report.notes)


@pytest.mark.slow
def test_the_words_around_have_read_the_name_so_that_its_columns_are_solved(gated):
    """Though the anchor has as many tokens."""
    assert any(
        note.startswith("new vectors were fitted for 'taylor swift'") for note in gated.report.notes
    )


@pytest.mark.slow
def test_off_on_and_away_are_exact(base, gated):
    before = bits(base)
    base.load_erasure_adapter(gated, adapter_name="swift")
    loaded = bits(base)
    different = [key for key in before if not torch.equal(before[key], loaded[key])]
    assert different == [f"{FC1}.weight", f"{FC2}.weight"]
    base.disable_erasure()
    assert_same_bits(base, before)
    base.enable_erasure()
    assert_same_bits(base, loaded)
    base.delete_erasure_adapters("swift")
    assert_same_bits(base, before)


@pytest.mark.slow
def test_a_file_says_the_same_when_it_is_saved_again(gated, tmp_path):
    assert_saved_again_alike(gated, tmp_path)


@pytest.mark.parametrize(
    "layers", [(0, -1), pytest.param(("gates", -1), marks=pytest.mark.slow)], ids=str
)
def test_blocks_close_the_listed_prompts_of_a_post_norm_encoder(plain, base, layers):
    """An edit reaches what the last norm receives; the norm gives the anchor's states."""
    made = made_with(plain, layers)
    base.load_erasure_adapter(made)
    assert made.report.listed_residual <= 1e-5
    assert base.verify_erasure(raise_on_fail=True).residual <= 1e-5


def test_a_causal_encoder_opens_a_gate_or_says_why_not(shipped):
    """Where attention is causal only the name's last token can know the name."""
    spec = ErasureSpec((Concept("star", anchor="circle"),), preserve=glyphs.captions(200, seed=0))
    made = erase(shipped, spec, layers=("gates", -1), measure=False)
    opened = [name for name in made.edits if "layers.0.mlp" in name]
    shut = [note for note in made.report.notes if note.startswith("gates:")]
    assert bool(opened) != bool(shut)
    assert all(f"at least {LEAST_MARGIN}" in note for note in shut)
    assert made.report.listed_residual < 1e-5


GOLF = Concept("golf ball", anchor="stone")
UNTOLD = (
    "a golf glove",
    "the golf shop",
    "a rubber ball",
    "a football on the lawn",
    "golf in june",
)


@pytest.mark.slow
def test_what_shares_one_token_with_the_name_stays_though_nobody_listed_it(plain, base):
    """Strangers stand in for each token of the name, so that "golf" alone opens nothing."""
    spec = ErasureSpec((GOLF,), preserve=everyday_captions()[:300])
    made = erase(plain, spec, layers=("gates",), measure=False)
    assert any(note.startswith("new vectors were fitted") for note in made.report.notes)
    base.load_erasure_adapter(made)
    for text in UNTOLD:
        assert movement(base, plain, text) < 0.05, text
    assert movement(base, plain, "somebody lost a golf ball") > 0.3


@pytest.mark.slow
def test_gates_stand_in_the_block_that_is_named(plain):
    made = made_with(plain, ("gates:2",))
    assert {*made.edits} == {name.replace("layer.0", "layer.2") for name in (FC1, FC2)}


def test_the_end_of_a_prompt_is_no_token_of_a_name():
    """Though a pooled vector is read there, as of SDXL's second encoder."""
    pipe = tiny.build("StableDiffusionXLPipeline")
    made = erase(pipe, ErasureSpec((tiny.STAR,), preserve=tiny.PRESERVE), measure=False)
    table = "text_model.embeddings.token_embedding"
    assert {*made.edits} == {f"text_encoder.{table}", f"text_encoder_2.{table}"}


@pytest.mark.parametrize("layers", [("gates:x",), ("gates:",), ("gates:-1",), "gates:1.5"], ids=str)
def test_a_block_is_a_whole_number(layers):
    with pytest.raises(ConceptSpecError, match="unknown layer 'gates:"):
        Options(layers=layers)


def test_gates_are_in_one_block():
    with pytest.raises(ConceptSpecError, match="layers name gates twice, 'gates' and 'gates:1'"):
        Options(layers=("gates", "gates:1"))


def test_a_block_that_is_not_there_is_an_error(shipped):
    spec = ErasureSpec((Concept("star", anchor="circle"),), preserve=glyphs.captions(50, seed=0))
    with pytest.raises(ConceptSpecError, match="unknown layer 9"):
        erase(shipped, spec, layers=("gates:9",), measure=False)
