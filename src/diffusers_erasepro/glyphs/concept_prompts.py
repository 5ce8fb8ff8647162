"""Captions that ask for a concept, and captions that do not: what an erasure is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..config.spec import Concept
from ..errors import EvaluationError
from .captions import mention, phrase
from .world import FIRST, Scene, World, sample_scene

Pairs = list[tuple[str, Scene]]


def kind_of(world: World, concept: Concept) -> str:
    """Which field of a scene the concept is: "shape", "style" or "attribute".

    Raises:
        EvaluationError: The world has no such concept, so that its judge cannot see it.
    """
    fields = {"shape": world.shapes, "style": world.styles, "attribute": world.attribute_words}
    for field, words in fields.items():
        if concept.target in words:
            return field
    known = "; ".join(", ".join(words) for words in fields.values())
    raise EvaluationError(
        f"the glyph world has no {concept.target!r}, so its judge cannot see it; it knows {known}. "
        "For other concepts evaluate with a Suite of your own prompts and judge"
    )


def prompts_with(
    concept: Concept, n: int, *, seed: int, held_out: bool, world: World = FIRST
) -> Pairs:
    """`n` captions that ask for the concept, each with what it says."""
    rng = np.random.default_rng([seed, 1])
    field = kind_of(world, concept)
    found = Pairs()
    for i in range(n):
        scene = mention(sample_scene(world, rng, second=0.0), rng)
        if field != "shape":
            scene = replace(scene, shape=scene.shape or "square")
        word = concept.words[i % len(concept.words)]
        scene = replace(scene, **{field: word})  # type: ignore[arg-type]
        found.append((phrase(world, scene, rng, held_out=held_out), scene))
    return found


def prompts_without(
    concepts: Sequence[Concept],
    n: int,
    *,
    seed: int,
    held_out: bool,
    world: World = FIRST,
    shape: bool = True,
) -> Pairs:
    """`n` captions that name none of the concepts.

    They name another shape; or none, where `shape` is false.

    A caption that leaves the shape open has no one right image: a tiny change decides which shape
    is generated, and one such flip weighs more in a mean than a hundred images. So the two are
    generated and reported apart.
    """
    rng = np.random.default_rng([seed, 2])
    found = Pairs()
    words: set[str | None] = set()
    for concept in concepts:
        words |= {*concept.words}
    while len(found) < n:
        scene = mention(sample_scene(world, rng, second=0.0), rng)
        scene = scene if shape else replace(scene, shape=None)
        named = {scene.shape, scene.style, scene.attribute}
        if (scene.shape is not None) == shape and not words & named:
            found.append((phrase(world, scene, rng, held_out=held_out), scene))
    return found
