"""Residual and drift at what the denoiser really reads, through the path the edit runs on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..families.encoders import encoder_family_of
from ..families.types import LAST, Reading
from ..linalg.low_rank import LowRank
from ..modules.linear import rounds_inputs
from ..prompts.alignment import Rows
from .states import edited, states_of


def target_states(encoder: nn.Module, rows: Rows, readings: Sequence[Reading]) -> list[Tensor]:
    """What each reading has of the targets: `(k, d)` at the aligned positions, `(n, d)` if pooled.

    Where attention is causal, what comes after the last aligned position matters to none, and is
    cut. Where inputs are rounded to 8 bits every prompt runs as in a call, whole and alone: in
    another company its roundings are others.
    """
    if not len(rows):
        return [torch.zeros(0, 1, dtype=torch.float32) for _ in readings]
    if rounds_inputs(encoder):
        each = [states_of(encoder, rows.target[i : i + 1], readings) for i in range(len(rows))]
        states = [torch.cat(same) for same in zip(*each, strict=True)]
    else:
        causal = encoder_family_of(encoder).causal
        tokens = rows.target.cut(rows.length) if causal else rows.target
        states = states_of(encoder, tokens, readings)
    return [
        s[:, 0] if r.pooled else s[rows.row, rows.target_at]
        for r, s in zip(readings, states, strict=True)
    ]


def anchor_states(encoder: nn.Module, rows: Rows, readings: Sequence[Reading]) -> list[Tensor]:
    """What the denoiser reads of the anchors, per reading, as `target_states` of the targets."""
    return target_states(
        encoder, Rows(rows.anchor, rows.target, rows.row, rows.anchor_at, rows.target_at), readings
    )


def aligned_states(
    encoder: nn.Module, rows: Rows, edits: Mapping[str, LowRank]
) -> tuple[Tensor, Tensor]:
    """Target states under `edits` and anchor states without, `(k, d)` at aligned positions."""
    (goal,) = anchor_states(encoder, rows, [LAST])
    with edited(encoder, edits):
        (have,) = target_states(encoder, rows, [LAST])
    return have, goal


def relative(have: Tensor, goal: Tensor) -> Tensor:
    """||have - goal|| / ||goal|| per row."""
    return (have.double() - goal.double()).norm(dim=-1) / goal.double().norm(dim=-1)


def largest(values: Iterable[float | Tensor]) -> float:
    """The maximum; NaN if one is NaN, which Python's `max` would pass over.

    Nothing measured is infinite.
    """
    found = [torch.as_tensor(v, dtype=torch.float64).max() for v in values]
    return float(torch.stack(found).max()) if found else float("inf")


def read_residual(have: Tensor, goal: Tensor, readers: Sequence[tuple[Tensor, LowRank]]) -> Tensor:
    """Residual per position: of the states, or of what the worst edited reader makes of them."""
    if not readers:
        return relative(have, goal)
    have = have.double()
    goal = goal.double()
    each = [
        relative(have @ W.double().T + f.to(torch.float64)(have), goal @ W.double().T)
        for W, f in readers
    ]
    return torch.stack(each).max(0).values
