"""The judge of the pictures world: says what a picture shows, or that it cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ErasureError
from .captions import BACKGROUNDS, STYLES
from .world import folder, things

SIZE = 64
SURE = {"thing": 0.35, "hand": 0.35, "background": 0.5}
"""Least probability of an answer; below it the judge abstains."""
WIDTHS = (
    (3, 48, 1),
    (48, 64, 2),
    (64, 96, 1),
    (96, 128, 2),
    (128, 192, 1),
    (192, 256, 2),
    (256, 384, 1),
)
"""Channels in, channels out, stride of each layer."""


class JudgeNet(nn.Module):
    """`(n, 3, 64, 64)` in -1..1 -> logits of thing, hand, background."""

    def __init__(self, things: int) -> None:
        super().__init__()
        width = WIDTHS[-1][1]
        self.trunk = nn.Sequential(*(_layer(*channels) for channels in WIDTHS))
        self.thing = nn.Linear(width, things)
        self.style = nn.Linear(2 * width, len(STYLES))
        self.background = nn.Linear(width, len(BACKGROUNDS))

    def features(self, pixels: Tensor) -> Tensor:
        """`(n, 768)`: mean and peak of the trunk's channels."""
        h = self.trunk(pixels)
        return torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        both = self.features(pixels)
        mean, peak = both.chunk(2, 1)
        return self.thing(peak), self.style(both), self.background(mean)


def _layer(inward: int, outward: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inward, outward, 3, stride, 1), nn.BatchNorm2d(outward), nn.ReLU()
    )


@dataclass(frozen=True)
class Judge:
    """`judge(images)` -> `{"thing": [...], "hand": [...], "background": [...]}`.

    An answer of None is an abstention.
    """

    net: JudgeNet
    things: tuple[str, ...]

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, list[str | None]]:
        chances = self.chances(images)
        return {name: self._answers(name, chances[name], SURE[name]) for name in chances}

    def likeliest(self, images: Sequence[Image.Image]) -> dict[str, list[str | None]]:
        """The same without abstaining."""
        chances = self.chances(images)
        return {name: self._answers(name, chances[name], 0.0) for name in chances}

    @torch.no_grad()
    def chances(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Probabilities `(n, answers)` of things, hands, backgrounds."""
        thing, hand, background = self.net(pixels(images))
        logits = {"thing": thing, "hand": hand, "background": background}
        return {name: said.softmax(1) for name, said in logits.items()}

    def _answers(self, name: str, chances: Tensor, least: float) -> list[str | None]:
        """Every picture's likeliest answer, None where it is not likely enough."""
        known = {"thing": self.things, "hand": STYLES, "background": BACKGROUNDS}[name]
        best = chances.max(1)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [known[at] if chance >= least else None for chance, at in pairs]


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """`(n, 3, 64, 64)` in -1..1.

    Raises:
        ErasureError: A picture of another size, or what is no picture.
    """
    if isinstance(images, Image.Image):
        raise ErasureError("the judge takes a list of pictures, got one; give [picture]")
    for at, image in enumerate(images):
        check_size(image, f"picture {at}")
    if not images:
        return torch.zeros(0, 3, SIZE, SIZE, dtype=torch.float32)
    stack = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1


def check_size(image: Image.Image, what: str) -> None:
    """Raise ErasureError unless it is a picture as this world draws them."""
    if not isinstance(image, Image.Image):
        raise ErasureError(
            f"{what} is a {type(image).__name__}; the judge takes pictures of PIL, as a pipeline "
            "returns them"
        )
    if image.size != (SIZE, SIZE):
        width, height = image.size
        raise ErasureError(
            f"{what} is {width} x {height}; this judge knows pictures of {SIZE} x {SIZE}"
        )


def half(image: Image.Image, side: int) -> Image.Image:
    """One of two things, enlarged: side 0 is the left.

    It is the square of half the width in which a thing stands most likely, by contrast with the
    background, row by row.

    Raises:
        ErasureError: A picture of another size.
    """
    check_size(image, "the picture")
    width = SIZE // 2
    column = image.crop((side * width, 0, (side + 1) * width, SIZE))
    gray = torch.frombuffer(bytearray(column.convert("L").tobytes()), dtype=torch.uint8)
    rows = gray.view(SIZE, width).float().std(1)
    windows = rows.unfold(0, width, 1).sum(1)
    top = int(windows.argmax())
    return column.crop((0, top, width, top + width)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def shipped_judge() -> Judge:
    """The shipped judge."""
    known = things()
    net = JudgeNet(len(known)).float()
    weights = load_file(folder() / "judge.safetensors")
    net.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=True)
    return Judge(net.eval(), known)
