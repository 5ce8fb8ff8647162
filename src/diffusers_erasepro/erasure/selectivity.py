"""How selective an edit is: what is left of the concept, and what else moves.

Everything is measured on phrases and captions that set no threshold and no gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters.report import Selectivity
from ..config.plan import ALIGNMENTS
from ..families.types import Reading
from ..linalg.low_rank import LowRank
from ..prompts.alignment import Rows, kept_rows, rows_of
from ..prompts.pairs import Pair, pairs_of, spread
from ..prompts.tokens import TextPath
from .sites.gates import CAPTIONS
from .sites.planning import Planning
from .states import edited, states_of

PHRASES = 24
"""Held-out phrasings that are measured, at most, and near misses."""
WATCHED = 100
"""Captions that are measured, at most."""
FIRED = 0.1
"""Relative change of a token's state from which a caption counts as hit."""


@dataclass(frozen=True)
class KindsOfPosition:
    """The aligned positions of prompt pairs, by kind."""

    rows: Rows
    kinds: list[str]
    """Per column of `rows`: "name", "other", "ends" or "padding"."""


def measure_selectivity(planning: Planning, edits: Mapping[str, LowRank]) -> Selectivity | None:
    """What is left and what else moves; None where the pipeline reads no state per position.

    Args:
        planning: Of one encoder, in float32.
        edits: By linear of that encoder.
    """
    path = planning.path
    readings = [reading for reading in path.use.readings if not reading.pooled][:1]
    if not readings:
        return None
    spec = planning.spec
    held_out = spread(pairs_of(spec.concepts, "held_out"), PHRASES)
    left: dict[str, float] = {}
    if held_out:
        left = measure_left(planning.encoder, kinds_of_positions(held_out, path), readings, edits)
    near = _moved(planning, spread(spec.held_out_near_prompts(), PHRASES), readings, edits)
    captions = spec.preserve_captions()
    seen = {*spread(captions, CAPTIONS)}
    unseen = [text for text in captions if text not in seen] or list(captions)
    drift = _moved(planning, spread(unseen, WATCHED), readings, edits)
    return Selectivity(
        left=left,
        near=_mean(near),
        near_worst=max([0.0, *(float(x.max()) for x in near)]),
        drift=_mean(drift),
        fires=sum(bool((x > FIRED).any()) for x in drift),
        captions=len(drift),
    )


def measure_left(
    encoder: nn.Module,
    aligned: KindsOfPosition,
    readings: Sequence[Reading],
    edits: Mapping[str, LowRank],
) -> dict[str, float]:
    """sum ||edited - anchor|| / sum ||target - anchor||, by kind of position.

    1 is nothing erased, 0 all of it. A kind where target and anchor agree anyway, as before the
    name in a causal encoder, is left out.
    """
    rows = aligned.rows
    (target,) = states_of(encoder, rows.target, readings)
    (anchor,) = states_of(encoder, rows.anchor, readings)
    with edited(encoder, edits):
        (now,) = states_of(encoder, rows.target, readings)
    goal = anchor[rows.row, rows.anchor_at].double()
    gap = (target[rows.row, rows.target_at].double() - goal).norm(dim=-1)
    open_ = (now[rows.row, rows.target_at].double() - goal).norm(dim=-1)
    found = {}
    for kind in dict.fromkeys(aligned.kinds):
        mine = torch.tensor([k == kind for k in aligned.kinds])
        whole = float(gap[mine].sum())
        if whole > 1e-6 * float(goal[mine].norm(dim=-1).sum()):
            found[kind] = float(open_[mine].sum()) / whole
    return found


def kinds_of_positions(pairs: Sequence[Pair], path: TextPath) -> KindsOfPosition:
    """Every position of the prompts that has a counterpart in the anchor's, and its kind."""
    whole = rows_of(pairs, path, ALIGNMENTS["all"])
    by_kind = {
        "name": _columns(rows_of(pairs, path, ALIGNMENTS["subject"])),
        "ends": _columns(rows_of(pairs, path, ALIGNMENTS["last_subject+eos"])),
        "other": _columns(rows_of(pairs, path, ALIGNMENTS["subject_to_eos"])),
        "padding": _columns(whole),
    }
    kinds: dict[tuple[int, int, int], str] = {}
    for kind, columns in by_kind.items():
        for column in columns:
            kinds.setdefault(column, kind)
    first: dict[int, int] = {}
    for row, at, _ in by_kind["name"]:
        first[row] = min(at, first.get(row, at))
    for row, start in first.items():
        for at in range(start):
            kinds.setdefault((row, at, at), "other" if at else "ends")
    row, target_at, anchor_at = torch.tensor(list(kinds), dtype=torch.long).T
    rows = Rows(whole.target, whole.anchor, row, target_at, anchor_at)
    return KindsOfPosition(rows, list(kinds.values()))


def _columns(rows: Rows) -> list[tuple[int, int, int]]:
    return list(
        zip(rows.row.tolist(), rows.target_at.tolist(), rows.anchor_at.tolist(), strict=True)
    )


def _moved(
    planning: Planning,
    texts: Sequence[str],
    readings: Sequence[Reading],
    edits: Mapping[str, LowRank],
) -> list[Tensor]:
    """Per text, the relative change of the state at each of its positions."""
    if not texts:
        return []
    rows = kept_rows(texts, planning.path)
    (before,) = states_of(planning.encoder, rows.target, readings)
    with edited(planning.encoder, edits):
        (after,) = states_of(planning.encoder, rows.target, readings)
    change = (after - before).double().norm(dim=-1) / before.double().norm(dim=-1)
    at = change[rows.row, rows.target_at]
    return [at[rows.row == i] for i in range(len(texts))]


def _mean(parts: Sequence[Tensor]) -> float:
    return float(torch.stack([x.mean() for x in parts]).mean()) if parts else float("nan")
