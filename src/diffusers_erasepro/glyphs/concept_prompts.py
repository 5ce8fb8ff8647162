"""Captions that ask for a concept, and captions that do not: what an erasure is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..config.spec import Concept
from .captions import mention, phrase
from .world import FIRST, Scene, World, sample_scene

Pairs = list[tuple[str, Scene]]


def kind_of(world: World, concept: Concept) -> str:
    """Which field of a scene the concept is: "shape", "style" or "attribute"."""
    return (
        "shape"
        if concept.target in world.shapes
        else "style"
        if concept.target in world.styles
        else "attribute"
    )


def prompts_with(
    concept: Concept, n: int, *, seed: int, held_out: bool, world: World = FIRST
) -> Pairs:
    """`n` captions that ask for the concept, each with what it says."""
    rng, field, found = np.random.default_rng([seed, 1]), kind_of(world, concept), Pairs()
    for i in range(n):
        scene = mention(sample_scene(world, rng, second=0.0), rng)
        scene = replace(scene, shape=scene.shape or "square") if field != "shape" else scene
        scene = replace(scene, **{field: concept.words[i % len(concept.words)]})  # type: ignore[arg-type]
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
    """`n` captions that name none of the concepts, and another shape; or none, where `shape` is false.

    A caption that leaves the shape open has no one right picture: a breath decides which shape is drawn, and one such
    flip weighs more in a mean than a hundred pictures. So these are drawn, and told, apart.
    """
    rng, found = np.random.default_rng([seed, 2]), Pairs()
    words = {w for c in concepts for w in c.words}
    while len(found) < n:
        scene = mention(sample_scene(world, rng, second=0.0), rng)
        scene = scene if shape else replace(scene, shape=None)
        if (scene.shape is not None) == shape and not words & {
            scene.shape,
            scene.style,
            scene.attribute,
        }:
            found.append((phrase(world, scene, rng, held_out=held_out), scene))
    return found
