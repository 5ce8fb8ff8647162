"""A textual inversion of several vectors is one token in a prompt and several in its row."""

import copy

import pytest
import torch

import tiny
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase, glyphs
from diffusers_erasepro.baselines import uce
from diffusers_erasepro.config.plan import ALIGNMENTS
from diffusers_erasepro.errors import AdapterStateError
from diffusers_erasepro.prompts.alignment import rows_of
from diffusers_erasepro.prompts.learned_tokens import expand, expansions_of, shrink
from diffusers_erasepro.prompts.own_tokens import own_tokens
from diffusers_erasepro.prompts.pairs import pairs_of
from diffusers_erasepro.prompts.tokens import text_paths, token_ids

TOY = "<cat-toy>"
VECTORS = [TOY, f"{TOY}_1", f"{TOY}_2"]
KEPT = (*glyphs.captions(16, seed=0), f"{TOY} on sand")


def learn(pipe, token=TOY, vectors=3, number=""):
    encoder = getattr(pipe, f"text_encoder{number}")
    table = encoder.get_input_embeddings().weight
    noise = torch.randn(vectors, table.shape[1], generator=torch.Generator().manual_seed(3))
    tokenizer = getattr(pipe, f"tokenizer{number}")
    rows = noise * table.std()
    pipe.load_textual_inversion(rows, token=token, text_encoder=encoder, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def learned():
    found = glyphs.load_pipeline()
    learn(found)
    return found


BLOCKS = (0, -1)
CASES = [
    (TOY, "circle", None),
    (TOY, "circle", ("embedding", 0, -1)),
    (TOY, "", BLOCKS),
    (f"blue {TOY}", "circle", BLOCKS),
    (f"{TOY} star", "ring", BLOCKS),
    ("star", TOY, BLOCKS),
]


@pytest.mark.parametrize(("target", "anchor", "layers"), CASES)
def test_it_is_a_target_and_an_anchor(learned, target, anchor, layers):
    spec = ErasureSpec((Concept(target, anchor, ("a {}",), ()),), preserve=KEPT)
    made = erase(learned, spec, layers=layers, measure=False)
    assert made.report.listed_residual < 1e-5
    pipe = erasable(copy.deepcopy(learned))
    pipe.load_erasure_adapter(made)
    found = pipe.verify_erasure()
    assert found.ok
    assert not any(TOY in note for note in found.uncovered)


def test_every_vector_is_aligned(learned):
    concept = Concept(TOY, "circle", ("a {} on snow",), ())
    path = text_paths(learned)[0]
    rows = rows_of(pairs_of([concept], "exact"), path, ALIGNMENTS["subject"])
    tokens = learned.tokenizer.convert_ids_to_tokens(rows.target_ids[0, rows.target_at].tolist())
    assert [token for token in tokens if token in VECTORS] == VECTORS


def test_a_learned_token_that_no_target_is_is_listed(learned, no_star):
    pipe = erasable(copy.deepcopy(learned))
    pipe.load_erasure_adapter(no_star)
    notes = pipe.verify_erasure().uncovered
    assert all(any(repr(token) in note for note in notes) for token in VECTORS)


@pytest.mark.parametrize("vectors", [1, 3])
def test_an_adapter_says_which_inversion_it_needs(vectors, tmp_path):
    pipe = erasable(glyphs.load_pipeline())
    spec = ErasureSpec((Concept(TOY, "circle", ("a {}",), ()),), preserve=KEPT)
    learn(pipe, vectors=vectors)
    erase(pipe, spec, layers=(0, -1), measure=False).save_pretrained(tmp_path)
    pipe.load_erasure_adapter(tmp_path)
    assert pipe.verify_erasure().ok
    pipe.unload_textual_inversion()
    found = pipe.verify_erasure()
    assert not found.ok and any("textual inversion '<cat-toy>'" in note for note in found.uncovered)
    pipe.unload_erasure_adapters()
    with pytest.raises(AdapterStateError, match="load_textual_inversion it first"):
        pipe.load_erasure_adapter(tmp_path)
    learn(pipe, vectors=vectors)
    pipe.load_erasure_adapter(tmp_path)
    assert pipe.verify_erasure().ok


def test_an_anchors_inversion_is_not_needed_again(learned):
    pipe = erasable(copy.deepcopy(learned))
    spec = ErasureSpec((Concept("star", f"blue {TOY}", ("a {}",), ()),), preserve=KEPT)
    pipe.load_erasure_adapter(erase(learned, spec, layers=(0, -1), measure=False))
    pipe.unload_textual_inversion()
    found = pipe.verify_erasure()
    assert found.ok and not any("textual inversion" in note for note in found.uncovered)


def test_a_tokenizer_that_stands_alone_reads_it_as_the_pipeline_does(learned):
    texts = [f"a {TOY}", f"{TOY}s", "a star"]
    (path,) = text_paths(learned)
    assert torch.equal(token_ids(learned.tokenizer, texts), path.tokens(texts).ids)
    spec = ErasureSpec((Concept(TOY, "circle"),), preserve=KEPT)
    assert uce(learned, spec).report.listed_residual < 0.9


def test_the_rows_of_all_vectors_are_its_own(learned):
    found = own_tokens(learned.tokenizer, TOY, glyphs.captions(20, seed=0))
    assert found.complete and [token.text for token in found.plain] == VECTORS
    used = own_tokens(learned.tokenizer, TOY, (), near=(f"a {TOY} box",))
    assert not used.complete


def test_pipelines_of_several_encoders():
    pipe = tiny.build("StableDiffusionXLPipeline")
    learn(pipe)
    learn(pipe, vectors=2, number="_2")
    spec = ErasureSpec((Concept(TOY, "circle", ("a {}",), ()),), preserve=tiny.PRESERVE)
    made = erase(pipe, spec, layers=(0, -1), max_edit_size=1e3, measure=False)
    assert made.report.listed_residual < 1e-5


def test_a_prompt_is_written_out_and_found_again(learned):
    learned_tokens = expansions_of(learned.tokenizer)
    assert learned_tokens == {TOY: " ".join(VECTORS)}
    for prompt in (TOY, f"a {TOY} and {TOY}s", f"{TOY}_9", "no toy", ""):
        written = expand(prompt, learned_tokens)
        assert written == learned.maybe_convert_prompt(prompt, learned.tokenizer)
        short, stands_for = shrink(written, learned_tokens)
        assert short == prompt and len(stands_for) == len(written)
        for at, (start, stop) in enumerate(stands_for):
            assert stop > start and (stop - start > 1 or prompt[start] == written[at])
