"""What is left of a concept, and what else moves, measured on the live pipeline and said in words.

Whatever carries the edit: linears of the encoder, rows and gates, or the denoiser's readers.
"""

from dataclasses import asdict, replace

import pytest
import torch

from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, erase
from diffusers_erasepro.adapters.header import describe_selectivity
from diffusers_erasepro.erasure.selectivity import (
    Compared,
    compare,
    kinds_of_positions,
    left_by_concept,
    measure_left,
    read_state_by_position,
)
from diffusers_erasepro.erasure.states import states_of
from diffusers_erasepro.prompts.pairs import pairs_of
from diffusers_erasepro.prompts.tokens import text_paths

STAR = Concept("star", anchor="circle")
LONGER = Concept("star", anchor="large circle")


@pytest.fixture
def path(shipped):
    return text_paths(shipped)[0]


@pytest.fixture
def states(path):
    """A function that gives the unedited states of tokens."""
    reading = read_state_by_position(path)

    def read(tokens):
        with torch.no_grad():
            return states_of(path.encoder, tokens, [reading])[0]

    return read


@pytest.fixture(scope="module")
def rowed(shipped, preserve):
    """Rows, gates and the last block."""
    spec = ErasureSpec((STAR,), preserve=preserve)
    return erase(shipped, spec, layers=("embedding", "gates", -1))


def pairs(concept):
    return pairs_of((concept,), "held_out")[:4]


def test_an_edit_that_does_nothing_leaves_all_and_moves_nothing(path, states, preserve):
    found = compare(Compared(path, states, states), ErasureSpec((STAR,), preserve=preserve))
    assert found.left and {*found.left.values()} == {1.0}
    assert (found.drift, found.fires) == (0.0, 0)
    assert found.captions == 100


def test_what_moves_before_the_name_does_not_count_in_a_causal_encoder(path, states):
    some = pairs(STAR)
    aligned = kinds_of_positions(some, path)
    first = {}
    for row, at, kind in zip(
        aligned.rows.row.tolist(), aligned.rows.target_at.tolist(), aligned.kinds, strict=True
    ):
        if kind == "name":
            first[row] = min(at, first.get(row, at))

    def shaken(tokens):
        moved = states(tokens).clone()
        for row, at in first.items():
            moved[row, :at] += 1.0
        return moved

    assert any(at > 1 for at in first.values())
    left, _ = measure_left(Compared(path, shaken, states), some)
    assert {*left.values()} == {1.0}


def test_positions_without_a_counterpart_are_listed_and_not_counted(path, states):
    some = pairs(LONGER)
    _, unmatched = measure_left(Compared(path, states, states), some)
    assert {*unmatched} == {pair.target.text for pair in some}
    length = len(path.tokens([""]).ids[0])
    assert all(places == [length - 1] for places in unmatched.values())
    assert not measure_left(Compared(path, states, states), pairs(STAR))[1]


def test_every_position_that_is_read_is_counted_or_listed(path):
    some = pairs(LONGER)
    aligned = kinds_of_positions(some, path)
    counted = {*zip(aligned.rows.row.tolist(), aligned.rows.target_at.tolist(), strict=True)}
    listed = {(row, at) for row, places in aligned.unmatched.items() for at in places}
    assert not counted & listed
    assert len(counted | listed) == aligned.rows.target.ids.numel()


def test_each_concept_has_its_own_shares(path, states):
    ring = Concept("ring", anchor="square")
    found = left_by_concept(Compared(path, states, states), (STAR, ring))
    assert [*found] == ["star", "ring"]
    for left in found.values():
        assert left.listed and left.held_out
        assert {*left.listed.values(), *left.held_out.values()} == {1.0}


def test_the_live_pipeline_is_measured_and_stays_as_it_is(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    before = bits(pipe)
    plain = pipe.verify_erasure()
    found = pipe.verify_erasure(selectivity=True)
    assert_same_bits(pipe, before)
    assert (plain.left, plain.selectivity) == ({}, None)
    assert (found.ok, found.residual) == (plain.ok, plain.residual)
    star = found.left["star"]
    assert star.listed["name"] < 1e-4
    assert 0 < star.held_out["name"] < 1
    assert found.selectivity.captions == 100 and found.selectivity.drift > 0


def test_what_is_off_leaves_everything(pipe, no_star):
    pipe.load_erasure_adapter(no_star)
    pipe.disable_erasure()
    found = pipe.verify_erasure(selectivity=True)
    assert not found.ok and found.left == {}


def test_rows_and_gates_measure_live_what_their_report_says(pipe, rowed):
    pipe.load_erasure_adapter(rowed)
    live = pipe.verify_erasure(selectivity=True).selectivity
    reported = rowed.report.selectivity
    assert live.left == pytest.approx(reported.left, abs=1e-4)
    assert live.drift == pytest.approx(reported.drift, abs=1e-4)
    assert live.fires == reported.fires


def test_edits_of_the_denoiser_count_where_it_reads(pipe, shipped, preserve):
    """The states themselves do not move then."""
    pipe.load_erasure_adapter(erase(shipped, ErasureSpec((STAR,), preserve=preserve), layers="kv"))
    assert pipe.verify_erasure(selectivity=True).left["star"].listed["name"] < 1e-3


def test_the_words_say_shares_and_the_bound_where_nothing_fires(path, states, preserve):
    found = compare(Compared(path, states, states), ErasureSpec((STAR,), preserve=preserve))
    said = " ".join(describe_selectivity(asdict(found)))
    assert "1.000 at the name" in said
    assert "in 0 of 100 a token moves by more than a tenth: at 95 %, at most 3.0% do" in said
    fired = " ".join(describe_selectivity(asdict(replace(found, fires=2))))
    assert "in 2 of 100 a token moves by more than a tenth." in fired


def test_card_show_and_verify_say_it(run, rowed, tmp_path):
    rowed.save_pretrained(tmp_path)
    sentences = describe_selectivity(asdict(rowed.report.selectivity))
    assert len(sentences) >= 2
    card = rowed.card().text
    code, shown, _ = run("show", tmp_path)
    assert code == 0 and "It measured:" in shown
    for sentence in sentences:
        assert sentence in card
        assert sentence in " ".join(shown.split())
    code, verified, _ = run("verify", tmp_path, "--base", "glyphs")
    assert code == 0
    assert "left of 'star' in listed phrasings: " in verified
    assert "a token moves by more than a tenth" in " ".join(verified.split())
