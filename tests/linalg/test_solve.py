"""The solver's theorems, against slow obvious versions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_erasepro.errors import IllPosedError
from diffusers_erasepro.linalg.constrained import Labels, Limits, Soft, solve

DOUBLE = torch.float64


def problem(d_in=12, d_out=7, n=3, ns=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randn(*shape, generator=g, dtype=DOUBLE)  # noqa: E731
    K = new(d_in, 40)
    C = K @ K.T / 40 + 0.01 * torch.eye(d_in, dtype=DOUBLE)
    return {
        "X": new(d_in, n),
        "R": new(d_out, n),
        "C": C,
        "Xs": new(d_in, ns),
        "Rs": new(d_out, ns),
        "mu": 0.3,
    }


def solved(*, X, R, Xs=None, Rs=None, mu=0.0, where="layer", names=(), C=None, K=None, **limits):
    """`solve` of a problem written flat."""
    soft = None if Xs is None else Soft(Xs, Rs, mu)
    return solve(X, R, C, K=K, soft=soft, limits=Limits(**limits), labels=Labels(where, names))


def objective(D, *, C, Xs, Rs, mu, **_):
    return torch.trace(D @ C @ D.T) + mu / Xs.shape[1] * (D @ Xs - Rs).square().sum()


def slow_solution(*, X, R, C, Xs, Rs, mu):
    """The KKT system of the constrained problem, written out and solved densely, row by row."""
    d, n = X.shape
    H = 2 * (C + mu / Xs.shape[1] * Xs @ Xs.T)
    kkt = torch.cat([torch.cat([H, X], 1), torch.cat([X.T, torch.zeros(n, n, dtype=DOUBLE)], 1)], 0)
    right = torch.cat([2 * mu / Xs.shape[1] * Xs @ Rs.T, R.T], 0)
    return torch.linalg.solve(kkt, right)[:d].T


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "ns"), [(1, 1), (3, 5), (6, 20), (12, 3)])
def test_equals_the_dense_kkt_solution(n, ns, seed):
    p = problem(n=n, ns=ns, seed=seed)
    D = solved(**p, soft_rtol=0).factors.dense()
    torch.testing.assert_close(D, slow_solution(**p), atol=1e-8, rtol=1e-8)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 8), ns=st.integers(0, 9), seed=st.integers(0, 10**6))
def test_constraint_is_met_exactly_and_rank_is_bounded(n, ns, seed):
    p = problem(n=n, ns=max(ns, 1), seed=seed)
    if ns == 0:
        p |= {"Xs": None, "Rs": None}
    edit = solved(**p)
    torch.testing.assert_close(edit.factors.dense() @ p["X"], p["R"], atol=1e-9, rtol=1e-9)
    assert edit.residual < 1e-9
    assert edit.factors.rank <= n + ns


def test_gradient_vanishes_on_the_constraint():
    p = problem()
    D = solved(**p, soft_rtol=0).factors.dense().requires_grad_()
    (slope,) = torch.autograd.grad(objective(D, **p), D)
    feasible = torch.eye(12, dtype=DOUBLE) - p["X"] @ torch.linalg.pinv(
        p["X"]
    )  # E X = 0 for E = Z feasible
    torch.testing.assert_close(slope @ feasible, torch.zeros_like(slope), atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(10))
def test_no_feasible_change_is_cheaper(seed):
    p = problem()
    D = solved(**p, soft_rtol=0).factors.dense()
    other = torch.randn(D.shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    other = other @ (torch.eye(12, dtype=DOUBLE) - p["X"] @ torch.linalg.pinv(p["X"]))
    assert objective(D + 0.1 * other, **p) > objective(D, **p)


def test_keys_to_leave_alone_are_left_alone_at_the_least_cost():
    p = problem()
    K = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    edit = solved(**p, K=K, soft_rtol=0)
    D = edit.factors.dense()
    assert (D @ K).norm() < 1e-9 * D.norm()
    zero = torch.zeros(7, 4, dtype=DOUBLE)
    slow = slow_solution(**p | {"X": torch.cat([p["X"], K], 1), "R": torch.cat([p["R"], zero], 1)})
    torch.testing.assert_close(D, slow, atol=1e-8, rtol=1e-8)
    assert edit.factors.rank <= 3 + 5  # what is left alone adds no rank


def test_identity_metric_is_the_papers_formula():
    p = problem()
    W = torch.randn(7, 12, dtype=DOUBLE)
    X = p["X"]
    Y = torch.randn(12, 3, dtype=DOUBLE)
    D = solve(X, W @ (Y - X)).factors.dense()
    torch.testing.assert_close(D, W @ (Y - X) @ torch.linalg.inv(X.T @ X) @ X.T)


def test_cutting_the_soft_part_leaves_the_constraint_exact():
    p = problem(ns=9)
    full = solved(**p, soft_rtol=0)
    cut = solved(**p, max_rank=5)
    assert cut.factors.rank == 5 < full.factors.rank
    torch.testing.assert_close(cut.factors.dense() @ p["X"], p["R"], atol=1e-9, rtol=1e-9)
    exact = solved(**p, max_rank=3).factors.dense()
    lost = (full.factors.dense() - cut.factors.dense()).norm() / (
        full.factors.dense() - exact
    ).norm()
    assert full.cut == 0 and cut.cut == pytest.approx(float(lost)) and 0 < cut.cut < 1


def test_a_rank_below_the_constraints_is_an_error_with_both_numbers():
    with pytest.raises(IllPosedError, match="max_rank=2 is less than the 3 exact constraints"):
        solved(**problem(), max_rank=2)


def test_repeated_constraints_count_once():
    p = problem()
    p |= {"X": torch.cat([p["X"], p["X"]], 1), "R": torch.cat([p["R"], p["R"]], 1)}
    edit = solved(**p)
    assert (edit.constraints, edit.dropped) == (6, 3)
    assert edit.residual < 1e-9


def test_the_same_input_gives_the_same_bytes():
    first = solved(**problem()).factors
    second = solved(**problem()).factors
    assert torch.equal(first.A, second.A) and torch.equal(first.B, second.B)


def test_factors_survive_half_precision_on_near_duplicates():
    """Natural factors lose 250 % here in fp16; orthonormal ones keep rounding error."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(64, 4, generator=g, dtype=DOUBLE)
    X = torch.cat([X, X + 1e-4 * torch.randn(64, 4, generator=g, dtype=DOUBLE)], 1)
    R = (torch.randn(32, 64, generator=g, dtype=DOUBLE)) @ X
    f = solved(X=X, R=R, rtol=1e-10).factors
    rounded = f.B.half().double() @ f.A.half().double()
    assert (rounded @ X - R).norm() / R.norm() < 2e-3


