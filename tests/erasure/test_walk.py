"""One pass that solves on the way equals the slow way.

Edit a weight, run the whole encoder again, and so on.
"""

import copy
from itertools import pairwise

import pytest
import torch

from diffusers_erasepro import Concept
from diffusers_erasepro.config.plan import ALIGNMENTS
from diffusers_erasepro.erasure.covariance import record_inputs
from diffusers_erasepro.erasure.layerwise import walk
from diffusers_erasepro.erasure.residuals import aligned_states, relative, target_states
from diffusers_erasepro.erasure.sites.blocks import LinearSite, writer_of
from diffusers_erasepro.erasure.states import edited, states_of
from diffusers_erasepro.families.encoders import blocks_path, encoder_family_of
from diffusers_erasepro.families.types import LAST
from diffusers_erasepro.linalg.constrained import solve
from diffusers_erasepro.modules.linear import base_linear
from diffusers_erasepro.prompts.alignment import rows_of, rows_to_measure, rows_to_solve
from diffusers_erasepro.prompts.pairs import pairs_of

CONCEPTS = (Concept("star", "circle"), Concept("crescent", "square"))
BLOCKS = [0, 2, 5]


def plain(keys, gap):
    return solve(keys["exact"].T, gap["exact"].T)


def sites_of(encoder, rows, kind, solver=plain, blocks=BLOCKS):
    """The writer of each block for the block's output, or every linear for its own."""
    places = []
    for block in blocks:
        path = f"{blocks_path(encoder)}.{block}"
        if kind == "block":
            places.append((f"{path}.{writer_of(encoder, path)}", path))
        else:
            linears = [f"{path}.{leaf}" for leaf in encoder_family_of(encoder).linears]
            places += [(name, name) for name in linears]
    positions = {kind: rows[kind] for kind in ("exact", "soft")}
    return [LinearSite("text_encoder", *place, positions, solver) for place in places]


def edits_of(steps):
    found = {}
    for step in steps:
        found |= step.edits.factors
    return found


@pytest.fixture
def rows(shipped):
    pairs = {"exact": pairs_of(CONCEPTS, "exact"), "soft": []}
    return {
        kind: rows_of(some, shipped.tokenizer, ALIGNMENTS["last_subject+eos"])
        for kind, some in pairs.items()
    }


def slow_walk(encoder, rows, sites):
    """Per site.

    Run targets through the edited copy and anchors through the original, solve, write the weight.
    """
    original = encoder
    encoder = copy.deepcopy(encoder)
    found = {}
    for site in sites:
        columns = []
        for model, ids, at in (
            (encoder, rows.target_ids, rows.target_at),
            (original, rows.anchor_ids, rows.anchor_at),
        ):
            stream = {}
            handle = model.get_submodule(site.output).register_forward_hook(
                lambda _, __, out, stream=stream: stream.update(
                    out=out if isinstance(out, torch.Tensor) else out[0]
                )
            )
            with (
                torch.no_grad(),
                record_inputs({site.linear: model.get_submodule(site.linear)}) as seen,
            ):
                model(ids.to(model.device))
            handle.remove()
            columns.append(
                (seen[site.linear][rows.row, at].T.cpu(), stream["out"][rows.row, at].T.cpu())
            )
        (X, have), (_, goal) = columns
        found[site.linear] = D = solve(X, goal - have).factors.dense()
        weight = base_linear(encoder.get_submodule(site.linear)).weight
        weight.data += D.to(weight)
    return found


@pytest.mark.parametrize("variant", ["block", "linear"])
def test_one_pass_equals_editing_layer_by_layer(shipped, rows, variant):
    sites = sites_of(shipped.text_encoder, rows, variant)
    steps = walk(shipped.text_encoder, rows, sites).steps
    slow = slow_walk(shipped.text_encoder, rows["exact"], sites)
    edits = edits_of(steps)
    assert list(edits) == list(slow)
    # later edits undo rounding of earlier ones, so compare on the chain's scale
    scale = slow[steps[0].site.linear].norm()
    for name, factors in edits.items():
        assert (factors.dense() - slow[name]).norm() / scale < 1e-4, name


def test_targets_meet_their_anchors_where_the_denoiser_reads(shipped, rows):
    encoder = shipped.text_encoder
    edits = edits_of(walk(encoder, rows, sites_of(encoder, rows, "block")).steps)
    assert relative(*aligned_states(encoder, rows["exact"], edits)).max() < 1e-5


def test_the_states_a_walk_ends_with_are_those_of_the_edited_encoder(shipped, preserve):
    encoder = shipped.text_encoder
    alignment = ALIGNMENTS["last_subject+eos"]
    rows = rows_to_solve(CONCEPTS, shipped.tokenizer, alignment, soft_budget=40)
    rows |= rows_to_measure(CONCEPTS, preserve, shipped.tokenizer, alignment)
    done = walk(encoder, rows, sites_of(encoder, rows, "block"))
    edits = edits_of(done.steps)
    assert done.states.keys() == {"exact", "soft", "held_out", "kept"}
    for kind, [(have, goal)] in done.states.items():  # anchors run once, against rows run apart
        slow_have, slow_goal = (x.cpu() for x in aligned_states(encoder, rows[kind], edits))
        assert relative(goal, slow_goal).max() < 1e-5
        assert relative(have, slow_have).max() < 1e-4


def test_rows_cut_after_the_last_aligned_position_give_the_states_of_whole_ones(shipped, rows):
    exact = rows["exact"]
    assert exact.length < exact.target_ids.shape[1]
    (cut,), (whole,) = (
        f(shipped.text_encoder, x, [LAST])
        for f, x in ((target_states, exact), (states_of, exact.target))
    )
    assert relative(cut, whole[exact.row, exact.target_at]).max() < 1e-5


@pytest.mark.parametrize("blocks", [BLOCKS, range(6)])
def test_the_gap_shrinks_with_every_block(shipped, rows, blocks):
    encoder = shipped.text_encoder
    sites = sites_of(encoder, rows, "block", blocks=blocks)
    gaps = [step.gap for step in walk(encoder, rows, sites).steps]
    assert gaps[0] > 10 * gaps[1]
    for shallower, deeper in pairwise(gaps):
        assert shallower > 1.2 * deeper


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_hooks_are_gone_also_when_the_solver_raises(shipped, rows):
    def fail(*_):
        raise RuntimeError("stop")

    encoder = shipped.text_encoder
    before = hooks(encoder)
    with pytest.raises(RuntimeError, match="stop"):
        walk(encoder, rows, sites_of(encoder, rows, "block", fail))
    walk(encoder, rows, sites_of(encoder, rows, "block"))
    with pytest.raises(ZeroDivisionError), edited(shipped.text_encoder, {}):
        _ = 1 / 0
    assert hooks(shipped.text_encoder) == before
