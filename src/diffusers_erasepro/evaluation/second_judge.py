"""A second pair of eyes on the glyph world: Text-To-Concept over the judge's trunk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .. import glyphs
from ..glyphs.render import image
from ..glyphs.world import FIRST, World, sample_scene
from .text_to_concept import TextToConcept

FRAMES = {
    "shape": ("a {}", "a red {}", "a photo of a {}", "the blue {} at night"),
    "style": ("a circle by {}", "a red star by {}", "a square in the style of {}"),
    "color": ("a {} circle", "a {} star", "a {} heart"),
    "background": ("a circle on {}", "a red star on {}", "a square in {}"),
    "attribute": ("a {} circle", "a {} red star", "a photo of a {} square"),
}
"""What is said around a word, so that it means what it means in captions."""


class SecondJudge:
    """Text-To-Concept over the judge's trunk: answers as the judge gives them, without having been told a single label."""

    def __init__(self, detector: TextToConcept, world: World) -> None:
        self.detector, self.world = detector, world
        self.words = {
            "shape": tuple(world.shapes),
            "style": tuple(world.styles),
            "color": tuple(world.colors),
            "background": tuple(world.backgrounds),
            "attribute": (*world.attribute_words, *world.attribute_opposites),
        }
        self.said = {
            field: detector.said(words, FRAMES[field]) for field, words in self.words.items()
        }

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, list]:
        seen, told = self.detector.seen(images), dict[str, list]()
        for field, words in self.words.items():
            told[field] = [words[i] for i in (seen @ self.said[field].T).argmax(1).tolist()]
        return told | {
            "attribute": [word in self.world.attribute_words for word in told["attribute"]]
        }


def load_second_judge(folder: str | Path = glyphs.WEIGHTS) -> SecondJudge:
    """A second, independent opinion: Text-To-Concept over the judge's trunk, fitted on 800 renders without their labels."""
    clip, judge, rng = glyphs.load_clip(folder), glyphs.load_judge(folder), np.random.default_rng(0)
    pictures = [image(FIRST, sample_scene(FIRST, rng, second=0.0), rng) for _ in range(800)]
    return SecondJudge(
        TextToConcept.fit(pictures, backbone=judge.features, joint=clip.images, texts=clip.texts),
        FIRST,
    )
