"""One pass that solves on the way equals the slow way: edit a weight, run the whole encoder again, and so on."""

import copy

import pytest
import torch

from diffusers_erasepro import Concept
from diffusers_erasepro.families import base_linear, sites_of
from diffusers_erasepro.prompts import ALIGNMENTS, pairs_of, rows_of
from diffusers_erasepro.solve import solve
from diffusers_erasepro.statistics import record_inputs
from diffusers_erasepro.walk import edited, final_states, walk

CONCEPTS = (Concept("star", "circle"), Concept("crescent", "square"))
BLOCKS = [0, 2, 5]


def plain(site, X, R, Xs, Rs):
    return solve(X, R, where=site)


@pytest.fixture
def rows(shipped):
    return rows_of(pairs_of(CONCEPTS, "exact"), shipped.tokenizer, ALIGNMENTS["last_subject+eos"])


@pytest.fixture
def none(shipped):
    return rows_of([], shipped.tokenizer, ALIGNMENTS["last_subject+eos"])


def slow_walk(encoder, rows, sites):
    """Per site: run targets through the edited copy and anchors through the original, solve, write the weight."""
    original, encoder, found = encoder, copy.deepcopy(encoder), {}
    for site in sites:
        columns = []
        for model, ids, at in ((encoder, rows.target_ids, rows.target_at), (original, rows.anchor_ids, rows.anchor_at)):
            stream = {}
            handle = model.get_submodule(site.closes).register_forward_hook(
                lambda _, __, out, stream=stream: stream.update(out=out if isinstance(out, torch.Tensor) else out[0])
            )
            with torch.no_grad(), record_inputs({site.linear: model.get_submodule(site.linear)}) as seen:
                model(ids)
            handle.remove()
            columns.append((seen[site.linear][rows.row, at].T, stream["out"][rows.row, at].T))
        (X, have), (_, goal) = columns
        found[site.linear] = D = solve(X, goal - have).factors.dense()
        base_linear(encoder.get_submodule(site.linear)).weight.data += D.float()
    return found


@pytest.mark.parametrize("variant", ["block", "linear"])
def test_one_pass_equals_editing_layer_by_layer(shipped, rows, none, variant):
    sites = sites_of(shipped.text_encoder, BLOCKS, variant)
    steps = walk(shipped.text_encoder, rows, none, sites, plain)
    slow = slow_walk(shipped.text_encoder, rows, sites)
    assert [s.site for s in steps] == list(slow)
    for step in steps:
        D, reference = step.edit.factors.dense(), slow[step.site]
        scale = slow[steps[0].site].norm()  # later edits undo rounding of earlier ones, so compare on the chain's scale
        assert (D - reference).norm() / scale < 1e-4, step.site


def test_targets_meet_their_anchors_where_the_denoiser_reads(shipped, rows, none):
    encoder = shipped.text_encoder
    edits = {s.site: s.edit.factors for s in walk(encoder, rows, none, sites_of(encoder, BLOCKS, "block"), plain)}
    goal = final_states(encoder, rows.anchor_ids)[rows.row, rows.anchor_at]
    with edited(encoder, edits):
        have = final_states(encoder, rows.target_ids)[rows.row, rows.target_at]
    assert ((have - goal).norm(dim=-1) / goal.norm(dim=-1)).max() < 1e-5


def test_the_gap_shrinks_with_depth(shipped, rows, none):
    gaps = [s.gap for s in walk(shipped.text_encoder, rows, none, sites_of(shipped.text_encoder, BLOCKS, "block"), plain)]
    assert gaps[0] > 10 * gaps[1] and gaps[0] > 10 * gaps[2]


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_hooks_are_gone_also_when_the_solver_raises(shipped, rows, none):
    def fail(*_):
        raise RuntimeError("stop")

    before, sites = hooks(shipped.text_encoder), sites_of(shipped.text_encoder, BLOCKS, "block")
    with pytest.raises(RuntimeError, match="stop"):
        walk(shipped.text_encoder, rows, none, sites, fail)
    walk(shipped.text_encoder, rows, none, sites, plain)
    with pytest.raises(ZeroDivisionError), edited(shipped.text_encoder, {}):
        _ = 1 / 0
    assert hooks(shipped.text_encoder) == before
