"""Where rows of the embedding alone make every listed prompt its anchor's, nothing else is needed.

No block, and so no metric; and of the names beside such ones, none is forgotten.
"""

import copy
import sys
from pathlib import Path

import pytest
import torch

import tiny
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.families.encoders import blocks_of, is_embedding

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import text_encoders

FEW = tiny.PRESERVE
"""Six captions, too few for the metric of any linear."""
ROWS_ALONE = "embedding: with its rows text_encoder reads every listed prompt as its anchor's"
ENCODERS = {
    "Gemma 2": lambda: tiny.llm("Gemma2Model", "Gemma2Config", query_pre_attn_scalar=8),
    "T5Gemma's kin": lambda: tiny.llm("Gemma3TextModel", "Gemma3TextConfig"),
    "T5": tiny.t5,
    "Qwen 3": lambda: tiny.llm("Qwen3Model", "Qwen3Config"),
}


def made_on(name, *concepts, **options):
    torch.manual_seed(0)
    plain = text_encoders.pipeline_around(ENCODERS[name](), tiny.tokenizer("$A <eos>", length=24))
    return plain, erase(plain, ErasureSpec(concepts, preserve=FEW), measure=False, **options)


@pytest.mark.parametrize("name", ENCODERS)
def test_by_default_rows_alone_are_the_edit_where_they_meet_the_anchor(name):
    """Also in encoders whose blocks cannot be edited, and from captions too few for a metric."""
    plain, made = made_on(name, tiny.STAR)
    assert [is_embedding(edited) for edited in made.edits] == [True]
    assert any(note.startswith(ROWS_ALONE) for note in made.report.notes)
    pipe = erasable(copy.deepcopy(plain))
    pipe.load_erasure_adapter(made)
    assert pipe.verify_erasure(raise_on_fail=True).residual < 1e-5


def test_prompts_that_rows_make_equal_run_once_and_are_their_anchor():
    """Of 16-bit rows the difference is exact, so that equal is equal bit by bit."""
    torch.manual_seed(0)
    encoder = tiny.t5().to(torch.bfloat16)
    plain = text_encoders.pipeline_around(encoder, tiny.tokenizer("$A <eos>", length=24))
    seen = []
    first = blocks_of(encoder)[0]
    query = next(part for name, part in first.named_modules() if name.endswith(".q"))
    query.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    names = [Concept(name, "circle", ("a {}",), ()) for name in ("star", "crescent")]
    alone = [erase(plain, ErasureSpec((name,), preserve=FEW), measure=False) for name in names]
    seen.clear()
    made = erase(plain, ErasureSpec(names, preserve=FEW), measure=False)
    assert seen == [1]
    assert made.report.listed_residual == 0
    for name, goal in alone[0].goals.items():
        assert torch.equal(made.goals[name], goal.repeat(2, 1))


@pytest.mark.parametrize(
    "concept",
    [
        Concept("red star", "green circle", ("a {}",), ()),
        Concept("star", "green circle", ("a {}",), ()),
        Concept("star", "circle", ("a {}",), (), synonyms=("red ring",)),
    ],
    ids=["shared token", "longer anchor", "synonym of shared tokens"],
)
def test_elsewhere_the_error_names_what_rows_do_not_meet(concept):
    others = [tiny.STAR] if concept.target != "star" else []
    name = concept.words[-1]
    with pytest.raises(ConceptSpecError, match=f"norm follows .* the anchor of '{name}'"):
        made_on("Gemma 2", concept, *others)


def test_a_synonym_of_shared_tokens_is_erased_beside_a_name_that_its_row_meets():
    """Its prompts are soft ones: what is exact is met, and that said nothing of them."""
    plain = tiny.build("StableDiffusionPipeline")
    concept = Concept("star", "circle", ("a {}",), (), synonyms=("red ring",))
    spec = ErasureSpec((concept,), preserve=FEW)
    made = erase(
        plain,
        spec,
        layers=("embedding", "otherwise:0", -1),
        metric="identity",
        measure=False,
        soft_weight=1e4,
    )
    assert {is_embedding(edited) for edited in made.edits} == {True, False}
    pipe = erasable(copy.deepcopy(plain))
    pipe.load_erasure_adapter(made)
    assert share_left(pipe, plain, "a red ring", "a circle") < 0.2
    assert pipe.verify_erasure(raise_on_fail=True).residual < 1e-5


def share_left(pipe, plain, target, anchor):
    """||after - anchor|| / ||before - anchor|| at the end of the prompt."""
    found = []
    for model, text in ((pipe, target), (plain, target), (plain, anchor)):
        ids = model.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            found.append(model.text_encoder(ids).last_hidden_state[0, -1])
    after, before, goal = found
    return float((after - goal).norm() / (before - goal).norm())


@pytest.mark.parametrize("name", ["T5", "Qwen 3"])
def test_where_no_gates_are_tried_the_own_tokens_of_a_name_get_their_rows(name):
    """ "Una" is a given name, and keeps its row; the file says so."""
    plain, made = made_on(name, Concept("Una Flatt", "Mira Voss", ("a {}",), ()), metric="identity")
    (table,) = [edit for edited, edit in made.edits.items() if is_embedding(edited)]
    ids = table.A.nonzero()[:, 1].unique().tolist()
    assert plain.tokenizer.decode(ids).strip() == "Flatt"
    (note,) = [note for note in made.report.notes if note.startswith("embedding:")]
    assert note.startswith("embedding: of 'Una Flatt' 'Flatt' has the row") and "(Una: " in note
    pipe = erasable(copy.deepcopy(plain))
    pipe.load_erasure_adapter(made)
    assert pipe.verify_erasure(raise_on_fail=True).residual < 1e-5


def test_where_nothing_is_put_around_a_text_an_empty_anchor_is_an_error_that_says_so():
    """ "a {}" of nothing is the empty prompt, and that has no token there."""
    torch.manual_seed(0)
    plain = text_encoders.pipeline_around(tiny.t5(), tiny.tokenizer("$A", length=24))
    spec = ErasureSpec((Concept("heart", "", ("a {}",), ()),), preserve=FEW)
    with pytest.raises(ConceptSpecError, match=r"puts nothing around a text, so that '' has no"):
        erase(plain, spec, measure=False)
