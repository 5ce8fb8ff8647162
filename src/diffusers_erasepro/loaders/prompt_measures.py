"""What is left of the concepts in prompts of one's own, and how far other prompts move."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..adapters.adapter import ErasureAdapter
from ..config.mentions import find_mention, replace_mentions
from ..config.spec import Concept
from ..erasure.selectivity import Compared, Left, left_by_group, relative_changes
from ..errors import ConceptSpecError
from ..patching.rwlock import WEIGHTS_LOCK
from ..prompts.alignment import readable
from ..prompts.pairs import Pair, Prompt
from .verification import active_edits, compare_live, edited_paths

UNMEASURED = "no text encoder of this pipeline has a state per position that the erasure edits"


@dataclass(frozen=True)
class PromptMeasure:
    """One prompt, at what the denoiser reads of it now."""

    text: str
    names: tuple[str, ...] = ()
    """Targets that it names."""
    left: float | None = None
    """Share of the gap to the anchor's prompt that is left, of the concept and the text encoder
    that fare worst; before the erasure it is 1. None where it names nothing erased, or cannot be
    measured."""
    left_by_kind: Mapping[str, float] = field(default_factory=dict)
    """The same by kind of position: "name", "other", "ends", "padding"."""
    moved: float | None = None
    """Mean relative change of the states of a prompt that names nothing erased."""
    note: str = ""
    """Why it could not be measured."""


@torch.no_grad()
def measure_prompts(pipe: Any, texts: Sequence[str]) -> list[PromptMeasure]:
    """What the erasures that are on do to each of some prompts.

    Every concept that a prompt names counts by itself: the others stand as their anchors on both
    sides.

    Args:
        pipe: The live pipeline.
        texts: Any prompts.

    Returns:
        One record per text, in their order.
    """
    found = [PromptMeasure(text) for text in dict.fromkeys(texts)]
    with WEIGHTS_LOCK.writing():  # prompts are compared with what the base makes of them
        for adapter in active_edits(pipe):
            found = [_with_names(one, adapter.spec.concepts) for one in found]
            encoders = [compare_live(path, adapter) for path in edited_paths(pipe, adapter)]
            for encoder in encoders:
                if encoder is not None:
                    found = _add_encoder(found, encoder, adapter)
            if not any(encoders):
                found = [replace(one, note=UNMEASURED) for one in found]
    known = {one.text: one for one in found}
    return [known[text] for text in texts]


def sort_by_left(measures: Sequence[PromptMeasure]) -> list[PromptMeasure]:
    """Those that name something erased, the worst first; what could not be measured before all."""
    naming = [one for one in measures if one.names]
    return sorted(naming, key=lambda one: -math.inf if one.left is None else -one.left)


def _with_names(one: PromptMeasure, concepts: Sequence[Concept]) -> PromptMeasure:
    named = [concept.target for concept in concepts if pair_in(one.text, concept, ()) is not None]
    return replace(one, names=tuple(dict.fromkeys([*one.names, *named])))


def _add_encoder(
    found: Sequence[PromptMeasure], encoder: Compared, adapter: ErasureAdapter
) -> list[PromptMeasure]:
    """The records, with what one text encoder has to say."""
    left, notes = _measure_left(found, encoder, adapter.spec.concepts)
    others = [one.text for one in found if not one.names]
    moved = dict(zip(others, relative_changes(encoder, others), strict=True))
    merged = []
    for one in found:
        one = replace(one, note=notes.get(one.text, one.note))
        worst = left.get(one.text)
        if worst is not None and (one.left is None or worst.whole > one.left):
            one = replace(one, left=worst.whole, left_by_kind=worst.by_kind)
        if one.text in moved:
            change = float(moved[one.text].mean())
            one = replace(one, moved=max(change, one.moved or 0.0))
        merged.append(one)
    return merged


def _measure_left(
    found: Sequence[PromptMeasure], encoder: Compared, concepts: Sequence[Concept]
) -> tuple[dict[str, Left], dict[str, str]]:
    """Prompt -> what is left of the concept that fares worst; prompt -> why it cannot be read."""
    pairs: list[Pair] = []
    texts: list[str] = []
    notes: dict[str, str] = {}
    for one in found:
        for concept in concepts:
            pair = pair_in(one.text, concept, concepts)
            if pair is None:
                continue
            try:
                pairs += readable([pair], encoder.path)
                texts += [one.text] * (len(pairs) - len(texts))
            except ConceptSpecError as error:
                notes[one.text] = str(error)
    worst: dict[str, Left] = {}
    each = [str(index) for index in range(len(pairs))]
    for index, measured in left_by_group(encoder, pairs, each).items():
        text = texts[int(index)]
        if text not in worst or measured.whole > worst[text].whole:
            worst[text] = measured
    return worst, notes


def pair_in(text: str, concept: Concept, concepts: Sequence[Concept]) -> Pair | None:
    """A prompt with its first mention of a concept, and the same with the anchor in its place.

    Whatever else it names of `concepts` stands as its anchor in both; None where it does not name
    `concept`.
    """
    for word in _longest_first(concept):
        found = find_mention(text, word)
        if found is None:
            continue
        start, stop = found
        head = _with_anchors(text[:start], concepts)
        tail = _with_anchors(text[stop:], concepts)
        name = text[start:stop]
        target = Prompt(head + name + tail, len(head), len(head) + len(name))
        anchored = head + concept.anchor + tail
        return Pair(target, Prompt(anchored, len(head), len(head) + len(concept.anchor)))
    return None


def _with_anchors(text: str, concepts: Sequence[Concept]) -> str:
    for concept in concepts:
        for word in _longest_first(concept):
            text = replace_mentions(text, word, concept.anchor)
    return text


def _longest_first(concept: Concept) -> list[str]:
    return sorted(concept.words, key=len, reverse=True)
