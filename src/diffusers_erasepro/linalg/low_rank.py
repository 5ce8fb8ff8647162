"""A weight change held as two thin factors; the full matrix is never stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The matrix `B @ A`."""

    B: Tensor
    """`(d_out, r)`"""
    A: Tensor
    """`(r, d_in)`"""

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    def dense(self) -> Tensor:
        """`(d_out, d_in)`; for applying to a weight and for tests, never for storage."""
        return self.B @ self.A

    def __call__(self, x: Tensor) -> Tensor:
        """`B A x` for inputs `(..., d_in)`; token ids `(...)` stand for one-hot inputs."""
        if not x.is_floating_point():
            return self.A.T.to(x.device)[x] @ self.B.T.to(x.device)
        return (x @ self.A.T.to(x)) @ self.B.T.to(x)

    def to(self, dtype: torch.dtype) -> LowRank:
        return LowRank(self.B.to(dtype), self.A.to(dtype))

    def padded(self, rank: int) -> LowRank:
        """The same matrix with `rank` rows and columns, the surplus zero."""
        more = rank - self.rank
        return LowRank(
            torch.nn.functional.pad(self.B, (0, more)).contiguous(),
            torch.nn.functional.pad(self.A, (0, 0, 0, more)).contiguous(),
        )


def stack(parts: Sequence[LowRank]) -> LowRank:
    """The sum of several low-rank matrices, without forming any of them."""
    return LowRank(torch.cat([p.B for p in parts], dim=1), torch.cat([p.A for p in parts], dim=0))


def orthonormal(factors: LowRank, *, rtol: float = 0.0, max_rank: int | None = None) -> LowRank:
    """The same matrix as `U sqrt(S)`, `sqrt(S) V'`, at the cost of two thin QRs and one small SVD.

    Orthogonal factors survive rounding to 16 bits; natural ones lose up to 250 % on near-duplicate
    prompts. Signs are fixed by each direction's largest entry, so the same input gives the same
    bytes.

    Args:
        factors: `(d_out, n)` and `(n, d_in)`.
        rtol: Directions below `rtol` of the largest singular value are dropped; larger is smaller
            and less exact.
        max_rank: Keep at most so many directions.
    """
    Qb, Rb = torch.linalg.qr(factors.B)
    Qa, Ra = torch.linalg.qr(factors.A.T)
    U, S, Vh = torch.linalg.svd(Rb @ Ra.T, full_matrices=False)
    keep = max(1, int((rtol * S[0] < S).sum())) if len(S) else 0
    keep = min(keep, max_rank or keep)
    U = Qb @ U[:, :keep]
    S = S[:keep]
    V = Qa @ Vh[:keep].T
    peak = V.gather(0, V.abs().argmax(0, keepdim=True)).sign()
    root = S.sqrt()
    return LowRank(U * peak * root, (V * peak * root).T)


def finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite.

    Either shows in the sum, which is much faster than to look at each value; but a sum may
    overflow too.
    """
    return bool(torch.isfinite(values.sum()) or torch.isfinite(values).all())


def compress(factors: LowRank, error: float) -> tuple[LowRank, float]:
    """The fewest directions that keep ||D - B A||_F within `error` ||D||_F, and what they leave."""
    whole = orthonormal(factors)
    size = whole.B.norm(dim=0) ** 2  # of U sqrt(S), the singular values
    tail = (size**2).flip(0).cumsum(0).flip(0).sqrt() / size.norm().clamp_min(1e-300)
    keep = max(1, int((tail > error).sum()))
    return LowRank(whole.B[:, :keep], whole.A[:keep]), float(tail[keep]) if keep < len(
        tail
    ) else 0.0
