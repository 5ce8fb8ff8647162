"""How selective an edit is: what is left of the concept, and what else moves.

Everything is measured on phrases and captions that set no threshold and no gap, but for `listed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adapters.report import HALF_LEFT, ConceptLeft, Selectivity
from ..config.plan import ALIGNMENTS
from ..config.spec import Concept, ErasureSpec
from ..families.encoders import encoder_family_of
from ..families.types import Reading
from ..linalg.low_rank import LowRank
from ..modules.linear import dtype_of
from ..prompts.alignment import Rows, kept_rows, readable, rows_of
from ..prompts.pairs import Pair, pairs_of, spread
from ..prompts.tokens import TextPath, Tokens, tokenizer_of
from .sites.gates import CAPTIONS
from .sites.planning import Planning
from .states import edited, states_of

PHRASES = 24
"""Held-out phrasings that are measured, at most, and near misses."""
WATCHED = 100
"""Captions that are measured, at most."""
CONCEPTS = 100
"""Concepts that are measured one by one, at most, evenly spread."""
PER_CONCEPT = 8
"""Listed prompts of all concepts there, and held-out ones; two of each word at least."""
POSITIONS = 8192
"""Token positions that are read of held-out phrasings, of near misses and of captions each, where
every prompt runs at full length: 16 prompts of T5's 512."""
FEWEST = 8
"""Texts of each that are measured all the same."""
FIRED = 0.1
"""Relative change of a token's state from which a caption counts as hit."""
AGREEING = 1e-4
"""||target - anchor|| / ||anchor|| up to which a position asks for nothing, in float32; of
narrower floats twice their spacing."""
MUCH_LEFT = "the edit leaves"
"""How the note on a name begins that is still half there."""
ReadStates = Callable[[Tokens], Tensor]
"""What the denoiser receives of prompts, `(n, length, d)`."""


@dataclass(frozen=True)
class Compared:
    """One text encoder with an erasure, and without it."""

    path: TextPath
    erased: ReadStates
    unedited: ReadStates


@dataclass(frozen=True)
class KindsOfPosition:
    """The aligned positions of prompt pairs, by kind."""

    rows: Rows
    kinds: list[str]
    """Per column of `rows`: "name", "other", "ends" or "padding"."""
    unmatched: dict[int, list[int]]
    """Row -> positions of the target prompt that are read and have no counterpart."""


def read_state_by_position(path: TextPath) -> Reading | None:
    """The first of a pipeline's readings of an encoder that has a state per position."""
    return next((reading for reading in path.use.readings if not reading.pooled), None)


def measure_selectivity(planning: Planning, edits: Mapping[str, LowRank]) -> Selectivity | None:
    """What is left and what else moves; None where the pipeline reads no state per position.

    Args:
        planning: Of one encoder, in float32.
        edits: By linear of that encoder.
    """
    reading = read_state_by_position(planning.path)
    if reading is None:
        return None
    encoder = planning.encoder

    def unedited(tokens: Tokens) -> Tensor:
        return states_of(encoder, tokens, [reading])[0]

    def erased(tokens: Tokens) -> Tensor:
        with edited(encoder, edits):
            return unedited(tokens)

    return compare(Compared(planning.path, erased, unedited), planning.spec)


