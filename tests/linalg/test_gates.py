"""Gates of a synthetic MLP: the edited weights, run as they are, against what a step promises."""

from dataclasses import replace

import pytest
import torch
from transformers.activations import QuickGELUActivation

from diffusers_erasepro.errors import IllPosedError
from diffusers_erasepro.linalg.constrained import cholesky
from diffusers_erasepro.linalg.gates import (
    LEAST_MARGIN,
    Elsewhere,
    GateToken,
    assign_neurons,
    detect_tokens,
    solve_gates,
)
from diffusers_erasepro.linalg.neuron_pairs import SPARE, MlpWeights

DOUBLE = torch.float64
WIDTH = 24
HIDDEN = 120
"""Of which ten may be taken: five gates."""
COMMON = 16
"""Inputs 1 to 15 are what anything may say; those from here on are names'."""


def inputs(count, seed, *, loud=1.0):
    """`(count, d)` what anything may give the MLP: a constant, then noise."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, WIDTH, generator=draw, dtype=DOUBLE)
    x[:, COMMON:] *= 0.05
    x[:, 1:COMMON] *= loud
    x[:, 0] = 1.0
    return x


def token_at(i, seed, *, loudness=3.0, others=0, size=1.0):
    """A token whose mark is input `COMMON + i`, in twelve contexts, and a gap of its own."""
    z = inputs(12, seed, loud=0.3)
    z[:, COMMON + i] += loudness
    gap = torch.zeros(12, WIDTH, dtype=DOUBLE)
    gap[:, i] = size
    return GateToken(f"token {i}", z, gap, inputs(others, seed + 50) if others else z[:0])


def noise(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


CAPTIONS = inputs(900, 1)
ELSEWHERE = Elsewhere(CAPTIONS, inputs(60, 2), inputs(400, 3, loud=2.0))
STAR = token_at(0, 10)
RING = token_at(1, 11)
CROSS = token_at(2, 12)


@pytest.fixture(params=[torch.nn.GELU(), QuickGELUActivation()], ids=["gelu", "quick_gelu"])
def mlp(request):
    return MlpWeights(
        noise(HIDDEN, WIDTH, seed=4) / WIDTH**0.5,
        0.1 * noise(HIDDEN, seed=5),
        noise(WIDTH, HIDDEN, seed=6) / HIDDEN**0.5,
        request.param,
    )


def usual(mlp):
    """The Cholesky factor of what the writer receives at the captions."""
    received = mlp.activation(CAPTIONS @ mlp.W1.T + mlp.b1)
    M = received.T @ received / len(received)
    return cholesky(M + 0.01 * M.diagonal().mean() * torch.eye(HIDDEN, dtype=DOUBLE))


def run(x, mlp, gates):
    """The MLP with both edits added to its weights."""
    W1 = mlp.W1 + gates.detector.dense()
    W2 = mlp.W2 + gates.writer.dense()
    return mlp.activation(x @ W1.T + mlp.b1) @ W2.T


def written(x, tokens, mlp):
    """`(n, d)` what the gates write at `x`: with their gaps, less with none to fill."""
    L2 = usual(mlp)
    none = [replace(token, R=0 * token.R) for token in tokens]
    with_gaps = run(x, mlp, solve_gates(tokens, ELSEWHERE, mlp, L2))
    return with_gaps - run(x, mlp, solve_gates(none, ELSEWHERE, mlp, L2))


def test_the_name_gets_all_that_it_lacks(mlp):
    found = written(STAR.z, [STAR], mlp)
    torch.testing.assert_close(found, STAR.R, rtol=0, atol=0.05)


@pytest.mark.parametrize("where", ["captions", "near", "scanned"])
def test_nothing_else_gets_any_of_it(mlp, where):
    assert written(getattr(ELSEWHERE, where), [STAR], mlp).abs().max() < 1e-3


def test_what_is_a_quarter_like_the_name_gets_nothing_and_what_is_louder_no_more(mlp):
    """A linear answer would give a quarter of the gap, and twice the gap."""
    quarter = STAR.z.clone()
    quarter[:, COMMON] *= 0.25
    twice = STAR.z.clone()
    twice[:, COMMON] *= 2
    assert written(quarter, [STAR], mlp).abs().max() < 0.02
    torch.testing.assert_close(written(twice, [STAR], mlp), STAR.R, rtol=0, atol=0.05)


def test_each_token_gets_its_own_and_nothing_of_the_others(mlp):
    tokens = [STAR, RING, CROSS]
    for token in tokens:
        found = written(token.z, tokens, mlp)
        torch.testing.assert_close(found, token.R, rtol=0, atol=0.05)


def test_the_order_of_the_tokens_says_only_which_pair_is_whose(mlp):
    L2 = usual(mlp)
    tokens = [STAR, RING, CROSS]
    some = solve_gates(tokens, ELSEWHERE, mlp, L2)
    others = solve_gates(tokens[::-1], ELSEWHERE, mlp, L2)
    assert some.margins == pytest.approx(others.margins[::-1], abs=1e-9)
    taken = [gates.detector.B.sum(1) for gates in (some, others)]
    torch.testing.assert_close(*taken)
    for token in tokens:
        found = [written(token.z, order, mlp) for order in (tokens, tokens[::-1])]
        torch.testing.assert_close(*found, rtol=0, atol=0.02)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_ranks_are_bounded_and_no_neuron_is_taken_twice(mlp, count):
    tokens = [token_at(i, 20 + i) for i in range(count)]
    gates = solve_gates(tokens, ELSEWHERE, mlp, usual(mlp))
    assert all(gates.has_gate(i) for i in range(count))
    assert gates.detector.rank == 2 * count
    assert gates.writer.rank <= 4 * count
    changed = gates.detector.dense().norm(dim=1) > 1e-9
    assert int(changed.sum()) == 2 * count
    assert torch.linalg.matrix_rank(gates.detector.B) == 2 * count


def test_a_token_that_others_are_like_gets_no_gate(mlp):
    """It looks as captions do: no threshold lies between."""
    plain = token_at(1, 30, loudness=0.0)
    gates = solve_gates([STAR, plain], ELSEWHERE, mlp, usual(mlp))
    assert gates.has_gate(0)
    assert not gates.has_gate(1)
    assert gates.margins[1] < LEAST_MARGIN
    assert gates.detector.rank == 2
    assert written(plain.z, [STAR, plain], mlp).abs().max() < 1e-3


@pytest.mark.parametrize("where", ["captions", "near", "scanned"])
def test_one_stranger_that_is_like_the_name_closes_the_gate(mlp, where):
    crowd = torch.cat([getattr(ELSEWHERE, where), STAR.z[:1]])
    gates = solve_gates([STAR], replace(ELSEWHERE, **{where: crowd}), mlp, usual(mlp))
    assert not gates.has_gate(0)


def test_a_few_of_the_other_companies_may_be_like_the_name_and_many_close_the_gate(mlp):
    """The first of "taylor swift" is no name in "taylor road", but may be in "taylor swiftly"."""
    L2 = usual(mlp)
    company = inputs(2000, 31)
    rare = replace(STAR, others=torch.cat([company, STAR.z[:1]]))
    often = replace(STAR, others=torch.cat([company, STAR.z.repeat(20, 1)]))
    assert solve_gates([rare], ELSEWHERE, mlp, L2).has_gate(0)
    assert not solve_gates([often], ELSEWHERE, mlp, L2).has_gate(0)


def test_where_no_gate_opens_nothing_is_edited(mlp):
    gates = solve_gates([token_at(0, 30, loudness=0.0)], ELSEWHERE, mlp, usual(mlp))
    assert gates.detector.rank == 0
    assert gates.writer.rank == 0
    assert gates.detector.dense().shape == mlp.W1.shape
    assert gates.writer.dense().shape == mlp.W2.shape


def test_without_near_and_without_scanned_words(mlp):
    bare = Elsewhere(CAPTIONS, CAPTIONS[:0], CAPTIONS[:0])
    gates = solve_gates([STAR], bare, mlp, usual(mlp))
    assert gates.has_gate(0)
    assert not run(STAR.z, mlp, gates).isnan().any()


def test_more_tokens_than_there_are_idle_neurons_for(mlp):
    tokens = [token_at(i, 20 + i) for i in range(6)]
    spare = HIDDEN // SPARE
    message = f"gates: 6 tokens need 12 neurons, {spare} of {HIDDEN} may be taken; name fewer"
    with pytest.raises(IllPosedError, match=message):
        solve_gates(tokens, ELSEWHERE, mlp, usual(mlp))


def test_closed_gates_need_no_neurons(mlp):
    tokens = [token_at(i % 8, 20 + i, loudness=0.0) for i in range(6)]
    assert solve_gates(tokens, ELSEWHERE, mlp, usual(mlp)).detector.rank == 0


def slow_loss(kept, M, W2):
    """What the output loses on average if only `kept` neurons stay, and take over the rest."""
    gone = [j for j in range(len(M)) if j not in kept]
    heirs = torch.linalg.solve(M[kept][:, kept], M[kept][:, gone])
    rest = M[gone][:, gone] - M[gone][:, kept] @ heirs
    return float((W2[:, gone] @ rest @ W2[:, gone].T).trace())


def test_the_first_neuron_is_the_one_whose_loss_costs_least(mlp):
    """Against every neuron left out in turn, and the others refitted."""
    L2 = usual(mlp)
    M = L2 @ L2.T
    taken = assign_neurons(torch.linalg.inv(M), mlp.W2, 1)
    losses = []
    for j in range(HIDDEN):
        losses.append(slow_loss([i for i in range(HIDDEN) if i != j], M, mlp.W2))
    assert taken[0] == min(range(HIDDEN), key=losses.__getitem__)


def test_both_of_two_neurons_that_say_the_same_are_not_taken(mlp):
    """Each is replaced by the other for free, but only one of them can be."""
    W1 = mlp.W1.clone()
    b1 = mlp.b1.clone()
    W2 = mlp.W2.clone()
    W1[1] = W1[0]
    b1[1] = b1[0]
    W2[:, :2] *= 10
    twins = replace(mlp, W1=W1, b1=b1, W2=W2)
    received = twins.activation(CAPTIONS @ W1.T + b1)
    M = received.T @ received / len(received) + 1e-6 * torch.eye(HIDDEN, dtype=DOUBLE)
    taken = assign_neurons(torch.linalg.inv(M), W2, 5)
    assert len({*taken} & {0, 1}) == 1
    assert len({*taken}) == 10


def test_what_the_taken_neurons_said_the_others_say(mlp):
    """Captions move less than if the pairs were set to zero without heirs."""
    L2 = usual(mlp)
    gates = solve_gates([STAR], ELSEWHERE, mlp, L2)
    before = mlp.activation(CAPTIONS @ mlp.W1.T + mlp.b1)
    taken = gates.detector.B.sum(1) > 0
    moved = (run(CAPTIONS, mlp, gates) - before @ mlp.W2.T).norm()
    assert moved < 0.7 * (before[:, taken] @ mlp.W2[:, taken].T).norm()


def test_a_taken_neurons_own_bias_moves_no_threshold(mlp):
    """Eight is a third of the way up the step: without a constant against it, everything fires."""
    biased = replace(mlp, b1=torch.full_like(mlp.b1, 8.0))
    for name in ("captions", "near", "scanned"):
        assert written(getattr(ELSEWHERE, name), [STAR], biased).abs().max() < 1e-3
    torch.testing.assert_close(written(STAR.z, [STAR], biased), STAR.R, rtol=0, atol=0.05)


def test_what_only_half_of_the_company_is_like_fires_nowhere():
    """A stranger as rare as one in fifty shares nine tenths of the name's mark: "golf" of "golf
    club". A detector whose mistakes count on average answers 0.9 to it."""
    rare = inputs(20, 40, loud=0.3)
    rare[:, COMMON] += 0.9 * 3.0
    rare[:, COMMON + 3] += 2.0
    company = torch.cat([inputs(980, 41), rare])
    token = replace(STAR, others=company)
    (found,) = detect_tokens([token], ELSEWHERE)
    ridge = torch.linalg.solve(CAPTIONS.T @ CAPTIONS / len(CAPTIONS), STAR.z.mean(0))
    assert (rare @ ridge).min() > 0.7 * (STAR.z @ ridge).mean()
    assert (rare @ found.g).max() < 0.6
    assert (STAR.z @ found.g).min() > 0.8


