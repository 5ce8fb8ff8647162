"""Prompts run_encoder as trees are the prompts.

Each position sees its own beginning, and is where the batch says.
"""

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_erasepro import Concept, ErasureSpec, erase
from diffusers_erasepro.erasure.states import final_states, run_encoder
from diffusers_erasepro.prompts.prefix_tree import as_rows, as_trees
from diffusers_erasepro.prompts.tokens import Tokens

LENGTH = 9
PROMPTS = st.lists(
    st.lists(st.integers(1, 3), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=12
)


@st.composite
def halves(draw):
    targets = draw(PROMPTS)
    anchors = draw(
        st.lists(
            st.lists(st.integers(1, 3), min_size=LENGTH, max_size=LENGTH),
            min_size=len(targets),
            max_size=len(targets),
        )
    )
    lengths = st.lists(st.integers(0, LENGTH), min_size=len(targets), max_size=len(targets))
    ends = st.lists(st.integers(0, LENGTH - 1), min_size=len(targets), max_size=len(targets))
    needed, ends = (torch.tensor([draw(some), draw(some)]) for some in (lengths, ends))
    return torch.tensor(targets), torch.tensor(anchors), needed, ends


@settings(max_examples=60, deadline=None)
@given(halves())
def test_a_position_sees_its_own_beginning_and_nothing_else(drawn):
    targets, anchors, needed, ends = drawn
    batch = as_trees(Tokens(targets), Tokens(anchors), needed, ends)
    ids = batch.tokens.ids
    positions = batch.tokens.positions
    mask = batch.tokens.mask
    size = ids.shape[1]
    assert size <= LENGTH
    ats = (batch.target_at, batch.anchor_at)
    for half, at, lengths, last, found in zip(
        (targets, anchors), ats, needed, ends, batch.pooled_at, strict=True
    ):
        each = zip(
            half, at, lengths.maximum(last + 1).tolist(), last.tolist(), found.tolist(), strict=True
        )
        for row, where, n, end, pooled in each:
            tree = where[:n] // size
            slots = where[:n] % size
            assert len(set(tree.tolist())) <= 1
            assert ((tree < batch.half) == (half is targets)).all()
            assert ids[tree, slots].equal(row[:n])
            assert positions[tree, slots].equal(torch.arange(n))
            assert pooled == where[end]
            for i, slot in enumerate(slots.tolist()):
                assert set((mask[tree[0], 0, slot] == 0).nonzero().flatten().tolist()) == set(
                    slots[: i + 1].tolist()
                )


def test_what_prompts_begin_with_is_run_once():
    targets = torch.tensor(
        [[1, 2, 3, 4, 0, 0, 0, 0], [1, 2, 3, 5, 0, 0, 0, 0], [1, 2, 3, 4, 0, 0, 0, 0]]
    )
    anchors = torch.tensor([[1, 2, 6, 7, 0, 0, 0, 0]]).expand(3, -1)
    batch = as_trees(Tokens(targets), Tokens(anchors), torch.full((2, 3), 4))
    assert batch.tokens.ids.shape == (2, 5)  # 1 2 3 4 5 and 1 2 6 7
    assert as_rows(Tokens(targets), Tokens(anchors), 4).tokens.ids.shape == (4, 4)


def test_the_encoder_gives_the_states_of_prompts_run_apart(shipped):
    texts = [
        "a red star",
        "a red star and a ring",
        "a blue star",
        "a circle",
        "a red circle on grey",
        "a circle",
    ]
    ids = shipped.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    targets = ids[:3]
    anchors = ids[3:]
    needed = (ids != shipped.tokenizer.pad_token_id).sum(1).reshape(2, 3)
    batch = as_trees(Tokens(targets), Tokens(anchors), needed)
    for implementation in ("sdpa", "eager"):
        encoder = copy.deepcopy(shipped.text_encoder)
        encoder.set_attn_implementation(implementation)
        with torch.no_grad():
            states = (
                run_encoder(encoder, batch.tokens, last_hidden=False)
                .last_hidden_state.flatten(0, 1)
                .cpu()
            )
        for half, at, lengths in (
            (targets, batch.target_at, needed[0]),
            (anchors, batch.anchor_at, needed[1]),
        ):
            apart = final_states(encoder, half).cpu()
            for i, n in enumerate(lengths.tolist()):
                torch.testing.assert_close(states[at[i, :n]], apart[i, :n], rtol=1e-4, atol=1e-5)


def test_blocks_run_some_trees_after_the_others(shipped, monkeypatch):
    sizes = set()
    spec = ErasureSpec(tuple(Concept(s, "circle") for s in ("star", "heart", "ring")), preserve=())
    linear = shipped.text_encoder.get_submodule("encoder.layers.1.mlp.fc1")
    handle = linear.register_forward_pre_hook(lambda _, args: sizes.add(len(args[0])))
    whole = erase(shipped, spec, layers=(0, -1), metric="identity", measure=False)
    (together,) = sizes
    monkeypatch.setattr("diffusers_erasepro.erasure.layerwise.PART", 1)
    parts = erase(shipped, spec, layers=(0, -1), metric="identity", measure=False)
    handle.remove()
    assert together > 3 and min(sizes) == 2
    for name, factors in whole.edits.items():
        assert (
            factors.dense() - parts.edits[name].dense()
        ).norm() < 1e-3 * factors.dense().norm(), name