def compare(encoder: Compared, spec: ErasureSpec) -> Selectivity:
    """What is left of all concepts together, and what else moves."""
    most = most_texts(encoder.path)
    phrases = min(PHRASES, most)
    share = max(1, phrases // sum(len(concept.words) for concept in spec.concepts))
    pairs = pairs_of(spec.concepts, "held_out", most=share)
    held_out = spread(readable(pairs, encoder.path), phrases)
    near = relative_changes(encoder, spread(spec.held_out_near_prompts(), phrases))
    captions = spec.preserve_captions()
    seen = {*spread(captions, CAPTIONS)}
    unseen = [text for text in captions if text not in seen] or list(captions)
    drift = relative_changes(encoder, spread(unseen, min(WATCHED, most)))
    return Selectivity(
        left=measure_left(encoder, held_out)[0],
        near=_mean(near),
        near_worst=max([0.0, *(float(x.max()) for x in near)]),
        drift=_mean(drift),
        fires=sum(bool((x > FIRED).any()) for x in drift),
        captions=len(drift),
    )


def most_texts(path: TextPath) -> int:
    """How many prompts are measured: fewer where padding is attended to and so must run too."""
    one = path.tokens(["a"])
    return max(FEWEST, POSITIONS // one.ids.shape[1]) if _run_whole(path, one) else WATCHED


def _run_whole(path: TextPath, tokens: Tokens) -> bool:
    """Whether the text attends to what follows it, so that no position may be left out."""
    return tokens.mask is None and not encoder_family_of(path.encoder).causal


def notes_on_left(where: str, found: Selectivity | None) -> list[str]:
    """What a report says where a residual of zero on listed prompts says too little.

    Args:
        where: The text encoder.
        found: As measured there; None where nothing has a state per position.
    """
    share = 0.0 if found is None else found.left.get("name", 0.0)
    if share <= HALF_LEFT:
        return []
    return [
        f"{MUCH_LEFT} {share:.2f} of the gap between name and anchor, at the name itself in "
        f"phrasings that are not listed ({where}): expect pictures of it. The report's notes say "
        "which tokens have neither row nor gate. If the word is meant as well ('cat' of 'cat "
        "face'), give it as a synonym; leave out captions of near and preserve that share a word "
        "with the name; and look at pictures"
    ]


def left_by_concept(encoder: Compared, concepts: Sequence[Concept]) -> dict[str, ConceptLeft]:
    """By target, what is left of each concept."""
    some = spread(concepts, CONCEPTS)
    share = max(2, PER_CONCEPT // sum(len(concept.words) for concept in some))
    targets: dict[str, str] = {}
    for concept in some:
        targets |= dict.fromkeys(concept.words, concept.target)
    left: dict[str, dict[str, dict[str, float]]] = {t: {} for t in targets.values()}
    unmatched: dict[str, dict[str, list[int]]] = {t: {} for t in targets.values()}
    for kind in ("exact", "held_out"):
        pairs = readable(pairs_of(some, kind, most=share), encoder.path)
        whose = [targets[pair.word] for pair in pairs]
        for target, found in left_by_group(encoder, pairs, whose).items():
            left[target][kind] = found.by_kind
            unmatched[target] |= found.unmatched
    return {
        target: ConceptLeft(found.get("exact", {}), found.get("held_out", {}), unmatched[target])
        for target, found in left.items()
    }


def measure_left(
    encoder: Compared, pairs: Sequence[Pair]
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """sum ||edited - anchor|| / sum ||target - anchor||, by kind of position.

    1 is nothing erased, 0 all of it. Positions where target and anchor agree anyway, as before the
    name in a causal encoder, do not count, and a kind without others is left out.

    Returns:
        The shares; and by prompt the positions that have no counterpart in the anchor's.
    """
    found = left_by_group(encoder, pairs, [""] * len(pairs)).get("", Left())
    return found.by_kind, found.unmatched


@dataclass(frozen=True)
class Left:
    """What is left of the gap between some prompts and their anchors'."""

    by_kind: dict[str, float] = field(default_factory=dict)
    """Kind of position -> share, as of `measure_left`."""
    whole: float = math.nan
    """The share over all positions together; NaN where target and anchor agree everywhere."""
    unmatched: dict[str, list[int]] = field(default_factory=dict)
    """Prompt -> its positions that have no counterpart in the anchor's."""


def left_by_group(
    encoder: Compared, pairs: Sequence[Pair], groups: Sequence[str]
) -> dict[str, Left]:
    """What is left of the pairs of every group, in one run of the encoder."""
    if not pairs:
        return {}
    aligned = kinds_of_positions(pairs, encoder.path)
    rows = aligned.rows
    before = encoder.unedited(rows.target)[rows.row, rows.target_at].double().cpu()
    goal = encoder.unedited(rows.anchor)[rows.row, rows.anchor_at].double().cpu()
    now = encoder.erased(rows.target)[rows.row, rows.target_at].double().cpu()
    gap = (before - goal).norm(dim=-1)
    rest = (now - goal).norm(dim=-1)
    agreeing = max(AGREEING, 2 * torch.finfo(dtype_of(encoder.path.encoder)).eps)
    asked = gap > agreeing * goal.norm(dim=-1)
    found = {}
    for group in dict.fromkeys(groups):
        left = {}
        counted = torch.zeros_like(asked)
        for kind in dict.fromkeys(aligned.kinds):
            mine = _find_marked(aligned, groups, group, kind) & asked
            counted |= mine
            if mine.any():
                left[kind] = float(rest[mine].sum() / gap[mine].sum())
        lacking = {}
        for row, places in aligned.unmatched.items():
            if groups[row] == group:
                lacking[pairs[row].target.text] = places
        whole = float(rest[counted].sum() / gap[counted].sum())  # NaN of nothing
        found[group] = Left(left, whole, lacking)
    return found


def _find_marked(aligned: KindsOfPosition, groups: Sequence[str], group: str, kind: str) -> Tensor:
    """Which columns are of this kind, in rows of this group."""
    of_rows = [groups[row] == group for row in aligned.rows.row.tolist()]
    of_kind = [other == kind for other in aligned.kinds]
    return torch.tensor(of_rows) & torch.tensor(of_kind)


def kinds_of_positions(pairs: Sequence[Pair], path: TextPath) -> KindsOfPosition:
    """Every position that is read and has a counterpart in the anchor's prompt, and its kind."""
    whole = rows_of(pairs, path, ALIGNMENTS["all"])
    by_kind = {
        "name": _columns(rows_of(pairs, path, ALIGNMENTS["subject"], with_pooled=False)),
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
    special = {*tokenizer_of(path).all_special_ids}
    for row, start in first.items():
        for at in range(start):
            end = int(whole.target_ids[row, at]) in special
            kinds.setdefault((row, at, at), "ends" if end else "other")
    read = whole.target.read, whole.anchor.read
    kept = {(r, t, a): kind for (r, t, a), kind in kinds.items() if read[0][r, t] and read[1][r, a]}
    aligned = {(row, at) for row, at, _ in kept}
    unmatched: dict[int, list[int]] = {}
    for row, at in read[0].nonzero().tolist():
        if (row, at) not in aligned:
            unmatched.setdefault(row, []).append(at)
    row, target_at, anchor_at = torch.tensor(list(kept), dtype=torch.long).T
    rows = Rows(whole.target, whole.anchor, row, target_at, anchor_at)
    return KindsOfPosition(rows, list(kept.values()), unmatched)


def _columns(rows: Rows) -> list[tuple[int, int, int]]:
    return list(
        zip(rows.row.tolist(), rows.target_at.tolist(), rows.anchor_at.tolist(), strict=True)
    )


def relative_changes(encoder: Compared, texts: Sequence[str]) -> list[Tensor]:
    """Per text, the relative change of the state at each of its positions."""
    if not texts:
        return []
    rows = kept_rows(texts, encoder.path)
    tokens = rows.target
    if not _run_whole(encoder.path, tokens):
        tokens = tokens.cut(rows.length)
    before = encoder.unedited(tokens).double()
    change = (encoder.erased(tokens).double() - before).norm(dim=-1)
    at = (change / before.norm(dim=-1))[rows.row, rows.target_at]
    return [at[rows.row == i] for i in range(len(texts))]


def _mean(parts: Sequence[Tensor]) -> float:
    return float(torch.stack([x.mean() for x in parts]).mean()) if parts else float("nan")