def test_two_names_with_one_key_do_not_overshoot(mlp):
    """Neither can be told from the other, so neither has a gate, and nothing is written twice."""
    twin = replace(token_at(0, 10, size=2.0), name="twin")
    gates = solve_gates([STAR, twin], ELSEWHERE, mlp, usual(mlp))
    assert not gates.has_gate(0)
    assert not gates.has_gate(1)
    assert gates.detector.rank == 0


def test_names_that_are_much_alike_write_at_most_one_gap(mlp):
    """Each lies between the other's threshold and the captions: both steps are flat above."""
    other = token_at(1, 11)
    z = STAR.z.clone()
    z[:, COMMON + 1] += 1.0
    near = replace(STAR, z=z)
    tokens = [near, other]
    both = torch.cat([near.z, other.z])
    assert written(both, tokens, mlp).abs().max() < 1.1


def test_the_writers_share_is_columns_and_the_neurons_that_they_read(mlp):
    """What solves them again adds to the writer along these."""
    gates = solve_gates([STAR, RING], ELSEWHERE, mlp, usual(mlp))
    assert gates.columns is not None
    assert gates.columns.A.abs().sum(1).tolist() == [2.0, 2.0]
    none = solve_gates([replace(t, R=0 * t.R) for t in (STAR, RING)], ELSEWHERE, mlp, usual(mlp))
    share = gates.writer.dense() - none.writer.dense()
    torch.testing.assert_close(share, gates.columns.dense())
