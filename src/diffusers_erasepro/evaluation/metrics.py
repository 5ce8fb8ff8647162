"""Numbers with their intervals: rates, means, distances between images. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import linalg, stats

from ..errors import EvaluationError

RESAMPLES = 1000
"""Of every bootstrap."""


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
    n = _count(hits, what)
    k = sum(bool(hit) for hit in hits)
    interval = stats.binomtest(k, n).proportion_ci(method="wilson")
    return Estimate(k / n, float(interval.low), float(interval.high), n)


def mean(values: Sequence[float], what: str = "mean", *, seed: int = 0) -> Estimate:
    """Mean with its bootstrap interval, by percentiles.

    Raises:
        EvaluationError: There is nothing to count.
    """
    n = _count(values, what)
    data = np.asarray(values, dtype=np.float64)
    if n == 1 or np.ptp(data) == 0:
        return Estimate(float(data.mean()), float(data.min()), float(data.max()), n)
    interval = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(float(data.mean()), float(interval.low), float(interval.high), n)


def ratio(
    values: Sequence[float], others: Sequence[float], what: str = "ratio", *, seed: int = 0
) -> Estimate:
    """Sum of `values` over the sum of `others`, with its paired bootstrap interval.

    Args:
        values: One per image.
        others: Of the same images, in the same order.
        what: Named in errors.
        seed: Of the resamples.

    Raises:
        EvaluationError: There is nothing to count, or `others` are all 0.
    """
    n = _count(values, what)
    above = np.asarray(values, dtype=np.float64)
    below = np.asarray(others, dtype=np.float64)
    if not below.sum() > 0:
        raise EvaluationError(
            f"{what}: the {n} numbers to divide by are all 0; nothing changed there to compare with"
        )
    interval = stats.bootstrap(
        (above, below),
        lambda x, y, axis: x.sum(axis) / y.sum(axis),
        paired=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(float(above.sum() / below.sum()), float(interval.low), float(interval.high), n)


def harmonic(*values: float) -> float:
    """Harmonic mean; 0 where any is 0. Of (1 - ACC_e), ACC_s and (1 - ACC_g) it is MACE's H_o."""
    if not all(value > 0 for value in values):
        return 0.0
    return len(values) / sum(1 / value for value in values)


def pixel_change(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> list[float]:
    """Mean squared difference of each pair of images, with values in [0, 1].

    Raises:
        EvaluationError: Two images of a pair are of different sizes.
    """
    found = []
    for i, (x, y) in enumerate(zip(before, after, strict=True)):
        if x.size != y.size:
            raise EvaluationError(
                f"pair {i} has a picture of {x.size[0]} x {x.size[1]} and one of {y.size[0]} x "
                f"{y.size[1]}; only pictures of one size can be compared"
            )
        found.append(float(((_pixels(x) - _pixels(y)) ** 2).mean()))
    return found


def feature_change(before: Any, after: Any) -> list[float]:
    """|f - g|^2 / (|f| |g|) of each pair of feature rows `(n, width)`; LPIPS-like."""
    f = np.asarray(before, dtype=np.float64)
    g = np.asarray(after, dtype=np.float64)
    norms = np.linalg.norm(f, axis=1) * np.linalg.norm(g, axis=1)
    return (((f - g) ** 2).sum(1) / norms).tolist()


def frechet(a: Any, b: Any) -> float:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^1/2) of two sets of feature rows `(n, width)`.

    FID's formula, on whatever features are given.

    Raises:
        EvaluationError: A set has fewer than two rows, so it has no covariance.
    """
    a = np.asarray(a, dtype=np.float64)
    b = np.asarray(b, dtype=np.float64)
    if min(len(a), len(b)) < 2:
        raise EvaluationError(
            f"a Frechet distance needs two images on each side, got {len(a)} and {len(b)}"
        )
    S = np.cov(a, rowvar=False)
    T = np.cov(b, rowvar=False)
    # Eigenvalues give tr (S T)^1/2 where S T is singular too, as it is with few images.
    root = np.sqrt(np.clip(linalg.eigvals(S @ T).real, 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(S) + np.trace(T) - 2 * root)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def _count(values: Sequence[Any], what: str) -> int:
    if not len(values):
        raise EvaluationError(
            f"{what}: no image was judged, so there is no number; generate at least one"
        )
    return len(values)
