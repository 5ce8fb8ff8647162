"""Blocks that stand in where no row and no gate reaches a name, and rows and gates that share one.

The glyph pipeline's encoder is causal, as CLIP's.
"""

import copy
import sys
from pathlib import Path

import pytest
import torch

from conftest import bits
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from diffusers_erasepro.config.options import Options
from diffusers_erasepro.erasure.final_states import concepts_to_solve
from diffusers_erasepro.erasure.float32 import in_float32
from diffusers_erasepro.erasure.sites import gates, neurons
from diffusers_erasepro.erasure.sites.embeddings import embedding_sites
from diffusers_erasepro.erasure.sites.planning import Planning
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.linalg import gates as linalg_gates
from diffusers_erasepro.prompts.tokens import text_paths

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import text_encoders

LAYERS = ("embedding", "gates", "otherwise:0", -1)
STAR = Concept("star", anchor="circle")
RED_HEART = Concept("red heart", anchor="green square")
RED_RING = Concept("red ring", anchor="green square")
BLOCK = "layers.0.mlp.fc2"
"""The linear of the first block that an edit of blocks changes."""
STANDS_IN = "no row and no gate reaches 1 of the names in text_encoder"


def with_margin(monkeypatch, least):
    """A token has a gate from this margin on."""
    monkeypatch.setattr(linalg_gates, "LEAST_MARGIN", least)
    monkeypatch.setattr(gates, "LEAST_MARGIN", least)


@pytest.fixture(autouse=True)
def first_block_alone(monkeypatch):
    """No gates deeper than the first block: looking for them takes seconds."""
    monkeypatch.setattr(gates, "DEEPEST", 0)


def made_for(shipped, preserve, *concepts, **more):
    spec = ErasureSpec(concepts, preserve=preserve[:60])
    made_with = {"layers": LAYERS, "metric": "identity", "final_states": False}
    return erase(shipped, spec, measure=False, **made_with | more)


def test_the_first_block_stands_in_for_a_name_that_nothing_reaches(shipped, preserve, monkeypatch):
    with_margin(monkeypatch, 9.0)
    made = made_for(shipped, preserve, STAR, RED_HEART)
    assert any(name.endswith("token_embedding") for name in made.edits)
    assert any(name.endswith(BLOCK) for name in made.edits)
    (note,) = [note for note in made.report.notes if note.startswith(STANDS_IN)]
    assert note.endswith("'red heart'")
    assert made.report.listed_residual < 1e-5


def test_the_last_block_too_stands_in_for_those_names_alone(shipped, preserve, monkeypatch):
    """As (0, -1) would edit that name, and nothing else of the encoder changes for the other."""
    with_margin(monkeypatch, 9.0)
    layers = ("embedding", "gates", "otherwise:0", "otherwise:-1")
    both = made_for(shipped, preserve, STAR, RED_HEART, layers=layers)
    alone = made_for(shipped, preserve, STAR, layers=layers)
    blocks = [name for name in both.edits if "layers" in name]
    assert len(blocks) == 2
    assert len(alone.edits) == 1


def test_a_name_that_a_row_reaches_needs_no_block(shipped, preserve):
    made = made_for(shipped, preserve, STAR)
    assert not any(name.endswith(BLOCK) for name in made.edits)
    assert not any("no row and no gate" in note for note in made.report.notes)


@pytest.mark.slow
def test_names_for_which_no_neurons_are_left_fall_back_and_are_counted(
    shipped, preserve, monkeypatch
):
    with_margin(monkeypatch, -torch.inf)
    for module in (linalg_gates, neurons):
        monkeypatch.setattr(module, "SPARE", 256)  # of 512: one gate
    made = made_for(shipped, preserve, RED_HEART, RED_RING, max_edit_size=1000)
    (detector,) = [edit for name, edit in made.edits.items() if name.endswith("mlp.fc1")]
    assert detector.rank == 2
    notes = [note for note in made.report.notes if "idle neurons of one block" in note]
    assert notes and "the 2 idle neurons" in notes[0] and "few for 1 of 2 names" in notes[0]
    assert any(note.startswith(STANDS_IN) for note in made.report.notes)


@pytest.mark.slow
def test_a_file_says_again_where_blocks_stand_in(shipped, preserve, monkeypatch):
    """So that several files can be solved together."""
    with_margin(monkeypatch, 9.0)
    made = made_for(shipped, preserve, RED_HEART)
    pipe = erasable(copy.deepcopy(shipped))
    pipe.load_erasure_adapter(made)
    pipe.load_erasure_adapter(made_for(shipped, preserve, STAR))
    assert pipe.verify_erasure(raise_on_fail=True).residual < 1e-5


@pytest.mark.parametrize(
    "layers", [("otherwise:0",), ("otherwise:0", -1), ("gates", "otherwise:-")]
)
def test_what_stands_in_needs_what_it_stands_in_for(layers):
    with pytest.raises(ConceptSpecError, match="otherwise"):
        Options(layers=layers)


def test_what_neither_a_row_nor_a_gate_reaches_has_no_vectors_to_solve(shipped):
    """Its prompts would weigh among those of the others, and a note name it."""
    (path,) = text_paths(shipped)
    spec = ErasureSpec((STAR, RED_HEART))  # "heart" is that of other hearts
    options = Options(layers=("embedding", "gates"), final_states=True)
    plan = options.resolve(spec.concepts)
    with in_float32(path.encoder) as encoder:
        planning = Planning.of(shipped, path, encoder, spec, options, plan)
        early = embedding_sites(planning)
        assert concepts_to_solve(planning, early) == [STAR]


@pytest.mark.slow
def test_the_first_words_that_a_causal_encoder_keeps_are_solved_for(shipped, preserve, monkeypatch):
    with_margin(monkeypatch, -torch.inf)
    made = made_for(shipped, preserve, STAR, RED_HEART, final_states=None, max_edit_size=1000)
    (note,) = [note for note in made.report.notes if note.startswith("new vectors were fitted")]
    assert "'red heart'" in note and "'star'" not in note


@pytest.mark.slow
def test_in_a_causal_encoder_a_name_has_the_rows_that_are_its_own(monkeypatch):
    """ "gogh" gets the row of "painter"; its gate could say no more, and "van" has none."""
    measured = text_encoders.load_measured("clip")
    pipe = erasable(text_encoders.pipeline_around(measured.model, measured.tokenizer, masked=False))
    before = bits(pipe)
    spec = ErasureSpec(
        (Concept("van gogh", anchor="a painter", templates="style"),),
        preserve=("a van in the street", "a painting by jan van eyck"),
    )
    made = erase(pipe, spec, layers=("embedding", "gates"), final_states=False, measure=False)
    assert [edit.rank for edit in made.edits.values()] == [1]
    pipe.load_erasure_adapter(made)
    after = bits(pipe)
    (changed,) = [key for key in before if not torch.equal(before[key], after[key])]
    rows = (after[changed] != before[changed]).any(1).nonzero()[:, 0].tolist()
    assert pipe.tokenizer.convert_ids_to_tokens(rows) == ["gogh</w>"]
