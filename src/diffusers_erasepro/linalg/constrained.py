"""The core: the smallest weight change that meets its constraints exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import IllPosedError
from .low_rank import LowRank, finite, orthonormal, stack


@dataclass(frozen=True)
class Solution:
    """A solved layer: the factors, and how well posed the solve was."""

    factors: LowRank
    constraints: int
    """Columns of X asked for."""
    dropped: int
    """Directions of X too close to the others to count (relative tolerance)."""
    condition: float
    """Of the whitened X, over the directions kept."""
    residual: float
    """||D X - R|| / ||R||, the worst column."""
    cut: float = 0.0
    """Share of the soft part, in the Frobenius norm, that `max_rank` left out."""


@dataclass(frozen=True)
class Soft:
    """Columns that are met by weighted least squares only."""

    X: Tensor
    """`(d_in, ns)` keys."""
    R: Tensor
    """`(d_out, ns)` what should be added there."""
    weight: float = 0.03
    """mu: against the metric; larger meets them better and drifts more."""


@dataclass(frozen=True)
class Limits:
    """Tolerances of the solve, all relative."""

    rtol: float = 1e-7
    """Directions of the whitened X below `rtol` of the largest count as duplicates."""
    soft_rtol: float = 1e-3
    """The same for the singular values of the soft part; larger gives a smaller file."""
    max_rank: int | None = None
    """Upper bound of the rank of D; at least the number of constraints."""
    max_residual: float = 1e-3
    """A larger residual means that nearly equal keys ask for different things."""


@dataclass(frozen=True)
class Labels:
    """What messages call the layer, and the columns of X."""

    layer: str = "layer"
    columns: tuple[str, ...] = ()


def solve(
    X: Tensor,
    R: Tensor,
    C: Tensor | None = None,
    *,
    L: Tensor | None = None,
    K: Tensor | None = None,
    soft: Soft | None = None,
    limits: Limits = Limits(),
    labels: Labels = Labels(),
) -> Solution:
    """Minimise  tr(D C D') + mu ||D Xs - Rs||^2 / ns   subject to   D X = R  and  D K = 0.

    K joins X with nothing to add. With C = L L' the rows of D L lie in the span of the whitened
    keys L^-1 [X Xs] = Q [x xs], so that D = M Q' L^-1 and only the small M is left to find. With
    H = I + mu xs xs'/ns = Lh Lh' and Lh^-1 x = U S V':

        G = (x' H^-1 x)^-1 x' H^-1 = V S^-1 U' Lh^-1
        M = M0 + (R - M0 x) G,   M0 = mu Rs xs' H^-1 / ns            (the soft prompts alone)
          = R G + M0 (I - x G)

    The first term has rank <= n; the second vanishes on X, so truncating it leaves the constraint
    exact. Without C and soft columns this is the closed form  R (X'X)^-1 X'  of ErasePro
    (arXiv 2508.04472).

    Args:
        X: `(d_in, n)` what the layer receives at the constrained positions.
        R: `(d_out, n)` what must be added to its output there.
        C: `(d_in, d_in)` the metric; None is the identity. Directions with little C are cheap to
            change.
        L: Its lower Cholesky factor, where that is known already; then C is not looked at.
        K: `(d_in, k)` keys where nothing may change.
        soft: Columns Xs, Rs met by least squares only, and their weight mu.
        limits: Tolerances.
        labels: For messages.

    Raises:
        IllPosedError: Values that are not finite, more constraints than dimensions, constraints
            that contradict.
    """
    where = labels.layer
    soft = soft if soft is not None and soft.X.shape[1] > 0 else None
    check_finite(where, X=X, R=R, K=K)
    if soft is not None:
        check_finite(where, Xs=soft.X, Rs=soft.R)
    X = X.double()
    R = R.double()
    room = None if limits.max_rank is None else limits.max_rank - X.shape[1]
    if room is not None and room < 0:
        raise IllPosedError(
            f"{where}: max_rank={limits.max_rank} is less than the {X.shape[1]} exact "
            "constraints; allow at least as many"
        )
    if K is not None:
        X = torch.cat([X, K.double()], 1)
        R = torch.cat([R, R.new_zeros(len(R), K.shape[1])], 1)
    d_in, n = X.shape
    if n > d_in:
        kept = 0 if K is None else K.shape[1]
        some = f", {kept} of them tokens of the prompts to keep," if kept else ""
        cure = "shorter or fewer prompts in keep, " if kept else ""
        raise IllPosedError(
            f"{where}: {n} constraints{some} on {d_in} input dimensions; use {cure}fewer exact "
            "templates or concepts"
        )
    keys = X if soft is None else torch.cat([X, soft.X.double()], 1)
    if L is None and C is not None:
        L = cholesky(C, where)

    whitened = keys if L is None else torch.linalg.solve_triangular(L, keys, upper=False)
    Q, small = torch.linalg.qr(whitened)
    # (k, d_in): Q' L^-1
    span = Q.T if L is None else torch.linalg.solve_triangular(L.T, Q, upper=True).T
    x = small[:, :n]
    xs = small[:, n:]
    weight = 0.0 if soft is None else soft.weight / max(1, xs.shape[1])
    Lh = torch.linalg.cholesky(torch.eye(len(x), dtype=x.dtype) + weight * xs @ xs.T)

    U, S, Vh = torch.linalg.svd(
        torch.linalg.solve_triangular(Lh, x, upper=False), full_matrices=False
    )
    kept = limits.rtol * S[:1] < S  # there may be no exact column
    U = U[:, kept]
    S = S[kept]
    V = Vh[kept].T
    G = V / S @ torch.linalg.solve_triangular(Lh.T, U, upper=True).T  # (n, k)

    parts = [LowRank(R, G @ span)]
    cut = 0.0
    asked = R
    if soft is not None:
        Rs = soft.R.double()
        rows = torch.cholesky_solve(weight * xs, Lh).T  # (ns, k), so that M0 = Rs rows
        rest = LowRank(Rs, (rows - (rows @ x) @ G) @ span)
        short, cut = shortened(orthonormal(rest, rtol=limits.soft_rtol), room)
        parts.append(short)
        asked = torch.cat([R, Rs], 1)
    factors = orthonormal(stack(parts), rtol=1e-12)

    least = 1e-6 * asked.norm(dim=0).max() + 1e-300  # a column may ask for nothing
    gap = (factors.B @ (factors.A @ X) - R).norm(dim=0) / R.norm(dim=0).clamp_min(least)
    worst = float(gap.max()) if n else 0.0
    if worst > limits.max_residual:
        pair = _pair(x, int(gap.argmax()), labels.columns)
        raise IllPosedError(
            f"{where}: {n} constraints, {n - len(S)} of them nearly duplicates that contradict, "
            f"such as {pair}: residual {worst:.1e}, at most {limits.max_residual:g}; "
            "remove near-duplicate templates or concepts, or lower "
            f"rtol={limits.rtol:g}"
        )
    return Solution(
        factors=factors,
        constraints=n,
        dropped=n - len(S),
        condition=float(S[0] / S[-1]) if n else 1.0,
        residual=worst,
        cut=cut,
    )


def shortened(factors: LowRank, rank: int | None) -> tuple[LowRank, float]:
    """The first `rank` directions of orthonormal factors, and the share of the norm left out."""
    if rank is None or rank >= factors.rank:
        return factors, 0.0
    power = factors.B.square().sum(0).square()  # of U sqrt(S): the squared singular values
    return LowRank(factors.B[:, :rank], factors.A[:rank]), float(
        (power[rank:].sum() / power.sum()).sqrt()
    )


def _pair(x: Tensor, worst: int, names: Sequence[str]) -> str:
    """The column that fares worst, and the one its key is nearest to."""
    likeness = torch.nn.functional.cosine_similarity(x, x[:, worst : worst + 1], dim=0)
    likeness[worst] = -2.0
    pair = [names[i] if i < len(names) else f"column {i}" for i in (worst, int(likeness.argmax()))]
    return f"{pair[0]!r} and {pair[1]!r}"


def cholesky(C: Tensor, where: str = "layer") -> Tensor:
    """The lower factor L of a metric C = L L', in float64.

    Raises:
        IllPosedError: C is not finite, or has directions of no weight at all.
    """
    check_finite(where, C=C)
    L, bad = torch.linalg.cholesky_ex(C.double())
    if bad:
        raise IllPosedError(
            f"{where}: the metric has no Cholesky factor; raise `ridge` or give more preserve "
            "prompts"
        )
    return L


def inverse(L: Tensor) -> Tensor:
    """(L L')^-1, remembered as long as L is: of CLIP-L's fc2 it takes longer than a solve."""
    if not hasattr(L, "_inverse"):
        L._inverse = torch.cholesky_inverse(L)  # type: ignore[attr-defined]
    return L._inverse  # type: ignore[attr-defined]


def check_finite(where: str, **tensors: Tensor | None) -> None:
    """Raise IllPosedError naming the first tensor with a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor is not None and not finite(tensor):
            bad = int((~torch.isfinite(tensor)).sum())
            raise IllPosedError(
                f"{where}: {name} has {bad} values that are not finite; check the base weights"
            )
