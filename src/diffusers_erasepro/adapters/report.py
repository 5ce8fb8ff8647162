"""What an erasure measured when it was made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from ..erasure.layerwise import Step
from ..errors import IllPosedError
from ..linalg.low_rank import LowRank

NAN = float("nan")


@dataclass(frozen=True)
class LayerReport:
    """One edited layer."""

    name: str
    rank: int
    edit_size: float
    """||D||_F / ||W||_F"""
    condition: float
    """Of the whitened keys, over the directions kept."""
    gap: float
    """Mean ||anchor - target|| / ||anchor|| at the exact positions before this edit."""
    constraints: int
    dropped: int
    """Constraints that were duplicates of others."""
    compression: float = 0.0
    """What the low rank costs: relative error where the factors stand for a full matrix, share of the soft part that
    `max_rank` left out where they do not."""


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
class Report:
    """Residuals and drift are relative norms at what the denoiser reads."""

    listed_residual: float
    """Worst over the exact prompts' aligned positions."""
    held_out_residual: float
    """Worst over templates that were never solved for; NaN where the spec leaves none."""
    drift: float
    """Mean change of the preserve captions' states, from BOS to EOS (`prompts.MEASURED` says how many captions)."""
    layers: tuple[LayerReport, ...] = ()
    encoders: tuple[EncoderReport, ...] = ()
    notes: tuple[str, ...] = ()
    """What was left out, and which routes do not see the whole edit."""
    held_out_mean: float = NAN
    denoiser_residual: float | None = None
    denoiser_drift: float | None = None
    seconds: float | None = None
    """Of the edit; not stored, so that the same spec gives the same file."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for the file's header, `seconds` left out."""
        return {k: v for k, v in asdict(self).items() if k != "seconds"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        encoders = tuple(
            EncoderReport(**{**row, "readings": tuple(row["readings"])})
            for row in data.get("encoders", ())
        )
        layers = tuple(LayerReport(**row) for row in data["layers"])
        return cls(
            **{
                **data,
                "layers": layers,
                "encoders": encoders,
                "notes": tuple(data.get("notes", ())),
            }
        )


def frobenius(factors: LowRank) -> float:
    """||B A||_F without forming the matrix."""
    B, A = factors.B.double(), factors.A.double()
    return float(((B.T @ B) * (A @ A.T)).sum().clamp_min(0).sqrt())


def most(limit: float, concepts: int) -> tuple[float, str]:
    """How large an edit of so many concepts may be, if one's may be `limit`, and that in words.

    Edits that have nothing in common add in squares.
    """
    return limit * math.sqrt(
        concepts
    ), f"max_edit_size={limit:g}" + f" times the root of {concepts} concepts" * (concepts > 1)


def layer_report(
    name: str, weight: Tensor, factors: LowRank, step: Step, *, limit: float, concepts: int = 1
) -> LayerReport:
    """The report of one layer.

    Raises:
        IllPosedError: The edit is larger than `most(limit, concepts)` times the weight.
    """
    size, edit = frobenius(factors) / float(weight.detach().double().norm()), step.edit
    bound, told = most(limit, concepts)
    if size > bound:
        raise IllPosedError(
            f"{name}: the edit is {size:.3g} times the weight, at most {told} is allowed (rank {factors.rank}, condition "
            f"{edit.condition:.1e}); edit an earlier block as well, use fewer templates, or raise max_edit_size"
        )
    return LayerReport(
        name, factors.rank, size, edit.condition, step.gap, edit.constraints, edit.dropped, edit.cut
    )


def worst(parts: Sequence[Report]) -> Report:
    """One report for several encoders: the worst of each number, the layers of all."""
    first = max(parts, key=lambda r: r.listed_residual)
    return replace(
        first,
        held_out_residual=max(r.held_out_residual for r in parts),
        held_out_mean=max(r.held_out_mean for r in parts),
        drift=max(r.drift for r in parts),
        layers=tuple(layer for r in parts for layer in r.layers),
        encoders=tuple(encoder for r in parts for encoder in r.encoders),
    )
