"""Numbers with their intervals: rates, means, distances between pictures. Pure functions; none is made of nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import linalg, stats

from ..errors import EvaluationError


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and the count it is made of."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.2f} to {self.high:.2f})"


def rate(hits: Sequence[bool], what: str = "rate") -> Estimate:
    """Share of hits with its Wilson interval.

    Raises:
        EvaluationError: There is nothing to count.
    """
    n, k = _counted(hits, what), int(sum(bool(h) for h in hits))
    interval = stats.binomtest(k, n).proportion_ci(method="wilson")
    return Estimate(k / n, float(interval.low), float(interval.high), n)


def mean(values: Sequence[float], what: str = "mean", *, seed: int = 0) -> Estimate:
    """Mean with its bootstrap interval (percentiles of 1000 resamples)."""
    n, data = _counted(values, what), np.asarray(values, dtype=np.float64)
    if n == 1 or np.ptp(data) == 0:
        return Estimate(float(data.mean()), float(data.min()), float(data.max()), n)
    found = stats.bootstrap(
        (data,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(seed)
    )
    return Estimate(
        float(data.mean()),
        float(found.confidence_interval.low),
        float(found.confidence_interval.high),
        n,
    )


def ratio(
    values: Sequence[float], others: Sequence[float], what: str = "ratio", *, seed: int = 0
) -> Estimate:
    """Sum of `values` over the sum of `others`, of the same pictures, with its paired bootstrap interval.

    Raises:
        EvaluationError: There is nothing to count, or `others` are all 0.
    """
    n, data = (
        _counted(values, what),
        (np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)),
    )
    if not data[1].sum() > 0:
        raise EvaluationError(
            f"{what}: the {n} numbers to divide by are all 0; nothing changed there to compare with"
        )
    found = stats.bootstrap(
        data,
        lambda x, y, axis: x.sum(axis) / y.sum(axis),
        paired=True,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Estimate(
        float(data[0].sum() / data[1].sum()),
        float(found.confidence_interval.low),
        float(found.confidence_interval.high),
        n,
    )


def harmonic(*values: float) -> float:
    """Harmonic mean; 0 where any is 0. Of (1 - ACC_e), ACC_s and (1 - ACC_g) it is MACE's H_o."""
    return len(values) / sum(1 / v for v in values) if all(v > 0 for v in values) else 0.0


def pixel_change(a: Sequence[Image.Image], b: Sequence[Image.Image]) -> list[float]:
    """Mean squared difference of each pair of pictures with values in [0, 1]."""
    pairs = zip(a, b, strict=True)
    return [float(((_pixels(x) - _pixels(y)) ** 2).mean()) for x, y in pairs]


def feature_change(a: Any, b: Any) -> list[float]:
    """||f - g||^2 / (||f|| ||g||) of each pair of feature rows `(n, width)`: LPIPS-like, by whatever made the features."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return (
        ((a - b) ** 2).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    ).tolist()


def frechet(a: Any, b: Any) -> float:
    """||m - m'||^2 + tr(S + S' - 2 (S S')^1/2) of two sets of feature rows: FID's formula, by whatever made the features.

    Raises:
        EvaluationError: A set has fewer than two rows, so it has no covariance.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if min(len(a), len(b)) < 2:
        raise EvaluationError(
            f"a Frechet distance needs two pictures on each side, got {len(a)} and {len(b)}"
        )
    S, T = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr (S T)^1/2 by eigenvalues: S T is similar to a positive matrix, and with few pictures it is singular
    root = np.sqrt(np.clip(linalg.eigvals(S @ T).real, 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(S) + np.trace(T) - 2 * root)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def _counted(values: Sequence[Any], what: str) -> int:
    if not len(values):
        raise EvaluationError(
            f"{what}: no picture was judged, so there is no number; draw at least one"
        )
    return len(values)
