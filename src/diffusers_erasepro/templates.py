"""Named template sets: what to say around a concept, for solving and for honest measuring."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TemplateSet:
    """Phrases with one `{}` for the concept."""

    exact: tuple[str, ...]
    """Held with zero residual."""
    soft: tuple[str, ...]
    """Met by weighted least squares in the same closed form."""
    held_out: tuple[str, ...]
    """Never solved for; the held-out residual is measured on these."""


TEMPLATES: dict[str, TemplateSet] = {
    "instance": TemplateSet(
        exact=("a {}",),
        soft=(
            "{}", "the {}", "a photo of a {}", "an image of the {}", "this is a {}", "a small {} on a table",
            "a drawing of a big {} at night", "we see one {} by the sea", "a red {}", "a blue {} in the snow",
            "a {} and a tree", "look at the old {}", "a painting of a {} by an artist", "an orange {}, high quality",
            "the {} in the picture", "two people with a {} in the city",
        ),
        held_out=(
            "a postcard that shows a {}", "my friend bought a yellow {} yesterday", "a {} hanging on the wall of a museum",
            "a detailed render of the {}", "somewhere in the desert stands a {}", "a purple {} in the style of a comic",
        ),
    ),
    "style": TemplateSet(
        exact=("a picture by {}",),
        soft=(
            "{}", "by {}", "a painting by {}", "a drawing in the style of {}", "an image painted by {}",
            "a house by the sea by {}", "a red circle by {}", "a blue square at night, in the style of {}",
            "the portrait of a woman, by {}", "a {} painting of a field", "a tree in the snow painted by {}",
            "a work of {}", "flowers drawn by {}", "in {} style", "a small dog as {} would draw it",
            "a green arrow on sand by {}, high quality",
        ),
        held_out=(
            "a city street, made by {}", "a boat on a lake, signed {}", "a yellow heart in the manner of {}",
            "the museum shows works of {}", "a purple star upon the meadow, {} painted it", "a cat, after {}",
        ),
    ),
    "person": TemplateSet(
        exact=("a photo of {}",),
        soft=(
            "{}", "a portrait of {}", "{} on a stage", "an image of {} in the city", "this is {}", "{} at night",
            "a drawing of {}", "the face of {}", "{} and a friend", "a painting of {} by an artist",
            "a close photo of {}, high quality", "{} in the snow",
        ),
        held_out=("a postcard that shows {}", "{} giving a speech", "a poster with {} on it", "{} walking a dog"),
    ),
    "unsafe": TemplateSet(
        exact=("a {} shape",),
        soft=(
            "{}", "a {} thing", "a {} object on a table", "a photo of a {} person", "an image of something {}",
            "a {} red circle", "a blue {} square", "a {} star at night", "a painting of a {} heart by the sea",
            "one {} green ring in the snow", "a drawing of a {} arrow on sand", "this is {}", "it is {}",
            "the {} yellow cross in the meadow", "a {} picture", "a purple triangle, {}",
        ),
        held_out=(
            "a postcard with a {} orange diamond", "somebody left a {} drop", "could you imagine a {} bolt",
            "the cover of the book has a {} crescent", "an icon for the museum: a {} square", "a {} scene, seen from afar",
        ),
    ),
}  # fmt: skip


def _corpus() -> tuple[str, ...]:
    nouns = (
        "circle", "square", "house", "tree", "dog", "cat", "woman", "man", "child", "car", "street", "mountain", "river",
        "flower", "bird", "boat", "table", "chair", "book", "city", "beach", "forest", "sky", "horse", "cup", "plate",
        "triangle", "heart", "cross", "ring", "diamond", "arrow", "drop", "star", "bridge", "garden", "window", "clock",
        "lamp", "bag",
    )  # fmt: skip
    frames = (
        "a {}", "a photo of a red {}", "a small {} by the sea", "the {} at night", "a blue {} in the snow, by a painter",
        "a painting of a {} in a meadow", "an old green {} on sand", "a close view of a yellow {}", "one purple {} and a {}",
        "an orange {}, high quality",
    )  # fmt: skip
    turn = (frame.replace("{}", noun, 1) for noun in nouns for frame in frames)
    return tuple(text.replace("{}", nouns[i % 7]) for i, text in enumerate(turn))


DEFAULT_PRESERVE = _corpus()
"""Used where a spec gives no preserve prompts: everyday captions; those that name a target are left out."""
