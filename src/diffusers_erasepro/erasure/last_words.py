"""Whether an edit tells a name of several words from others that end in the same word."""

from __future__ import annotations

from dataclasses import dataclass

from ..adapters.report import HALF_LEFT
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


@dataclass(frozen=True)
class Moved:
    """How far an edit moves a name and others with its last word.

    Each is a share of the way from the name to its anchor, in what the denoiser reads where the
    others move most.
    """

    others: float
    """The mean over the names tried."""
    name: float


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
            moved = _measure_moved(planning, concept, edits)
        except ConceptSpecError:  # this tokenizer lacks the words to ask with
            continue
        if moved.others >= SHARE:
            notes.append(describe_moved(concept, moved))
    return tuple(notes)


def describe_moved(concept: Concept, moved: Moved) -> str:
    """What to expect of other names that end in the same word, and what to do."""
    last = concept.target.split()[-1]
    own = f"{concept.target!r} itself {moved.name:.0%}"
    if moved.name < 1 - HALF_LEFT:
        own += ", which is too little, so expect to see it too"
    return (
        f"{CANNOT_TELL} {concept.target!r} from its last word: other names that end in {last!r} "
        f"go {moved.others:.0%} of the way to {concept.anchor!r} ({own}); generate some of them "
        f"before you rely on the erasure, or erase {last!r} as a whole"
    )


def _measure_moved(planning: Planning, concept: Concept, edits: dict[str, LowRank]) -> Moved:
    """How far the edit moves the name and others with its last word."""
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
        named = target_states(encoder, own, readings)
    found = []
    for (have, goal), old, new, name in zip(gaps, before, after, named, strict=True):
        way = (goal - have).norm(dim=-1).mean()
        others = (new - old).norm(dim=-1).mean() / way
        left = (goal - name).norm(dim=-1).mean() / way
        found.append(Moved(float(others), max(0.0, 1 - float(left))))
    return max(found, key=lambda moved: moved.others)
