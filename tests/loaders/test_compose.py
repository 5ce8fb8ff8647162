"""Adapters made apart, put together: exactly by solving again, closely from their files alone."""

from functools import partial

import pytest
import torch

from diffusers_erasepro import Concept, ErasureSpec, erase
from diffusers_erasepro.config.plan import ALIGNMENTS
from diffusers_erasepro.erasure.residuals import aligned_states, relative
from diffusers_erasepro.errors import ConceptSpecError
from diffusers_erasepro.families.encoders import live_name
from diffusers_erasepro.linalg.low_rank import stack
from diffusers_erasepro.loaders import stacking as compose
from diffusers_erasepro.loaders.stacking import combine, combine_stored
from diffusers_erasepro.prompts.alignment import rows_of
from diffusers_erasepro.prompts.pairs import pairs_of

make = partial(erase, measure=False)


@pytest.fixture(scope="module")
def three(shipped, preserve):
    """In blocks, so that the files alone can put them together."""
    concepts = (
        Concept("star", "circle"),
        Concept("cross", "square"),
        Concept("Mira Voss", "Una Flatt", templates="style"),
    )
    return [
        make(shipped, ErasureSpec((concept,), preserve=preserve), layers=(0, -1))
        for concept in concepts
    ]


def residual(pipe, adapters, edits):
    """Worst over all listed prompts, when `edits` are on."""
    encoder = pipe.text_encoder
    live = {live_name(encoder, name.partition(".")[2]): f for name, f in edits.items()}
    pairs = [p for a in adapters for p in pairs_of(a.spec.concepts, "exact")]
    with torch.no_grad():
        have, goal = aligned_states(
            encoder, rows_of(pairs, pipe.tokenizer, ALIGNMENTS["last_subject+eos"]), live
        )
    return float(relative(have, goal).max())


def test_solving_again_is_exact_and_the_kernel_close(shipped, three):
    apart = {
        name: stack([a.edits[name].to(torch.float64) for a in three]) for name in three[0].edits
    }
    summed = residual(shipped, three, apart)
    close = residual(shipped, three, combine_stored(three))
    assert residual(shipped, three, combine(shipped, three).edits) < 1e-5 < close < 0.5 * summed


def test_the_kernel_does_to_each_key_what_its_adapter_does(three):
    for name, factors in combine_stored(three).items():
        for adapter in three:
            X = adapter.keys[name].double().T
            alone = adapter.edits[name].to(torch.float64)
            torch.testing.assert_close(
                factors.B @ (factors.A @ X), alone.B @ (alone.A @ X), rtol=1e-6, atol=1e-6
            )


def test_the_kernel_of_one_is_that_one_and_order_does_not_matter(three):
    (name, one), *_ = combine_stored(three[:1]).items()
    torch.testing.assert_close(
        one.dense(), three[0].edits[name].to(torch.float64).dense(), rtol=0, atol=1e-6
    )
    forth = combine_stored(three)
    back = combine_stored(three[::-1])
    for name in forth:
        torch.testing.assert_close(forth[name].dense(), back[name].dense(), rtol=0, atol=1e-8)


def test_kv_linears_share_their_keys(shipped, preserve):
    made = [
        make(shipped, ErasureSpec((Concept(t, a),), preserve=preserve), layers=("kv",))
        for t, a in (("star", "circle"), ("heart", "square"))
    ]
    for name, factors in combine_stored(made).items():
        for adapter in made:
            X = adapter.keys["text_encoder.states"].double().T
            alone = adapter.edits[name].to(torch.float64)
            torch.testing.assert_close(
                factors.B @ (factors.A @ X), alone.B @ (alone.A @ X), rtol=1e-5, atol=1e-5
            )


def test_a_set_is_solved_once_per_base(pipe, three, monkeypatch):
    solved = []
    monkeypatch.setattr(compose, "erase", lambda *a, **k: solved.append(1) or erase(*a, **k))
    compose._cache.clear()
    first = combine(pipe, three)
    assert combine(pipe, three[::-1]) is first and len(solved) == 1
    pipe.text_encoder.get_submodule("encoder.layers.2.mlp.fc1").weight.data += 0.01
    assert combine(pipe, three) is not first and len(solved) == 2


def test_contradictions_between_adapters_are_named(shipped, preserve, no_star):
    other = make(shipped, ErasureSpec((Concept("star", "ring"),), preserve=preserve))
    with pytest.raises(ConceptSpecError, match="'star' is erased twice"):
        combine(shipped, [no_star, other])
    chain = make(shipped, ErasureSpec((Concept("circle", "square"),), preserve=preserve))
    with pytest.raises(ConceptSpecError, match="'star' -> 'circle' -> 'square'"):
        combine(shipped, [no_star, chain])
