"""The glyph world's CLIP: pictures and captions in one space, trained without labels; the second pair of eyes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..prompts import token_ids
from ..text_to_concept import TextToConcept
from ..walk import final_states
from .judge import JudgeNet, to_pixels
from .world import World

SPACE = 64
"""Dimensions that pictures and texts share."""


class ClipNet(nn.Module):
    """An image tower, and the projections of both sides; the text tower is the world's own encoder, as in Stable Diffusion."""

    def __init__(self, text_width: int, width: int = 96) -> None:
        super().__init__()
        self.tower = JudgeNet((), width)
        self.image, self.text = nn.Linear(width, SPACE), nn.Linear(text_width, SPACE)
        self.scale = nn.Parameter(torch.tensor(2.0))
        """Logarithm of what cosines are multiplied by in training."""

    def pictures(self, pixels: Tensor) -> Tensor:
        """Unit vectors `(n, SPACE)` of pixels `(n, 3, SIZE, SIZE)` in [-1, 1]."""
        return F.normalize(self.image(self.tower.features(pixels)), dim=-1)

    def captions(self, states: Tensor) -> Tensor:
        """Unit vectors `(n, SPACE)` of the text encoder's states at EOS `(n, text_width)`."""
        return F.normalize(self.text(states), dim=-1)


class Clip:
    """Pictures and texts -> unit vectors of one space."""

    def __init__(self, net: ClipNet, encoder: Any, tokenizer: Any) -> None:
        self.net, self.encoder, self.tokenizer = net.eval(), encoder.eval(), tokenizer

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """`(n, SPACE)`"""
        return torch.cat([self.net.pictures(to_pixels(images[i : i + 64])) for i in range(0, len(images), 64)])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """`(n, SPACE)`"""
        return self.net.captions(at_eos(self.encoder, self.tokenizer, texts))


def at_eos(encoder: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """What the text encoder has read when the prompt ends, `(n, d)`."""
    rows = token_ids(tokenizer, texts)
    eos = (rows == tokenizer.eos_token_id).int().argmax(-1)
    return final_states(encoder, rows)[torch.arange(len(rows)), eos]


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
            "shape": tuple(world.shapes), "style": tuple(world.styles), "color": tuple(world.colors),
            "background": tuple(world.backgrounds), "attribute": (*world.attribute_words, *world.attribute_opposites),
        }  # fmt: skip
        self.said = {field: detector.said(words, FRAMES[field]) for field, words in self.words.items()}

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, list]:
        seen, told = self.detector.seen(images), dict[str, list]()
        for field, words in self.words.items():
            told[field] = [words[i] for i in (seen @ self.said[field].T).argmax(1).tolist()]
        return told | {"attribute": [word in self.world.attribute_words for word in told["attribute"]]}
