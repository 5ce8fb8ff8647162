"""Rows of the embedding, solved for the final states where the anchor has more tokens."""

import pytest
import torch

from diffusers_erasepro import Concept, ErasureSpec, erase, glyphs
from diffusers_erasepro.errors import ConceptSpecError

CAPTIONS = glyphs.captions(120, seed=0)
SOLVED = "new vectors were fitted for 'star'"


def made_for(pipe, anchor, **more):
    spec = ErasureSpec((Concept("star", anchor=anchor),), preserve=CAPTIONS)
    return erase(pipe, spec, layers=("embedding",), **more)


@pytest.fixture(scope="module")
def solved(shipped):
    return made_for(shipped, "green circle")


@pytest.mark.slow
def test_less_is_left_in_phrasings_that_were_not_listed(shipped, solved):
    """One row cannot be two tokens, but it can come closer than the row of the last."""
    taken = made_for(shipped, "green circle", final_states=False)
    assert any(note.startswith(SOLVED) for note in solved.report.notes)
    assert not any("vectors" in note for note in taken.report.notes)
    left = [sum(made.report.left.values()) for made in (taken, solved)]
    assert left[1] < 0.9 * left[0]


@pytest.mark.slow
def test_it_is_still_one_row_and_the_same_every_time(shipped, solved):
    assert [edit.rank for edit in solved.edits.values()] == [1]
    again = made_for(shipped, "green circle", measure=False)
    for name, edit in solved.edits.items():
        assert torch.equal(again.edits[name].B, edit.B)


def test_where_the_tokens_match_the_row_stays_the_anchors(shipped):
    taken = made_for(shipped, "circle", measure=False)
    assert not any("vectors" in note for note in taken.report.notes)


def test_another_answer_is_refused(shipped):
    with pytest.raises(ConceptSpecError, match="final_states must be True, False or None"):
        made_for(shipped, "circle", final_states="yes")
