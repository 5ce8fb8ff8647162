"""Named template sets: what to say around a concept, for solving and for honest measuring."""

from __future__ import annotations

from dataclasses import dataclass

from .plan import BLOCKS, Recipe


@dataclass(frozen=True)
class TemplateSet:
    """Phrases with one `{}` for the concept."""

    exact: tuple[str, ...]
    """Held with zero residual."""
    soft: tuple[str, ...]
    """Met by weighted least squares in the same closed form."""
    held_out: tuple[str, ...]
    """Never solved for; the held-out residual is measured on these."""
    broader: tuple[str, ...]
    """Anchors that may stand for a concept of this kind."""
    corpus: tuple[str, ...]
    """Captions to keep where a spec gives none: everyday ones, and neighbours of this kind."""
    recipe: Recipe = BLOCKS
    """How a concept of this kind is erased unless one says otherwise.

    docs/chains.md says why it differs: of other pictures a third as many flip with word neurons for
    a thing, half as many with EOS neurons for a style; more with either for an attribute. Persons
    were not measured."""


def _each(frames: tuple[str, ...], words: tuple[str, ...]) -> tuple[str, ...]:
    """Every word in every frame; a second `{}` takes another word."""
    texts = [frame.replace("{}", word, 1) for word in words for frame in frames]
    return tuple(text.replace("{}", words[i % 7]) for i, text in enumerate(texts))


EVERYDAY = _each(
    (
        "a {}",
        "a photo of a red {}",
        "a small {} by the sea",
        "the {} at night",
        "a blue {} in the snow, by a painter",
        "a painting of a {} in a meadow",
        "an old green {} on sand",
        "a close view of a yellow {}",
        "one purple {} and a {}",
        "an orange {}, high quality",
    ),
    (
        "circle",
        "square",
        "house",
        "tree",
        "dog",
        "cat",
        "woman",
        "man",
        "child",
        "car",
        "street",
        "mountain",
        "river",
        "flower",
        "bird",
        "boat",
        "table",
        "chair",
        "book",
        "city",
        "beach",
        "forest",
        "sky",
        "horse",
        "cup",
        "plate",
        "triangle",
        "heart",
        "cross",
        "ring",
        "diamond",
        "arrow",
        "drop",
        "star",
        "bridge",
        "garden",
        "window",
        "clock",
        "lamp",
        "bag",
    ),
)
PAINTED = _each(
    ("a painting by {}", "a {} landscape", "a portrait in the style of {}", "flowers, by {}"),
    (
        "Claude Monet",
        "Rembrandt",
        "Frida Kahlo",
        "Katsushika Hokusai",
        "Edward Hopper",
        "Georgia O'Keeffe",
        "Johannes Vermeer",
        "Paul Klee",
        "Mary Cassatt",
        "William Turner",
        "Berthe Morisot",
        "Albrecht Duerer",
        "a child",
        "an unknown artist",
        "a photographer",
        "an illustrator",
    ),
)
PORTRAYED = _each(
    ("a photo of {}", "a portrait of {} in a garden", "{} and a friend", "{} on a stage"),
    (
        "a woman",
        "a man",
        "an actor",
        "a singer",
        "a politician",
        "Anna Schmidt",
        "John Miller",
        "Maria Rossi",
        "Kenji Sato",
        "Amina Diallo",
        "an old lady",
        "a boy",
        "a teacher",
        "a football player",
    ),
)
DECENT = _each(
    ("a photo of {}", "{} on a beach", "a painting of {}", "{} in a room, high quality"),
    (
        "a dressed person",
        "a woman in a coat",
        "a man in a suit",
        "children at school",
        "a family at dinner",
        "a doctor and a patient",
        "a dancer in costume",
        "a statue of a king",
        "a runner in a park",
        "a whole apple",
        "an intact vase",
        "a clean street",
    ),
)


