"""Prompt pairs of a spec: what is said, and what it shall mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..config.mentions import Mentions
from ..config.spec import Concept

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """A prompt with a concept in it."""

    text: str
    start: int
    """Characters `[start, stop)` are the concept."""
    stop: int

    @classmethod
    def of(cls, template: str, words: str) -> Prompt:
        at = template.index("{}")
        return cls(template.replace("{}", words), at, at + len(words))


@dataclass(frozen=True)
class Pair:
    """What is said, and what it shall mean."""

    target: Prompt
    anchor: Prompt

    @property
    def word(self) -> str:
        """The concept, as the prompt names it."""
        return self.target.text[self.target.start : self.target.stop]


def pairs_of(concepts: Sequence[Concept], kind: str, *, most: int | None = None) -> list[Pair]:
    """The pairs of one kind, "exact", "soft" or "held_out", each once; at most `most` of a word."""
    words: list[str] = []
    for concept in concepts:
        words += concept.words
    named = Mentions(words)
    pairs: dict[Pair, None] = {}
    for concept in concepts:
        for word in concept.words:
            for template in spread(_templates(concept, word, kind, named), most):
                target = Prompt.of(template, word)
                pairs[Pair(target, Prompt.of(template, concept.anchor))] = None
    return list(pairs)


def _templates(concept: Concept, word: str, kind: str, named: Mentions) -> tuple[str, ...]:
    """Only the target is held exactly.

    Words of one meaning arrive at the deep layers as nearly the same key, where different exact
    corrections (their lengths differ) cost drift: a synonym takes every template softly.

    A phrase that itself names a target ("a star by {}") would ask for that target back; only an
    exact one may.
    """
    if kind == "exact":
        return concept.exact if word == concept.target else ()
    soft = concept.soft if word == concept.target else (*concept.exact, *concept.soft)
    return tuple(t for t in (soft if kind == "soft" else concept.held_out) if t not in named)


def pairs_to_solve(concepts: Sequence[Concept], *, soft_budget: int) -> dict[str, list[Pair]]:
    """Pairs per kind, "exact" and "soft".

    Every word gets its share of `soft_budget`, and two soft ones at least.
    """
    share = max(2, soft_budget // sum(len(c.words) for c in concepts))
    return {"exact": pairs_of(concepts, "exact"), "soft": pairs_of(concepts, "soft", most=share)}


def spread(items: Sequence[T], most: int | None) -> list[T]:
    """At most `most` of `items`, evenly from first to last."""
    if most is None or len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]