@pytest.mark.parametrize("name", ["X", "R", "C", "K", "Xs", "Rs"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(name, value):
    p = problem() | {"K": torch.ones(12, 1, dtype=DOUBLE)}
    p[name] = p[name].clone()
    p[name][0, 0] = value
    with pytest.raises(IllPosedError, match=rf"block 3: {name} has 1 values that are not finite"):
        solved(**p, where="block 3")


def test_more_constraints_than_dimensions_is_an_error_with_both_numbers():
    with pytest.raises(IllPosedError, match="13 constraints on 12 input dimensions"):
        solve(torch.randn(12, 13), torch.randn(7, 13))


def test_of_too_many_constraints_those_of_prompts_to_keep_are_counted_apart():
    said = "13 constraints, 11 of them tokens of the prompts to keep, on 12 input dimensions; use "
    with pytest.raises(IllPosedError, match=f"{said}shorter or fewer prompts in keep"):
        solve(torch.randn(12, 2), torch.randn(7, 2), K=torch.randn(12, 11))


def test_soft_columns_alone_are_met_as_far_as_they_weigh():
    """As of synonyms whose target needs no edit."""
    p = problem()
    none = {"X": p["X"][:, :0], "R": p["R"][:, :0]}
    found = solve(**none, C=p["C"], soft=Soft(p["Xs"], p["Rs"], weight=1e8))
    assert found.constraints == found.dropped == 0
    assert found.residual == 0.0
    met = found.factors.dense() @ p["Xs"]
    assert (met - p["Rs"]).norm() < 1e-2 * p["Rs"].norm()


def test_contradicting_duplicates_are_an_error():
    p = problem(n=2)
    p["X"] = p["X"][:, :1].repeat(1, 2)
    with pytest.raises(IllPosedError, match=r"contradict, such as 'a .*' and 'a .*': residual"):
        solved(**p, names=("a star", "a spark"))
