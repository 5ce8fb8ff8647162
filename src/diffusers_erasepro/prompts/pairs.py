"""Prompt pairs of a spec: what is said, and what it shall mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

from ..config.mentions import Mentions
from ..config.spec import Concept
from ..config.words import NUMBERS, SLOT, fill, is_plural, noun_of, other_number

T = TypeVar("T")
SHARE_OF_FORMS = 4
"""One in so many of the soft budget: on top for other forms of the words, and for other
languages."""
MOST_OF_A_NAME = 3
"""Soft prompts of a name in another language: the phrases around it are English."""
_SINGULAR = re.compile(
    r"\b(?:an? [\w-]+|one|this|that|every|each|another|which|(?:is|was|stands) an?) \{\}", re.I
)
"""A phrase that takes no plural: "an old {}"; elsewhere the article of "a {}" is dropped."""


@dataclass(frozen=True)
class Prompt:
    """A prompt with a concept in it."""

    text: str
    start: int
    """Characters `[start, stop)` are the concept."""
    stop: int

    @classmethod
    def of(cls, template: str, words: str) -> Prompt:
        """The template with the words in its slot, articles as the words ask for."""
        text, at = fill(template, words)
        return cls(text, at, at + len(words))


@dataclass(frozen=True)
class Pair:
    """What is said, and what it shall mean."""

    target: Prompt
    anchor: Prompt
    stands_for: str | None = None
    """The word of the concept that the prompt has another form of, or names in another language."""
    foreign: bool = False
    """Whether the prompt names it in another language."""
    own: bool = field(default=False, compare=False)
    """Whether the phrase is of the one who wrote the spec, and not a shipped one."""

    @property
    def word(self) -> str:
        """The concept's word, as the prompt names it or as it stands in the spec."""
        return self.stands_for or self.target.text[self.target.start : self.target.stop]


def pairs_of(concepts: Sequence[Concept], kind: str, *, most: int | None = None) -> list[Pair]:
    """The pairs of one kind, "exact", "soft" or "held_out", each once; at most `most` of a word."""
    words: list[str] = []
    for concept in concepts:
        words += concept.words
    named = cache(Mentions(words).__contains__)  # concepts of one kind share their templates
    pairs: dict[Pair, None] = {}
    for concept in concepts:
        for turn, word in enumerate(concept.words):
            templates = _templates(concept, word, kind, named)
            for template in spread(templates, most, turn=turn):
                target = Prompt.of(template, word)
                anchor = Prompt.of(template, concept.anchor)
                pairs[Pair(target, anchor, own=template in concept.own_phrases)] = None
    return list(pairs)


def _templates(
    concept: Concept, word: str, kind: str, named: Callable[[str], bool]
) -> tuple[str, ...]:
    """Only the target is held exactly.

    Words of one meaning arrive at the deep layers as nearly the same key, where different exact
    corrections (their lengths differ) cost drift: a synonym takes every template softly.

    A phrase that itself names a target ("a star by {}") would ask for that target back; only an
    exact one may.
    """
    if kind == "exact":
        return concept.exact if word == concept.target else ()
    soft = concept.soft if word == concept.target else (*concept.exact, *concept.soft)
    found = soft if kind == "soft" else concept.held_out
    if concept.kind.countable and is_plural(word):
        plural = concept.kind.plural_soft if kind == "soft" else concept.kind.plural_held_out
        found = (*plural, *(t for t in found if not _SINGULAR.search(t)))
    return tuple(t for t in found if not named(t))


def pairs_of_forms(concepts: Sequence[Concept], *, most: int) -> list[Pair]:
    """Soft pairs of the words' other forms, at most `most` in all; the plural's come first."""
    found: list[list[Pair]] = [[], []]
    for concept in concepts:
        for word, form in concept.forms:
            anchor = concept.anchor if noun_of(word) == word else noun_of(concept.anchor)
            templates = [SLOT, *concept.exact[:1]]
            of_number = form.kind in NUMBERS
            if of_number:
                other = other_number(anchor)
                anchor = other.text if other and other.kind == form.kind else anchor
                if form.kind == "plural" and not isinstance(concept.templates, tuple):
                    templates = [*concept.kind.plural_soft, SLOT]
            if form.kind in ("noun", "possessive"):
                templates = templates[:1]
            for template in templates:
                target = Prompt.of(template, form.text)
                pair = Pair(target, Prompt.of(template, anchor), stands_for=word)
                found[0 if of_number else 1].append(pair)
    first = spread(found[0], most - most // 3 if found[1] else most)
    return [*first, *spread(found[1], most - len(first))]


def pairs_of_names(concepts: Sequence[Concept], *, most: int) -> list[Pair]:
    """Soft pairs of what the concepts are called in other languages: one to three of each."""
    names = sum(len(concept.foreign) for concept in concepts)
    share = min(MOST_OF_A_NAME, max(1, most // max(1, names)))
    found = []
    for concept in concepts:
        for name in concept.foreign:
            for template in spread((SLOT, *concept.exact, *concept.soft), share):
                target = Prompt.of(template, name)
                anchor = Prompt.of(template, concept.anchor)
                found.append(Pair(target, anchor, stands_for=concept.target, foreign=True))
    return found


def pairs_to_solve(concepts: Sequence[Concept], *, soft_budget: int) -> dict[str, list[Pair]]:
    """Pairs per kind, "exact" and "soft".

    Every word gets its share of `soft_budget`, and two soft ones at least; what it is written like
    otherwise, and called in other languages, a quarter of the budget each on top.
    """
    share = max(2, soft_budget // sum(len(c.words) for c in concepts))
    extra = soft_budget // SHARE_OF_FORMS
    soft = pairs_of(concepts, "soft", most=share)
    soft += pairs_of_forms(concepts, most=extra)
    soft += pairs_of_names(concepts, most=extra)
    return {"exact": pairs_of(concepts, "exact"), "soft": soft}


def spread(items: Sequence[T], most: int | None, *, turn: int = 0) -> list[T]:
    """At most `most` of `items`, evenly from first to last.

    With another `turn` all but the first are others, so that words take turns.
    """
    if most is None or len(items) <= most:
        return list(items)
    if not turn or most < 2:
        return [items[i * len(items) // most] for i in range(most)]
    rest = items[1:]
    places = [(i * len(rest) // (most - 1) + turn) % len(rest) for i in range(most - 1)]
    return [items[0], *(rest[place] for place in sorted(places))]
