"""Whether an edit tells a name of several words from others that end in the same word."""

from __future__ import annotations

import torch

from ..config.mentions import Mentions, same_words
from ..config.spec import Concept
from ..errors import ConceptSpecError
from ..linalg.low_rank import LowRank
from ..prompts.alignment import rows_of
from ..prompts.pairs import Pair, Prompt
from .layerwise import Walk
from .residuals import anchor_states, target_states
from .sites.planning import Planning
from .states import edited

CANNOT_TELL = "the edit cannot tell"
"""How each note begins."""
OTHERS = ("blue", "old", "other")
"""What stands before the last word instead of the name's own words."""
SHARE = 0.25
"""Of the way from target to anchor: from here on, images of other names change too."""
MOST_CONCEPTS = 16
"""Concepts that are looked at, at most."""


def notes_on_last_words(planning: Planning, done: Walk) -> tuple[str, ...]:
    """One note per concept whose last word the edit takes with it.

    Erasing "red star" must leave "blue star" alone. The last word's position answers for the name,
    and its state is much the same in both.
    """
    edits = done.edits_of(planning.path.use.encoder)
    named = [concept for concept in planning.spec.concepts if len(concept.target.split()) > 1]
    notes = []
    for concept in named[:MOST_CONCEPTS]:
        try:
            share = _share_moved(planning, concept, edits)
        except ConceptSpecError:  # this tokenizer lacks the words to ask with
            continue
        if share >= SHARE:
            last = concept.target.split()[-1]
            notes.append(
                f"{CANNOT_TELL} {concept.target!r} from its last word: other names that end "
                f"in {last!r} go {share:.0%} of the way to {concept.anchor!r}; look at what they "
                f"generate before you rely on them, or erase {last!r} as a whole"
            )
    return tuple(notes)


def _share_moved(planning: Planning, concept: Concept, edits: dict[str, LowRank]) -> float:
    """How far the edit moves other names with the last word, as a share of target to anchor.

    The mean over the names, in what the denoiser reads where that moves most.
    """
    encoder = planning.encoder
    readings = planning.path.use.readings
    template = concept.exact[0]
    anchor = Prompt.of(template, concept.anchor)
    last = concept.target.split()[-1]
    words = [word for word in OTHERS if word not in Mentions(concept.target.split())]
    names = [f"{word} {last}" for word in words]
    names = [name for name in names if not same_words(name, concept.anchor)]
    alignment = planning.plan.alignment_of(concept)
    target = Pair(Prompt.of(template, concept.target), anchor)
    others = [Pair(Prompt.of(template, name), anchor) for name in names]
    own = rows_of([target], planning.path, alignment)
    rows = rows_of(others, planning.path, alignment)
    gaps = zip(
        target_states(encoder, own, readings), anchor_states(encoder, own, readings), strict=True
    )
    before = target_states(encoder, rows, readings)
    with edited(encoder, edits):
        after = target_states(encoder, rows, readings)
    shares = []
    for (have, goal), old, new in zip(gaps, before, after, strict=True):
        shares.append((new - old).norm(dim=-1).mean() / (goal - have).norm(dim=-1).mean())
    return float(torch.stack(shares).max())
