"""Scenes as tensors: pictures of things pasted onto plain backgrounds, as captions say."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusers_erasepro.pictures.captions import BACKGROUNDS, Caption
from diffusers_erasepro.pictures.judge import SIZE

COLORS = {
    "white": (255, 255, 255),
    "black": (30, 30, 40),
    "blue": (120, 190, 255),
    "green": (120, 200, 120),
    "pink": (255, 200, 210),
    "yellow": (250, 225, 120),
    "gray": (150, 150, 155),
    "red": (210, 60, 60),
}
ALONE = 56
"""How wide a thing is that stands alone, in the middle: one size and place to learn."""
PAIRED = 32
"""How wide each of two things is, which stand side by side at half height."""


@dataclass(frozen=True)
class Place:
    """Where one picture stands in a scene."""

    row: int
    """Of the pictures."""
    size: int
    top: int
    left: int


@dataclass(frozen=True)
class Scene:
    """A caption's picture before it is drawn: all that the caption leaves open is chosen."""

    caption: Caption
    places: tuple[Place, ...]
    hand: str
    background: str


class Pictures:
    """The rendered pictures of `icons.py`."""

    def __init__(self, folder: Path) -> None:
        rgba = np.load(folder / "rgba.npy")
        self.rgba = torch.from_numpy(rgba).permute(0, 3, 1, 2)
        """`(n, 4, 72, 72)` uint8."""
        self.entries: list[dict] = json.loads((folder / "pictures.json").read_text("utf-8"))
        self.row = {(e["thing"], e["hand"]): row for row, e in enumerate(self.entries)}

    def scene(self, caption: Caption, hands: list[str], rng: random.Random) -> Scene:
        """The caption's scene; a hand or background that it leaves open is drawn by lot."""
        hand = caption.hand or rng.choice(hands)
        background = caption.background or rng.choice(BACKGROUNDS)
        rows = [self.row[thing, hand] for thing in caption.things]
        if len(rows) == 2:
            top = (SIZE - PAIRED) // 2
            places = (Place(rows[0], PAIRED, top, 0), Place(rows[1], PAIRED, top, PAIRED))
        else:
            margin = (SIZE - ALONE) // 2
            places = (Place(rows[0], ALONE, margin, margin),)
        return Scene(caption, places, hand, background)

    def drawn(self, scenes: list[Scene]) -> Tensor:
        """`(n, 3, 64, 64)` in -1..1."""
        canvas = plain([BACKGROUNDS.index(scene.background) for scene in scenes])
        for at, scene in enumerate(scenes):
            for place in scene.places:
                picture = self.rgba[place.row : place.row + 1]
                paste(canvas[at : at + 1], picture, place.size, place.top, place.left)
        return canvas / 127.5 - 1


def things_of(folder: Path) -> dict[str, dict]:
    """Every thing of the world, with its hands and words, in the order of the judge's answers."""
    return json.loads((folder / "things.json").read_text("utf-8"))


def plain(colors: list[int]) -> Tensor:
    """`(n, 3, 64, 64)` of 0..255, each of one of the eight backgrounds."""
    rgb = torch.tensor(list(COLORS.values()), dtype=torch.float)[colors]
    return rgb[:, :, None, None].repeat(1, 1, SIZE, SIZE)


def paste(canvas: Tensor, pictures: Tensor, size: int, top: int, left: int) -> None:
    """Blend RGBA pictures, resized to `size`, onto canvases `(n, 3, 64, 64)`, in place."""
    small = F.interpolate(
        pictures.float(), size=(size, size), mode="bilinear", antialias=True
    ).clamp(0, 255)
    alpha = small[:, 3:] / 255
    part = canvas[:, :, top : top + size, left : left + size]
    part.copy_(part * (1 - alpha) + small[:, :3] * alpha)
