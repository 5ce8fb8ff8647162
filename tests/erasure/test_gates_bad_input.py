"""What rows and gates cannot do: one clear error, or a note and what falls back instead."""

import copy

import pytest
import torch

from conftest import assert_same_bits, bits
from diffusers_erasepro import Concept, ErasureSpec, erasable, erase
from diffusers_erasepro.errors import ErasureError, IllPosedError
from diffusers_erasepro.linalg import gates as linalg_gates
from diffusers_erasepro.linalg.gates import Elsewhere, GateToken, solve_gates
from diffusers_erasepro.linalg.neuron_pairs import MlpWeights

ROWS = ("embedding", -1)
GATES = ("gates", -1)


def made_for(shipped, preserve, *concepts, layers):
    return erase(shipped, ErasureSpec(concepts, preserve=preserve), layers=layers, measure=False)


def test_more_tokens_than_may_be_taken_is_an_error_that_says_how_many(
    shipped, preserve, monkeypatch
):
    """As for a name that is too long, or too many names."""
    monkeypatch.setattr(linalg_gates, "SPARE", 512)
    monkeypatch.setattr(linalg_gates, "LEAST_MARGIN", -9.0)  # so that a gate is asked for
    before = bits(shipped)
    with pytest.raises(IllPosedError, match=r"one token needs 2 neurons, 1 of 512 may be taken"):
        made_for(shipped, preserve, Concept("star", anchor="circle"), layers=GATES)
    assert_same_bits(shipped, before)


def test_where_no_place_takes_the_name_the_error_says_why(shipped, preserve):
    before = bits(shipped)
    common = Concept("red star", anchor="circle")
    why = r"no layer is edited \(.*not every token of 'red star' is its own \(red: "
    with pytest.raises(IllPosedError, match=why):
        made_for(shipped, preserve, common, layers=("embedding",))
    assert_same_bits(shipped, before)


def test_an_anchor_that_ends_in_the_targets_own_token_gets_no_row_and_says_so(shipped, preserve):
    anchored = Concept("star", anchor="green star")
    made = made_for(shipped, preserve, anchored, layers=ROWS)
    assert not any("embedding" in name for name in made.edits)
    assert any("ends in the token that its anchor" in note for note in made.report.notes)
    assert made.report.listed_residual < 1e-5


def test_two_files_that_send_one_row_to_different_anchors_are_refused(shipped, preserve):
    pipe = erasable(copy.deepcopy(shipped))
    first = made_for(shipped, preserve, Concept("star", anchor="circle"), layers=ROWS)
    second = made_for(shipped, preserve, Concept("star", anchor="square"), layers=ROWS)
    pipe.load_erasure_adapter(first, adapter_name="first")
    before = bits(pipe)
    with pytest.raises(ErasureError, match="star"):
        pipe.load_erasure_adapter(second, adapter_name="second")
    assert_same_bits(pipe, before)
    assert pipe.get_erasure_adapters() == {"first": True}


def test_without_a_constant_nothing_fires_where_it_must_not():
    """Inputs whose mean is zero have no direction that answers the same to all."""
    draw = torch.Generator().manual_seed(0)
    half = torch.randn(300, 24, generator=draw, dtype=torch.float64)
    captions = torch.cat([half, -half])
    z = 0.3 * torch.randn(12, 24, generator=draw, dtype=torch.float64)
    z[:, 20] += 3.0
    gap = torch.zeros(12, 24, dtype=torch.float64)
    gap[:, 0] = 1.0
    mlp = MlpWeights(
        torch.randn(120, 24, generator=draw, dtype=torch.float64) / 24**0.5,
        torch.zeros(120, dtype=torch.float64),
        torch.randn(24, 120, generator=draw, dtype=torch.float64) / 120**0.5,
        torch.nn.GELU(),
    )
    elsewhere = Elsewhere(captions, captions[:0], captions[:0])
    written = {}
    for size in (0.0, 1.0):
        token = GateToken("star", z, size * gap, captions[:0])
        found = solve_gates([token], elsewhere, mlp)
        if not found.has_gate(0):
            assert found.detector.rank == 0
            return
        W1 = mlp.W1 + found.detector.dense()
        W2 = mlp.W2 + found.writer.dense()
        written[size] = mlp.activation(captions @ W1.T + mlp.b1) @ W2.T
    assert (written[1.0] - written[0.0]).norm(dim=1).max() < 0.05
