"""Residual and drift, measured at what the denoiser really reads, through the path the edit runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .factors import LowRank
from .prompts import Rows, token_ids
from .walk import edited, final_states

DRIFT_PROMPTS = 128


def aligned_states(encoder: nn.Module, rows: Rows, edits: Mapping[str, LowRank]) -> tuple[Tensor, Tensor]:
    """Target states under `edits` and anchor states without, `(k, d)` each, at the aligned positions."""
    goal = final_states(encoder, rows.anchor_ids)[rows.row, rows.anchor_at]
    with edited(encoder, edits):
        have = final_states(encoder, rows.target_ids)[rows.row, rows.target_at]
    return have, goal


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


def drift_of(encoder: nn.Module, tokenizer: Any, captions: Sequence[str], edits: Mapping[str, LowRank]) -> float:
    """Mean relative change of the captions' states, over all positions."""
    ids = token_ids(tokenizer, captions[:DRIFT_PROMPTS])
    before = final_states(encoder, ids)
    with edited(encoder, edits):
        after = final_states(encoder, ids)
    return float(relative(after, before).mean())