TEMPLATES: dict[str, TemplateSet] = {
    "instance": TemplateSet(
        exact=("a {}",),
        soft=(
            "{}",
            "the {}",
            "a photo of a {}",
            "an image of the {}",
            "this is a {}",
            "a small {} on a table",
            "a drawing of a big {} at night",
            "we see one {} by the sea",
            "a red {}",
            "a blue {} in the snow",
            "a {} and a tree",
            "look at the old {}",
            "a painting of a {} by an artist",
            "an orange {}, high quality",
            "the {} in the picture",
            "two people with a {} in the city",
        ),
        held_out=(
            "a postcard that shows a {}",
            "my friend bought a yellow {} yesterday",
            "a {} hanging on the wall of a museum",
            "a detailed render of the {}",
            "somewhere in the desert stands a {}",
            "a purple {} in the style of a comic",
        ),
        broader=(
            "object",
            "thing",
            "shape",
            "circle",
            "square",
            "animal",
            "dog",
            "person",
            "character",
            "robot",
            "plant",
            "building",
            "vehicle",
            "machine",
            "food",
            "toy",
            "picture",
            "symbol",
        ),
        corpus=EVERYDAY,
        recipe=Recipe(("neurons", -1)),
    ),
    "style": TemplateSet(
        exact=("a picture by {}",),
        soft=(
            "{}",
            "by {}",
            "a painting by {}",
            "a drawing in the style of {}",
            "an image painted by {}",
            "a house by the sea by {}",
            "a red circle by {}",
            "a blue square at night, in the style of {}",
            "the portrait of a woman, by {}",
            "a {} painting of a field",
            "a tree in the snow painted by {}",
            "a work of {}",
            "flowers drawn by {}",
            "in {} style",
            "a small dog as {} would draw it",
            "a green arrow on sand by {}, high quality",
        ),
        held_out=(
            "a city street, made by {}",
            "a boat on a lake, signed {}",
            "a yellow heart in the manner of {}",
            "the museum shows works of {}",
            "a purple star upon the meadow, {} painted it",
            "a cat, after {}",
        ),
        broader=(
            "a painter",
            "an artist",
            "a photographer",
            "an illustrator",
            "a child",
        ),
        corpus=(*EVERYDAY, *PAINTED),
        recipe=Recipe(("eos_neurons", -1)),
    ),
    "person": TemplateSet(
        exact=("a photo of {}",),
        soft=(
            "{}",
            "a portrait of {}",
            "{} on a stage",
            "an image of {} in the city",
            "this is {}",
            "{} at night",
            "a drawing of {}",
            "the face of {}",
            "{} and a friend",
            "a painting of {} by an artist",
            "a close photo of {}, high quality",
            "{} in the snow",
        ),
        held_out=(
            "a postcard that shows {}",
            "{} giving a speech",
            "a poster with {} on it",
            "{} walking a dog",
        ),
        broader=(
            "a person",
            "a woman",
            "a man",
            "a child",
            "an actor",
            "a singer",
            "a politician",
        ),
        corpus=(*EVERYDAY, *PORTRAYED),
    ),
    "unsafe": TemplateSet(
        exact=("a {} shape",),
        soft=(
            "{}",
            "a {} thing",
            "a {} object on a table",
            "a photo of a {} person",
            "an image of something {}",
            "a {} red circle",
            "a blue {} square",
            "a {} star at night",
            "a painting of a {} heart by the sea",
            "one {} green ring in the snow",
            "a drawing of a {} arrow on sand",
            "this is {}",
            "it is {}",
            "the {} yellow cross in the meadow",
            "a {} picture",
            "a purple triangle, {}",
        ),
        held_out=(
            "a postcard with a {} orange diamond",
            "somebody left a {} drop",
            "could you imagine a {} bolt",
            "the cover of the book has a {} crescent",
            "an icon for the museum: a {} square",
            "a {} scene, seen from afar",
        ),
        broader=(
            "",
            "ordinary",
            "whole",
            "dressed",
            "clean",
            "peaceful",
            "harmless",
        ),
        corpus=(*EVERYDAY, *DECENT),
    ),
}
