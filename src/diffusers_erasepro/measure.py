"""Residual and drift, measured at what the denoiser really reads, through the path the edit runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .factors import LowRank
from .families import Reading
from .prompts import Rows, TextPath
from .walk import edited, states_of

DRIFT_PROMPTS = 128


def target_states(encoder: nn.Module, rows: Rows, readings: Sequence[Reading]) -> list[Tensor]:
    """What each reading has of the targets: `(k, d)` at the aligned positions, `(n, d)` if pooled."""
    if not len(rows):
        return [torch.zeros(0, 1) for _ in readings]
    states = states_of(encoder, rows.target, readings)
    return [s[:, 0] if r.pooled else s[rows.row, rows.target_at] for r, s in zip(readings, states, strict=True)]


def anchor_states(encoder: nn.Module, rows: Rows, readings: Sequence[Reading]) -> list[Tensor]:
    """As `target_states`, of the anchors."""
    return target_states(encoder, Rows(rows.anchor, rows.target, rows.row, rows.anchor_at, rows.target_at), readings)


def aligned_states(
    encoder: nn.Module, rows: Rows, readings: Sequence[Reading], edits: Mapping[str, LowRank]
) -> list[tuple[Tensor, Tensor]]:
    """Per reading the targets' states under `edits` and the anchors' without."""
    goals = anchor_states(encoder, rows, readings)
    with edited(encoder, edits):
        return list(zip(target_states(encoder, rows, readings), goals, strict=True))


def relative(have: Tensor, goal: Tensor) -> Tensor:
    """||have - goal|| / ||goal|| per row."""
    return (have.double() - goal.double()).norm(dim=-1) / goal.double().norm(dim=-1)


def read_residual(have: Tensor, goal: Tensor, readers: Sequence[tuple[Tensor, LowRank]]) -> Tensor:
    """Residual per position: of the states, or of what edited readers make of them, whichever reader is worst."""
    if not readers:
        return relative(have, goal)
    have, goal = have.double(), goal.double()
    each = [relative(have @ W.double().T + f.to(torch.float64)(have), goal @ W.double().T) for W, f in readers]
    return torch.stack(each).max(0).values


def drift_of(encoder: nn.Module, path: TextPath, captions: Sequence[str], edits: Mapping[str, LowRank]) -> float:
    """Mean relative change of the captions' states, over all positions that are read."""
    tokens, readings = path.tokens(captions[:DRIFT_PROMPTS]), path.use.readings
    before = states_of(encoder, tokens, readings)
    with edited(encoder, edits):
        after = states_of(encoder, tokens, readings)
    read = tokens.read.to(before[0].device)
    changes = [relative(a, b) if r.pooled else relative(a, b)[read] for r, a, b in zip(readings, after, before, strict=True)]
    return float(torch.cat([change.flatten() for change in changes]).mean())
