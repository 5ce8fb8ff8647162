"""What an erasure measured when it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from ..errors import EditTooLargeError
from ..linalg.constrained import Solution
from ..linalg.low_rank import LowRank
from .header import describe_selectivity

NAN = float("nan")
HALF_LEFT = 0.5
"""Share of the gap between a prompt and its anchor's: where more is left, `erase` and `verify`
warn, and a verdict is bad."""


@dataclass(frozen=True)
class LayerReport:
    """One edited layer."""

    name: str
    rank: int
    edit_size: float
    """||D||_F / ||W||_F"""
    condition: float | None
    """Of the whitened keys, over the directions kept; None where no constraints were solved."""
    gap: float
    """Mean ||anchor - target|| / ||anchor|| at the exact positions before this edit."""
    constraints: int | None
    """Exact ones; None where no constraints were solved."""
    dropped: int | None
    """Constraints that were duplicates of others."""
    compression: float = 0.0
    """What the low rank costs: relative error where the factors stand for a full matrix, share of
    the soft part that `max_rank` left out where they do not."""


@dataclass(frozen=True)
class EncoderReport:
    """One text encoder: as in `Report`, at what the denoiser reads of it."""

    name: str
    readings: tuple[str, ...]
    """What the denoiser reads: "last_hidden_state", "hidden_states[-2]", "text_embeds", ..."""
    listed_residual: float
    held_out_residual: float
    held_out_mean: float
    drift: float


@dataclass(frozen=True)
class Selectivity:
    """What an edit leaves of its concepts and what else it moves, on texts that set no threshold.

    Of the first reading that has a state per position.
    """

    left: Mapping[str, float]
    """Kind of position ("name", "other", "ends", "padding") -> sum ||edited - anchor|| / sum
    ||target - anchor|| over held-out phrasings: 1 is nothing erased, 0 all of it."""
    near: float
    """Mean relative change of near misses that the edit was not given; NaN where there is none."""
    near_worst: float
    """The largest at any of their tokens."""
    drift: float
    """Mean relative change of captions."""
    fires: int
    """Captions any token of which moves by more than a tenth."""
    captions: int
    """Of so many. None in n means at most 3 / n at 95 %."""

    def __str__(self) -> str:
        return " ".join(describe_selectivity(asdict(self)))


@dataclass(frozen=True)
class ConceptLeft:
    """What is left of one concept: shares as in `Selectivity.left`, by kind of position."""

    listed: Mapping[str, float]
    """At the exact prompts."""
    held_out: Mapping[str, float]
    """At phrasings that were never solved for."""
    unmatched: Mapping[str, Sequence[int]]
    """Prompt -> its token positions that have no counterpart in the anchor's prompt, where the
    two differ in length; they are not counted."""

    def worst_with(self, other: ConceptLeft) -> ConceptLeft:
        """The larger share of each kind: of two text encoders, say."""
        return ConceptLeft(
            _larger(self.listed, other.listed),
            _larger(self.held_out, other.held_out),
            {**self.unmatched, **other.unmatched},
        )


def _larger(some: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    found = {}
    for kind in dict.fromkeys((*some, *others)):
        found[kind] = max(some.get(kind, 0.0), others.get(kind, 0.0))
    return found


@dataclass(frozen=True)
class Report:
    """Residuals and drift are relative norms at what the denoiser reads."""

    listed_residual: float
    """Worst over the exact prompts' aligned positions."""
    held_out_residual: float
    """Worst over templates that were never solved for; NaN where the spec leaves none."""
    drift: float
    """Mean change of the preserve captions' states, from BOS to EOS (`prompts.MEASURED` says how
    many captions)."""
    layers: tuple[LayerReport, ...] = ()
    encoders: tuple[EncoderReport, ...] = ()
    notes: tuple[str, ...] = ()
    """What was left out, and which routes do not see the whole edit."""
    held_out_mean: float = NAN
    denoiser_residual: float | None = None
    denoiser_drift: float | None = None
    selectivity: Selectivity | None = None
    """Where rows of the embedding or gates were asked for, of the encoder that fares worst."""
    inversions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Text encoder -> the tokens of textual inversions that the spec names, without which its
    prompts are others."""
    seconds: float | None = None
    """Of the edit; not stored, so that the same spec gives the same file."""

    @property
    def left(self) -> Mapping[str, float]:
        """`Selectivity.left`; empty where it was not measured."""
        return self.selectivity.left if self.selectivity else {}

    @property
    def near(self) -> float:
        """`Selectivity.near`; NaN where it was not measured."""
        return self.selectivity.near if self.selectivity else NAN

    @property
    def fires(self) -> int | None:
        """`Selectivity.fires`; None where it was not measured."""
        return self.selectivity.fires if self.selectivity else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the file's header, `seconds` left out."""
        data = {k: v for k, v in asdict(self).items() if k != "seconds"}
        if self.selectivity is None:
            del data["selectivity"]
        if not self.inversions:
            del data["inversions"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        encoders = tuple(
            EncoderReport(**{**row, "readings": tuple(row["readings"])})
            for row in data.get("encoders", ())
        )
        layers = tuple(LayerReport(**row) for row in data["layers"])
        measured = data.get("selectivity")
        return cls(
            **{
                **data,
                "layers": layers,
                "encoders": encoders,
                "notes": tuple(data.get("notes", ())),
                "selectivity": None if measured is None else Selectivity(**measured),
                "inversions": {k: tuple(v) for k, v in data.get("inversions", {}).items()},
            }
        )


def frobenius(factors: LowRank) -> float:
    """||B A||_F without forming the matrix."""
    B = factors.B.double()
    A = factors.A.double()
    return float(((B.T @ B) * (A @ A.T)).sum().clamp_min(0).sqrt())


@dataclass(frozen=True)
class SizeLimit:
    """How large an edit may be. Edits that have nothing in common add in squares."""

    one: float
    """||D||_F / ||W||_F allowed for one concept."""
    concepts: int = 1

    @property
    def all(self) -> float:
        """What so many concepts may take together."""
        return self.one * math.sqrt(self.concepts)

    def __str__(self) -> str:
        shared = f" times the root of {self.concepts} concepts" if self.concepts > 1 else ""
        return f"max_edit_size={self.one:g}{shared}"


def layer_report(
    name: str,
    weight: Tensor,
    factors: LowRank,
    solution: Solution | None,
    *,
    gap: float,
    limit: SizeLimit,
    shares: Mapping[str, float] | None = None,
) -> LayerReport:
    """The report of one layer.

    Args:
        name: As a file calls it.
        weight: Its weight.
        factors: Of its edit.
        solution: Of the constrained solve, where one was made.
        gap: As in `LayerReport`.
        limit: Of its size.
        shares: Word -> the square of the norm of its share, where gates of words make the edit.

    Raises:
        EditTooLargeError: The edit is larger than `limit` allows.
    """
    norm = float(weight.detach().double().norm())
    size = frobenius(factors) / norm
    if size > limit.all:
        condition = "" if solution is None else f", condition {solution.condition:.1e}"
        raise EditTooLargeError(
            f"{name}: the edit is {size:.3g} times the weight, at most {limit} is allowed "
            f"(rank {factors.rank}{condition}); edit an earlier block as well, use fewer "
            "templates, or raise max_edit_size",
            words=_largest_shares(shares or {}, (norm * limit.all) ** 2),
        )
    if solution is None:
        return LayerReport(name, factors.rank, size, None, gap, None, None)
    return LayerReport(
        name,
        factors.rank,
        size,
        solution.condition,
        gap,
        solution.constraints,
        solution.dropped,
        solution.cut,
    )


def _largest_shares(shares: Mapping[str, float], allowed: float) -> tuple[str, ...]:
    """The words that have to go, the largest first, until the others' shares are small enough."""
    found: list[str] = []
    left = sum(shares.values())
    for word in sorted(shares, key=shares.__getitem__, reverse=True):
        if found and left <= allowed:
            break
        found.append(word)
        left -= shares[word]
    return tuple(found)


def worst(parts: Sequence[Report]) -> Report:
    """One report for several encoders: the worst of each number, the layers of all."""
    first = max(parts, key=lambda r: r.listed_residual)
    layers: list[LayerReport] = []
    encoders: list[EncoderReport] = []
    for part in parts:
        layers += part.layers
        encoders += part.encoders
    return replace(
        first,
        selectivity=least_selective([part.selectivity for part in parts if part.selectivity]),
        held_out_residual=max(r.held_out_residual for r in parts),
        held_out_mean=max(r.held_out_mean for r in parts),
        drift=max(r.drift for r in parts),
        layers=tuple(layers),
        encoders=tuple(encoders),
    )


def least_selective(measured: Sequence[Selectivity]) -> Selectivity | None:
    """Of several text encoders' the one that leaves most; None of none."""
    return max(measured, key=_most_left) if measured else None


def _most_left(measured: Selectivity) -> float:
    return max([0.0, *measured.left.values()])
