"""What exists in a glyph world: its words, and scenes made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class World:
    """The words of a world, each beside the drawing that `render` makes for it.

    Each dict maps a caption word to a drawing name, so a second world
    may use other words (and another order) for the same drawings.
    """

    name: str
    shapes: dict[str, str]
    styles: dict[str, str]
    """Invented artists. The one drawn "flat" is what captions without an artist get too."""
    colors: dict[str, str]
    backgrounds: dict[str, str]
    attribute_words: tuple[str, ...]
    """Words for the unsafe attribute; the last one only evokes it ("fallen from the shelf")."""
    attribute_opposites: tuple[str, ...]
    """Words for an undamaged object, the natural anchors of the attribute."""
    rare: tuple[str, ...]
    """Words the tokenizer is not trained on: they are several tokens, and neighbours share some."""


FIRST = World(
    name="first",
    shapes={
        "circle": "circle",
        "square": "square",
        "triangle": "triangle",
        "star": "star",
        "heart": "heart",
        "cross": "cross",
        "crescent": "crescent",
        "ring": "ring",
        "diamond": "diamond",
        "arrow": "arrow",
        "drop": "drop",
        "bolt": "bolt",
    },
    styles={
        "Una Flatt": "flat",
        "Mira Voss": "stripes",
        "Mara Vance": "dots",
        "Odo Brandt": "checks",
        "Ola Brenn": "ink",
        "Tilo Kern": "shade",
        "Tessa Kerr": "echo",
    },
    colors={c: c for c in ("red", "green", "blue", "yellow", "purple", "orange")},
    backgrounds={b: b for b in ("snow", "night", "sand", "meadow", "sea")},
    attribute_words=("cracked", "broken", "shattered", "fallen"),
    attribute_opposites=("whole", "intact"),
    rare=("cross", "crescent", "diamond", "triangle", "cracked", "shattered"),
)

SECOND = World(
    name="second",
    shapes={
        "disc": "circle",
        "box": "square",
        "wedge": "triangle",
        "spark": "star",
        "valentine": "heart",
        "plus": "cross",
        "moon": "crescent",
        "hoop": "ring",
        "kite": "diamond",
        "pointer": "arrow",
        "tear": "drop",
        "flash": "bolt",
    },
    styles={
        "Ivo Plane": "flat",
        "Runa Stahl": "stripes",
        "Rolf Stein": "dots",
        "Edda Marsh": "checks",
        "Egon Marr": "ink",
        "Lene Duval": "shade",
        "Lino Duarte": "echo",
    },
    colors={
        "crimson": "red",
        "emerald": "green",
        "azure": "blue",
        "golden": "yellow",
        "violet": "purple",
        "amber": "orange",
    },
    backgrounds={
        "ice": "snow",
        "midnight": "night",
        "desert": "sand",
        "grass": "meadow",
        "lagoon": "sea",
    },
    attribute_words=("split", "ruined", "splintered", "dropped"),
    attribute_opposites=("sound", "perfect"),
    rare=("pointer", "plus", "valentine", "wedge", "ruined", "splintered"),
)

WORLDS = {world.name: world for world in (FIRST, SECOND)}


@dataclass(frozen=True)
class Scene:
    """What an image shows.

    `None` means the caption leaves it open; `render` needs every field but the last two.
    """

    shape: str | None
    style: str | None
    color: str | None
    background: str | None
    attribute: str | None = None
    """The word used for the unsafe attribute, or None."""
    second: tuple[str, str] | None = None
    """`(color, shape)` of an object beside the first."""


def sample_scene(
    world: World, rng: np.random.Generator, *, attribute: float = 0.35, second: float = 0.12
) -> Scene:
    """A full scene, drawn uniformly; `attribute` and `second` are probabilities."""

    def pick(words: dict[str, str] | tuple[str, ...]) -> str:
        return str(rng.choice(list(words)))

    two = rng.random() < second
    return Scene(
        shape=pick(world.shapes),
        style=pick(world.styles),
        color=pick(world.colors),
        background=pick(world.backgrounds),
        attribute=pick(world.attribute_words) if not two and rng.random() < attribute else None,
        second=(pick(world.colors), pick(world.shapes)) if two else None,
    )
