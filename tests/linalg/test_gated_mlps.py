"""Gates of a synthetic gated MLP without a constant: the edited weights, run as they are."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from diffusers_erasepro.errors import IllPosedError
from diffusers_erasepro.linalg.gated_mlps import (
    LEAST_CONTRAST,
    GatedMlpWeights,
    silent_below,
    solve_gated_mlp,
)
from diffusers_erasepro.linalg.gates import Elsewhere, GateToken
from diffusers_erasepro.linalg.neuron_pairs import SPARE

DOUBLE = torch.float64
WIDTH = 96
HIDDEN = 120
WORDS = 400


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def normed(x):
    """As an RMS norm leaves it: on a sphere, and its mean is 0."""
    return normalize(x, dim=-1) * WIDTH**0.5


VOCABULARY = noise(WORDS, WIDTH, seed=0)
"""No direction answers alike to all of these words."""


def said(words, count, seed):
    """`(count * words, d)` each of the words in so many contexts."""
    every = VOCABULARY[list(words)].repeat(count, 1)
    return normed(every + 0.15 * noise(len(every), WIDTH, seed=seed))


def token_at(word, seed, *, others=None):
    z = said([word], 16, seed)
    gap = noise(1, WIDTH, seed=1000 + word).repeat(16, 1)
    return GateToken(f"word {word}", z, gap, z[:0] if others is None else others)


CAPTIONS = said(range(3, WORDS), 4, 1)
ELSEWHERE = Elsewhere(CAPTIONS, said(range(3, 20), 1, 2), said(range(3, WORDS), 2, 3))
STAR = token_at(0, 10)
RING = token_at(1, 11)


@pytest.fixture(params=[torch.nn.GELU("tanh"), torch.nn.SiLU()], ids=["gelu", "silu"])
def mlp(request):
    return GatedMlpWeights(
        noise(HIDDEN, WIDTH, seed=4) / WIDTH**0.5,
        torch.zeros(HIDDEN, dtype=DOUBLE),
        noise(WIDTH, HIDDEN, seed=6) / HIDDEN**0.5,
        request.param,
        noise(HIDDEN, WIDTH, seed=7) / WIDTH**0.5,
        torch.zeros(HIDDEN, dtype=DOUBLE),
    )


def run(x, mlp, gates, dtype=DOUBLE):
    """The MLP with the three edits added to its weights, in a precision of its own."""
    W1 = (mlp.W1 + gates.detector.dense()).to(dtype)
    U = (mlp.U + gates.factor.dense()).to(dtype)
    W2 = (mlp.W2 + gates.writer.dense()).to(dtype)
    x = x.to(dtype)
    return ((mlp.activation(x @ W1.T) * (x @ U.T)) @ W2.T).double()


def written(x, tokens, mlp, dtype=DOUBLE):
    """`(n, d)` what the gates write at `x`: with their gaps, less with none to fill."""
    none = [replace(token, R=0 * token.R) for token in tokens]
    with_gaps = run(x, mlp, solve_gated_mlp(tokens, ELSEWHERE, mlp), dtype)
    return with_gaps - run(x, mlp, solve_gated_mlp(none, ELSEWHERE, mlp), dtype)


def share(found, token):
    """What was written, of the token's gap."""
    return found.norm(dim=1) / token.R[0].norm()


def test_no_direction_is_constant_here():
    """So that what follows does not stand on one."""
    best = torch.linalg.lstsq(CAPTIONS, torch.ones(len(CAPTIONS), 1, dtype=DOUBLE)).solution
    assert (CAPTIONS @ best).std() > (CAPTIONS @ best).mean()


@pytest.mark.parametrize("seed", [10, 40])
def test_the_name_gets_what_it_lacks_in_contexts_that_were_solved_for_and_in_others(mlp, seed):
    token = token_at(0, seed)
    found = written(token.z, [STAR], mlp)
    off = (found - token.R).norm(dim=1) / token.R[0].norm()
    assert off.max() < 0.25
    assert off.mean() < 0.1


@pytest.mark.parametrize("where", ["captions", "near", "scanned"])
def test_what_was_seen_elsewhere_gets_nothing(mlp, where):
    found = share(written(getattr(ELSEWHERE, where), [STAR], mlp), STAR)
    assert found.max() < 0.1
    assert found.mean() < 0.005


def test_words_in_contexts_that_were_not_seen_get_next_to_nothing(mlp):
    """A linear answer gives each of them a tenth."""
    found = share(written(said(range(3, WORDS), 3, 30), [STAR], mlp), STAR)
    assert found.mean() < 0.01
    assert (found > 0.1).double().mean() < 0.005


def test_each_token_gets_its_own_and_nothing_of_the_others(mlp):
    for token in (STAR, RING):
        found = written(token.z, [STAR, RING], mlp)
        assert ((found - token.R).norm(dim=1) / token.R[0].norm()).mean() < 0.1


def test_one_neuron_a_token_and_ranks_are_bounded(mlp):
    tokens = [STAR, RING, token_at(2, 12)]
    gates = solve_gated_mlp(tokens, ELSEWHERE, mlp)
    assert all(gates.has_gate(i) for i in range(3))
    changed = gates.detector.dense().norm(dim=1) > 1e-9
    assert int(changed.sum()) == 3
    assert torch.equal(changed, gates.factor.dense().norm(dim=1) > 1e-9)
    assert (gates.detector.rank, gates.factor.rank) == (3, 3)
    assert gates.writer.rank <= 6


def test_a_token_that_others_are_like_gets_no_gate_and_nothing_is_edited(mlp):
    """The word stands among the captions too."""
    common = token_at(5, 13)
    gates = solve_gated_mlp([common], ELSEWHERE, mlp)
    assert gates.margins[0] < LEAST_CONTRAST
    assert not gates.has_gate(0)
    assert (gates.detector.rank, gates.factor.rank, gates.writer.rank) == (0, 0, 0)


def test_a_token_that_is_itself_in_other_company_gets_no_gate(mlp):
    """ "swift" of "taylor swift", where the block does not know yet what stands before it."""
    unheard = token_at(0, 10, others=said([0], 200, 31))
    assert not solve_gated_mlp([unheard], ELSEWHERE, mlp).has_gate(0)


def test_sixteen_bits_open_no_gate_and_shut_none(mlp):
    for dtype in (torch.bfloat16, torch.float16):
        found = written(STAR.z, [STAR], mlp, dtype)
        assert ((found - STAR.R).norm(dim=1) / STAR.R[0].norm()).mean() < 0.15
        assert share(written(CAPTIONS, [STAR], mlp, dtype), STAR).max() < 0.15


def test_more_tokens_than_there_are_idle_neurons_for(mlp):
    spare = HIDDEN // SPARE
    tokens = [STAR] + [token_at(WORDS - 1 - i, 50 + i) for i in range(spare)]
    kept = said(range(3, WORDS - spare), 2, 3)
    elsewhere = Elsewhere(kept, kept[:0], kept[:0])
    with pytest.raises(IllPosedError, match=f"{spare + 1} neurons, {spare} of {HIDDEN} may be"):
        solve_gated_mlp(tokens, elsewhere, mlp)


def test_an_activation_that_is_never_silent_is_an_error():
    with pytest.raises(IllPosedError, match="never silent"):
        silent_below(torch.nn.LeakyReLU())
    assert silent_below(torch.nn.ReLU()) < silent_below(torch.nn.GELU()) < 5
